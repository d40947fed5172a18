"""Further tables about latency: on this machine's processor, on its GPU, on other machines."""

from __future__ import annotations

from collections.abc import Sequence

from compress.report import formatting, trust
from compress.report.columns import Row, machines, number, settings
from compress.report.section import Column, Section
from compress.report.words import (
    About,
    is_gpu_trusted,
    is_trusted,
    machine_words,
    setting_words,
)
from compress.stats.spread import NOISY as NOISY_SHARE

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
    f"{100 * NOISY_SHARE:.0f} % of the median."
)
GPU = "Milliseconds of one item, where nothing else is said."
MODULE = "float32, float16, bfloat16: the PyTorch module, by CUDA events."
ELSEWHERE = (
    "Milliseconds of a call, then how many times as fast as the baseline there, ± half of the "
    "95 % interval, and the verdict."
)


def latency_sections(rows: Sequence[Row], about: About) -> list[Section]:
    """Return the tables about latency: speed-ups and milliseconds, the GPU's, other machines'."""
    shown = tuple(rows)
    return [
        _speedups(shown, about),
        _calls(shown, about),
        _gpu(shown, about),
        *(
            _machine(shown, slug, names, (about.get("elsewhere") or {}).get(slug) or {})
            for slug, names in machines(rows).items()
        ),
    ]


def _speedups(rows: tuple[Row, ...], about: About) -> Section:
    def column(name: str) -> Column:
        trusted = is_trusted(name, about)
        return Column(
            setting_words(name, about), "", lambda row: formatting.ratio(row, name, trusted)
        )

    words = SPEEDUP_SEEDS if any("accuracy_seeds" in row for row in rows) else SPEEDUP
    columns = tuple(column(name) for name in settings(rows))
    return Section("How much faster, and is it real?", words, columns, rows)


def _calls(rows: tuple[Row, ...], about: About) -> Section:
    def column(name: str) -> Column:
        return Column(
            setting_words(name, about), "", lambda row: formatting.milliseconds(row, name)
        )

    columns = tuple(column(name) for name in settings(rows))
    noisy = any(formatting.NOISY in column.cell(row) for column in columns for row in rows)
    words = f"{CALL} {NOISE}" if noisy else CALL
    return Section("How long does a call take?", words, columns, rows)


def _gpu(rows: tuple[Row, ...], about: About) -> Section:
    def column(name: str, words: str, key: str) -> Column:
        return Column(name, words, lambda row: formatting.plain(number(row, key)))

    module, file = (is_gpu_trusted(key, about) for key in ("cuda_torch_ms_p50", "cuda_ms_p50"))
    columns = (
        column("float32", MODULE, "cuda_torch_ms_p50"),
        column("float16", "", "cuda_torch_float16_ms_p50"),
        column("bfloat16", "", "cuda_torch_bfloat16_ms_p50"),
        column("graph", "graph: float32, replayed as a CUDA graph.", "cuda_graph_ms_p50"),
        column("CUDA", "CUDA: the file, in onnxruntime.", "cuda_ms_p50"),
        column("TensorRT", "TensorRT: the file, in onnxruntime.", "cuda_trt_ms_p50"),
        Column(
            "speed-up",
            "speed-up: the float32 module over the baseline's, with its 95 % interval.",
            lambda row: formatting.ratio(row, "cuda", module),
        ),
        Column(
            "file speed-up",
            "file speed-up: the file in onnxruntime (CUDA) over the baseline's file, likewise.",
            lambda row: formatting.ratio(row, "cuda_file", file),
        ),
        Column(
            "items/s",
            "items/s: float32, in batches of 32.",
            lambda row: formatting.count(number(row, "cuda_batch32_per_s")),
        ),
        Column(
            "peak MB",
            "peak MB: the GPU's memory.",
            lambda row: formatting.size(row, "cuda_peak_bytes", 1e6),
        ),
    )
    return Section("On the GPU", GPU, columns, rows)


def _machine(rows: tuple[Row, ...], slug: str, names: Sequence[str], there: About) -> Section:
    def column(name: str) -> Column:
        key, trusted = f"on_{slug}_{name}", is_trusted(name, there)
        return Column(setting_words(name, there), "", lambda row: _both(row, key, trusted))

    environment = there.get("environment") or {}
    known = machine_words(environment)
    words = (
        ELSEWHERE,
        f"Machine: {known}." if known else "",
        trust.controls(names, there),
        *trust.denominators(names, there),
        f"In results.csv: on_{slug}_...",
    )
    return Section(
        f"On another machine: {environment.get('cpu') or slug}",
        " ".join(part for part in words if part),
        tuple(column(name) for name in names),
        rows,
    )


def _both(row: Row, key: str, trusted: bool) -> str:
    milliseconds = formatting.brief(number(row, f"{key}_ms_p50"))
    speedup = formatting.speedup(row, key, trusted)
    return milliseconds if speedup == formatting.MISSING else f"{milliseconds}  {speedup}"
