"""What a table rests on, in sentences: data, model, machine, the meaning of its columns."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from compress.report import trust
from compress.report.row_numbers import number_chains
from compress.report.words import machine_words, timed_words
from compress.results.derive import points
from compress.results.record import BASELINE, CONTROL, MARGIN
from compress.results.table import Row, is_sound, number, text_of
from compress.results.timed import FORMS, main_timed, of_files, timings

COSTS = (
    "kB: the ONNX file in 1000 bytes; ms: median of a call's milliseconds ({}). Accuracy, kB "
    "and ms are those of the ONNX file, parameters and MACs those of the model."
)
ITEMS = (
    "Δ pt: points against the baseline of the same seed, ± half of the paired 95 % interval; "
    "speed-up: times as fast as the baseline, ± half of a bootstrap's 95 % interval;"
)
SEEDS = (
    "acc %: mean ± standard deviation over seeds; Δ pt: mean of the seeds' differences to their "
    "own baselines, ± half of its 95 % interval, verdict by the paired t-test over seeds and a "
    "test over the items they share, whichever is less sure; differences that are equal in all "
    "seeds are a single replication: "
    "their p is the largest of the seeds' own (McNemar's); speed-up: geometric mean over seeds, "
    "± half of its interval (t with three seeds or more, else that of the timing); other "
    "figures: means over seeds;"
)
UNEVEN = 1.2
"""The most frequent class has a note if it has more than half of the items and so many times what
it would have if all had as many."""
VERDICTS = (
    ("▲", "better or faster"),
    ("=", "equivalent within {margin}"),
    ("▼", "worse or slower"),
    ("≈", "no difference shown"),
    ("?", "the seeds' verdicts differ"),
    ("!", "timing not to be trusted, and no difference beyond that doubt"),
)


def legend(rows: Sequence[Row], shown: str, about: Mapping[str, Any]) -> str:
    """Return what the signs mean that end a figure in the tables, whose lines are `shown`."""
    parts = [
        f"{mark} {words.format(margin=points(about.get('margin', MARGIN)))}"
        for mark, words in VERDICTS
        if re.search(rf" {re.escape(mark)}(?=\||  |$)", shown, re.MULTILINE)
    ]
    said = f"Against the baseline: {', '.join(parts)}." if parts else ""
    if any(text_of(row, "role") == CONTROL for row in rows):
        said += " [control]: added for comparison, the same training without the technique."
    return said.strip()


def facts(rows: Sequence[Row], about: Mapping[str, Any], seeds: Sequence[int]) -> list[str]:
    """Return what stands below a table, a sentence or a few each; what is unknown is left out.

    `seeds` are those that a row is the mean of; a single one says nothing of means.
    """
    here = [timed for timed in timings(about) if not timed.machine]
    words = timed_words(main_timed(about), about)
    machine = machine_words(about.get("environment") or {})
    found = [
        _task(about),
        _classes(about),
        _number(rows, seeds),
        f"Machine: {machine}." if machine else "",
        _timed_on(about),
        f"{SEEDS if len(seeds) > 1 else ITEMS} {COSTS.format(words)}",
        trust.controls(here, about),
        *trust.denominators(here, about),
        trust.effort(of_files(about)),
        str(about.get("multiplicity") or ""),
        gpu(rows),
    ]
    return [fact for fact in [*found, *map(str, about.get("notes") or ())] if fact]


def unfinished(rows: Sequence[Row], about: Mapping[str, Any]) -> str:
    """Say how many rows a run has not got to that was stopped, or is going on; '' for none.

    `rows` are those of every seed.
    """
    order = {tuple(key) for key in about.get("order") or ()}
    left = order - {(text_of(row, "chain"), row.get("seed")) for row in rows}
    if not left:
        return ""
    timed = "" if timings(about) else ", and no file was timed"
    said = f"{len(left)} of {len(order)} rows {'is' if len(left) == 1 else 'are'} missing{timed}."
    command = str(about.get("command") or "")
    # A run by `--fresh` would compute all of it again.
    if command and "--fresh" not in command:
        said += " The command below goes on from what its store holds."
    return f"NOT FINISHED: {said}"


def _timed_on(about: Mapping[str, Any]) -> str:
    """Say where the files were timed, if that was not where the run was started."""
    here, there = about.get("environment") or {}, about.get("timed_on") or {}
    if all(there.get(key) == here.get(key) for key in ("cpu", "threads") if there.get(key)):
        return ""
    return f"Timed on another machine: {machine_words(there)}."


def gpu(rows: Sequence[Row]) -> str:
    """Return why there are no GPU latencies, or why some are missing, and in which rows."""
    noted: dict[str, list[Row]] = {}
    for row in rows:
        # A note is a list of remarks, and rows share some of them.
        for remark in dict.fromkeys(text_of(row, "cuda_note").rstrip(".").split("; ")):
            noted.setdefault(remark, []).append(row)
    noted.pop("", None)
    if not noted:
        return ""
    keys = [form.column for form in FORMS]
    measured = any(number(row, key) is not None for row in rows for key in keys)
    meant = (
        list(filter(is_sound, rows))
        if measured
        else [row for row in rows if text_of(row, "cuda_note")]
    )
    labels = number_chains(rows)
    reasons = "; ".join(
        remark if len(those) >= len(meant) else f"{remark} ({_those(those, labels)})"
        for remark, those in noted.items()
    )
    return f"GPU: {reasons}." if measured else f"GPU latency was not measured: {reasons}."


def _those(rows: Sequence[Row], labels: Mapping[str, str]) -> str:
    """Return the rows by their numbers, such as `baseline, rows 1, 3-5`."""
    found = sorted({int(label) for row in rows if (label := labels[text_of(row, "chain")])})
    spans: list[list[int]] = []
    for one in found:
        if spans and one == spans[-1][-1] + 1:
            spans[-1].append(one)
        else:
            spans.append([one])
    said = ", ".join(f"{s[0]}" if len(s) == 1 else f"{s[0]}-{s[-1]}" for s in spans)
    parts = ["baseline"] if any(text_of(row, "chain") == BASELINE for row in rows) else []
    parts += [f"row{'' if len(found) == 1 else 's'} {said}"] if found else []
    return ", ".join(parts)


def _task(about: Mapping[str, Any]) -> str:
    parts = []
    if data := about.get("data"):
        items = about.get("test_items")
        parts.append(f"Data: {data}, {items} test items." if items else f"Data: {data}.")
    parts += [f"Model: {about['model']}."] if about.get("model") else []
    parts += [f"Baseline: {about['baseline']}."] if about.get("baseline") else []
    parts += [f"Metric: {about['metric']}."] if about.get("metric") else []
    hashes = [
        f"{what} {str(about[key])[:12]}"
        for what, key in (("split", "split_hash"), ("preprocessing", "preprocessing_hash"))
        if about.get(key)
    ]
    parts += [f"Hashes: {', '.join(hashes)}."] if hashes else []
    return " ".join(parts)


def imbalance(about: Mapping[str, Any]) -> str:
    """Say where most test items are of one class, so that accuracy alone says little; else ''."""
    counts = about.get("class_counts") or []
    share = majority(about)
    if share <= 0.5 or share < UNEVEN / len(counts):
        return ""
    return (
        f"UNEVEN CLASSES: {share:.1%} of the test items are {_class(about, counts)}, so a file "
        f"that always answers that is right as often. Balanced accuracy (bal. %) gives every "
        f"class the same weight."
    )


def majority(about: Mapping[str, Any]) -> float:
    """Return the share of test items that are of the most frequent class; 0 if none is known."""
    counts = about.get("class_counts") or []
    return max(counts) / sum(counts) if any(counts) else 0.0


def _classes(about: Mapping[str, Any]) -> str:
    counts = about.get("class_counts") or []
    if not any(counts):
        return ""
    fewest, most = min(counts), max(counts)
    each = f"{most}" if fewest == most else f"{fewest} to {most}"
    return (
        f"Classes: {len(counts)}, with {each} test items each; the most frequent, "
        f"{_class(about, counts)}, has {majority(about):.1%} of them."
    )


def _class(about: Mapping[str, Any], counts: Sequence[int]) -> str:
    """Return the most frequent class by its name."""
    names, largest = (about.get("task") or {}).get("classes") or [], counts.index(max(counts))
    return repr(names[largest]) if largest < len(names) else f"class {largest}"


def _number(rows: Sequence[Row], seeds: Sequence[int]) -> str:
    others = [row for row in rows if text_of(row, "chain") != BASELINE]
    if not others:
        return ""
    said = f"{len(others)} row{'' if len(others) == 1 else 's'} beside the baseline"
    counted = (
        ("as controls", sum(text_of(row, "role") == CONTROL for row in others)),
        ("failed", sum(text_of(row, "status") == "failed" for row in others)),
        ("unverified", sum(text_of(row, "status") == "unverified" for row in others)),
    )
    said += "".join(f", {count} of them {what}" for what, count in counted if count)
    if len(seeds) > 1:
        said += f"; each is the mean of {len(seeds)} seeds ({', '.join(map(str, seeds))})"
        said += ", which stand one by one in results.csv"
    return f"{said}."
