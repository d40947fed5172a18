"""Figures of the GPU stage: every row gets a figure or a reason in each of its columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from compress.results.draft import Draft, Drafts
from compress.results.latency import figures, noise, read_stage
from compress.results.log import Stage
from compress.results.raw import Missing
from compress.results.record import flat
from compress.results.timed import FORMS, PEAK, Timed, timed_on_gpu
from compress.timing.raw_timings import RawTimings
from compress.timing.summary import Timing, summarise

TORCH = FORMS[0].column
SPEEDUPS = {form.column: f"{form.speed}_speedup" for form in FORMS if form.speed}
WORDS = {
    **{form.column: form.words for form in FORMS},
    PEAK: "peak memory",
    "cuda_speedup": "speed-up",
    "cuda_file_speedup": "speed-up of the file",
}
"""Every column that has a figure or a reason, in a reader's words."""
LOWERED = "the file is int8 or float16, and torch has only the float32 module"
NO_MODULE = "the row's module is not available"
NO_RATIO = "the baseline could not be timed on the GPU"
UNJUDGED = "the baseline and its copy differed too much for any verdict"


@dataclass
class RowFacts:
    """What the stage measured of one row, besides seconds."""

    peak: int | None = None
    reasons: dict[str, str] = field(default_factory=dict)
    """Column -> why it could not be filled."""
    remarks: dict[str, list[str]] = field(default_factory=dict)
    """Column -> what its figure rests on."""


@dataclass
class GpuFacts:
    """What the stage measured."""

    device: Mapping[str, Any] = field(default_factory=dict)
    tf32: dict[str, bool] = field(default_factory=dict)
    """Columns in float32 -> whether products may be rounded to TF32."""
    reasons: dict[str, str] = field(default_factory=dict)
    """Column -> why it cannot be filled for any row."""
    raw_timings: dict[str, RawTimings] = field(default_factory=dict)
    """By column; in a file they are called `timings`."""
    rows: dict[str, RowFacts] = field(default_factory=dict)
    """By the name under which a row is timed."""

    def to_json(self) -> dict[str, Any]:
        values = asdict(self)
        values["timings"] = values.pop("raw_timings")
        return values

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> GpuFacts:
        """Read what `to_json` gave. Raises KeyError or ValueError for other content."""
        return msgspec.convert({**values, "raw_timings": values["timings"]}, GpuFacts)


@dataclass(frozen=True)
class _Column:
    """What was timed in one form, and every row's timing by its name."""

    timed: Timed
    timings: Mapping[str, Timing]


def add_gpu(stage: Stage, drafts: Drafts, folder: Path, about: dict[str, Any]) -> tuple[Timed, ...]:
    """Add a figure or a reason in every column of the GPU to all sound rows."""
    try:
        facts, columns = read_stage(folder, stage, _parse)
    except Missing as error:
        facts, columns = GpuFacts(reasons=dict.fromkeys(WORDS, str(error))), {}
    if facts.device:
        about["gpu"] = {"device": facts.device, "tf32": facts.tf32}
    for draft in drafts.values():
        if draft.ok:
            _add_row(draft, facts, columns)
    return tuple(columns[form.column].timed for form in FORMS if form.column in columns)


def _parse(values: Mapping[str, Any]) -> tuple[GpuFacts, dict[str, _Column]]:
    facts = GpuFacts.from_json(values)
    forms = {form.column: form for form in FORMS}
    columns = {}
    for column, raw_timings in facts.raw_timings.items():
        all_timings = summarise(raw_timings)
        [known] = all_timings.about().values()
        by_name = {name: timing for (name, _), timing in all_timings.rows.items()}
        columns[column] = _Column(timed_on_gpu(forms[column], known), by_name)
    return facts, columns


def _add_row(draft: Draft, facts: GpuFacts, columns: Mapping[str, _Column]) -> None:
    name = draft.record.name
    row = facts.rows.get(name) or RowFacts()
    reasons, remarks, noisy = dict(row.reasons), [], False
    if row.peak is not None:
        draft.figures[PEAK] = row.peak
    for key, column in columns.items():
        if (timing := column.timings.get(name)) is None:
            continue
        draft.figures |= figures(column.timed, timing)
        if timing.error:
            reasons[key] = timing.error
        else:
            remarks += row.remarks.get(key, [])
            noisy |= timing.noisy
        if key in SPEEDUPS and timing.speedup is None:
            reasons[SPEEDUPS[key]] = timing.error or NO_RATIO
        elif key in SPEEDUPS and timing.low is not None and not timing.verdict:
            reasons[column.timed.names["verdict"]] = UNJUDGED
    reasons |= facts.reasons
    reasons = {key: reason for key, reason in reasons.items() if key not in draft.figures}
    _complete(reasons, draft)
    sentences = _sentences(reasons, set(facts.reasons.values()))
    draft.figures["cuda_note"] = "; ".join([*dict.fromkeys(remarks), *sentences])
    draft.missing |= reasons
    if noisy:
        draft.notes.append(noise(" on the GPU"))


def _complete(reasons: dict[str, str], draft: Draft) -> None:
    """Give every column without a figure a reason."""
    for column, speedup in SPEEDUPS.items():
        if column in reasons and speedup not in draft.figures:
            reasons.setdefault(speedup, reasons[column])
    lowered = any(step.lowers for step in flat(draft.record.steps))
    for column in WORDS:
        if column not in draft.figures:
            reasons.setdefault(column, reasons.get(TORCH, LOWERED if lowered else NO_MODULE))


def _sentences(reasons: Mapping[str, str], general: set[str]) -> list[str]:
    """Return a sentence for every reason; those that hold everywhere need no columns."""
    columns: dict[str, list[str]] = {}
    for column, words in WORDS.items():
        if column in reasons:
            columns.setdefault(reasons[column], []).append(words)
    return [
        reason if reason in general else f"no {', '.join(words)}: {reason}"
        for reason, words in columns.items()
    ]
