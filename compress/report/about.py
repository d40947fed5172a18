"""What a table rests on, in sentences: data, model, machine, the meaning of its columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from compress.report import trust
from compress.report.columns import BASELINE, CONTROL, Row, number, settings, text_of
from compress.report.words import machine_words, main_setting, setting_words

GPU_FIGURES = (
    *("cuda_ms_p50", "cuda_trt_ms_p50", "cuda_torch_ms_p50", "cuda_torch_float16_ms_p50"),
    *("cuda_torch_bfloat16_ms_p50", "cuda_graph_ms_p50", "cuda_batch32_per_s"),
)
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
    "own baselines, ± half of its 95 % t interval, verdict by the paired t-test over seeds (a "
    "seed is one replication); differences that are equal in all seeds have no t, their verdict "
    "is by the exact sign test; speed-up: geometric mean over seeds, ± half of its interval (t "
    "with three seeds or more, else that of the timing); other figures: means over seeds;"
)
VERDICTS = (
    ("▲", "better or faster"),
    ("▼", "worse or slower"),
    ("≈", "no difference shown"),
    ("?", "the seeds' verdicts differ"),
    ("!", "timing not to be trusted, so no verdict"),
)


def legend(rows: Sequence[Row], shown: str) -> str:
    """Return what the signs mean that stand in a table, whose text is `shown`."""
    parts = [f"{mark} {words}" for mark, words in VERDICTS if f" {mark}" in shown]
    said = f"Against the baseline: {', '.join(parts)}." if parts else ""
    if any(text_of(row, "role") == CONTROL for row in rows):
        said += " [control]: added for comparison, the same training without the technique."
    return said.strip()


def facts(rows: Sequence[Row], about: Mapping[str, Any], seeds: Sequence[int]) -> list[str]:
    """Return what stands below a table, a sentence or a few each; what is unknown is left out.

    `seeds` are those that a row is the mean of; a single one says nothing of means.
    """
    names = settings(rows)
    words = setting_words(main_setting(rows), about)
    machine = machine_words(about.get("environment") or {})
    found = [
        _task(about),
        _number(rows, seeds),
        f"Machine: {machine}." if machine else "",
        f"{SEEDS if len(seeds) > 1 else ITEMS} {COSTS.format(words)}",
        trust.controls(names, about),
        *trust.denominators(names, about),
        trust.effort(names, about),
        str(about.get("multiplicity") or ""),
        gpu(rows),
    ]
    return [fact for fact in [*found, *map(str, about.get("notes") or ())] if fact]


def gpu(rows: Sequence[Row]) -> str:
    """Return why there are no GPU latencies, or why some are missing."""
    measured = any(number(row, key) is not None for row in rows for key in GPU_FIGURES)
    reasons = "; ".join(_unique(text_of(row, "cuda_note") for row in rows))
    if not reasons:
        return ""
    return f"GPU: {reasons}." if measured else f"GPU latency was not measured: {reasons}."


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


def _unique(texts: Iterable[str]) -> list[str]:
    return [text.rstrip(".") for text in dict.fromkeys(texts) if text]
