"""What a timing depends on besides the file: cores, processor, instruction sets, runtime."""

from __future__ import annotations

import math
import os
import platform
from pathlib import Path
from typing import Any

# The instruction sets that decide how fast, and without VNNI how exact, int8 is.
FLAGS = (
    *("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "avx512_bf16"),
    *("asimddp", "i8mm", "sve"),
)


def cpu_threads(quota_file: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Return how many cores this process may use: its affinity, within a container's quota.

    onnxruntime reads neither the quota nor (everywhere) the affinity (its issue 29510).
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    try:
        quota, period = quota_file.read_text().split()
        return max(1, min(cores, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no such file, or "max": no quota
        return cores


def cpu_info(path: Path = Path("/proc/cpuinfo")) -> tuple[str, tuple[str, ...]]:
    """Return the processor's name and which of `FLAGS` it has; no flags where unreadable."""
    fields: dict[str, str] = {}
    try:
        for line in path.read_text().splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip().lower(), value.strip())
    except OSError:
        pass
    name = fields.get("model name") or platform.processor() or platform.machine()
    present = set((fields.get("flags") or fields.get("features") or "").split())
    return name, tuple(flag for flag in FLAGS if flag in present)


def environment(threads: int) -> dict[str, Any]:
    """Return what timings in this environment are to be labelled with (JSON)."""
    import onnxruntime

    name, flags = cpu_info()
    return {
        "threads": threads,
        "cores": cpu_threads(),
        "cpu": name,
        "cpu_flags": list(flags),
        "onnxruntime": onnxruntime.__version__,
        "system": f"{platform.system()} {platform.machine()}",
    }
