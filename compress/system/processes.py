"""Processes of ours that do not come from a fork: the same Python, and this very package."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

PACKAGE_ROOT = Path(__file__).resolve().parents[2]


def worker_environment() -> dict[str, str]:
    """Return the environment of a process that finds this package, wherever it was imported."""
    paths = [str(PACKAGE_ROOT), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def our_python(module: str, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """Return the command that runs a module of ours in a fresh Python, and its environment."""
    # -P: a file of the user's current folder must not be taken for one of our modules.
    return [sys.executable, "-P", "-m", module, *arguments], worker_environment()


def started() -> float:
    """Return when this process began, by `time.monotonic()`."""
    import psutil  # not where models are only timed

    age = time.time() - psutil.Process().create_time()
    return time.monotonic() - max(0.0, age)


@contextlib.contextmanager
def gc_disabled() -> Iterator[None]:
    """Do without garbage collection what makes very many objects of which few are garbage.

    Imports of large libraries make millions, all of which stay; searching them takes a sixth of the
    time.
    """
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()
