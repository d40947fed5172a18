"""What a forked process does to itself before it runs a step, and how it ends."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import psutil

from compress.system.lifetime import die_with_parent

OOM_SCORE = "800"
"""If the kernel runs out of memory it ends the step, not the run."""
MARGIN = 2**28
"""Bytes that a step can map in any case, beside what was mapped when it was forked."""


def fork() -> int:
    """Fork, without the warning that this process may have threads (see `run_in_child`)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12's, about threads
        return os.fork()


def set_process_name(name: str) -> None:
    """Give this process a name (of at most 15 bytes) that `ps` and `top` show. On Linux."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            Path("/proc/self/comm").write_text(name[:15])


def run_in_child(
    work: Callable[[Mapping[str, Any]], None], message: Mapping[str, Any], parent: int
) -> NoReturn:
    """Do the work of a message in this fresh fork, and end the process.

    The message names its log, its scratch folder, and the limit of its memory. The work is done
    in a thread of its own: GNU's OpenMP keeps its pool by thread, and the pool of the thread that
    forked is not alive in the fork (it would wait for it for ever).
    """
    status = 1
    try:
        os.setpgid(0, 0)
        set_process_name("compress-step")
        die_with_parent(parent)
        _log_to(message["log"])
        _limit(message["memory"])
        os.environ["TMPDIR"] = tempfile.tempdir = str(message["scratch"])
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        failed: list[BaseException] = []

        def guarded() -> None:
            try:
                work(message)
            except BaseException as error:
                failed.append(error)
                traceback.print_exc()

        thread = threading.Thread(target=guarded, name="step")
        thread.start()
        thread.join()
        status = 1 if failed else 0
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _log_to(path: str | Path) -> None:
    """Send what this process and its libraries print to a file, and the stack if it crashes."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)
    sys.stdout = os.fdopen(os.dup(1), "w", buffering=1, errors="replace")
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, errors="replace")
    faulthandler.enable(sys.stderr, all_threads=True)


def _limit(memory: int | None) -> None:
    """Let allocations fail at the limit, as an error that training can answer, and dump no core."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(OOM_SCORE)
    try:
        import resource
    except ImportError:
        return
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if memory is not None:
            # Without room for a thread's stack beside what is mapped already nothing would start.
            least = getattr(psutil.Process().memory_info(), "data", 0) + MARGIN
            resource.setrlimit(resource.RLIMIT_DATA, (max(memory, least),) * 2)
