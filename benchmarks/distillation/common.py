"""What the proofs of distillation share with those in the folders beside this one."""

from __future__ import annotations

import sys
from pathlib import Path

BESIDE = Path(__file__).resolve().parent.parent
sys.path += [str(BESIDE / "measurement"), str(BESIDE / "robustness")]

from disks import small_disk  # noqa: E402 - from the folder beside this one
from trials import publish, table  # noqa: E402 - from the folder beside this one

__all__ = ["publish", "small_disk", "table"]
