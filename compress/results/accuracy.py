"""Accuracy from the answers to the test items: a file's own, over the baseline, and the control."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compress.results.doubt import doubt_of
from compress.results.draft import Draft, Drafts
from compress.results.raw import Missing, read_arrays
from compress.results.record import BASELINE, Key, Record
from compress.stats.pairs import difference
from compress.stats.proportions import balanced_accuracy, calibration_error, top_accuracy, wilson
from compress.stats.verdicts import difference_verdicts, equivalence_verdicts

MOST_CLASSES = 1_000_000
WEIGHTS = "weights"
"""The kind of a log's line about weights that a baseline came with."""
QUESTIONS = {"accuracy": "the baseline", "control": "its control"}
"""How the columns of a comparison begin, and the row that it is with."""


@dataclass(frozen=True)
class Answers:
    """A file's answers to N test items."""

    predictions: np.ndarray
    """int64, shape (N,), as are the targets."""
    correct: np.ndarray
    """bool, shape (N,)."""
    confidence: np.ndarray
    """float64, shape (N,): the largest softmax probability."""
    targets: np.ndarray
    ranks: np.ndarray | None = None
    """How many classes the file ranks above the target, where there are many classes."""


ENOUGH = 100
"""Answers, of which fewer show nothing of whether a file is better than a guess."""


def read_answers(record: Record, folder: Path) -> Answers:
    """Return the answers that a record names. Raises Missing."""
    place = record.files.get("answers", "")
    if not place:
        raise Missing(record.missing.get("accuracy", "the file was not evaluated"))
    arrays = read_arrays(folder, place, record.hashes.get("answers", ""))
    known = {name: arrays[name] for name in Answers.__dataclass_fields__ if name in arrays}
    kinds = {"predictions": "i", "correct": "b", "confidence": "f", "targets": "i"}
    whole = kinds.keys() <= known.keys() and len({array.shape for array in known.values()}) == 1
    if not whole or any(known[name].dtype.kind != kind for name, kind in kinds.items()):
        raise Missing(f"{place} is damaged (these are not answers)")
    if known["correct"].ndim != 1 or not len(known["correct"]):
        raise Missing(f"{place} is damaged (there are no answers)")
    if not 0 <= known["targets"].min() <= known["targets"].max() < MOST_CLASSES:
        raise Missing(f"{place} is damaged (the targets are not classes)")
    return Answers(**known)


def add_own_accuracy(draft: Draft, folder: Path) -> Answers | None:
    """Add the figures of a file's own answers; return these, or None and say why there are none."""
    if draft.record.status == "failed":
        return None
    try:
        answers = read_answers(draft.record, folder)
    except Missing as error:
        draft.missing["accuracy"] = str(error)
        if "answers" in draft.record.files:
            draft.notes.append(f"no accuracy: {error}")
        return None
    low, high = wilson(int(answers.correct.sum()), len(answers.correct))
    draft.figures |= {
        "accuracy": float(answers.correct.mean()),
        "accuracy_low": low,
        "accuracy_high": high,
        "balanced_accuracy": balanced_accuracy(answers.targets, answers.predictions),
        "items": len(answers.correct),
    }
    for line in draft.record.log:
        if line["kind"] == WEIGHTS:
            right = int(answers.correct.sum())
            items = len(answers.correct)
            if doubt := doubt_of(right, items, line["classes"], line["promised"]):
                draft.notes.append(f"DOUBTFUL WEIGHTS: {doubt}")
    if np.isfinite(answers.confidence).all():
        draft.figures["ece"] = calibration_error(answers.confidence, answers.correct)
    if answers.ranks is not None:
        draft.figures["top5"] = top_accuracy(answers.ranks)
    most = float(np.bincount(answers.targets).max() / len(answers.targets))
    if (answers.predictions == answers.predictions[0]).all():
        draft.notes.append("the file gives every test item the same answer")
    elif low <= most and len(answers.targets) >= ENOUGH:
        draft.notes.append(
            f"not shown to be right more often than whoever always answers the most frequent class "
            f"({most:.1%})"
        )
    return answers


def add_accuracy(drafts: Drafts, folder: Path, about: dict[str, Any]) -> None:
    """Add what follows from answers to all rows; the description has the margin, in points.

    The description gains how many test items each class has.
    """
    read = {key: add_own_accuracy(draft, folder) for key, draft in drafts.items()}
    answers = {key: one for key, one in read.items() if one is not None}
    if answers:
        targets = next(iter(answers.values())).targets
        classes = (about.get("task") or {}).get("classes") or ()
        about["class_counts"] = np.bincount(targets, minlength=len(classes)).tolist()
    for chain, seed in answers:
        base_answers = answers.get((BASELINE, seed))
        if base_answers is not None and _same_items(answers[chain, seed], base_answers):
            figures, base = drafts[chain, seed].figures, drafts[BASELINE, seed].figures
            figures["accuracy_delta"] = figures["accuracy"] - base["accuracy"]
    for question in QUESTIONS:
        for draft in drafts.values():
            _compare(draft, drafts, answers, question, fraction(about["margin"]))
        judge([draft.figures for draft in drafts.values()], question)


def fraction(margin: float) -> float:
    """Return a margin in points as a fraction below 1: nobody loses more than everything."""
    return min(margin / 100, 1 - 1e-9)


def _compare(
    draft: Draft, drafts: Drafts, answers: Mapping[Key, Answers], question: str, margin: float
) -> None:
    """Compare a row with its seed's baseline or control, or say why that cannot be done."""
    record = draft.record
    reference = record.control if question == "control" else BASELINE
    if reference in ("", record.chain):
        return
    other = drafts.get((reference, record.seed))
    reason = _obstacle(draft, other, QUESTIONS[question], answers)
    if reason or other is None:
        draft.missing[f"{question}_verdict"] = reason
        return
    before, after = answers[other.record.key], answers[record.key]
    paired = difference(before.correct, after.correct)
    low, high = paired.interval
    draft.figures |= {
        f"{question}_delta": paired.value,
        f"{question}_delta_low": low,
        f"{question}_delta_high": high,
        f"{question}_p": paired.p,
    }
    if question == "accuracy":
        draft.figures |= {
            "agreement": float((before.predictions == after.predictions).mean()),
            "lost": paired.lost,
            "gained": paired.gained,
            "accuracy_bound": paired.bound,
            "equivalence_p": paired.noninferiority_p(margin),
        }
        return
    ours, theirs = (one.record.measured.get("train_samples") for one in (draft, other))
    if ours != theirs:
        draft.notes.append(
            f"not of equal cost: its control saw {theirs} training samples, and this chain {ours}"
        )


def _obstacle(draft: Draft, other: Draft | None, name: str, answers: Mapping[Key, Answers]) -> str:
    """Return why two rows cannot be compared; '' if they can."""
    if not draft.ok:
        return f"the row is {draft.record.status}"
    if other is None:
        return f"{name} was not measured"
    if not other.ok:
        return f"{name} is {other.record.status}"
    ours, theirs = (answers.get(one.record.key) for one in (draft, other))
    if ours is None:
        return draft.missing["accuracy"]
    if theirs is None:
        return f"{name} has no answers: {other.missing['accuracy']}"
    return "" if _same_items(ours, theirs) else f"{name} answered other items"


def _same_items(ours: Answers, theirs: Answers) -> bool:
    return len(ours.correct) == len(theirs.correct)


def judge(rows: Iterable[dict[str, Any]], question: str) -> None:
    """Add the verdicts on one question to all rows that were tested: Holm's family is all of them.

    Equivalence is a verdict on accuracy too, where all rows were tested for it.
    """
    tested = [row for row in rows if row.get(f"{question}_p") is not None]
    values, ps = ([row[f"{question}_{name}"] for row in tested] for name in ("delta", "p"))
    if question == "accuracy" and all("equivalence_p" in row for row in tested):
        verdicts = equivalence_verdicts(values, ps, [row["equivalence_p"] for row in tested])
    else:
        verdicts = difference_verdicts(values, ps)
    for row, verdict in zip(tested, verdicts, strict=True):
        row[f"{question}_verdict"] = verdict
