"""Runs that ended before their time: what a kill, a crash or a lost machine left unsaid."""

from __future__ import annotations

from pathlib import Path

from compress.bench.plan.rows import BASELINE
from compress.bench.store.outputs import Outputs
from compress.errors import UserError
from compress.results.compare import Answers, compare_records
from compress.results.record import Record, RunLog, read_run
from compress.system.files import sha256


def judge(folder: Path) -> None:
    """Compare the rows of a run that was killed before it could; `results.jsonl` gets them.

    A run that has compared its rows, that is going on, or whose answers (`raw/`) are not in the
    folder as its rows name them by hash, is left as it is. Raises UserError where `results.jsonl`
    cannot be read.
    """
    results = folder / "results.jsonl"
    _, before, about = read_run(results)
    # Figures of other machines stand in lines of their own, and there only.
    if about.get("elsewhere") or not any(map(_unjudged, before)):
        return
    try:
        outputs = Outputs(folder, ())
    except UserError:
        return  # a run is writing there and compares its rows at its end, or nobody can write
    with outputs.lock:
        # Once more: what was read before belonged to whoever held the lock.
        name, found, about = read_run(results)
        outputs.seeds = tuple((about.get("environment") or {}).get("seeds") or (0,))
        records = {(record.chain, record.seed): record for record in found}
        answers: dict[tuple[str, int], Answers] = {}
        for key, record in records.items():
            if record.status != "ok":
                continue
            answered = outputs.model(*key).name
            try:
                file = (folder / "raw" / f"{answered}.npz").read_bytes()
            except OSError:
                return  # removed: then nobody can tell
            if sha256(file) != record.hashes.get("predictions"):
                return  # damaged, or of another run that was killed in this folder
            stored = outputs.stored(answered)
            answers[key] = Answers(stored["predictions"], stored["correct"])
        log = RunLog(results, about, name)
        for key, record in compare_records(records, answers).items():
            if record != records[key]:
                log.record(record)


def _unjudged(record: Record) -> bool:
    if record.status != "ok" or record.chain == BASELINE:
        return False
    return "accuracy_verdict" not in {**record.measured, **record.missing}
