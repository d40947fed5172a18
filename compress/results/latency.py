"""What the raw seconds of files say: medians, speed-ups, verdicts, here and on other machines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from compress.errors import UserError
from compress.results.draft import Draft, Drafts
from compress.results.log import Stage
from compress.results.raw import Missing, read_values
from compress.results.record import BASELINE
from compress.results.timed import Timed, timed_files
from compress.stats.spread import NOISY
from compress.system.environment import saturates
from compress.timing.raw_timings import RawTimings
from compress.timing.summary import Timing, Timings, summarise
from compress.timing.worker import DIFFERENT

MOST_ROUNDS = 5_000_000
"""Of all processes, if each had as many rounds as the longest: the bootstrap makes them so."""
SAFE_INT8 = 64
"""With weights no larger than this, sums of two products of 8 bits fit 16 bits."""


def add_latency(
    stage: Stage, drafts: Drafts, folder: Path, about: dict[str, Any]
) -> tuple[Timed, ...]:
    """Add what a machine and runtime found of all sound rows' files; return what was timed."""
    if stage.machine:
        about.setdefault("elsewhere", {})[stage.machine] = {"environment": stage.environment}
    sound = {draft.record.name: draft for draft in drafts.values() if draft.ok}
    try:
        if stage.reason:
            raise Missing(stage.reason)
        models, timings = read_timings(folder, stage)
    except Missing as error:
        for draft in sound.values():
            _add_untimed(draft, _timed(stage), str(error))
        return ()
    raw_timings = timings.raw_timings
    known = timings.about()
    timed = _timed(stage, known)
    where = _where(stage, raw_timings)
    told = [] if where else _denominator(drafts, raw_timings.baseline)
    for name, draft in sound.items():
        if name in raw_timings.names and models.get(name) == draft.record.hashes.get("onnx"):
            draft.notes += told
            _add_row(draft, timed, timings, where)
    if not stage.machine and not stage.runtime:
        about["timed_on"] = dict(raw_timings.environment)
    return timed


def read_timings(folder: Path, stage: Stage) -> tuple[dict[str, str], Timings]:
    """Return the hashes of the files that were timed, by name, and their timings.

    Raises Missing.
    """
    values = read_values(folder, stage.file, stage.sha256)
    try:
        raw_timings = RawTimings.from_json(values["timings"])
        rounds = [
            len(series["medians"])
            for part in raw_timings.launched
            for found in part.settings.values()
            for series in found.values()
        ]
        if max(rounds, default=0) * len(raw_timings.launched) > MOST_ROUNDS:
            raise ValueError("too many rounds")
        return dict(values["models"]), summarise(raw_timings)
    except (LookupError, TypeError, ValueError, AttributeError, UserError) as error:
        raise Missing(f"{stage.file} is damaged ({error!r})") from error


def _timed(stage: Stage, known: Mapping[str, Any] | None = None) -> tuple[Timed, ...]:
    return tuple(
        timed_files(name, stage.machine, stage.runtime, stage.title, (known or {}).get(name))
        for name in stage.settings
    )


def _where(stage: Stage, raw_timings: RawTimings) -> str:
    """Return how a note begins that is not about this machine and the usual runtime."""
    threads = raw_timings.all_threads
    machine = stage.environment.get("cpu") or "another machine"
    parts = [f"on {machine} ({threads} thread{'' if threads == 1 else 's'})"]
    parts = parts if stage.machine else []
    parts += [f"in {stage.title or stage.runtime}"] if stage.runtime else []
    return f"{' '.join(parts)}: " if parts else ""


def _denominator(drafts: Drafts, baseline: str) -> list[str]:
    """Say if speed-ups do not refer to the first seed's baseline, because that one is not sound."""
    baselines = [draft.record for draft in drafts.values() if draft.record.chain == BASELINE]
    used = next((record for record in baselines if record.name == baseline), None)
    if used is None or used is baselines[0]:
        return []
    first = baselines[0]
    return [
        f"speed-ups refer to the baseline of seed {used.seed}, because that of seed {first.seed} "
        f"is {first.status}"
    ]


def _add_untimed(draft: Draft, timed: Iterable[Timed], reason: str) -> None:
    draft.missing |= {one.names["ms_p50"]: reason for one in timed}
    if (note := f"not timed: {reason}") not in draft.notes:
        draft.notes.append(note)


def _add_row(draft: Draft, timed: Sequence[Timed], timings: Timings, where: str) -> None:
    """Add a file's figures; one whose outputs are others there has none."""
    name = draft.record.name
    rows = [(one, timings[name, one.setting]) for one in timed]
    wrong = next((row.error for _, row in rows if row.wrong), "")
    for one, row in rows:
        if wrong or row.error:
            draft.missing[one.names["ms_p50"]] = wrong or row.error
            continue
        draft.figures |= figures(one, row)
        if row.speedup is None:
            draft.missing[one.names["speedup"]] = "the baseline has no time there"
        if reason := _unjudged(name, one.setting, timings):
            draft.missing[one.names["verdict"]] = reason
    if wrong:
        draft.notes.append(f"{where}{_explained(wrong, draft, timings.raw_timings)}")
        return
    reasons = dict.fromkeys(row.error for _, row in rows if row.error)
    said = [*(f"not timed: {reason}" for reason in reasons), *timings.failures]
    if noisy := [one.words for one, row in rows if row.noisy]:
        said.append(noise(f" ({'; '.join(noisy)})"))
    draft.notes += [f"{where}{note}" for note in said]


def figures(timed: Timed, row: Timing) -> dict[str, Any]:
    """Return the columns of one file's timing."""
    found = {
        "ms_p50": row.p50_ms,
        "ms_p90": row.p90_ms,
        "ms_iqr": row.iqr_ms,
        "per_s": row.per_second,
        "speedup": row.speedup,
        "speedup_low": row.low,
        "speedup_high": row.high,
        "verdict": row.verdict or None,
    }
    return {
        timed.names[figure]: value
        for figure, value in found.items()
        if value is not None and figure in timed.names
    }


def noise(where: str) -> str:
    return (
        f"noisy latency{where}: half of the calls lie further apart than {NOISY:.0%} of the median"
    )


def _unjudged(name: str, setting: str, timings: Timings) -> str:
    """Return why a file that was timed has no verdict; '' if it has one or needs none."""
    row, baseline = timings[name, setting], timings.raw_timings.baseline
    if row.verdict or name == baseline:
        return ""
    if row.speedup is None:
        return f"the baseline was not timed: {timings[baseline, setting].error}"
    if timings.controls[setting].ratio is None:
        return "there is no timing of a second copy of the baseline, by which it would be judged"
    return "the baseline and its copy differed too much for a verdict on this difference"


def _explained(error: str, draft: Draft, raw_timings: RawTimings) -> str:
    """Say what other outputs mean: there, the file is not what was measured here."""
    if not error.startswith(DIFFERENT):
        return error
    told = f"{error}, so it computes something else there, and its accuracy does not hold there"
    wide = draft.record.measured.get("int8_largest", 0) > SAFE_INT8
    if wide and saturates(tuple(raw_timings.environment.get("cpu_flags") or ())):
        told += (
            ": that processor has no VNNI, and sums of int8 products can saturate, which "
            "quantize(reduce_range=True) avoids"
        )
    return told
