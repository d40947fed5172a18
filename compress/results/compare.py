"""Whether rows differ in accuracy: the same test items, answered by two files.

The functions up to `verdict` are pure functions of arrays: for every test item, whether one file
was right (`before`) and whether the other one was (`after`), bool of shape (N,).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import binomtest, norm

from compress.bench.plan.rows import BASELINE
from compress.results.record import Key, Record
from compress.timing.multiplicity import holm

ALPHA = 0.05
Z95 = float(norm.ppf(1 - ALPHA / 2))


def flips(before: np.ndarray, after: np.ndarray) -> tuple[int, int]:
    """Return how many items were lost (right, then wrong) and gained (wrong, then right)."""
    return int((before & ~after).sum()), int((~before & after).sum())


def mcnemar(before: np.ndarray, after: np.ndarray) -> float:
    """Return the two-sided p-value of McNemar's exact test (McNemar 1947), 1 without flips.

    Given the number of flips, those that are losses are binomial with probability 1/2 if both
    files are equally good.
    """
    lost, gained = flips(before, after)
    if lost == gained:
        return 1.0
    return float(binomtest(min(lost, gained), lost + gained, 0.5).pvalue)


def paired_interval(before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of accuracy after minus accuracy before, within [-1, 1].

    Wald's with the Laplace adjustment of Bonett and Price (2012), as Fagerland, Lydersen and
    Laake (2014) recommend: with gain = (gained + 1) / (N + 2) and loss = (lost + 1) / (N + 2),
    gain - loss ± 1.96 · sqrt((gain + loss - (gain - loss)²) / (N + 2)).
    """
    lost, gained = flips(before, after)
    total = len(before) + 2
    gain, loss = (gained + 1) / total, (lost + 1) / total
    half = Z95 * math.sqrt((gain + loss - (gain - loss) ** 2) / total)
    return max(-1.0, gain - loss - half), min(1.0, gain - loss + half)


def verdict(delta: float, adjusted_p: float) -> str:
    """Return better, worse or indistinguishable, from a difference and its adjusted p-value."""
    if adjusted_p > ALPHA:
        return "indistinguishable"
    return "better" if delta > 0 else "worse"


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
    p_values = [mcnemar(before.correct, after.correct) for before, after in pairs.values()]
    for (key, pair), p, adjusted in zip(pairs.items(), p_values, holm(p_values), strict=True):
        figures = _figures(prefix, *pair, p, adjusted)
        found[key] = replace(found[key], measured={**found[key].measured, **figures})
    return found


def _obstacle(record: Record, beside: Record | None, what: str) -> str:
    if record.status != "ok":
        return f"the row is {record.status}"
    if beside is None:
        return f"{what} was not measured"
    return "" if beside.status == "ok" else f"{what} is {beside.status}"


def _figures(
    prefix: str, before: Answers, after: Answers, p: float, adjusted: float
) -> dict[str, float | int | str]:
    lost, gained = flips(before.correct, after.correct)
    delta = (gained - lost) / len(before.correct)
    low, high = paired_interval(before.correct, after.correct)
    figures: dict[str, float | int | str] = {
        f"{prefix}_delta": delta,
        f"{prefix}_delta_low": low,
        f"{prefix}_delta_high": high,
        f"{prefix}_p": p,
        f"{prefix}_verdict": verdict(delta, adjusted),
    }
    if prefix == "accuracy":
        same = float((before.predictions == after.predictions).mean())
        figures |= {"agreement": same, "lost": lost, "gained": gained}
    return figures


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
