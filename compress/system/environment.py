"""What a timing depends on besides the file: cores, processor, instruction sets, runtime."""

from __future__ import annotations

import math
import os
import platform
import shutil
import subprocess
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


def physical_cores(cpus: Path = CPUS) -> int | None:
    """Return the number of cores, hyperthreads of one counted once; None where unreadable."""
    paths = cpus.glob("cpu[0-9]*/topology/thread_siblings_list")
    try:
        return len({path.read_text().strip() for path in paths}) or None
    except OSError:
        return None


def governor(cpus: Path = CPUS) -> str:
    """Return how the processor's clock is governed ('performance', ...); '' where unreadable."""
    try:
        return (cpus / "cpu0/cpufreq/scaling_governor").read_text().strip()
    except OSError:
        return ""


def memory_bytes() -> int | None:
    """Return the machine's memory in bytes; None where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def gpu() -> tuple[str, str]:
    """Return the names of NVIDIA's GPUs and their driver, as `nvidia-smi` tells; '' for none."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "", ""
    command = [tool, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return "", ""
    found = [line.rsplit(",", 1) for line in answer.stdout.splitlines() if "," in line]
    if answer.returncode or not found:
        return "", ""
    names = [name.strip() for name, _ in found]
    told = [f"{names.count(name)} x {name}" if names.count(name) > 1 else name for name in names]
    return ", ".join(dict.fromkeys(told)), found[0][1].strip()


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


def machine() -> dict[str, Any]:
    """Return what else is known of this machine (JSON); it names neither host nor user.

    `cpu_quota` is in cores, and None where no container bounds them.
    """
    name, driver = gpu()
    return {
        "logical_cores": os.cpu_count(),
        "physical_cores": physical_cores(),
        "cpu_quota": cpu_quota(),
        "governor": governor(),
        "memory_bytes": memory_bytes(),
        "gpu": name,
        "driver": driver,
        "python": platform.python_version(),
        "system": platform.platform(terse=True),
    }


def saturates(flags: tuple[str, ...]) -> bool:
    """Whether these CPU flags mean x86 (AVX2) without exact int8 dot products."""
    return "avx2" in flags and not {"avx512_vnni", "avx_vnni", "amx_int8"} & set(flags)
