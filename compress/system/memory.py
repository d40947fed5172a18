"""How much memory is left."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import psutil

OWN = Path("/proc/self/cgroup")
GROUPS = Path("/sys/fs/cgroup")
# What the kernel takes back before an allocation fails, as in its own figure for the machine
# (MemAvailable in /proc/meminfo: si_mem_available in mm/show_mem.c). Docker's `stats` and the
# working set of Kubernetes (cAdvisor) take off inactive_file alone; but pages that were read twice
# are active, and of such a warm cache consists.
RECLAIMED = ("inactive_file", "active_file", "slab_reclaimable")


def free_memory(own: Path = OWN, groups: Path = GROUPS) -> int:
    """Return the bytes that new processes can have, within the limits of a container.

    These may lie on the process's control group or on any above it (cgroup v2, and v1).
    """
    return max(0, min([psutil.virtual_memory().available, *_left_in_groups(own, groups)]))


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
    """Return what the system says in a file; nothing where it has no such file."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
