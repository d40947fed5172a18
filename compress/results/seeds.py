"""One row for every chain from the rows of its seeds, column by column as the table says."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from compress.results.accuracy import fraction
from compress.results.columns import SEEDS, Column, columns
from compress.results.record import BASELINE, MARGIN
from compress.results.table import Row, number, ordered, text_of, to_csv
from compress.results.timed import timings
from compress.stats.pairs import Difference
from compress.stats.replication import (
    deviation,
    mean,
    mean_difference,
    mean_lower_bound,
    mean_noninferiority_p,
    mean_ratio,
)
from compress.stats.verdicts import common_verdict, difference_verdicts, equivalence_verdicts

ALIKE = 1.05  # the largest of the seeds' figures over the smallest, above which a note says so
BAD = {"failed": "failed", "unverified": "were not verified"}
QUESTIONS = ("accuracy", "control")


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
        _judge(merged, question)
    return merged


def seeds_csv(rows: Sequence[Row], about: Mapping[str, Any]) -> str:
    """Return what `over_seeds` makes of the rows, as CSV."""
    kept = [column for column in columns(about) if column.seeds != "none"]
    at = [column.name for column in kept].index("accuracy")
    count, names, scatter, values = SEEDS
    order = [kept[0], count, names, *kept[1 : at + 1], scatter, values, *kept[at + 1 :]]
    return to_csv(over_seeds(rows, about), about, order)


class _Group:
    """The rows of one chain."""

    def __init__(self, group: Sequence[Row], about: Mapping[str, Any], total: int) -> None:
        self.group, self.about, self.total = group, about, total
        self.good = [row for row in group if text_of(row, "status") not in BAD]
        self.used = self.good or group
        self.columns = columns(about)

    def merged(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            column.name: next((t for row in self.group if (t := text_of(row, column.name))), "")
            for column in self.columns
            if column.seeds == "first"
        }
        found["steps"] = next((row["steps"] for row in self.group if row.get("steps")), [])
        found |= {"n": len(self.good), "seeds": " ".join(str(row.get("seed")) for row in self.good)}
        for column in self.columns:
            if column.seeds == "mean" and (values := _values(self.used, column.name)):
                # A count that all seeds share stays a whole number.
                found[column.name] = values[0] if len(set(values)) == 1 else mean(values)
        found |= self._accuracies()
        for question in QUESTIONS:
            found |= self._difference(question)
        for timed in timings(self.about):
            found |= self._speed(timed.names)
        found["status"] = self._status()
        found["error"] = "" if self.good else _joined(self.group, "error")
        found["cuda_note"] = "; ".join(_remarks(self.group))
        found["note"] = "; ".join(self._notes())
        return found

    def _accuracies(self) -> dict[str, Any]:
        values = _values(self.good, "accuracy")
        found: dict[str, Any] = {"accuracy_seeds": " ".join(map(repr, values))}
        return found | ({"accuracy_sd": deviation(values)} if len(values) > 1 else {})

    def _difference(self, question: str) -> dict[str, Any]:
        """The mean difference; one to a row that was not verified has no p, and enters no test."""
        key = f"{question}_delta"
        compared = [row for row in self.good if number(row, key) is not None]
        if not compared or text_of(compared[0], "chain") == BASELINE:
            return {}
        wanted = (key, f"{key}_low", f"{key}_high", f"{question}_p")
        tested = [row for row in compared if number(row, f"{question}_p") is not None]
        if not tested:
            return {key: mean(_values(compared, key))}
        if len(tested) == 1:
            figures = [number(tested[0], name) for name in wanted]
        else:
            intervals = [(number(row, f"{key}_low"), number(row, f"{key}_high")) for row in tested]
            one = mean_difference(_values(tested, key), intervals, _values(tested, f"{question}_p"))
            figures = [one.value, one.low, one.high, one.p]
        found = dict(zip(wanted, figures, strict=True))
        return found | (self._equivalence(tested) if question == "accuracy" else {})

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
        ends = names["speedup_low"], names["speedup_high"]
        intervals = [(number(row, ends[0]), number(row, ends[1])) for row in timed]
        one = mean_ratio(_values(timed, key), intervals)
        found: dict[str, Any] = {key: one.value, ends[0]: one.low, ends[1]: one.high}
        verdict = common_verdict(text_of(row, names["verdict"]) for row in timed)
        if verdict and text_of(timed[0], "chain") != BASELINE:
            found[names["verdict"]] = verdict
        return found

    def _status(self) -> str:
        if self.good:
            return "ok"
        states = {text_of(row, "status") for row in self.group}
        return "unverified" if "unverified" in states else "failed"

    def _notes(self) -> Iterator[str]:
        group, good, total = self.group, self.good, self.total
        for status, verb in BAD.items() if good else ():
            if bad := [row for row in group if text_of(row, "status") == status]:
                yield f"{len(bad)} of {total} seeds {verb} ({_joined(bad, 'error') or 'no reason'})"
        if missing := total - len(group):
            yield f"{missing} of {total} seeds missing"
        if len(good) == 1 < total:
            yield "a single seed is left: its p and interval are over test items"
        elif 0 < (compared := _compared(good)) < len(good):
            yield f"compared with the baseline in {compared} of {len(good)} seeds"
        yield from filter(None, (self._apart(column) for column in self.columns if column.apart))
        if told := _joined(good or group, "note"):
            yield told

    def _apart(self, column: Column) -> str:
        """Say how far the seeds' figures lie apart, if that is far."""
        values = _values(self.good, column.name)
        if not values or min(values) <= 0 or max(values) <= ALIKE * min(values):
            return ""
        apart = 100 * (max(values) / min(values) - 1)
        return f"{column.apart}: up to {apart:.0f} % apart between seeds"


def _judge(merged: Sequence[dict[str, Any]], question: str) -> None:
    tested = [row for row in merged if row.get(f"{question}_p") is not None]
    values, ps = ([row[f"{question}_{what}"] for row in tested] for what in ("delta", "p"))
    within = [row.get("equivalence_p") for row in tested]
    if question == "accuracy" and None not in within:
        found = equivalence_verdicts(values, ps, [float(p) for p in within if p is not None])
    else:
        found = difference_verdicts(values, ps)
    for row, verdict in zip(tested, found, strict=True):
        row[f"{question}_verdict"] = verdict


def _values(rows: Sequence[Row], key: str) -> list[float]:
    return [value for row in rows if (value := number(row, key)) is not None]


def _remarks(group: Sequence[Row]) -> dict[str, None]:
    """Return what is said of the GPU for any seed; a row's note is a list of remarks."""
    notes = [text_of(row, "cuda_note").rstrip(".") for row in group]
    return dict.fromkeys(remark for note in notes for remark in note.split("; ") if remark)


def _compared(good: Sequence[Row]) -> int:
    if good and text_of(good[0], "chain") == BASELINE:
        return len(good)
    needed = ("accuracy_delta", "accuracy_p")
    return sum(all(number(row, key) is not None for key in needed) for row in good)


def _joined(rows: Sequence[Row], key: str) -> str:
    """The rows' texts, each once; one that not all rows have is told with its seeds."""
    told: dict[str, list[str]] = {}
    for row in rows:
        if text := text_of(row, key):
            told.setdefault(text, []).append(str(row.get("seed")))
    return "; ".join(
        text
        if len(seeds) == len(rows)
        else f"seed{'' if len(seeds) == 1 else 's'} {', '.join(seeds)}: {text}"
        for text, seeds in told.items()
    )
