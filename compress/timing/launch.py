"""Starting a process of ours that has no torch in it, and telling how it ended."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from compress.amounts import duration

PACKAGE_ROOT = Path(__file__).resolve().parents[2]
LOADING, RUNNING = "loading ", "running "
"""What a timing process says of a file before it opens it, and before it first runs it."""


class WorkerFailed(RuntimeError):
    """A timing process ended without a result; the sentence says how.

    `said` is the last line that it wrote: where it was.
    """

    def __init__(self, sentence: str, said: str = "") -> None:
        super().__init__(sentence)
        self.said = said


Launch = Callable[[Path, Path, float], None]


def launch(job: Path, result: Path, timeout: float, module: str = "compress.timing.worker") -> None:
    """Run the timing process on a job; raise WorkerFailed if it crashes or takes too long."""
    paths = [str(PACKAGE_ROOT), os.environ.get("PYTHONPATH", "")]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    # -P: a file of the user's current folder must not be taken for one of our modules.
    command = [sys.executable, "-P", "-m", module, str(job), str(result), str(os.getpid())]
    try:
        done = subprocess.run(
            command, env=variables, capture_output=True, text=True, timeout=timeout
        )
    except subprocess.TimeoutExpired as error:
        said = _last_line(error.stderr)
        raise WorkerFailed(
            f"the timing process took more than {duration(timeout)} and was ended ({said})", said
        ) from None
    if done.returncode < 0:
        said = _last_line(done.stderr)
        raise WorkerFailed(
            f"the timing process was killed by signal {-done.returncode} ({said})", said
        )
    if done.returncode:
        raise WorkerFailed(f"the timing process failed: {_last_line(done.stderr)}")


def _last_line(text: str | bytes | None) -> str:
    plain = text.decode(errors="replace") if isinstance(text, bytes) else text or ""
    return (plain.strip().splitlines() or ["it said nothing"])[-1]
