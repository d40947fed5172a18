"""One row for every chain from the rows of its seeds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from compress.report.columns import (
    BASELINE,
    Row,
    columns,
    is_text,
    machines,
    number,
    ordered,
    settings,
    text_of,
    to_csv,
)
from compress.report.words import latency_words
from compress.stats.replication import deviation, mean, mean_difference, mean_ratio
from compress.stats.verdicts import common_verdict, difference_verdicts

ALIKE = 1.05  # the largest of the seeds' figures over the smallest, above which a note says so
BAD = {"failed": "failed", "unverified": "were not verified"}
TESTED = ("accuracy", "control")
UNLIKE = {"params": "parameters", "macs": "MACs", "onnx_bytes": "bytes of the ONNX file"}
_KEPT = ("chain", "role", "control")


def seeds_of(rows: Iterable[Row]) -> list[int]:
    """Return the seeds that occur, in order."""
    return sorted({int(row["seed"]) for row in rows if row.get("seed") is not None})


def over_seeds(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Return one row for every chain: means over its seeds, in the columns of a single seed.

    `n` seeds count, those of `seeds` ('0 1 2'); rows that failed or were not verified do not.
    `accuracy` is a mean, `accuracy_sd` the standard deviation (n - 1), `accuracy_seeds` the
    values. `accuracy_delta` and `control_delta` are means of paired differences with a 95 % t
    interval, `..._p` the paired t-test's over seeds (see `mean_difference`; with one seed, its own
    McNemar test), `..._verdict` after Holm's over the rows. Speed-ups are geometric means (see
    `mean_ratio`), their verdict is the seeds', or 'mixed'. Other figures are means.
    """
    shown = ordered(rows)
    groups: dict[str, list[Row]] = {}
    for row in shown:
        groups.setdefault(text_of(row, "chain"), []).append(row)
    keys = columns(shown)
    speeds = [*settings(shown), "cuda", "cuda_file"]
    speeds += [f"on_{slug}_{name}" for slug, names in machines(shown).items() for name in names]
    total = len(seeds_of(shown))
    merged = [_merged(group, keys, speeds, total) for group in groups.values()]
    for question in TESTED:
        _judge(merged, question)
    return merged


def seeds_csv(rows: Sequence[Row]) -> str:
    """Return what `over_seeds` makes of the rows, as CSV."""
    merged = over_seeds(rows)
    left_out = {"seed", "accuracy_low", "accuracy_high", "onnx_path"}
    keys = [key for key in columns(merged) if key not in left_out]
    at = keys.index("accuracy")
    order = [keys[0], "n", "seeds", *keys[1 : at + 1], "accuracy_sd", "accuracy_seeds"]
    return to_csv(merged, [*order, *keys[at + 1 :]])


def _merged(
    group: Sequence[Row], keys: Sequence[str], speeds: Sequence[str], total: int
) -> dict[str, Any]:
    good = [row for row in group if text_of(row, "status") not in BAD]
    used = good or group
    found: dict[str, Any] = {
        key: next((text for row in group if (text := text_of(row, key))), "") for key in _KEPT
    }
    found |= {"n": len(good), "seeds": " ".join(str(row.get("seed")) for row in good)}
    found |= _means(used, keys)
    found |= _accuracies(good)
    for question in TESTED:
        found |= _difference(good, question)
    for speed in speeds:
        found |= _speed(used, speed)
    found["status"] = _status(group, good)
    found["error"] = "" if good else _joined(group, "error")
    found["cuda_note"] = "; ".join(_remarks(group))
    found["note"] = "; ".join(_notes(group, good, found, total))
    return found


def _remarks(group: Sequence[Row]) -> dict[str, None]:
    """Return what is said of the GPU for any seed; a row's note is a list of remarks."""
    notes = [text_of(row, "cuda_note").rstrip(".") for row in group]
    return dict.fromkeys(remark for note in notes for remark in note.split("; ") if remark)


def _means(used: Sequence[Row], keys: Sequence[str]) -> dict[str, Any]:
    """The means of all plain figures; what is tested or has an interval is not among them."""
    told = ("_low", "_high", "_p", "_delta", "_speedup")
    found: dict[str, Any] = {}
    for key in keys:
        if key == "seed" or is_text(key) or key.endswith(told):
            continue
        values = [value for row in used if (value := number(row, key)) is not None]
        if values:
            # A count that all seeds share stays a whole number.
            found[key] = values[0] if len(set(values)) == 1 else mean(values)
    return found


def _accuracies(good: Sequence[Row]) -> dict[str, Any]:
    values = [value for row in good if (value := number(row, "accuracy")) is not None]
    found: dict[str, Any] = {"accuracy_seeds": " ".join(map(repr, values))}
    return found | ({"accuracy_sd": deviation(values)} if len(values) > 1 else {})


def _difference(good: Sequence[Row], question: str) -> dict[str, Any]:
    """The mean difference; one to a row that was not verified has no p, and enters no test."""
    key = f"{question}_delta"
    compared = [row for row in good if number(row, key) is not None]
    if not compared or text_of(compared[0], "chain") == BASELINE:
        return {}
    tested = [row for row in compared if number(row, f"{question}_p") is not None]
    if len(tested) == 1:
        (row,) = tested
        wanted = (key, f"{key}_low", f"{key}_high", f"{question}_p")
        return {name: number(row, name) for name in wanted}
    values = [float(row[key]) for row in tested or compared]
    if not tested:
        return {key: mean(values)}
    intervals = [(number(row, f"{key}_low"), number(row, f"{key}_high")) for row in tested]
    found = mean_difference(values, intervals, [float(row[f"{question}_p"]) for row in tested])
    figures = (found.value, found.low, found.high, found.p)
    return dict(zip((key, f"{key}_low", f"{key}_high", f"{question}_p"), figures, strict=True))


def _speed(used: Sequence[Row], speed: str) -> dict[str, Any]:
    key = f"{speed}_speedup"
    timed = [row for row in used if (number(row, key) or 0) > 0]
    if not timed:
        return {}
    intervals = [(number(row, f"{key}_low"), number(row, f"{key}_high")) for row in timed]
    over = mean_ratio([float(row[key]) for row in timed], intervals)
    found: dict[str, Any] = {key: over.value, f"{key}_low": over.low, f"{key}_high": over.high}
    verdict = common_verdict(text_of(row, f"{speed}_verdict") for row in timed)
    if verdict and text_of(timed[0], "chain") != BASELINE:
        found[f"{speed}_verdict"] = verdict
    return found


def _judge(merged: Sequence[dict[str, Any]], question: str) -> None:
    tested = [row for row in merged if row.get(f"{question}_p") is not None]
    deltas, ps = ([row[f"{question}_{what}"] for row in tested] for what in ("delta", "p"))
    for row, verdict in zip(tested, difference_verdicts(deltas, ps), strict=True):
        row[f"{question}_verdict"] = verdict


def _status(group: Sequence[Row], good: Sequence[Row]) -> str:
    if good:
        return "ok"
    states = {text_of(row, "status") for row in group}
    return "unverified" if "unverified" in states else "failed"


def _notes(
    group: Sequence[Row], good: Sequence[Row], found: Mapping[str, Any], total: int
) -> Iterator[str]:
    for status, verb in BAD.items() if good else ():
        if bad := [row for row in group if text_of(row, "status") == status]:
            yield f"{len(bad)} of {total} seeds {verb} ({_joined(bad, 'error') or 'no reason'})"
    if missing := total - len(group):
        yield f"{missing} of {total} seeds missing"
    if len(good) == 1 < total:
        yield "a single seed is left: its p and interval are over test items"
    elif 0 < (compared := _compared(good)) < len(good):
        yield f"compared with the baseline in {compared} of {len(good)} seeds"
    for key in (*UNLIKE, *(key for key in found if key.endswith("_ms_p50"))):
        values = [value for row in good if (value := number(row, key)) is not None]
        if values and min(values) > 0 and max(values) > ALIKE * min(values):
            apart = 100 * (max(values) / min(values) - 1)
            what = UNLIKE.get(key) or latency_words(key)
            yield f"{what}: up to {apart:.0f} % apart between seeds"
    if told := _joined(good or group, "note"):
        yield told


def _compared(good: Sequence[Row]) -> int:
    if good and text_of(good[0], "chain") == BASELINE:
        return len(good)
    needed = ("accuracy_delta", "accuracy_p")
    return sum(all(number(row, key) is not None for key in needed) for row in good)


def _joined(rows: Sequence[Row], key: str) -> str:
    """The rows' texts, each once; one that not all rows have is told with its seeds."""
    told: dict[str, list[str]] = {}
    for row in rows:
        if text := text_of(row, key):
            told.setdefault(text, []).append(str(row.get("seed")))
    return "; ".join(
        text
        if len(seeds) == len(rows)
        else f"seed{'' if len(seeds) == 1 else 's'} {', '.join(seeds)}: {text}"
        for text, seeds in told.items()
    )
