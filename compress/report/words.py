"""What `about` says of settings and machines, in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from compress.report.columns import Row, settings, timing_of
from compress.timing.setting import parse_setting

About = Mapping[str, Any]

GPU_WORDS = {
    "cuda_torch_ms_p50": "float32",
    "cuda_torch_float16_ms_p50": "float16",
    "cuda_torch_bfloat16_ms_p50": "bfloat16",
    "cuda_graph_ms_p50": "CUDA graph",
    "cuda_batch32_per_s": "batches of 32",
    "cuda_ms_p50": "CUDA provider",
    "cuda_trt_ms_p50": "TensorRT provider",
}
"""Every column that is timed on the GPU, each with an A/A control of its own."""


def setting_words(setting: str, about: About) -> str:
    """Return a setting as a reader says it, such as `batch 1, 2 threads`."""
    threads = (about.get("timed_on") or about.get("environment") or {}).get("threads")
    words = parse_setting(setting).words
    if not threads:
        return words
    return words.replace("all threads", f"{threads} thread{'' if threads == 1 else 's'}")


def main_setting(rows: Iterable[Row]) -> str:
    """Return the setting of the main table and picture: `cpu` if it was timed."""
    return next(iter(settings(rows)), "cpu")


def latency_of(setting: str, about: About) -> Mapping[str, Any]:
    """Return what is known of a setting's timing as a whole; nothing in results of old."""
    return (about.get("latency") or {}).get(setting) or {}


def is_trusted(setting: str, about: About) -> bool:
    """Return whether a setting's latencies may be trusted."""
    return latency_of(setting, about).get("trusted") is not False


def gpu_controls(about: About) -> dict[str, Mapping[str, Any]]:
    """Return what is known of the timing of the GPU's columns, in the order of `GPU_WORDS`."""
    known = (about.get("cuda") or {}).get("controls") or {}
    return {column: known[column] for column in GPU_WORDS if known.get(column)}


def is_gpu_trusted(column: str, about: About) -> bool:
    """Return whether the figures of a column of `GPU_WORDS` may be trusted."""
    return gpu_controls(about).get(column, {}).get("trusted") is not False


def latency_words(column: str) -> str:
    """Return a column of latencies, such as `cpu1_ms_p50`, as a reader says it."""
    if column in GPU_WORDS:
        return f"latency on the GPU ({GPU_WORDS[column]})"
    if not (found := timing_of(column)):
        return column
    slug, setting = found
    return f"latency{f' on {slug}' if slug else ''} at {parse_setting(setting).words}"


def machine_words(environment: Mapping[str, Any]) -> str:
    """Return what is known of a machine, the most important first; '' if nothing is."""
    threads, cores = environment.get("threads"), environment.get("physical_cores")
    parts = [
        str(environment.get("cpu") or ""),
        f"{cores} physical core{'' if cores == 1 else 's'}" if cores else "",
        f"{threads} thread{'' if threads == 1 else 's'}" if threads else "",
        " ".join(environment.get("cpu_flags") or environment.get("flags") or ()),
        f"governor {environment['governor']}" if environment.get("governor") else "",
        f"GPU {environment['gpu']}" if environment.get("gpu") else "",
        f"driver {environment['driver']}" if environment.get("driver") else "",
        str(environment.get("system") or ""),
        ", ".join(f"{name} {v}" for name, v in (environment.get("versions") or {}).items()),
        str(environment.get("date") or ""),
    ]
    return "; ".join(part for part in parts if part)
