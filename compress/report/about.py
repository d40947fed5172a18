"""What a table rests on, in sentences: data, model, machine, the meaning of its columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from compress.report.columns import Row, number, text_of

MEANING = (
    "acc % ± half of Wilson's 95 % interval; Δ pt: points against the baseline of the same seed; "
    "kB: the ONNX file in 1000 bytes; ms: median CPU latency of one item; speed-up ± half of a "
    "bootstrap's 95 % interval, timed against the baseline. Accuracy, kB and ms are those of the "
    "ONNX file, parameters and MACs those of the model."
)


def facts(rows: Sequence[Row], about: Mapping[str, Any]) -> list[str]:
    """Return what stands below a table, a sentence or a few each; what is unknown is left out."""
    found = [_task(about), _machine(about.get("environment") or {}), MEANING, gpu(rows)]
    return [fact for fact in [*found, *map(str, about.get("notes") or ())] if fact]


def gpu(rows: Sequence[Row]) -> str:
    """Return where GPU latencies are, or why there are none."""
    measured = sum(number(row, "cuda_ms_p50") is not None for row in rows)
    reasons = "; ".join(_unique(text_of(row, "cuda_note") for row in rows))
    if not measured:
        return f"GPU latency was not measured: {reasons}." if reasons else ""
    where = f"GPU latency of {measured} of {len(rows)} rows: results.csv, cuda_ms_p50."
    return f"{where} {reasons}." if reasons else where


def _task(about: Mapping[str, Any]) -> str:
    parts = []
    if data := about.get("data"):
        items = about.get("test_items")
        parts.append(f"Data: {data}, {items} test items." if items else f"Data: {data}.")
    parts += [f"Model: {about['model']}."] if about.get("model") else []
    parts += [f"Baseline: {about['baseline']}."] if about.get("baseline") else []
    return " ".join(parts)


def _machine(environment: Mapping[str, Any]) -> str:
    threads = environment.get("threads")
    parts = [
        str(environment.get("cpu") or ""),
        f"{threads} thread{'' if threads == 1 else 's'}" if threads else "",
        " ".join(environment.get("flags") or environment.get("cpu_flags") or ()),
        str(environment.get("system") or ""),
        ", ".join(f"{name} {v}" for name, v in (environment.get("versions") or {}).items()),
        str(environment.get("date") or ""),
    ]
    known = "; ".join(part for part in parts if part)
    return f"Machine: {known}." if known else ""


def _unique(texts: Iterable[str]) -> list[str]:
    return [text.rstrip(".") for text in dict.fromkeys(texts) if text]
