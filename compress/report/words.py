"""What `about` says of settings and machines, in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from compress.report.columns import Row, settings
from compress.timing.setting import parse_setting

About = Mapping[str, Any]


def setting_words(setting: str, about: About) -> str:
    """Return a setting as a reader says it, such as `batch 1, 2 threads`."""
    threads = (about.get("environment") or {}).get("threads")
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
    """Return whether a setting's latencies may be trusted; `cuda` is the GPU's."""
    if setting == "cuda":
        controls = (about.get("cuda") or {}).get("controls") or {}
        return (controls.get("cuda_torch_ms_p50") or {}).get("trusted") is not False
    return latency_of(setting, about).get("trusted") is not False


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
