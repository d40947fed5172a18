"""What a timing depends on besides the file: cores, processor, instruction sets, runtime."""

from __future__ import annotations

import math
import os
import platform
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

# The instruction sets that decide how fast float32, bfloat16, float16 and int8 are, and without
# exact dot products how exact int8 is: of x86, then of Arm.
FLAGS = (
    *("fma", "f16c", "avx2", "avx512f", "avx512bw", "avx512_bf16", "avx512_fp16"),
    *("avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_tile", "amx_int8", "amx_bf16", "amx_fp16"),
    *("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "svei8mm", "sme"),
)
QUOTA = Path("/sys/fs/cgroup/cpu.max")
CPUS = Path("/sys/devices/system/cpu")


def cpu_quota(path: Path = QUOTA) -> float | None:
    """Return how many cores a container may use; None where nothing bounds it (cgroup v2)."""
    try:
        quota, period = path.read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError):  # no such file, or "max": no quota
        return None


def cpu_threads(quota_file: Path = QUOTA) -> int:
    """Return how many cores this process may use: its affinity, within a container's quota.

    onnxruntime reads neither the quota nor (everywhere) the affinity (its issue 29510).
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    quota = cpu_quota(quota_file)
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def cpu_info(path: Path = Path("/proc/cpuinfo")) -> tuple[str, tuple[str, ...]]:
    """Return the processor's name and which of `FLAGS` it has; no flags where unreadable."""
    fields: dict[str, str] = {}
    try:
        for line in path.read_text().splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip().lower(), value.strip())
    except OSError:
        pass  # another system: it has no such file
    name = fields.get("model name") or platform.processor() or platform.machine()
    present = set((fields.get("flags") or fields.get("features") or "").split())
    return name, tuple(flag for flag in FLAGS if flag in present)


def governor(cpus: Path = CPUS) -> str:
    """Return how the processor's clock is governed ('performance', ...); '' where unreadable."""
    try:
        return (cpus / "cpu0/cpufreq/scaling_governor").read_text().strip()
    except OSError:
        return ""


def gpu() -> tuple[str, str]:
    """Return the names of NVIDIA's GPUs and their driver, by `nvidia-smi`; '' for none."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return "", ""
    gpus = [line.rsplit(",", 1) for line in answer.stdout.splitlines() if "," in line]
    if not gpus:
        return "", ""
    counts = Counter(name.strip() for name, _ in gpus)
    names = [f"{count} x {name}" if count > 1 else name for name, count in counts.items()]
    return ", ".join(names), gpus[0][1].strip()


def environment(threads: int) -> dict[str, Any]:
    """Return the description of this environment that timings are labelled with (JSON)."""
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


def machine() -> dict[str, Any]:
    """Return what else is known of this machine (JSON); it names neither host nor user.

    `cpu_quota` is in cores, and None where no container bounds them.
    """
    import psutil  # which other machines, where `environment` runs too, need not have

    name, driver = gpu()
    return {
        "logical_cores": os.cpu_count(),
        "physical_cores": psutil.cpu_count(logical=False),
        "cpu_quota": cpu_quota(),
        "governor": governor(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpu": name,
        "driver": driver,
        "python": platform.python_version(),
        "system": platform.platform(terse=True),
    }


def saturates(flags: tuple[str, ...]) -> bool:
    """Whether these CPU flags mean x86 (AVX2) without exact int8 dot products."""
    return "avx2" in flags and not {"avx512_vnni", "avx_vnni", "amx_int8"} & set(flags)
