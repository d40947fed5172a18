"""Made-up rows of a comparison, all of whose figures are there."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from compress.benchmark.plan.rows import Row
from compress.results.record import Step
from compress.results.timed import FORMS, Timed, described, timed_files, timed_on_gpu
from compress.techniques import chain as parse

KNOWN: dict[str, Any] = {
    "control": 1.003,
    "control_low": 0.998,
    "control_high": 1.008,
    "margin": 0.012,
    "trusted": True,
    "processes": 5,
    "seconds": 33.2,
    "denominator": "",
    "denominator_gain": None,
}
ABOUT: dict[str, Any] = {
    "suite": "small",
    "data": "digits",
    "test_items": 360,
    "model": "cnn",
    "environment": {"cpu": "EPYC", "threads": 2, "governor": "performance", "gpu": "H100"},
    "timings": described([timed_files("cpu", known=KNOWN)]),
    "multiplicity": "Holm's procedure.",
}


def timed(*more: Timed, **known: Any) -> dict[str, Any]:
    """Return `ABOUT` with further timings, and `cpu` with other things known of it."""
    return ABOUT | {"timings": described([timed_files("cpu", known=KNOWN | known), *more])}


def gpu(column: str, **known: Any) -> Timed:
    return timed_on_gpu(next(form for form in FORMS if form.column == column), known)


def steps(chain: str) -> tuple[Step, ...]:
    """Return what a record says of a chain's steps."""
    return Row(chain, parse(chain)).steps


def row_steps(chain: str) -> list[dict[str, Any]]:
    """Return what a row says of a chain's steps."""
    return list(map(asdict, steps(chain)))


def row(chain: str, delta: float = 0.0, speedup: float = 1.0, **more: Any) -> dict[str, Any]:
    """Return a row `delta` (a fraction) better and `speedup` times faster than the baseline."""
    found: dict[str, Any] = {
        "chain": chain,
        "seed": 0,
        "status": "ok",
        "accuracy": 0.9 + delta,
        "accuracy_low": 0.88 + delta,
        "accuracy_high": 0.92 + delta,
        "params": 1000,
        "macs": 20_000,
        "onnx_bytes": 5000,
        "cpu_ms_p50": 2 / speedup,
        "cpu_ms_p90": 2.5 / speedup,
        "cpu_ms_iqr": 0.1 / speedup,
        "cpu_speedup": speedup,
    }
    if chain != "baseline":
        found |= {
            "accuracy_delta": delta,
            "accuracy_delta_low": delta - 0.01,
            "accuracy_delta_high": delta + 0.01,
            "accuracy_p": 0.01 if delta else 1.0,
            "accuracy_verdict": _verdict(delta, "better", "worse", "not shown"),
            "agreement": 0.95,
            "lost": 7,
            "gained": 3,
            "cpu_speedup_low": 0.98 * speedup,
            "cpu_speedup_high": 1.02 * speedup,
            "cpu_verdict": _verdict(math.log(speedup), "faster", "slower", "indistinguishable"),
        }
    return {**found, **more}


def _verdict(value: float, up: str, down: str, neither: str) -> str:
    return neither if value == 0 else up if value > 0 else down
