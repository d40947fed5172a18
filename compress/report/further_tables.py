"""The further tables: is a difference real, latencies on every machine, and what runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from compress.report import formatting, timing_words
from compress.report.about import imbalance, majority
from compress.report.formatting import MISSING, show
from compress.report.section import Column, Section, plain
from compress.report.timing_words import About, environment_of, machine_words, timed_words
from compress.results.columns import group
from compress.results.table import Row, is_sound, number, text_of
from compress.results.timed import FORMS, GPU, Timed, of_files, timings
from compress.stats.spread import NOISY
from compress.system import amounts

MOST = 5  # seeds in one cell
UNEVEN = 1.5  # times as many items in a class as if all had as many
OVER = (
    "A control is trained on as many samples, without the technique. Only the difference to its "
    "control is what a row owes to the technique."
)
SPEEDUP = (
    "Times as fast as the baseline, timed in turns with it: the median of ratios within rounds, "
    "with a bootstrap's 95 % interval over processes and rounds, and the verdict."
)
SPEEDUP_SEEDS = (
    "Times as fast as the first seed's baseline, timed in turns with it: the geometric mean over "
    "seeds, with a 95 % t interval of the logarithms, no narrower than the seeds' own (with fewer "
    "than three seeds, from the lowest to the highest end of these), and the verdict that the "
    "seeds share."
)
CALL = (
    "Median / 90th percentile of a call's milliseconds; a call takes a whole batch. Speed-ups, "
    "which are timed in turns, are more reliable."
)
NOISE = (
    f"{formatting.NOISY} marks noise: half of the calls lie further apart than "
    f"{100 * NOISY:.0f} % of the median."
)
ON_GPU = "Milliseconds of one item, unless a column says otherwise."
GPU_SPEEDUPS = {
    "cuda": ("speed-up", "the float32 module over the baseline's, with its 95 % interval."),
    "cuda_file": (
        "file speed-up",
        "the file in onnxruntime (CUDA) over the baseline's file, likewise.",
    ),
}
OTHER_MACHINES = (
    "Milliseconds of a call, then how many times as fast as the baseline there, ± half of the "
    "95 % interval (or the interval itself where it is wide), and the verdict."
)


def sections(rows: Sequence[Row], labels: Mapping[str, str], about: About) -> list[Section]:
    """Return all further tables: about accuracy, about latency, about what runs."""
    sound = list(filter(is_sound, rows))
    over_seeds = any("accuracy_seeds" in row for row in rows)
    calls = _by_setting(of_files(about), formatting.milliseconds, about)
    noisy = any(formatting.NOISY in column.cell(row) for column in calls for row in rows)
    speedups = _by_setting(of_files(about), formatting.ratio, about)
    others = dict.fromkeys((t.machine, t.runtime) for t in timings(about) if t.runtime != GPU)
    others.pop(("", ""), None)
    graph = [plain(column) for column in group("runs", "takes")]
    return [
        _accuracy(sound, over_seeds, about),
        _controls(sound, labels, over_seeds),
        Section(
            "How much faster, and is it real?",
            SPEEDUP_SEEDS if over_seeds else SPEEDUP,
            speedups,
            rows,
        ),
        Section("How long does a call take?", f"{CALL} {NOISE}" if noisy else CALL, calls, rows),
        _gpu(rows, about),
        *(_elsewhere(rows, machine, runtime, about) for machine, runtime in others),
        Section("What runs, and what does it take?", "", graph, rows),
    ]


def _accuracy(rows: list[Row], over_seeds: bool, about: About) -> Section:
    """Return the first table: the difference, and in what room is left the further measures."""
    difference = [
        Column("acc %", formatting.share_interval, "acc %: Wilson's 95 % interval."),
        _delta("accuracy", "Δ: the difference to the baseline", over_seeds),
        _p("accuracy", over_seeds),
        *map(plain, group("accuracy")),
    ]
    of_seeds = Column("acc % of the seeds", _of_seeds)
    if not any(c.cell(row) != MISSING for c in (*difference, of_seeds) for row in rows):
        return Section("Further measures", "", _measures(about), rows)
    explained = "Counts of items are means over the seeds." if over_seeds else ""
    columns = [*difference, *_measures(about), of_seeds]
    return Section("Is the difference in accuracy real?", explained, columns, rows)


def _measures(about: About) -> list[Column]:
    names = {"metric": str(about.get("metric") or "metric")}
    classes = len(about.get("class_counts") or [])
    # Where classes are about as frequent as each other, it is the accuracy once more.
    even = not imbalance(about) and majority(about) * classes < UNEVEN
    return [
        plain(column, names.get(column.name, ""))
        for column in group("measures")
        if not (even and column.name == "balanced_accuracy")
    ]


def _controls(rows: list[Row], labels: Mapping[str, str], over_seeds: bool) -> Section:
    by_chain = {text_of(row, "chain"): row for row in rows}

    def accuracy(row: Row) -> str:
        return show(row, "accuracy", formatting.percent)

    columns = [
        Column("acc %", accuracy),
        Column("control", lambda row: labels.get(text_of(row, "control")) or MISSING),
        Column("its acc %", lambda row: accuracy(by_chain.get(text_of(row, "control"), {}))),
        _delta("control", "Δ: the difference to the control", over_seeds),
        _p("control", over_seeds),
    ]
    compared = [row for row in rows if number(row, "control_delta") is not None]
    return Section("What did the technique add over training alone?", OVER, columns, compared)


def _delta(question: str, explained: str, over_seeds: bool) -> Column:
    interval = (
        "of the same seed, mean over the seeds with its 95 % interval, the wider one of Student's "
        "t over seeds and of the items'"
        if over_seeds
        else "on the same items, with its paired 95 % interval"
    )
    cell = partial(formatting.difference, question=question)
    return Column("Δ pt", cell, f"{explained} {interval}.")


def _p(question: str, over_seeds: bool) -> Column:
    test = (
        "the larger one of the paired t-test over seeds and of a z-test over the items"
        if over_seeds
        else "McNemar's exact test"
    )
    explained = f"p: {test}, before Holm's adjustment; the sign is the verdict after it."
    return Column("p", partial(show, key=f"{question}_p", write=formatting.p_value), explained)


def _of_seeds(row: Row) -> str:
    values = [f"{100 * float(value):.2f}" for value in text_of(row, "accuracy_seeds").split()]
    shown = values if len(values) <= MOST else [*values[:MOST], "…"]
    return " ".join(shown) or MISSING


def _by_setting(
    settings: Sequence[Timed], cell: Callable[[Row, Timed], str], about: About
) -> list[Column]:
    def column(timed: Timed) -> Column:
        return Column(timed_words(timed, about), lambda row: cell(row, timed))

    return list(map(column, settings))


def _gpu(rows: Sequence[Row], about: About) -> Section:
    def figures(name: str, write: Callable[[float], str]) -> list[Column]:
        return [
            Column(t.header, partial(show, key=t.names[name], write=write), t.explained)
            for t in timed.values()
            if name in t.names
        ]

    def speedup(timed: Timed, prefix: str) -> Column:
        header, explained = GPU_SPEEDUPS[prefix]
        cell = partial(formatting.ratio, timed=timed)
        return Column(header, cell, f"{header}: {explained}")

    timed = {one.setting: one for one in of_files(about, runtime=GPU)}
    columns = [
        *figures("ms_p50", formatting.plain),
        *(speedup(timed[f.column], f.speed) for f in FORMS if f.speed and f.column in timed),
        *figures("per_s", amounts.count),
        *map(plain, group("gpu")),
    ]
    return Section("On the GPU", ON_GPU, columns, rows)


def _elsewhere(rows: Sequence[Row], machine: str, runtime: str, about: About) -> Section:
    """Return the table of another machine, of another runtime, or of both."""

    def both(row: Row, timed: Timed) -> str:
        milliseconds = show(row, timed.names["ms_p50"], formatting.brief)
        speedup = formatting.speedup(row, timed)
        return milliseconds if speedup == MISSING else f"{milliseconds}  {speedup}"

    settings = of_files(about, machine, runtime)
    environment = environment_of(machine, about) if machine else {}
    known = machine_words(environment)
    prefix = settings[0].names["ms_p50"].removesuffix(f"{settings[0].setting}_ms_p50")
    explained = (
        OTHER_MACHINES,
        f"Machine: {known}." if known else "",
        timing_words.controls(settings, about),
        *timing_words.denominators(settings, about),
        f"In results.csv: {prefix}...",
    )
    title = f"On another machine: {environment.get('cpu') or machine}" if machine else ""
    title += f"{', in' if title else 'In'} {settings[0].title or runtime}" if runtime else ""
    columns = _by_setting(settings, both, about)
    return Section(title, " ".join(filter(None, explained)), columns, rows)
