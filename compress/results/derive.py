"""From raw facts to results: figures, verdicts and notes are derived when records are read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.results.accuracy import add_accuracy, add_own_accuracy
from compress.results.draft import Draft
from compress.results.gpu import add_gpu
from compress.results.latency import add_latency
from compress.results.log import read_run
from compress.results.record import BASELINE, MARGIN, Record
from compress.results.timed import GPU, Timed, described
from compress.system.amounts import decimal

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

    A figure that cannot be derived has a reason instead. Raises UserError where there is no run,
    or one of another version.
    """
    run = read_run(folder / "results.jsonl")
    records = tuple(run.records.values())
    about = dict(run.about)
    about["margin"] = float(about.get("margin", MARGIN) if margin is None else margin)
    about["multiplicity"] = MULTIPLICITY.format(margin=points(about["margin"]))
    drafts = {record.key: Draft.of(record) for record in records}
    add_accuracy(drafts, folder, about)
    timed: list[Timed] = []
    for _, stage in sorted(run.stages.items()):
        add = add_gpu if stage.runtime == GPU else add_latency
        timed += add(stage, drafts, folder, about)
    about["timings"] = described(timed)
    baselines = (record for record in records if record.chain == BASELINE)
    if split := next((r.hashes["split"] for r in baselines if r.hashes.get("split")), ""):
        about["split_hash"] = split
    return Derived(tuple(draft.row() for draft in drafts.values()), about, records)


def row_alone(record: Record, folder: Path) -> dict[str, Any]:
    """Return a record's row without the figures that need other rows or the timing."""
    draft = Draft.of(record)
    add_own_accuracy(draft, folder)
    return draft.row()


def points(margin: float) -> str:
    return f"{decimal(margin)} point{'' if margin == 1 else 's'}"
