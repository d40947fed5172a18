"""What is known of a timing in words: its setting and machine, and how far it may be trusted."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from compress.results.timed import Known, Timed
from compress.system.amounts import duration, plural

About = Mapping[str, Any]


def span(counts: Collection[int]) -> str:
    """Return the range of some counts, such as `3 to 5`."""
    fewest, most = min(counts), max(counts)
    return f"{most}" if fewest == most else f"{fewest} to {most}"


def timed_words(timed: Timed, about: About) -> str:
    """Return a setting as a reader says it, such as `batch 1, 2 threads`."""
    return _with_threads(timed.words, timed, about)


def environment_of(machine: str, about: About) -> Mapping[str, Any]:
    """Return what is known of the machine where files were timed ('': this one)."""
    if not machine:
        return about.get("timed_on") or about.get("environment") or {}
    return ((about.get("other_machines") or {}).get(machine) or {}).get("environment") or {}


def machine_words(environment: Mapping[str, Any]) -> str:
    """Return what is known of a machine, the most important first; '' if nothing is."""
    cores, threads = environment.get("physical_cores"), environment.get("threads")
    named = (("governor", "governor"), ("GPU", "gpu"), ("driver", "driver"))
    parts = [
        environment.get("cpu"),
        cores and plural(cores, "physical core"),
        threads and plural(threads, "thread"),
        " ".join(environment.get("cpu_flags") or environment.get("flags") or ()),
        *(f"{name} {environment[key]}" for name, key in named if environment.get(key)),
        environment.get("system"),
        ", ".join(f"{name} {v}" for name, v in (environment.get("versions") or {}).items()),
        environment.get("date"),
    ]
    return "; ".join(str(part) for part in parts if part)


def warnings(timed: Iterable[Timed], about: About) -> list[str]:
    """Return what must be read before the tables of these timings: which not to trust, and why."""
    return [_warning(one, about) for one in timed if not one.trusted]


def _warning(timed: Timed, about: About) -> str:
    """Return why latencies are not to be trusted, and why a verdict holds all the same.

    A verdict asks for more than the control doubts (see `compress.stats.control.Control.bar`), so
    only differences below that are in doubt. Without a bar there are no verdicts.
    """
    where = _with_threads(timed.where, timed, about)
    because = "; ".join(timed.known["untrusted_because"])
    bar = timed.known.get("bar")
    if bar is None:
        return f"DO NOT TRUST the latencies {where}: {because}."
    return (
        f"DO NOT TRUST differences in latency below {100 * bar:.1f} % {where}: {because}. What has "
        "▲ or ▼ is shown to exceed that."
    )


def controls(timed: Iterable[Timed], about: About) -> str:
    """Return what the baseline against a second copy of itself read, and the margins."""
    read = []
    for one in timed:
        if one.known:
            place = ", ".join(filter(None, (one.title, timed_words(one, about))))
            read.append(f"{place}: {_control(one.known)}")
    if not read:
        return ""
    return f"A/A control, the baseline against a second copy of itself: {'; '.join(read)}."


def denominators(timed: Iterable[Timed], about: About) -> list[str]:
    """Return where speed-ups do not divide by the baseline at the default optimization level."""
    sentences = []
    for one in timed:
        if level := one.known.get("denominator"):
            gain = one.known.get("denominator_gain")
            times = f", where it is {gain:.2f} times as fast as at the default" if gain else ""
            sentences.append(
                f"NOT THE DEFAULT DENOMINATOR at {timed_words(one, about)}: speed-ups divide "
                f"the baseline's time at {level}{times}."
            )
    return sentences


def effort(timed: Iterable[Timed]) -> str:
    """Return how the files were timed."""
    known = [one.known for one in timed]
    processes = {latency["processes"] for latency in known if latency.get("processes")}
    if not processes:
        return ""
    seconds = max((latency.get("seconds") or 0 for latency in known), default=0)
    noun = "process" if processes == {1} else "processes"
    took = f" The timing took {duration(seconds)}." if seconds else ""
    return (
        f"Timed in {span(processes)} fresh {noun} for each number of threads, in each of which "
        f"all files take turns in random order, round by round.{took}"
    )


def _with_threads(words: str, timed: Timed, about: About) -> str:
    threads = environment_of(timed.machine, about).get("threads")
    return words.replace("all threads", plural(threads, "thread")) if threads else words


def _control(known: Known) -> str:
    value: Any = known.get("control")
    if value is None:
        return "not timed"
    low, high = known.get("control_low"), known.get("control_high")
    interval = "" if low is None or high is None else f" [{low:.3f}, {high:.3f}]"
    margin = known.get("bar", known.get("margin"))
    bound = "" if margin is None else f", a verdict must exceed {100 * margin:.1f} %"
    return f"{value:.3f}{interval}{bound}"
