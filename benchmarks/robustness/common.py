"""What the proofs share: a small suite, plug-ins by entry point, rows without their timings."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "measurement"))

from installed import installed  # noqa: E402 - from the folder beside this one
from trials import publish, table  # noqa: E402 - from the folder beside this one

from compress.timing.setting import parse_setting  # noqa: E402

__all__ = ["command", "environment", "plug_in", "publish", "rows", "run", "table"]

TIMING = re.compile(
    r"(^|; )(noisy latency \([^)]*\): half of the calls|process \d+: the timing process) [^;]*"
)
"""Notes on the timing: that it was noisy, and timing processes that died (some are killed here)."""
TIMED = ("seconds", "peak_bytes")
"""Columns that differ between two undisturbed runs; so do all that begin with a setting's name."""


def plug_in(folder: Path) -> Path:
    """Make a folder that, on PYTHONPATH, has the techniques of `hostile.py` installed."""
    from hostile import HOSTILE

    return installed(folder, HERE / "hostile.py", HOSTILE)


def environment(*folders: Path) -> dict[str, str]:
    paths = [*map(str, folders), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def command(*words: str) -> list[str]:
    """Return the command line of `compress-models`, run by this Python."""
    return [sys.executable, "-m", "compress", *words]


def rows(out: Path) -> list[dict[str, str]]:
    """Return the rows of a run's table without what is timed."""
    with open(out / "results.csv", newline="") as file:
        found = list(csv.DictReader(file))
    kept = [{k: v for k, v in row.items() if not _timed(k)} for row in found]
    return [{**row, "note": TIMING.sub("", row["note"]).removeprefix("; ")} for row in kept]


def _timed(column: str) -> bool:
    if column in TIMED:
        return True
    head = column.split("_")[0]
    try:
        parse_setting(head)
    except ValueError:
        return False
    return True


def run(words: Sequence[str], env: Mapping[str, str] | None = None, **more: object) -> int:
    """Run the command line and return its exit status; what it says goes nowhere."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **more}
    return subprocess.run(command(*words), env=env, **quiet).returncode  # type: ignore[call-overload]


SUITE = """
data = "digits"
model = "mlp(width=32)"
timings = ["cpu"]
timing_seconds = 0.5
controls = false
chains = [
    "train(epochs=8) -> prune_weights(sparsity=0.5)",
    "prune_weights(sparsity=0.5) -> finetune(epochs=4)",
    "prune_weights(sparsity=0.5) -> finetune(epochs=4) -> quantize()",
    "distill(student='mlp(width=16)', epochs=6)",
    "distill(student='mlp(width=16)', epochs=6) -> quantize()",
    "factorize(rank=0.5) -> finetune(epochs=3)",
]
"""
