"""How much memory is left."""

from __future__ import annotations

from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")


def free_memory(meminfo: Path = MEMINFO, cgroup: Path = CGROUP) -> int | None:
    """Return the bytes that new processes can have, within a container's limit (cgroup v2)."""
    found = []
    try:
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append(1024 * int(line.split()[1]))
        most = (cgroup / "memory.max").read_text().strip()
        if most != "max":
            found.append(int(most) - int((cgroup / "memory.current").read_text()))
    except (OSError, ValueError, IndexError):
        pass  # another system: what it does not tell bounds nothing
    return min(found) if found else None
