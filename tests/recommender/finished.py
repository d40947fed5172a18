"""Chains as a search has measured them, and rows as their last timing gives them."""

from __future__ import annotations

from typing import Any

from compress.recommender.measured import Measured

BASELINE = {"chain": "baseline", "status": "ok", "onnx_bytes": 6800, "macs": 1000, "params": 1000}


def measured(chain: str, speedup: float, lost: int, right: int = 1800) -> Measured:
    return Measured(
        chain,
        items=2000,
        right=right - lost,
        lost=lost,
        speedup=speedup,
        ms=1 / speedup,
        onnx_bytes=round(4000 / speedup),
        macs=500,
        params=500,
    )


def row(chain: str, lost: int = 40, gained: int = 0, **values: Any) -> dict[str, Any]:
    speedup = values.get("cpu_speedup", 3.9)
    usual = {
        "status": "ok",
        "items": 10_000,
        "lost": lost,
        "gained": gained,
        "accuracy_delta": (gained - lost) / 10_000,
        "accuracy_delta_low": -0.009,
        "accuracy_delta_high": 0.001,
        "cpu_speedup": speedup,
        "cpu_speedup_low": speedup / 3.9 * 3.7,
        "cpu_speedup_high": speedup / 3.9 * 4.1,
        "cpu_verdict": "faster",
        "cpu_ms_p50": 2.0,
        "onnx_bytes": 1000,
        "macs": 500,
        "params": 500,
    }
    return {"chain": chain, **usual, **values}
