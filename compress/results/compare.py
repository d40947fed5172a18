"""Whether rows differ in accuracy: the same test items, answered by two files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from compress.bench.plan.rows import BASELINE
from compress.results.record import Key, Record
from compress.stats.pairs import Difference, agreement, difference
from compress.stats.verdicts import difference_verdicts


@dataclass(frozen=True)
class Answers:
    """What a file answered to the test items (int64, shape (N,)), and whether that is right."""

    predictions: np.ndarray
    correct: np.ndarray


def compare_records(
    records: Mapping[Key, Record], answers: Mapping[Key, Answers]
) -> dict[Key, Record]:
    """Return the records with what sets them apart from their baselines and their controls.

    A row is compared with rows of its own seed. `answers` holds those of every `ok` record;
    other rows are not compared, and say so. Comparisons of an earlier call are replaced.
    """
    bare = {key: _bare(record) for key, record in records.items()}
    found = _compared("accuracy", "the baseline", _baseline_of, bare, answers)
    found = _compared("control", "its control", lambda record: record.control, found, answers)
    return {key: _with_samples(record, found) for key, record in found.items()}


PARTS = ("delta_low", "delta_high", "p", "verdict")
FILLED = (
    *(f"{prefix}_{part}" for prefix in ("accuracy", "control") for part in PARTS),
    *("control_delta", "agreement", "lost", "gained"),
)


def _bare(record: Record) -> Record:
    measured = {name: value for name, value in record.measured.items() if name not in FILLED}
    # Of a row without a control, why it has none was said when it was measured.
    ours = {"accuracy_verdict", *(["control_verdict"] if record.control else [])}
    missing = {name: reason for name, reason in record.missing.items() if name not in ours}
    return replace(record, measured=measured, missing=missing)


def _baseline_of(record: Record) -> str:
    return "" if record.chain == BASELINE else BASELINE


def _compared(
    prefix: str,
    what: str,
    other: Callable[[Record], str],
    records: Mapping[Key, Record],
    answers: Mapping[Key, Answers],
) -> dict[Key, Record]:
    """Compare every record with the row that `other` names; Holm's family are all of them."""
    found = dict(records)
    pairs: dict[Key, tuple[Answers, Answers]] = {}
    for key, record in records.items():
        if not other(record):
            continue
        beside = (other(record), record.seed)
        if reason := _obstacle(record, records.get(beside), what):
            missing = {**record.missing, f"{prefix}_verdict": reason}
            found[key] = replace(record, missing=missing)
        else:
            pairs[key] = answers[beside], answers[key]
    differences = [difference(before.correct, after.correct) for before, after in pairs.values()]
    ps = [one.p for one in differences]
    verdicts = difference_verdicts([one.value for one in differences], ps)
    for (key, pair), one, p, verdict in zip(pairs.items(), differences, ps, verdicts, strict=True):
        figures = _figures(prefix, one, p, verdict)
        if prefix == "accuracy":
            same = agreement(*(answers.predictions for answers in pair))
            figures |= {"agreement": same, "lost": one.lost, "gained": one.gained}
        found[key] = replace(found[key], measured={**found[key].measured, **figures})
    return found


def _obstacle(record: Record, beside: Record | None, what: str) -> str:
    if record.status != "ok":
        return f"the row is {record.status}"
    if beside is None:
        return f"{what} was not measured"
    return "" if beside.status == "ok" else f"{what} is {beside.status}"


def _figures(prefix: str, one: Difference, p: float, verdict: str) -> dict[str, float | int | str]:
    low, high = one.interval
    return {
        f"{prefix}_delta": one.value,
        f"{prefix}_delta_low": low,
        f"{prefix}_delta_high": high,
        f"{prefix}_p": p,
        f"{prefix}_verdict": verdict,
    }


def _with_samples(record: Record, records: Mapping[Key, Record]) -> Record:
    """Say on the row if its control was not of equal cost after all."""
    if "control_delta" not in record.measured:
        return record
    control = records[record.control, record.seed]
    ours, theirs = (one.measured.get("train_samples") for one in (record, control))
    note = f"not of equal cost: its control saw {theirs} training samples, and this chain {ours}"
    if ours == theirs or note in record.notes:
        return record
    return replace(record, notes=(*record.notes, note))
