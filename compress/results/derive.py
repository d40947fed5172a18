"""From raw facts to results: every figure, verdict and note is made here, when records are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.results.accuracy import add_accuracy, own_figures, read_answers
from compress.results.draft import Draft, Drafts
from compress.results.gpu import add_gpu
from compress.results.latency import add_latency
from compress.results.log import Run, Stage, read_run
from compress.results.notes import add_notes
from compress.results.raw import Missing
from compress.results.record import BASELINE, MARGIN, Key, Record
from compress.results.timed import GPU, Timed, described
from compress.system.amounts import decimal

Add = Callable[[Stage, Drafts, Path, dict[str, Any]], tuple[Timed, ...]]
READERS: dict[str, Add] = {GPU: add_gpu}
"""Of runtimes whose raw seconds are not simply those of files at settings."""
MULTIPLICITY = (
    "Verdicts are adjusted for the number of rows: Holm's procedure (1979) at 5 % over all rows "
    "of the table that are compared, for each question by itself (accuracy against the baseline, "
    "equivalence, accuracy against the control, and each latency). Equivalent: a loss of {margin} "
    "or more is ruled out (one-sided)."
)


@dataclass(frozen=True)
class Derived:
    """The rows of a run, and its description with what is known of its timings."""

    rows: tuple[dict[str, Any], ...]
    about: dict[str, Any]
    records: tuple[Record, ...]


def read_results(folder: Path, margin: float | None = None) -> Derived:
    """Read the last run in a folder and derive its results; `margin` (points) replaces its own.

    Raises UserError where there is none, or one of another version.
    """
    return derive(read_run(folder / "results.jsonl"), folder, margin)


def derive(run: Run, folder: Path, margin: float | None = None) -> Derived:
    """Derive a run's results from what it wrote down. What cannot be had has a reason instead."""
    about = dict(run.about)
    about["margin"] = float(about.get("margin", MARGIN) if margin is None else margin)
    about["multiplicity"] = MULTIPLICITY.format(margin=points(about["margin"]))
    drafts: dict[Key, Draft] = {key: Draft.of(record) for key, record in run.records.items()}
    for draft in drafts.values():
        add_notes(draft)
    add_accuracy(drafts, folder, about["margin"], about)
    timed: list[Timed] = []
    for _, stage in sorted(run.stages.items()):
        timed += READERS.get(stage.runtime, add_latency)(stage, drafts, folder, about)
    about["timings"] = described(timed)
    if split := next(filter(None, (_split(record) for record in run.records.values())), ""):
        about["split_hash"] = split
    rows = tuple(draft.row() for draft in drafts.values())
    return Derived(rows, about, tuple(run.records.values()))


def row_alone(record: Record, folder: Path) -> dict[str, Any]:
    """Return a record's row without what needs other rows or the timing."""
    draft = Draft.of(record)
    add_notes(draft)
    if record.status != "failed":
        try:
            draft.figures |= own_figures(read_answers(record, folder))
        except Missing as error:
            draft.missing.setdefault("accuracy", str(error))
    return draft.row()


def points(margin: float) -> str:
    return f"{decimal(margin)} point{'' if margin == 1 else 's'}"


def _split(record: Record) -> str:
    return record.hashes.get("split", "") if record.chain == BASELINE else ""
