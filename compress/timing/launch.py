"""Starting a process of ours that has no torch in it, and reporting how it ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from compress.system.amounts import duration
from compress.system.lifetime import die_with_parent
from compress.system.processes import our_python

LOADING, RUNNING = "loading ", "running "
"""What a timing process prints before a file's name when it opens it, and first runs it."""


class WorkerFailed(RuntimeError):
    """A timing process ended without a result; `last_line` is what it printed last."""

    def __init__(self, sentence: str, last_line: str = "") -> None:
        super().__init__(sentence)
        self.last_line = last_line


Launch = Callable[[Path, Path, float], None]


def launch(job: Path, result: Path, timeout: float, module: str = "compress.timing.worker") -> None:
    """Run the timing process on a job; raise WorkerFailed if it crashes or takes too long."""
    command, variables = our_python(module, str(job), str(result), str(os.getpid()))
    try:
        done = subprocess.run(
            command, env=variables, capture_output=True, text=True, timeout=timeout
        )
    except subprocess.TimeoutExpired as error:
        line, how = _last_line(error.stderr), f"took more than {duration(timeout)} and was ended"
    else:
        if not done.returncode:
            return
        line, how = _last_line(done.stderr), f"was killed by signal {-done.returncode}"
        if done.returncode > 0:
            raise WorkerFailed(f"the timing process failed: {line}")
    raise WorkerFailed(f"the timing process {how} ({line})", line)


def serve(answer: Callable[[Any], Any]) -> None:
    """Be a process that `launch` has started: read its job, and write the answer to it (JSON)."""
    job, result, parent = sys.argv[1:]
    die_with_parent(int(parent))
    values = answer(json.loads(Path(job).read_text()))
    Path(result).write_text(json.dumps(values))


def load_arrays(path: str) -> list[np.ndarray]:
    """Return what `numpy.savez(path, *arrays)` wrote, in order."""
    with np.load(path) as file:
        return [file[name] for name in file.files]


def _last_line(text: str | bytes | None) -> str:
    plain = text.decode(errors="replace") if isinstance(text, bytes) else text or ""
    return (plain.strip().splitlines() or ["it printed nothing"])[-1]
