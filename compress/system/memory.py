"""How much memory is left, and what a process and its descendants hold of it."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import psutil

PROC = Path("/proc")
OWN = PROC / "self" / "cgroup"
GROUPS = Path("/sys/fs/cgroup")
# What the kernel takes back before an allocation fails, as in its own figure for the machine
# (MemAvailable in /proc/meminfo: si_mem_available in mm/show_mem.c). Docker's `stats` and the
# working set of Kubernetes (cAdvisor) take off inactive_file alone; but pages that were read twice
# are active, and of such a warm cache consists.
RECLAIMED = ("inactive_file", "active_file", "slab_reclaimable")


REUSING = ((-4, 0), (-1, -1), (-2, 2**26), (-8, 1))
"""Options of glibc's mallopt (malloc.h): no mappings (M_MMAP_MAX), nothing is given back
(M_TRIM_THRESHOLD), 64 MiB at a time (M_TOP_PAD), from one arena (M_ARENA_MAX), since those of
threads hold no large blocks."""


def free_memory(own: Path = OWN, groups: Path = GROUPS) -> int:
    """Return the bytes that this process can still have, within its own limit and a container's.

    A container's may lie on the process's control group or on any above it (cgroup v2, and v1).
    """
    left = [*_left_in_groups(own, groups), *_left_of_own()]
    return max(0, min([psutil.virtual_memory().available, *left]))


def _left_of_own() -> Iterator[int]:
    """Yield how much this process may add to its data, if that is limited (as a step's is)."""
    with contextlib.suppress(ImportError):  # only systems that have such limits have it
        import resource

        most, _ = resource.getrlimit(resource.RLIMIT_DATA)
        if most != resource.RLIM_INFINITY:
            yield most - getattr(psutil.Process().memory_info(), "data", 0)


def _left_in_groups(own: Path, groups: Path) -> Iterator[int]:
    """Yield how much may be added to each group that this process is in and that has a limit."""
    for line in _read(own).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            place, limit, usage, prefix = groups, "memory.max", "memory.current", ""
        elif "memory" in controllers.split(","):
            place, prefix = groups / "memory", "total_"
            limit, usage = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        group = PurePosixPath(path.lstrip("/"))
        for folder in (place / part for part in (group, *group.parents)):
            most, used = _read(folder / limit), _read(folder / usage)
            if most not in ("", "max") and used:
                stat = dict(line.split() for line in _read(folder / "memory.stat").splitlines())
                yield int(most) - int(used) + sum(int(stat.get(prefix + n, 0)) for n in RECLAIMED)


def _read(path: Path) -> str:
    """Return the text of a file of the system; '' where it has no such file."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def reuse_freed_memory() -> bool:
    """Have this process keep the memory that it frees; return whether its C library can (glibc).

    glibc maps every large tensor anew and gives it back when it is freed, so a training has the
    kernel clear gigabytes of pages in every step: a fifth of its time on some machines.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        set_all = [mallopt(option, value) for option, value in REUSING]
        return all(set_all)
    return False


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


def resident(pid: int, shared_once: bool = False) -> int:
    """Return the bytes that a process and its descendants hold in memory, but for mapped files.

    What several of them share is counted for each, or, which takes longer to find out, in all
    about once, with processes of others as well.
    """
    alone = _proportional if shared_once else _resident_alone
    return sum(map(alone, family(pid)))


def _proportional(pid: int) -> int:
    """Return a process's part of what it shares, and all of what it does not."""
    with contextlib.suppress(OSError):
        lines = (PROC / str(pid) / "smaps_rollup").read_text().splitlines()
        sizes = [line.split()[1] for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:"))]
        if sizes:
            return 1024 * sum(map(int, sizes))
    return _resident_alone(pid)


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
