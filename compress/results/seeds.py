"""One row for every chain from the rows of its seeds, column by column as the table says."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from compress.results.accuracy import QUESTIONS, fraction, judge
from compress.results.columns import SEEDS, columns
from compress.results.derive import points
from compress.results.record import BASELINE, MARGIN
from compress.results.table import Row, is_sound, number, ordered, text_of, to_csv
from compress.results.timed import Column, timings
from compress.stats.levels import ALPHA
from compress.stats.pairs import Difference
from compress.stats.replication import (
    Interval,
    deviation,
    mean_difference,
    mean_lower_bound,
    mean_noninferiority_p,
    mean_ratio,
)
from compress.stats.verdicts import BETTER, EQUIVALENT, common_verdict
from compress.system.amounts import decimal

ALIKE = 1.05  # the largest of the seeds' figures over the smallest, above which a note says so
BAD = {"failed": "failed", "unverified": "were not verified"}


def seeds_of(rows: Iterable[Row]) -> list[int]:
    """Return the seeds that occur, in order."""
    return sorted({int(row["seed"]) for row in rows if row.get("seed") is not None})


def over_seeds(rows: Iterable[Row], about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one row for every chain: means over its seeds, in the columns of a single seed.

    `n` seeds count, those of `seeds` ('0 1 2'); rows that failed or were not verified do not.
    `accuracy` is a mean, `accuracy_sd` the standard deviation (n - 1), `accuracy_seeds` the
    values. `accuracy_delta` and `control_delta` are means of paired differences with a 95 % t
    interval, `..._p` the paired t-test's over seeds (see `mean_difference`; with one seed, its own
    McNemar test), `..._verdict` after Holm's over the rows. Speed-ups are geometric means (see
    `mean_ratio`), their verdict is the seeds', or 'mixed'. Other figures are means.
    """
    shown = ordered(rows)
    groups: dict[str, list[Row]] = {}
    for row in shown:
        groups.setdefault(text_of(row, "chain"), []).append(row)
    merged = [_Group(group, about, len(seeds_of(shown))).merged() for group in groups.values()]
    for question in QUESTIONS:
        judge(merged, question)
    return merged


def seeds_csv(rows: Sequence[Row], about: Mapping[str, Any]) -> str:
    """Return what `over_seeds` makes of the rows, as CSV."""
    shown = [column for column in columns(about) if column.seeds != "none"]
    after = [column.name for column in shown].index("accuracy") + 1
    order = [shown[0], *SEEDS[:2], *shown[1:after], *SEEDS[2:], *shown[after:]]
    return to_csv(over_seeds(rows, about), about, order)


def why_not_equivalent(rows: Iterable[Row], about: Mapping[str, Any], chain: str) -> str:
    """Return why a chain's row (over all seeds) is not equivalent within the margin; '' if it is.

    A better one is. Raises KeyError for a chain that has no row.
    """
    single = list(rows)
    merged = over_seeds(single, about) if len(seeds_of(single)) > 1 else single
    row = {text_of(row, "chain"): row for row in merged}[chain]
    if text_of(row, "accuracy_verdict") in (BETTER, EQUIVALENT):
        return ""
    claim = f"{chain} is not shown to be equivalent within {points(about['margin'])}: "
    if not is_sound(row):
        error = text_of(row, "error")
        return claim + f"its row is {text_of(row, 'status')}" + (f" ({error})" if error else "")
    delta, bound = number(row, "accuracy_delta"), number(row, "accuracy_bound")
    if delta is None or bound is None:
        reasons = row.get("missing") or {}
        return claim + str(reasons.get("accuracy_verdict") or "it has no comparison")
    lowest = _unlike(100 * bound, -about["margin"], lambda value, n: f"{value:+.{n}f}")
    p = _unlike(row["equivalence_p"], ALPHA, decimal)
    return claim + (
        f"its accuracy differs from the baseline's by {100 * delta:+.2f} points, and by the lower "
        f"95 % bound it may differ by {lowest} (p {p} before the adjustment for the number of rows)"
    )


def _unlike(value: float, limit: float, write: Callable[[float, int], str]) -> str:
    """Write a value with two digits, or more where it would look equal to a limit."""
    texts = (write(value, digits) for digits in range(2, 17))
    return next((text for text in texts if value == limit or float(text) != limit), f"{value}")


class _Group:
    """The rows of one chain."""

    def __init__(self, group: Sequence[Row], about: Mapping[str, Any], total: int) -> None:
        self.group, self.about, self.total = group, about, total
        self.good = [row for row in group if text_of(row, "status") not in BAD]
        self.used = self.good or group
        self.columns = columns(about)
        self.is_baseline = text_of(group[0], "chain") == BASELINE

    def merged(self) -> dict[str, Any]:
        row: dict[str, Any] = {
            "steps": next((row["steps"] for row in self.group if row.get("steps")), []),
            "n": len(self.good),
            "seeds": " ".join(str(row.get("seed")) for row in self.good),
        }
        for column in self.columns:
            if column.seeds == "first":
                texts = (text_of(one, column.name) for one in self.group)
                row[column.name] = next(filter(None, texts), "")
            elif column.seeds == "mean" and (values := _values(self.used, column.name)):
                # A count that all seeds share stays a whole number.
                row[column.name] = values[0] if len(set(values)) == 1 else fmean(values)
        accuracies = _values(self.good, "accuracy")
        row["accuracy_seeds"] = " ".join(map(repr, accuracies))
        if len(accuracies) > 1:
            row["accuracy_sd"] = deviation(accuracies)
        if not self.is_baseline:
            for question in QUESTIONS:
                row |= self._difference(question)
        for timed in timings(self.about):
            row |= self._speed(timed.names)
        states = {text_of(one, "status") for one in self.group}
        bad = "unverified" if "unverified" in states else "failed"
        return row | {
            "status": "ok" if self.good else bad,
            "error": "" if self.good else _joined(self.group, "error"),
            "cuda_note": "; ".join(_remarks(self.group)),
            "note": "; ".join(self._notes()),
        }

    def _difference(self, question: str) -> dict[str, Any]:
        """The mean difference; one to a row that was not verified has no p, and enters no test."""
        key, p = f"{question}_delta", f"{question}_p"
        compared = [row for row in self.good if number(row, key) is not None]
        tested = [row for row in compared if number(row, p) is not None]
        if not tested:
            return {key: fmean(_values(compared, key))} if compared else {}
        one = mean_difference(
            _values(tested, key),
            _intervals(tested, f"{key}_low", f"{key}_high"),
            _values(tested, p),
        )
        equivalence = self._equivalence(tested) if question == "accuracy" else {}
        tail = {f"{key}_low": one.low, f"{key}_high": one.high, p: one.p}
        return {key: one.value, **tail, **equivalence}

    def _equivalence(self, tested: Sequence[Row]) -> dict[str, Any]:
        needed = ("lost", "gained", "items")
        if any(number(row, name) is None for row in tested for name in needed):
            return {}
        margin = fraction(self.about.get("margin", MARGIN))
        differences = [Difference(*(int(row[name]) for name in needed)) for row in tested]
        return {
            "accuracy_bound": mean_lower_bound(differences),
            "equivalence_p": mean_noninferiority_p(differences, margin),
        }

    def _speed(self, names: Mapping[str, str]) -> dict[str, Any]:
        key = names.get("speedup")
        timed = [row for row in self.used if (number(row, key) or 0) > 0]
        if not timed or key is None:
            return {}
        low, high = names["speedup_low"], names["speedup_high"]
        one = mean_ratio(_values(timed, key), _intervals(timed, low, high))
        verdict = common_verdict(text_of(row, names["verdict"]) for row in timed)
        shown = {names["verdict"]: verdict} if verdict and not self.is_baseline else {}
        return {key: one.value, low: one.low, high: one.high, **shown}

    def _notes(self) -> Iterator[str]:
        group, good, total = self.group, self.good, self.total
        for status, verb in BAD.items() if good else ():
            if bad := [row for row in group if text_of(row, "status") == status]:
                yield f"{len(bad)} of {total} seeds {verb} ({_joined(bad, 'error') or 'no reason'})"
        if missing := total - len(group):
            yield f"{missing} of {total} seeds missing"
        needed = ("accuracy_delta", "accuracy_p")
        compared = sum(all(number(row, key) is not None for key in needed) for row in good)
        if len(good) == 1 < total:
            yield "a single seed is left: its p and interval are over test items"
        elif not self.is_baseline and 0 < compared < len(good):
            yield f"compared with the baseline in {compared} of {len(good)} seeds"
        yield from filter(None, (self._apart(column) for column in self.columns if column.apart))
        if notes := _joined(self.used, "note"):
            yield notes

    def _apart(self, column: Column) -> str:
        """Say how far the seeds' figures lie apart, if that is far."""
        values = _values(self.good, column.name)
        if not values or min(values) <= 0 or max(values) <= ALIKE * min(values):
            return ""
        apart = 100 * (max(values) / min(values) - 1)
        return f"{column.apart}: up to {apart:.0f} % apart between seeds"


def _values(rows: Sequence[Row], key: str) -> list[float]:
    return [value for row in rows if (value := number(row, key)) is not None]


def _intervals(rows: Sequence[Row], low: str, high: str) -> list[Interval]:
    return [(number(row, low), number(row, high)) for row in rows]


def _remarks(group: Sequence[Row]) -> dict[str, None]:
    """Return the remarks on the GPU for any seed; a row's note is a list of them."""
    notes = [text_of(row, "cuda_note").rstrip(".") for row in group]
    return dict.fromkeys(remark for note in notes for remark in note.split("; ") if remark)


def _joined(rows: Sequence[Row], key: str) -> str:
    """Join the rows' texts, each once; a text that not all rows have names its seeds."""
    seeds_by_text: dict[str, list[str]] = {}
    for row in rows:
        if text := text_of(row, key):
            seeds_by_text.setdefault(text, []).append(str(row.get("seed")))
    return "; ".join(
        text
        if len(seeds) == len(rows)
        else f"seed{'' if len(seeds) == 1 else 's'} {', '.join(seeds)}: {text}"
        for text, seeds in seeds_by_text.items()
    )
