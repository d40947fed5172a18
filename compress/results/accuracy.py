"""What the answers to the test items say: of one file, and against the baseline and the control."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compress.results.draft import Draft, Drafts
from compress.results.raw import Missing, read_arrays
from compress.results.record import BASELINE, Key, Record
from compress.stats.calibration import calibration_error
from compress.stats.pairs import Difference, agreement, difference
from compress.stats.proportions import balanced_accuracy, class_counts, top_accuracy, wilson
from compress.stats.verdicts import difference_verdicts, equivalence_verdicts

MOST_CLASSES = 1_000_000


@dataclass(frozen=True)
class Answers:
    """What a file answered to N test items."""

    predictions: np.ndarray
    """int64, shape (N,), as are the targets."""
    correct: np.ndarray
    """bool, shape (N,)."""
    confidence: np.ndarray
    """float64, shape (N,): the largest softmax probability."""
    targets: np.ndarray
    ranks: np.ndarray | None = None
    """How many classes the file holds for likelier than the target, where there are many."""


def read_answers(record: Record, folder: Path) -> Answers:
    """Return the answers that a record names. Raises Missing."""
    place = record.files.get("answers", "")
    if not place:
        raise Missing(record.missing.get("accuracy", "the file was not asked"))
    arrays = read_arrays(folder, place, record.hashes.get("answers", ""))
    known = {name: arrays[name] for name in Answers.__dataclass_fields__ if name in arrays}
    kinds = {"predictions": "i", "correct": "b", "confidence": "f", "targets": "i"}
    whole = kinds.keys() <= known.keys() and len({array.shape for array in known.values()}) == 1
    if not whole or any(known[name].dtype.kind != kind for name, kind in kinds.items()):
        raise Missing(f"{place} is damaged (these are no answers)")
    if known["correct"].ndim != 1 or not len(known["correct"]):
        raise Missing(f"{place} is damaged (there are no answers)")
    if not 0 <= known["targets"].min() <= known["targets"].max() < MOST_CLASSES:
        raise Missing(f"{place} is damaged (these are no classes)")
    return Answers(**known)


def own_figures(answers: Answers) -> dict[str, Any]:
    """Return what a file's answers are worth by themselves."""
    right, items = int(answers.correct.sum()), len(answers.correct)
    low, high = wilson(right, items)
    found = {
        "accuracy": float(answers.correct.mean()),
        "accuracy_low": low,
        "accuracy_high": high,
        "balanced_accuracy": balanced_accuracy(answers.targets, answers.predictions),
        "items": items,
    }
    if np.isfinite(answers.confidence).all():
        found["ece"] = calibration_error(answers.confidence, answers.correct)
    if answers.ranks is not None:
        found["top5"] = top_accuracy(answers.ranks)
    return found


def add_accuracy(drafts: Drafts, folder: Path, margin: float, about: dict[str, Any]) -> None:
    """Add what follows from answers to all rows; `margin` is in points.

    The description gains how many test items each class has.
    """
    answers: dict[Key, Answers] = {}
    for key, draft in drafts.items():
        if draft.record.status == "failed":
            continue
        try:
            answers[key] = read_answers(draft.record, folder)
        except Missing as error:
            draft.missing["accuracy"] = str(error)
            if "answers" in draft.record.files:
                draft.notes.append(f"no accuracy: {error}")
            continue
        draft.figures |= own_figures(answers[key])
        _add_notes(draft, answers[key])
    if answers:
        targets = next(iter(answers.values())).targets
        classes = (about.get("task") or {}).get("classes") or ()
        about["class_counts"] = class_counts(targets, len(classes)).tolist()
    for (_, seed), draft in drafts.items():
        base = drafts.get((BASELINE, seed))
        if base is not None and {"accuracy"} <= draft.figures.keys() & base.figures.keys():
            draft.figures["accuracy_delta"] = draft.figures["accuracy"] - base.figures["accuracy"]
    _compare(drafts, answers, "accuracy", _baseline_of, "the baseline", fraction(margin))
    _compare(drafts, answers, "control", lambda record: record.control, "its control", None)
    for draft in drafts.values():
        _add_cost(draft, drafts)


def _baseline_of(record: Record) -> str:
    return "" if record.chain == BASELINE else BASELINE


def _compare(
    drafts: Drafts,
    answers: Mapping[Key, Answers],
    question: str,
    other: Callable[[Record], str],
    what: str,
    margin: float | None,
) -> None:
    """Compare every row with the row of its seed that `other` names; Holm's family is all of them.

    With a margin (a fraction), equivalence is a verdict too.
    """
    found: dict[Key, Difference] = {}
    for key, draft in drafts.items():
        if not (name := other(draft.record)):
            continue
        beside = name, draft.record.seed
        if reason := _obstacle(draft, drafts.get(beside), what, answers):
            draft.missing[f"{question}_verdict"] = reason
            continue
        before, after = answers[beside], answers[key]
        found[key] = difference(before.correct, after.correct)
        if question == "accuracy":
            draft.figures["agreement"] = agreement(before.predictions, after.predictions)
            draft.figures |= {"lost": found[key].lost, "gained": found[key].gained}
    values, ps = [one.value for one in found.values()], [one.p for one in found.values()]
    within = [] if margin is None else [one.noninferiority_p(margin) for one in found.values()]
    verdicts = (
        equivalence_verdicts(values, ps, within) if within else difference_verdicts(values, ps)
    )
    for (key, one), p, verdict in zip(found.items(), ps, verdicts, strict=True):
        low, high = one.interval
        drafts[key].figures |= {
            f"{question}_delta": one.value,
            f"{question}_delta_low": low,
            f"{question}_delta_high": high,
            f"{question}_p": p,
            f"{question}_verdict": verdict,
        }
    for (key, one), p in zip(found.items(), within, strict=bool(within)):
        drafts[key].figures |= {"accuracy_bound": one.bound, "equivalence_p": p}


def fraction(margin: float) -> float:
    """Return a margin in points as a fraction below 1: nobody loses more than everything."""
    return min(margin / 100, 1 - 1e-9)


def _obstacle(draft: Draft, beside: Draft | None, what: str, answers: Mapping[Key, Answers]) -> str:
    """Return why two rows cannot be compared; '' if they can."""
    if not draft.ok:
        return f"the row is {draft.record.status}"
    if beside is None:
        return f"{what} was not measured"
    if not beside.ok:
        return f"{what} is {beside.record.status}"
    ours, theirs = (answers.get(one.record.key) for one in (draft, beside))
    if ours is None:
        return draft.missing["accuracy"]
    if theirs is None:
        return f"{what} has no answers: {beside.missing['accuracy']}"
    return "" if len(ours.correct) == len(theirs.correct) else f"{what} answered other items"


def _add_notes(draft: Draft, answers: Answers) -> None:
    if (answers.predictions == answers.predictions[0]).all():
        draft.notes.append("the file gives every test item the same answer")


def _add_cost(draft: Draft, drafts: Drafts) -> None:
    """Say on the row if its control was not of equal cost after all."""
    if "control_delta" not in draft.figures:
        return
    control = drafts[draft.record.control, draft.record.seed]
    ours, theirs = (one.record.measured.get("train_samples") for one in (draft, control))
    if ours != theirs:
        draft.notes.append(
            f"not of equal cost: its control saw {theirs} training samples, and this chain {ours}"
        )
