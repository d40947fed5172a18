"""A search in words: the sentence, the live line, tables for the report."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

from compress.compressor import leaves
from compress.recommender.finals import MS, Final
from compress.recommender.goal import BY, Goal, Judge, warning_of
from compress.recommender.measured import FULL, OK, SCREENED, SHORT, Measured, Trial
from compress.report.layout import width, wrap, wrap_chain
from compress.report.markup import WIDTH
from compress.results.record import BASELINE
from compress.results.table import Row, number, text_of
from compress.stats.verdicts import BETTER, EQUIVALENT, FASTER, SLOWER
from compress.system.amounts import decimal, duration
from compress.system.progress import stage
from compress.techniques import chain as parse

MINUS = "−"
INDENT = "    "
SAME = {"smaller": "large", BY["macs"]: "many MACs", BY["params"]: "many parameters"}
"""In words, with `as`: no smaller, no fewer."""
PAST = {SCREENED: "not trained", SHORT: "trained shortly", FULL: "trained"}


def sentence(final: Final, base: Row, goal: Goal) -> str:
    """Return what a model of the final run is worth, with intervals, in one sentence."""
    row = final.row
    if final.chain == BASELINE:
        best = "the most accurate" if final.qualifies else "the fastest"
        return f"The baseline itself is {best}: {_took(row, goal)}"
    parts = {
        "latency": _speed(row),
        "size": _ratio(base, row, "onnx_bytes", "smaller"),
        "macs": _ratio(base, row, "macs", BY["macs"]),
        "params": _ratio(base, row, "params", BY["params"]),
    }
    order = dict.fromkeys([goal.by, "latency", "size"])
    shown = [parts[name] for name in order if parts[name]]
    return f"{', '.join([*shown, _change(final, goal)])}; {_verdict(final, goal)}"


def _speed(row: Row) -> str:
    value, low, high = (number(row, f"cpu_speedup{end}") for end in ("", "_low", "_high"))
    if value is None:
        return ""
    if text_of(row, "cpu_verdict") not in (FASTER, SLOWER):
        interval = f" ({_times(low)}x to {_times(high)}x)" if low and high else ""
        return f"not shown to be faster or slower{interval}"
    if value < 1:
        value, low, high = 1 / value, high and 1 / high, low and 1 / low
        word = "slower"
    else:
        word = "faster"
    interval = f" ({_times(low)} to {_times(high)})" if low and high else ""
    return f"{_times(value)}x {word}{interval}"


def _ratio(base: Row, row: Row, name: str, words: str) -> str:
    before, after = number(base, name), number(row, name)
    return _compared(before, after, words) if before and after else ""


def _compared(before: float, after: float, words: str) -> str:
    """Return in words by how many times a figure is smaller, or larger."""
    if after == before:
        return f"as {SAME[words]}"
    if after > before:
        opposite = {"smaller": "larger"}.get(words, words.replace("fewer", "more"))
        return f"{_times(after / before)}x {opposite}"
    return f"{_times(before / after)}x {words}"


def _change(final: Final, goal: Goal) -> str:
    """Return the change of accuracy with its interval: that of the test, where this decides.

    Another one's lower end could lie within the margin of what is not shown to hold it.
    """
    value, low, high = (number(final.row, f"accuracy_delta{end}") for end in ("", "_low", "_high"))
    if value is None:
        return "no accuracy"
    ends = [points(end) for end in (low, high) if end is not None]
    if goal.max_drop is not None and final.verdict != BETTER and final.bound is not None:
        top = [] if final.top is None else [_outwards(final.top, goal, math.ceil)]
        ends = [_outwards(final.bound, goal), *top]
    return f"{points(value)} points{f' ({ends[0]} to {ends[1]})' if len(ends) == 2 else ''}"


def _outwards(end: float, goal: Goal, whole: Callable[[float], int] = math.floor) -> str:
    """Return an end of an interval in points, to as many digits as the margin has.

    Rounded outwards, a bound beyond the margin is never shown as within it, nor the reverse.
    """
    drop = goal.max_drop or 0.0
    digits = next((n for n in (1, 2) if math.isclose(round(drop, n), drop)), 3)
    grid = 10 ** (digits + 2)
    return points(whole(round(end * grid, 6)) / grid, digits)


def _took(row: Row, goal: Goal) -> str:
    ms = number(row, MS)
    took = "not timed" if ms is None else f"{decimal(ms)} ms an item"
    return f"{took}, {decimal(goal.target_ms or 0)} ms was the target"


def _verdict(final: Final, goal: Goal) -> str:
    if goal.target_ms is not None:
        return _took(final.row, goal)
    within = f"{decimal(goal.max_drop or 0)} point{'' if goal.max_drop == 1 else 's'}"
    if final.verdict in (BETTER, EQUIVALENT):
        held = "better than the baseline"
        if final.verdict == EQUIVALENT:
            by = ", by earlier finals" if final.bound is None else ""
            held = f"equivalent within {within}{by}"
        return held if final.qualifies else f"{held}, but NOT shown to be {_cheaper(goal)}"
    if final.bound is None:
        return f"NOT shown to be equivalent within {within}"
    return f"NOT shown to be equivalent within {within}: {_why_not(final, final.bound, goal)}"


def _why_not(final: Final, bound: float, goal: Goal) -> str:
    items = int(number(final.row, "items") or 0)
    if items and warning_of(goal, items):
        return f"{items:,} test items are too few to show that of any file"
    may_be = f"it may be {_outwards(bound, goal)} points"
    if final.alone is not None and final.alone > -goal.margin:
        alone = _outwards(final.alone, goal)
        return f"{may_be}, corrected for the number of finalists (as the only one, {alone})"
    return may_be


def _cheaper(goal: Goal) -> str:
    return {"macs": "of fewer MACs", "params": "of fewer parameters"}.get(goal.by, BY[goal.by])


def points(fraction: float, digits: int = 1) -> str:
    """Return a change of accuracy in points, with a true minus."""
    text = f"{100 * fraction:+.{digits}f}"
    return text.strip("+-") if float(text) == 0 else text.replace("-", MINUS)


def _times(value: float) -> str:
    return f"{value:.2f}" if value < 1.995 else f"{value:.1f}"


def so_far(one: Measured | None, judge: Judge) -> str:
    """Return the best so far in a few words."""
    if one is None:
        return "nothing yet"
    parts = []
    if one.speedup:
        parts.append(f"{_times(one.speedup)}x")
    if one.onnx_bytes:
        parts.append(_compared(judge.baseline.onnx_bytes, one.onnx_bytes, "smaller"))
    if judge.goal.times:
        parts = parts[:1] or parts
    elif judge.goal.by != "size" and (cost := judge.cost(one)):
        parts = [_compared(1.0, cost, BY[judge.goal.by])]
    return f"{', '.join(parts)} at {points(one.change)} points"


def live(trials: int, best: Measured | None, judge: Judge, left: float) -> str:
    """Return the line that stands before what is being done."""
    done = f"{trials} trial{'' if trials == 1 else 's'} done"
    return f"{done}, best {so_far(best, judge)}, {duration(max(0.0, left))} left"


def trial_line(trial: Trial, judge: Judge) -> str:
    """Return what the log says of a finished trial, in a line if that is not too wide."""
    last = trial.last
    figures = ", ".join([so_far(last, judge), *_trained(trial)]) if last and trial.reached else ""
    state = "" if trial.state == OK or trial.reason.endswith(trial.state) else trial.state
    why = ": ".join(filter(None, [state, trial.reason]))
    said = f"{'; '.join(filter(None, [figures, why]))}, {duration(trial.seconds)}"
    name = f"trial {trial.number}: {trial.chain}"
    if width(line := f"{name}: {said}") <= WIDTH:
        return line
    room = WIDTH - len(INDENT)
    return f"\n{INDENT}".join([*wrap_chain(f"{name}:", room), *wrap(said, room)])


def _trained(trial: Trial) -> list[str]:
    """Return in words how far a trial's chain was trained; nothing of one that trains nothing."""
    steps = [step for step, _ in leaves(parse(trial.chain))]
    trains = any(step.builds or step.untrained in ((), None) for step in steps)
    return [PAST[trial.reached]] if trains else []


def counts(trials: Sequence[Trial]) -> str:
    """Return how many trials ended how."""
    by_state: dict[str, int] = {}
    for trial in trials:
        by_state[trial.state] = by_state.get(trial.state, 0) + 1
    parts = [f"{count} {state}" for state, count in sorted(by_state.items(), key=lambda p: -p[1])]
    return ", ".join(parts) or "none"


def optimism_words(found: Mapping[str, float]) -> str:
    """Return how much better the finalists looked while they were being chosen."""
    if not found:
        return ""
    count = int(found["finalists"])
    mean = points(found["mean"] / 100)
    better = "as good as" if mean == "0.0" else f"{mean.strip('+' + MINUS)} points better than"
    if mean.startswith(MINUS):
        better = better.replace("better", "worse")
    of = "one finalist"
    if count > 1:
        least, most = points(found["least"] / 100), points(found["most"] / 100)
        of = f"mean of {count} finalists; from {least} to {most} points"
    return (
        f"Optimism of the choice: on validation items the change of accuracy looked {better} on "
        f"the test split ({of})."
    )


class Live:
    """The line before what is being done; it changes with every trial."""

    def __init__(self) -> None:
        self.stack = ExitStack()

    def now(self, text: str) -> None:
        self.close()
        self.stack.enter_context(stage(text, heading=True))

    def close(self) -> None:
        self.stack.close()
