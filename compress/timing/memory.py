"""Peak memory of inference: `python -m compress.timing.memory JOB.json RESULT.json`.

The process holds nothing but numpy and onnxruntime, and forks a child for every file before it
has a session of its own, so no file is affected by what another one left. It must not import torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from compress.runtimes.base import OnnxFile
from compress.runtimes.onnxruntime_cpu import (
    ERRORS_TOO,
    OrtSession,
    open_session,
    session_options,
)
from compress.system.lifetime import die_with_parent
from compress.timing.launch import WorkerFailed, launch, load_arrays, serve

Peak = tuple[int | None, str]
"""Bytes, or None and the reason."""

KILLED = "was killed by signal"
CALLS = 3
TIMEOUT = 600.0
"""Seconds for all files together."""
IDENTITY = (
    b'\x08\x08:/\n\x10\n\x01x\x12\x01y"\x08Identity\x12\x01gZ\x0b\n\x01x\x12\x06\n\x04\x08\x01'
    b"\x12\x00b\x0b\n\x01y\x12\x06\n\x04\x08\x01\x12\x00B\x04\n\x00\x10\r"
)
"""An ONNX file that returns its one input, a float without dimensions."""


def peak_bytes(paths: Sequence[Path], inputs: Sequence[np.ndarray], threads: int) -> list[Peak]:
    """Return for every file how many bytes of memory loading and running it adds at most.

    Each file is loaded in a fresh process with `threads` threads, at the default optimization
    level, and runs a few times on `inputs`, one array per input, (N, ...). What is added is
    counted from a process in which onnxruntime has run a graph that does nothing: the runtime's
    own code (some 17 MB) is no property of a file.

    On Linux this is the growth to the peak of the resident set (`VmHWM`), elsewhere that of
    `getrusage`; where a process cannot fork there is a reason instead.
    """
    with tempfile.TemporaryDirectory(prefix="compress-memory-") as folder:
        job, result = Path(folder) / "job.json", Path(folder) / "result.json"
        values: dict[str, Any] = {
            "paths": [str(Path(path).resolve()) for path in paths],
            "inputs": str(Path(folder) / "inputs.npz"),
            "threads": threads,
        }
        np.savez(values["inputs"], *inputs)
        job.write_text(json.dumps(values))
        for last in (False, True):
            try:
                launch(job, result, TIMEOUT, "compress.timing.memory")
            except WorkerFailed as error:
                if last or KILLED not in str(error):
                    return [(None, str(error))] * len(paths)
            else:
                break
        return [(peak, reason) for peak, reason in json.loads(result.read_text())]


def in_child(action: Callable[[], int]) -> Peak:
    """Run an action in a forked child; return its answer, or how the child ended without one.

    One that is killed gets a second child: whatever killed it may not have meant the file.
    """
    peak = _in_child(action)
    return _in_child(action) if KILLED in peak[1] else peak


def _in_child(action: Callable[[], int]) -> Peak:
    if not hasattr(os, "fork"):
        return None, "peak memory is measured in forked processes, and this system has none"
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        # Python warns that the threads of numpy's BLAS do not follow; the child needs none.
        warnings.simplefilter("ignore", DeprecationWarning)
        me, child = os.getpid(), os.fork()
    if not child:
        die_with_parent(me)
        _answer(writer, action)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    if not answer:
        return None, f"the process that ran the file {KILLED} {os.WTERMSIG(status)}"
    peak, reason = json.loads(answer)
    return peak, reason


def _answer(writer: int, action: Callable[[], int]) -> NoReturn:
    """Write what an action returns or raises to a pipe, and end this process."""
    try:
        answer: Peak = action(), ""
    except BaseException as error:  # whatever it is, the parent's code must not run on here
        line = (str(error).splitlines() or [""])[0]
        answer = None, f"{type(error).__name__}: {line[:1000]}"
    os.write(writer, json.dumps(answer).encode())
    os._exit(0)


def growth(path: str, inputs: Sequence[np.ndarray], threads: int) -> int:
    """Load and run a file in this process; return by how much its peak memory grew."""
    idle = _session(IDENTITY, 1)
    idle.run({"x": np.zeros((), np.float32)})
    before = _forget_peak()
    session = _session(path, threads)
    feed = dict(zip(session.names, inputs, strict=True))
    for _ in range(CALLS):
        session.run(feed)
    return _peak() - before


def _session(onnx: OnnxFile, threads: int) -> OrtSession:
    return OrtSession(open_session(onnx, session_options(silence=ERRORS_TOO, threads=threads)))


STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _forget_peak() -> int:
    """Let the peak be what is resident now, where that can be done, and return it in bytes."""
    # Where it cannot, the little memory that the idle graph needed at its peak counts for the file.
    with contextlib.suppress(OSError):
        CLEAR.write_text("5")
    resident = _status("VmRSS")
    return _peak() if resident is None else resident


def _peak() -> int:
    """Return the largest resident set of this process so far, in bytes."""
    peak = _status("VmHWM")
    if peak is not None:
        return peak
    import resource

    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else 1024 * largest


def _status(field: str) -> int | None:
    """Return a field of Linux's description of this process, in bytes; None where it lacks."""
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        return None
    values = (line.split() for line in lines if line.startswith(f"{field}:"))
    return next((1024 * int(words[1]) for words in values), None)


def main(job: dict[str, Any]) -> list[Peak]:
    inputs = load_arrays(job["inputs"])
    import onnxruntime  # noqa: F401 - loaded once, for all children

    peaks = []
    for path in job["paths"]:
        print(f"running {Path(path).name}", file=sys.stderr, flush=True)
        peaks.append(in_child(partial(growth, path, inputs, job["threads"])))
    return peaks


if __name__ == "__main__":
    serve(main)
