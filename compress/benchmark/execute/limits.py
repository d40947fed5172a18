"""The limits of a step in seconds and memory; the memory of a process and its descendants."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

import psutil

from compress.errors import UserError
from compress.system.amounts import size
from compress.system.memory import free_memory

DAY = 86_400.0
SHARE = 0.9
"""Of the memory that is free when a run begins."""
TORCH = 2**28
"""Bytes: about what torch alone takes."""
LEAST = 2**30
"""Bytes: torch and the libraries that a step may use hold half of it before it does anything."""
PROC = Path("/proc")


@dataclass(frozen=True)
class Limits:
    """Seconds and bytes that one step, or the measuring of one row, may take."""

    seconds: float = DAY / 2
    """Twelve hours: a hang is found some time, and training may take long."""
    memory: int | None = None
    """None: nine tenths of what is free when the run begins, and at least `LEAST`."""

    def __post_init__(self) -> None:
        if not 0 < self.seconds < float("inf"):
            raise UserError(f"step_timeout must be positive and finite, not {self.seconds}")
        if self.memory is not None and self.memory < TORCH:
            raise UserError(
                f"step_memory is {size(self.memory)}, and torch alone takes about 0.3 GB: "
                f"give at least that"
            )

    def bytes(self) -> int:
        """Return the limit of memory in bytes. Raises UserError if too little is free for torch."""
        if self.memory is not None:
            return self.memory
        free = free_memory()
        if free < TORCH:
            raise UserError(
                f"only {size(free)} of memory is free, within the limits of the container if this "
                f"is one, and torch alone takes about 0.3 GB: end other programs or raise the "
                f"container's limit. --step-memory GB runs steps whatever is free"
            )
        return max(int(SHARE * free), LEAST)


def family(pid: int) -> list[int]:
    """Return a process and all its living descendants."""
    family = [pid]
    for member in family:  # which grows meanwhile
        family += children(member)
    return family


def children(pid: int) -> list[int]:
    """Return the living processes that a process, or any of its threads, has started.

    As the kernel lists them, where it does: psutil looks at every process of the machine, which
    takes 30 ms where there are 900, and a step's are looked for every 50 ms.
    """
    found: list[int] = []
    with contextlib.suppress(OSError, ValueError, psutil.Error):  # it, or a thread, has just ended
        if not (PROC / "thread-self" / "children").exists():
            return [child.pid for child in psutil.Process(pid).children()]
        for task in (PROC / str(pid) / "task").iterdir():
            found += [int(child) for child in (task / "children").read_text().split()]
    return found


def resident(pid: int) -> int:
    """Return the bytes that a process and its descendants hold in memory, but for mapped files.

    What several of them share is counted for each.
    """
    return sum(map(_resident_alone, family(pid)))


def _resident_alone(pid: int) -> int:
    with contextlib.suppress(OSError):
        lines = (PROC / str(pid) / "status").read_text().splitlines()
        # psutil does not separate these from mapped files.
        sizes = [line.split()[1] for line in lines if line.startswith(("RssAnon:", "RssShmem:"))]
        if sizes:
            return 1024 * sum(map(int, sizes))
    with contextlib.suppress(psutil.Error):
        return int(psutil.Process(pid).memory_info().rss)
    return 0
