"""What the GPU stage says of every row: a figure or a reason in each of its columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compress.errors import UserError
from compress.results.draft import Draft, Drafts
from compress.results.latency import figures, noise
from compress.results.log import Stage
from compress.results.raw import Missing, read_values
from compress.results.record import flat
from compress.results.timed import FORMS, PEAK, Timed, timed_on_gpu
from compress.timing.raw_timings import RawTimings
from compress.timing.summary import Timings, summarise

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
NO_MODULE = "the row's module is not at hand"
NO_RATIO = "the baseline could not be timed on the GPU"
UNJUDGED = "the baseline and its copy differed too much for any verdict"


@dataclass
class RowFacts:
    """What the stage found of one row, besides seconds."""

    peak: int | None = None
    reasons: dict[str, str] = field(default_factory=dict)
    """Column -> why it could not be filled."""
    remarks: dict[str, list[str]] = field(default_factory=dict)
    """Column -> what its figure rests on."""


@dataclass
class GpuFacts:
    """What the stage found."""

    device: Mapping[str, Any] = field(default_factory=dict)
    tf32: dict[str, bool] = field(default_factory=dict)
    """Columns in float32 -> whether products may be rounded to TF32."""
    reasons: dict[str, str] = field(default_factory=dict)
    """Column -> why it cannot be filled for any row."""
    raw_timings: dict[str, RawTimings] = field(default_factory=dict)
    """By column."""
    rows: dict[str, RowFacts] = field(default_factory=dict)
    """By the name under which a row is timed."""

    def to_json(self) -> dict[str, Any]:
        return {
            "device": dict(self.device),
            "tf32": self.tf32,
            "reasons": self.reasons,
            "timings": {column: one.to_json() for column, one in self.raw_timings.items()},
            "rows": {name: vars(row) for name, row in self.rows.items()},
        }

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> GpuFacts:
        """Read what `to_json` gave. Raises KeyError, TypeError or ValueError for other content."""
        return GpuFacts(
            dict(values["device"]),
            dict(values["tf32"]),
            dict(values["reasons"]),
            {column: RawTimings.from_json(one) for column, one in values["timings"].items()},
            {name: RowFacts(**row) for name, row in values["rows"].items()},
        )


def add_gpu(stage: Stage, drafts: Drafts, folder: Path, about: dict[str, Any]) -> tuple[Timed, ...]:
    """Add a figure or a reason in every column of the GPU to all sound rows."""
    facts, timings = _read(stage, folder)
    if facts.device:
        about["gpu"] = {"device": facts.device, "tf32": facts.tf32}
    for draft in drafts.values():
        if draft.ok:
            _add_row(draft, facts, timings)
    return tuple(_timed(form.column, timings) for form in FORMS if form.column in timings)


def _read(stage: Stage, folder: Path) -> tuple[GpuFacts, dict[str, Timings]]:
    try:
        if stage.reason:
            raise Missing(stage.reason)
        values = read_values(folder, stage.file, stage.sha256)
        try:
            facts = GpuFacts.from_json(values)
            return facts, {column: summarise(one) for column, one in facts.raw_timings.items()}
        except (LookupError, TypeError, ValueError, AttributeError, UserError) as error:
            raise Missing(f"{stage.file} is damaged ({error!r})") from error
    except Missing as error:
        return GpuFacts(reasons=dict.fromkeys(WORDS, str(error))), {}


def _timed(column: str, timings: Mapping[str, Timings]) -> Timed:
    form = next(form for form in FORMS if form.column == column)
    if column not in timings:
        return timed_on_gpu(form)
    [known] = timings[column].about().values()
    return timed_on_gpu(form, known)


def _add_row(draft: Draft, facts: GpuFacts, timings: Mapping[str, Timings]) -> None:
    name = draft.record.name
    row = facts.rows.get(name) or RowFacts()
    found: dict[str, Any] = {} if row.peak is None else {PEAK: row.peak}
    reasons, remarks, noisy = dict(row.reasons), [], False
    for column, all_rows in timings.items():
        [setting] = all_rows.raw_timings.settings
        if (timing := all_rows.rows.get((name, setting))) is None:
            continue
        timed = _timed(column, timings)
        found |= figures(timed, timing)
        if timing.error:
            reasons[column] = timing.error
        else:
            remarks += row.remarks.get(column, [])
            noisy |= timing.noisy
        if column in SPEEDUPS and timing.speedup is None:
            reasons[SPEEDUPS[column]] = timing.error or NO_RATIO
        elif column in SPEEDUPS and timing.low is not None and not timing.verdict:
            reasons[timed.names["verdict"]] = UNJUDGED
    reasons = {
        column: why for column, why in (reasons | facts.reasons).items() if column not in found
    }
    _fill(found, reasons, any(step.lowers for step in flat(draft.record.steps)))
    told = _told(reasons, set(facts.reasons.values()))
    draft.figures |= found | {"cuda_note": "; ".join([*dict.fromkeys(remarks), *told])}
    draft.missing |= reasons
    if noisy:
        draft.notes.append(noise(" on the GPU"))


def _fill(found: Mapping[str, Any], reasons: dict[str, str], lowered: bool) -> None:
    """Give every column without a figure a reason."""
    for column, speedup in SPEEDUPS.items():
        if column in reasons and speedup not in found:
            reasons.setdefault(speedup, reasons[column])
    for column in WORDS:
        if column not in found:
            usual = LOWERED if lowered else NO_MODULE
            reasons.setdefault(column, reasons.get(TORCH, usual))


def _told(reasons: Mapping[str, str], general: set[str]) -> list[str]:
    """Return a sentence for every reason; those that hold everywhere need no columns."""
    columns: dict[str, list[str]] = {}
    for column, words in WORDS.items():
        if column in reasons:
            columns.setdefault(reasons[column], []).append(words)
    return [
        reason if reason in general else f"no {', '.join(words)}: {reason}"
        for reason, words in columns.items()
    ]
