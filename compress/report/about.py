"""What a table rests on, in sentences: data, model, machine, the meaning of its columns."""

from __future__ import annotations

import re
from collections.abc import Sequence

from compress.report import timing_words
from compress.report.chains import number_chains, row_list
from compress.report.layout import clean, cut
from compress.report.timing_words import About, machine_words, span, timed_words
from compress.results.derive import points
from compress.results.record import BASELINE, CONTROL, MARGIN
from compress.results.table import Row, is_sound, number, text_of
from compress.results.timed import FORMS, main_timed, of_files, timings
from compress.system.amounts import plural

COSTS = (
    "kB: the ONNX file in 1000 bytes; ms: median of a call's milliseconds ({}). Accuracy, kB "
    "and ms are those of the ONNX file, parameters and MACs those of the model."
)
ITEMS = (
    "Δ pt: points against the baseline of the same seed, ± half of the paired 95 % interval; "
    "speed-up: times as fast as the baseline, ± half of a bootstrap's 95 % interval, or the "
    "interval itself where it is wide;"
)
SEEDS = (
    "acc %: mean ± standard deviation over seeds; Δ pt: mean of the seeds' differences to their "
    "own baselines, ± half of its 95 % interval, verdict by the paired t-test over seeds and a "
    "test over the items they share, whichever is less sure; differences that are equal in all "
    "seeds count as a single replication: their p is the largest of the seeds' own (McNemar's); "
    "speed-up: geometric mean over seeds, ± half of its interval (t with three seeds or more, "
    "else that of the timing), or the interval itself where it is wide; other figures: means over "
    "seeds;"
)
UNEVEN = 1.2
"""The most frequent class has a note if it has more than half of the items and so many times what
it would have if all had as many."""
VERDICTS = (
    ("▲", "better or faster"),
    ("=", "equivalent within {margin}"),
    ("▼", "worse or slower"),
    ("≈", "inconclusive"),
    ("?", "the seeds' verdicts differ"),
    ("!", "timing unreliable: not shown to differ by more than its error"),
)
CONTROLS = "[control]: added for comparison, the same training without the technique."


def legend(rows: Sequence[Row], shown: str, about: About) -> str:
    """Return what the signs mean that end a figure in the tables, whose lines are `shown`."""
    parts = [
        f"{mark} {meaning.format(margin=points(about.get('margin', MARGIN)))}"
        for mark, meaning in VERDICTS
        if re.search(rf" {re.escape(mark)}(?=\||  |$)", shown, re.MULTILINE)
    ]
    sentences = [f"Against the baseline: {', '.join(parts)}."] if parts else []
    if any(text_of(row, "role") == CONTROL for row in rows):
        sentences.append(CONTROLS)
    return " ".join(sentences)


def units(about: About, seeds: Sequence[int]) -> str:
    """Return the least that must be known of a table's figures: what ± is, and whose latency."""
    setting = timed_words(main_timed(about), about)
    means = f"Means over {len(seeds)} seeds; acc %: ± standard deviation; else "
    several = means if len(seeds) > 1 else ""
    return f"{several}±: half of a 95 % interval. ms: median of a call ({setting})."


RUN = "run"
"""What a suite is called that has no name of its own: one made of the options of `run`."""
LONGEST = 40  # columns of a model in a title


def title(about: About) -> str:
    """Return a report's name: its suite's, else which model on which data; '' if there is none."""
    suite, model, data = (clean(str(about.get(key) or "")) for key in ("suite", "model", "data"))
    if suite != RUN or not (model and data):
        return suite
    scheme, _, name = model.partition(":")
    return f"{cut(name if name and scheme.isidentifier() else model, LONGEST)} on {data}"


NUMBERED = 100
"""Classes whose numbers stand below a table; results.jsonl has all of them."""


def facts(rows: Sequence[Row], about: About, seeds: Sequence[int]) -> list[str]:
    """Return what stands below a table, a sentence or a few each; what is unknown is left out.

    `seeds` are those that a row is the mean of; a single one says nothing of means.
    """
    here = [timed for timed in timings(about) if not timed.machine]
    setting = timed_words(main_timed(about), about)
    machine = machine_words(about.get("environment") or {})
    sentences = [
        _task(about),
        _classes(about),
        _row_counts(rows, seeds),
        f"Machine: {machine}." if machine else "",
        _timed_on(about),
        _runtimes(about),
        f"{SEEDS if len(seeds) > 1 else ITEMS} {COSTS.format(setting)}",
        timing_words.controls(here, about),
        *timing_words.denominators(here, about),
        timing_words.effort(of_files(about)),
        str(about.get("multiplicity") or ""),
        gpu(rows),
        *map(str, about.get("notes") or ()),
    ]
    return list(filter(None, sentences))


def missing_rows(rows: Sequence[Row], about: About) -> str:
    """Return how many rows are missing from a run that was stopped or is going on; '' for none.

    `rows` are those of every seed.
    """
    order = {tuple(key) for key in about.get("order") or ()}
    left = order - {(text_of(row, "chain"), row.get("seed")) for row in rows}
    if not left:
        return ""
    timed = "" if timings(about) else ", and no file was timed"
    are = "is" if len(left) == 1 else "are"
    sentence = f"NOT FINISHED: {len(left)} of {len(order)} rows {are} missing{timed}."
    command = str(about.get("command") or "")
    # A run by `--fresh` would compute all of it again.
    if command and "--fresh" not in command:
        sentence += " The command below continues from what its store holds."
    return sentence


def _timed_on(about: About) -> str:
    """Return where the files were timed, if that was not where the run was started."""
    here, there = about.get("environment") or {}, about.get("timed_on") or {}
    if all(there.get(key) == here.get(key) for key in ("cpu", "threads") if there.get(key)):
        return ""
    return f"Timed on another machine: {machine_words(there)}."


def _runtimes(about: About) -> str:
    """Return the versions of what else than onnxruntime files were timed in."""
    return " ".join(
        f"Timed in {title} too: {', '.join(f'{name} {v}' for name, v in versions.items())}."
        for title, versions in (about.get("runtimes") or {}).items()
        if versions
    )


def gpu(rows: Sequence[Row]) -> str:
    """Return why there are no GPU latencies, or why some are missing, and in which rows."""
    rows_by_remark: dict[str, list[Row]] = {}
    for row in rows:
        # A note is a list of remarks, and rows share some of them.
        for remark in dict.fromkeys(text_of(row, "cuda_note").rstrip(".").split("; ")):
            rows_by_remark.setdefault(remark, []).append(row)
    rows_by_remark.pop("", None)
    if not rows_by_remark:
        return ""
    measured = any(number(row, form.column) is not None for row in rows for form in FORMS)
    concerned = [row for row in rows if (is_sound(row) if measured else text_of(row, "cuda_note"))]
    labels = number_chains(rows)
    reasons = "; ".join(
        remark if len(noted) >= len(concerned) else f"{remark} ({row_list(noted, labels)})"
        for remark, noted in rows_by_remark.items()
    )
    return f"GPU: {reasons}." if measured else f"GPU latency was not measured: {reasons}."


def _task(about: About) -> str:
    sentences = []
    if data := about.get("data"):
        items = about.get("test_items")
        sentences.append(f"Data: {data}, {items} test items." if items else f"Data: {data}.")
    for key in ("preprocessing", "model", "weights", "baseline", "metric"):
        if about.get(key):
            sentences.append(f"{key.capitalize()}: {about[key]}.")
    names = ("split", "preprocessing")
    hashes = [f"{name} {about[key][:12]}" for name in names if about.get(key := f"{name}_hash")]
    sentences += [f"Hashes: {', '.join(hashes)}."] if hashes else []
    return " ".join(sentences)


def imbalance(about: About) -> str:
    """Return a warning if most test items are of one class: accuracy alone says little; else ''."""
    counts = about.get("class_counts") or []
    share = majority(about)
    if share <= 0.5 or share < UNEVEN / len(counts):
        return ""
    return (
        f"UNEVEN CLASSES: {share:.1%} of the test items are {_largest_class(about, counts)}, so a "
        f"file that always gives this answer is right as often. Balanced accuracy (bal. %) gives "
        f"every class the same weight."
    )


def majority(about: About) -> float:
    """Return the share of test items that are of the most frequent class; 0 if none is known."""
    counts = about.get("class_counts") or []
    return max(counts) / sum(counts) if any(counts) else 0.0


def _classes(about: About) -> str:
    counts = about.get("class_counts") or []
    if not any(counts):
        return ""
    names = [str(name) for name in (about.get("task") or {}).get("classes") or []]
    numbered = ", ".join(f"{number} {name}" for number, name in enumerate(names[:NUMBERED]))
    if names and names != [str(number) for number in range(len(names))]:
        more = " and so on (results.jsonl has all)" if len(names) > NUMBERED else ""
        numbered = f" In order: {numbered}{more}."
    else:
        numbered = ""
    return (
        f"Classes: {len(counts)}, with {span(counts)} test items each; the most frequent, "
        f"{_largest_class(about, counts)}, has {majority(about):.1%} of them.{numbered}"
    )


def _largest_class(about: About, counts: Sequence[int]) -> str:
    """Return the most frequent class by its name."""
    names, largest = (about.get("task") or {}).get("classes") or [], counts.index(max(counts))
    return repr(names[largest]) if largest < len(names) else f"class {largest}"


def _row_counts(rows: Sequence[Row], seeds: Sequence[int]) -> str:
    others = [row for row in rows if text_of(row, "chain") != BASELINE]
    if not others:
        return ""
    parts = [f"{plural(len(others), 'row')} besides the baseline"]
    for key, value, words in (
        ("role", CONTROL, "as controls"),
        ("status", "failed", "failed"),
        ("status", "unverified", "unverified"),
    ):
        if count := sum(text_of(row, key) == value for row in others):
            parts.append(f"{count} of them {words}")
    sentence = ", ".join(parts)
    if len(seeds) > 1:
        sentence += f"; each is the mean of {len(seeds)} seeds ({', '.join(map(str, seeds))})"
        sentence += ", which results.csv lists one by one"
    return f"{sentence}."
