"""How far the latencies of a table may be trusted: its A/A control, denominator and effort."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from compress.report.words import About, timed_words, where_words
from compress.results.timed import Known, Timed, timings


def warnings(about: About) -> list[str]:
    """Return what must be read before the table, a sentence each: latencies not to be trusted."""
    return [
        f"DO NOT TRUST the latencies {where_words(timed, about)}: "
        f"{'; '.join(timed.known['untrusted_because'])}."
        for timed in timings(about)
        if not timed.trusted
    ]


def controls(timed: Iterable[Timed], about: About) -> str:
    """Return what the baseline against a second copy of itself read, and the margins."""
    told = [_control(_place(one, about), one.known) for one in timed if one.known]
    said = "; ".join(told)
    return f"A/A control, the baseline against a second copy of itself: {said}." if said else ""


def denominators(timed: Iterable[Timed], about: About) -> list[str]:
    """Return where speed-ups do not divide by the baseline at the default optimization level."""
    found = []
    for one in timed:
        if what := one.known.get("denominator"):
            gain = one.known.get("denominator_gain")
            times = f", where it is {gain:.2f} times as fast as at the default" if gain else ""
            found.append(
                f"NOT THE DEFAULT DENOMINATOR at {timed_words(one, about)}: speed-ups divide "
                f"the baseline's time at {what}{times}."
            )
    return found


def effort(timed: Iterable[Timed]) -> str:
    """Return how the files were timed."""
    known = [one.known for one in timed]
    processes = {latency["processes"] for latency in known if latency.get("processes")}
    if not processes:
        return ""
    fewest, most = min(processes), max(processes)
    number = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    seconds = max((latency.get("seconds") or 0 for latency in known), default=0)
    took = f" {seconds:.0f} seconds in all." if seconds else ""
    return (
        f"Timed in {number} fresh process{'' if most == 1 else 'es'} for each number of threads, "
        f"in each of which all files take turns in random order, round by round.{took}"
    )


def _place(timed: Timed, about: About) -> str:
    return ", ".join(part for part in (timed.title, timed_words(timed, about)) if part)


def _control(words: str, known: Known) -> str:
    value: Any = known.get("control")
    if value is None:
        return f"{words}: not timed"
    low, high = known.get("control_low"), known.get("control_high")
    interval = "" if low is None or high is None else f" [{low:.3f}, {high:.3f}]"
    margin = known.get("bar", known.get("margin"))
    bound = "" if margin is None else f", a verdict must exceed {100 * margin:.1f} %"
    return f"{words}: {value:.3f}{interval}{bound}"
