"""Further tables about latency: on this machine's processor, on its GPU, on other machines."""

from __future__ import annotations

from collections.abc import Sequence

from compress.report import formatting, trust
from compress.report.section import Column, Section, plain
from compress.report.words import About, environment_of, machine_words, timed_words
from compress.results.columns import group
from compress.results.table import Row, number
from compress.results.timed import FORMS, GPU, Timed, of_files, timings
from compress.stats.spread import NOISY

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
    "timed in turns, are firmer than these."
)
NOISE = (
    f"{formatting.NOISY} marks noise: half of the calls lie further apart than "
    f"{100 * NOISY:.0f} % of the median."
)
ON_GPU = "Milliseconds of one item, where nothing else is said."
SPEED_WORDS = {
    "cuda": ("speed-up", "the float32 module over the baseline's, with its 95 % interval."),
    "cuda_file": (
        "file speed-up",
        "the file in onnxruntime (CUDA) over the baseline's file, likewise.",
    ),
}
ELSEWHERE = (
    "Milliseconds of a call, then how many times as fast as the baseline there, ± half of the "
    "95 % interval, and the verdict."
)


def latency_sections(rows: Sequence[Row], about: About) -> list[Section]:
    """Return the tables about latency: speed-ups and milliseconds, the GPU's, other machines'."""
    shown = tuple(rows)
    others = dict.fromkeys((t.machine, t.runtime) for t in timings(about) if t.runtime != GPU)
    others.pop(("", ""), None)
    return [
        _speedups(shown, about),
        _calls(shown, about),
        _gpu(shown, about),
        *(_elsewhere(shown, machine, runtime, about) for machine, runtime in others),
    ]


def _speedups(rows: tuple[Row, ...], about: About) -> Section:
    def column(timed: Timed) -> Column:
        return Column(timed_words(timed, about), "", lambda row: formatting.ratio(row, timed))

    words = SPEEDUP_SEEDS if any("accuracy_seeds" in row for row in rows) else SPEEDUP
    columns = tuple(map(column, of_files(about)))
    return Section("How much faster, and is it real?", words, columns, rows)


def _calls(rows: tuple[Row, ...], about: About) -> Section:
    def column(timed: Timed) -> Column:
        return Column(
            timed_words(timed, about), "", lambda row: formatting.milliseconds(row, timed)
        )

    columns = tuple(map(column, of_files(about)))
    noisy = any(formatting.NOISY in column.cell(row) for column in columns for row in rows)
    words = f"{CALL} {NOISE}" if noisy else CALL
    return Section("How long does a call take?", words, columns, rows)


def _gpu(rows: tuple[Row, ...], about: About) -> Section:
    def median(timed: Timed) -> Column:
        name = timed.names["ms_p50"]
        return Column(
            timed.header, timed.explained, lambda row: formatting.plain(number(row, name))
        )

    def speedup(timed: Timed, prefix: str) -> Column:
        header, words = SPEED_WORDS[prefix]
        return Column(header, f"{header}: {words}", lambda row: formatting.ratio(row, timed))

    def rate(timed: Timed) -> Column:
        name = timed.names["per_s"]
        return Column(
            timed.header, timed.explained, lambda row: formatting.count(number(row, name))
        )

    found = {timed.setting: timed for timed in of_files(about, runtime=GPU)}
    columns = (
        *(median(timed) for timed in found.values() if "ms_p50" in timed.names),
        *(speedup(found[f.column], f.speed) for f in FORMS if f.speed and f.column in found),
        *(rate(timed) for timed in found.values() if "per_s" in timed.names),
        *map(plain, group("gpu")),
    )
    return Section("On the GPU", ON_GPU, columns, rows)


def _elsewhere(rows: tuple[Row, ...], machine: str, runtime: str, about: About) -> Section:
    """Return the table of another machine, of another runtime, or of both."""

    def column(timed: Timed) -> Column:
        return Column(timed_words(timed, about), "", lambda row: _both(row, timed))

    found = of_files(about, machine, runtime)
    environment = environment_of(machine, about) if machine else {}
    known = machine_words(environment)
    prefix = found[0].names["ms_p50"].removesuffix(f"{found[0].setting}_ms_p50")
    words = (
        ELSEWHERE,
        f"Machine: {known}." if known else "",
        trust.controls(found, about),
        *trust.denominators(found, about),
        f"In results.csv: {prefix}...",
    )
    title = f"On another machine: {environment.get('cpu') or machine}" if machine else ""
    title += f"{', in' if title else 'In'} {found[0].title or runtime}" if runtime else ""
    return Section(title, " ".join(part for part in words if part), tuple(map(column, found)), rows)


def _both(row: Row, timed: Timed) -> str:
    milliseconds = formatting.brief(number(row, timed.names["ms_p50"]))
    speedup = formatting.speedup(row, timed)
    return milliseconds if speedup == formatting.MISSING else f"{milliseconds}  {speedup}"
