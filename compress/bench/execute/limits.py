"""What a step may take: seconds, memory. And how to see what a process and its children take."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from compress.errors import UserError
from compress.system.memory import free_memory

DAY = 86_400.0
SHARE = 0.9
"""Of the memory that is free when a run begins."""
PROC = Path("/proc")


@dataclass(frozen=True)
class Limits:
    """Seconds and bytes that one step, or the measuring of one row, may take."""

    seconds: float = DAY / 2
    """Twelve hours: a hang is found some time, and training may take long."""
    memory: int | None = None
    """None: nine tenths of what is free when the run begins."""

    def __post_init__(self) -> None:
        if not 0 < self.seconds < float("inf"):
            raise UserError(f"step_timeout must be positive and finite, not {self.seconds}")
        if self.memory is not None and self.memory < 2**28:
            raise UserError(
                f"step_memory is {self.memory / 1e9:.3g} GB, and torch alone takes about 0.3 GB: "
                f"give at least that"
            )

    def bytes(self) -> int | None:
        """Return the limit of memory in bytes; None where the system does not tell what is free."""
        if self.memory is not None:
            return self.memory
        free = free_memory()
        return None if free is None else int(SHARE * free)


def family(pid: int, proc: Path = PROC) -> list[int]:
    """Return a process and all its living descendants."""
    found, ahead = [], [pid]
    while ahead:
        one = ahead.pop()
        found.append(one)
        ahead += children(one, proc)
    return found


def children(pid: int, proc: Path = PROC) -> list[int]:
    """Return what a process, or any of its threads, has started and is still there."""
    found: list[int] = []
    with contextlib.suppress(OSError, ValueError):  # it has just ended: it has none
        for task in (proc / str(pid) / "task").iterdir():
            found += [int(child) for child in (task / "children").read_text().split()]
    return found


def resident(pid: int, proc: Path = PROC) -> int:
    """Return the bytes that a process and its descendants hold in memory, but for mapped files.

    What several of them share is counted for each.
    """
    total = 0
    for one in family(pid, proc):
        try:
            lines = (proc / str(one) / "status").read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            if line.startswith(("RssAnon:", "RssShmem:")):
                total += 1024 * int(line.split()[1])
    return total
