"""What `about` says of settings and machines, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compress.results.timed import Timed

About = Mapping[str, Any]


def timed_words(timed: Timed, about: About) -> str:
    """Return a setting as a reader says it, such as `batch 1, 2 threads`."""
    return _counted(timed.words, timed, about)


def where_words(timed: Timed, about: About) -> str:
    """Return setting, machine and runtime, such as `on arm_4t at batch 1, 4 threads`."""
    return _counted(timed.where, timed, about)


def environment_of(machine: str, about: About) -> Mapping[str, Any]:
    """Return what is known of the machine where files were timed ('': this one)."""
    if not machine:
        return about.get("timed_on") or about.get("environment") or {}
    return ((about.get("elsewhere") or {}).get(machine) or {}).get("environment") or {}


def _counted(words: str, timed: Timed, about: About) -> str:
    threads = environment_of(timed.machine, about).get("threads")
    if not threads:
        return words
    return words.replace("all threads", f"{threads} thread{'' if threads == 1 else 's'}")


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
