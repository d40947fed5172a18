"""Latencies from the raw seconds of files: medians, speed-ups, verdicts, on every machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

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
SAFE_PAIR = 128
"""With neighbouring weights whose sum is no larger, two products of 8 bits fit 16 bits."""

T = TypeVar("T")


def add_latency(
    stage: Stage, drafts: Drafts, folder: Path, about: dict[str, Any]
) -> tuple[Timed, ...]:
    """Add a machine and runtime's timing of all sound rows' files; return what was timed."""
    if stage.machine:
        about.setdefault("other_machines", {})[stage.machine] = {"environment": stage.environment}
    sound = [draft for draft in drafts.values() if draft.ok]
    try:
        models, timings = read_timings(folder, stage)
    except Missing as error:
        note = f"{_where(stage)}not timed: {error}"
        columns = [one.names["ms_p50"] for one in _timed(stage, {})]
        for draft in sound:
            draft.missing |= dict.fromkeys(columns, str(error))
            draft.notes += [note] if note not in draft.notes else []
        return ()
    raw_timings = timings.raw_timings
    timed = _timed(stage, timings.about())
    where = _where(stage, raw_timings)
    if versions := raw_timings.environment.get("runtime"):
        about.setdefault("runtimes", {})[stage.title or stage.runtime] = dict(versions)
    denominator = [] if where else _denominator(drafts, raw_timings.baseline)
    for draft in sound:
        name, onnx = draft.record.name, draft.record.hashes.get("onnx")
        if name in raw_timings.names and models.get(name) == onnx:
            draft.notes += denominator
            _add_row(draft, timed, timings, where)
    if not stage.machine and not stage.runtime:
        about["timed_on"] = dict(raw_timings.environment)
    return timed


def read_stage(folder: Path, stage: Stage, parse: Callable[[dict[str, Any]], T]) -> T:
    """Return what a stage's file holds. Raises Missing."""
    if stage.reason:
        raise Missing(stage.reason)
    values = read_values(folder, stage.file, stage.sha256)
    try:
        return parse(values)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise Missing(f"{stage.file} is damaged ({error!r})") from error


def read_timings(folder: Path, stage: Stage) -> tuple[dict[str, str], Timings]:
    """Return the hashes of the files that were timed, by name, and their timings.

    Raises Missing.
    """
    return read_stage(folder, stage, _parse)


def _parse(values: Mapping[str, Any]) -> tuple[dict[str, str], Timings]:
    raw_timings = RawTimings.from_json(values["timings"])
    rounds = [
        len(series["medians"])
        for process in raw_timings.launched
        for by_name in process.settings.values()
        for series in by_name.values()
    ]
    if max(rounds, default=0) * len(raw_timings.launched) > MOST_ROUNDS:
        raise ValueError("too many rounds")
    return dict(values["models"]), summarise(raw_timings)


def _timed(stage: Stage, known: Mapping[str, Any]) -> tuple[Timed, ...]:
    return tuple(
        timed_files(name, stage.machine, stage.runtime, stage.title, known.get(name))
        for name in stage.settings
    )


def _where(stage: Stage, raw_timings: RawTimings | None = None) -> str:
    """Return how a note begins that is not about this machine and the usual runtime."""
    parts = []
    if stage.machine:
        machine = stage.environment.get("cpu") or "another machine"
        if raw_timings is not None:
            threads = raw_timings.all_threads
            machine += f" ({threads} thread{'' if threads == 1 else 's'})"
        parts.append(f"on {machine}")
    if stage.runtime:
        parts.append(f"in {stage.title or stage.runtime}")
    return f"{' '.join(parts)}: " if parts else ""


def _denominator(drafts: Drafts, baseline: str) -> list[str]:
    """Return a note if speed-ups refer to another baseline than the first seed's, which failed."""
    baselines = [draft.record for draft in drafts.values() if draft.record.chain == BASELINE]
    used = next((record for record in baselines if record.name == baseline), None)
    if used is None or used is baselines[0]:
        return []
    first = baselines[0]
    return [
        f"speed-ups refer to the baseline of seed {used.seed}, because that of seed {first.seed} "
        f"is {first.status}"
    ]


def _add_row(draft: Draft, timed: Sequence[Timed], timings: Timings, where: str) -> None:
    """Add a file's figures; a file with other outputs than expected has none."""
    name = draft.record.name
    rows = [(one, timings[name, one.setting]) for one in timed]
    wrong = next((row.error for _, row in rows if row.wrong), "")
    for one, row in rows:
        if reason := wrong or row.error:
            draft.missing[one.names["ms_p50"]] = reason
            continue
        draft.figures |= figures(one, row)
        if row.speedup is None:
            draft.missing[one.names["speedup"]] = "the baseline has no time there"
        if reason := _unjudged(name, one.setting, timings):
            draft.missing[one.names["verdict"]] = reason
    if wrong:
        notes = [_explained(wrong, draft, timings.raw_timings)]
    else:
        reasons = dict.fromkeys(row.error for _, row in rows if row.error)
        notes = [*(f"not timed: {reason}" for reason in reasons), *timings.failures]
        if noisy := [one.words for one, row in rows if row.noisy]:
            notes.append(noise(f" ({'; '.join(noisy)})"))
    draft.notes += [f"{where}{note}" for note in notes]


def figures(timed: Timed, row: Timing) -> dict[str, Any]:
    """Return the columns of one file's timing."""
    values = {
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
        column: values[figure]
        for figure, column in timed.names.items()
        if values[figure] is not None
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
    note = f"{error}, so it computes something else there, and its accuracy does not hold there"
    measured = draft.record.measured
    pair = measured.get("int8_pair", 2 * measured.get("int8_largest", 0))
    if pair > SAFE_PAIR and saturates(tuple(raw_timings.environment.get("cpu_flags") or ())):
        note += (
            ": that processor has no VNNI, and sums of int8 products can saturate, which "
            "quantize() avoids by default"
        )
    return note
