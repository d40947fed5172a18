"""The room of statistics is cheap to enter: numpy alone, scipy where a quantile is asked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import compress.stats

MODULES = [path.stem for path in Path(compress.stats.__file__).parent.glob("*.py")]


def test_no_module_imports_scipy_or_torch() -> None:
    names = ", ".join(f"compress.stats.{name}" for name in MODULES if name != "__init__")
    code = f"import sys, {names}; print([m for m in ('scipy', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert len(MODULES) > 5
    assert done.stdout.strip() == "[]"
