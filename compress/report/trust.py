"""How far the latencies of a table may be trusted: its A/A control, denominator and effort."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from compress.amounts import duration
from compress.report.columns import Row, machines, settings
from compress.report.words import (
    GPU_WORDS,
    About,
    gpu_controls,
    is_gpu_trusted,
    is_trusted,
    latency_of,
    setting_words,
)


def warnings(rows: Sequence[Row], about: About) -> list[str]:
    """Return what must be read before the table, a sentence each: latencies not to be trusted."""
    found = [
        _warning(f"at {setting_words(name, about)}", latency_of(name, about))
        for name in settings(rows)
        if not is_trusted(name, about)
    ]
    for slug, names in machines(rows).items():
        there = (about.get("elsewhere") or {}).get(slug) or {}
        found += [
            _warning(f"on {slug} at {setting_words(name, there)}", latency_of(name, there))
            for name in names
            if not is_trusted(name, there)
        ]
    found += [
        _warning(f"on the GPU ({GPU_WORDS[column]})", known)
        for column, known in gpu_controls(about).items()
        if not is_gpu_trusted(column, about)
    ]
    return found


def controls(names: Sequence[str], about: About) -> str:
    """Return what the baseline against a second copy of itself read, and the margins."""
    told = [_control(setting_words(name, about), known) for name, known in _known(names, about)]
    told += [
        _control(f"GPU, {GPU_WORDS[column]}", known)
        for column, known in gpu_controls(about).items()
    ]
    said = "; ".join(told)
    return f"A/A control, the baseline against a second copy of itself: {said}." if said else ""


def denominators(names: Sequence[str], about: About) -> list[str]:
    """Return where speed-ups do not divide by the baseline at the default optimization level."""
    found = []
    for name, known in _known(names, about):
        if what := known.get("denominator"):
            gain = known.get("denominator_gain")
            times = f", where it is {gain:.2f} times as fast as at the default" if gain else ""
            found.append(
                f"NOT THE DEFAULT DENOMINATOR at {setting_words(name, about)}: speed-ups divide "
                f"the baseline's time at {what}{times}."
            )
    return found


def effort(names: Sequence[str], about: About) -> str:
    """Return how the files were timed."""
    known = [latency for _, latency in _known(names, about)]
    processes = {latency["processes"] for latency in known if latency.get("processes")}
    if not processes:
        return ""
    fewest, most = min(processes), max(processes)
    number = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    seconds = max((latency.get("seconds") or 0 for latency in known), default=0)
    took = f" It took {duration(seconds)} in all." if seconds else ""
    return (
        f"Timed in {number} fresh process{'' if most == 1 else 'es'} for each number of threads, "
        f"in each of which all files take turns in random order, round by round.{took}"
    )


def _known(names: Sequence[str], about: About) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name in names:
        if latency := latency_of(name, about):
            yield name, latency


def _warning(where: str, known: Mapping[str, Any]) -> str:
    # Results of old do not tell why.
    doubts = known.get("doubts") or ["two copies of one file differ too much"]
    return f"DO NOT TRUST the latencies {where}: {'; '.join(doubts)}."


def _control(words: str, known: Mapping[str, Any]) -> str:
    value = known.get("control")
    if value is None:
        return f"{words}: not timed"
    low, high = known.get("control_low"), known.get("control_high")
    interval = "" if low is None or high is None else f" [{low:.3f}, {high:.3f}]"
    margin = known.get("bar", known.get("margin"))
    bound = "" if margin is None else f", a verdict must exceed {100 * margin:.1f} %"
    return f"{words}: {value:.3f}{interval}{bound}"
