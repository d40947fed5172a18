"""The columns of a result, in the order of every table, and results.csv."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

Row = Mapping[str, Any]

BASELINE = "baseline"

COLUMNS = (
    *("chain", "seed", "status", "error"),
    *("accuracy", "accuracy_low", "accuracy_high", "accuracy_delta"),
    *("params", "nonzero_params", "macs", "onnx_bytes", "gzip_bytes"),
    *("cpu_ms_p50", "cpu_ms_p90", "cpu_speedup", "cpu_speedup_low", "cpu_speedup_high"),
    *("cpu_batch32_per_s", "cuda_ms_p50", "cuda_note", "cuda_torch_ms_p50"),
    *("top1_agreement", "max_abs_error", "train_samples", "seconds", "note", "onnx_path"),
)
INTEGERS = frozenset(
    {"seed", "params", "nonzero_params", "macs", "onnx_bytes", "gzip_bytes", "train_samples"}
)
TEXTS = frozenset({"chain", "status", "error", "cuda_note", "note", "onnx_path"})


def number(row: Row, key: str) -> float | None:
    """Return a figure of the row as a finite float; None where it was not measured."""
    value = row.get(key)
    if value is None or value is pd.NA or not math.isfinite(value):
        return None
    return float(value)


def text_of(row: Row, key: str) -> str:
    """Return a text of the row, '' where there is none."""
    value = row.get(key)
    return value if isinstance(value, str) else ""


def ordered(rows: Iterable[Row]) -> list[Row]:
    """Return the rows with the baseline (of every seed) first, otherwise in their own order."""
    return sorted(rows, key=lambda row: row.get("chain") != BASELINE)


def frame(rows: Iterable[Row]) -> pd.DataFrame:
    """Return the rows as a frame: `COLUMNS`, baseline first, missing integers as `<NA>`.

    Accuracies are fractions, sizes bytes, latencies milliseconds. Other keys are left out.
    """
    wanted = ordered(rows)
    return pd.DataFrame({key: _column(key, [row.get(key) for row in wanted]) for key in COLUMNS})


def to_csv(rows: Iterable[Row]) -> str:
    """Return the rows as CSV: an empty cell is a figure that was not measured.

    A text that a spreadsheet would take for a formula is prefixed by a quote.
    """
    table = frame(rows)
    for key in TEXTS:
        table[key] = table[key].map(_harmless)
    return str(table.to_csv(index=False, lineterminator="\n"))


def _column(key: str, values: list[Any]) -> pd.Series[Any]:
    if key in TEXTS:
        return pd.Series(values, dtype=object)
    if key in INTEGERS:
        # A float in between would round what does not fit its 53 bits.
        whole = [None if _missing(value) else int(value) for value in values]
        return pd.Series(whole, dtype="Int64")
    return pd.Series([math.nan if _missing(value) else value for value in values], dtype="float64")


def _missing(value: Any) -> bool:
    return bool(value is None or value is pd.NA or value != value)


def _harmless(value: Any) -> str | None:
    if not isinstance(value, str):
        return None
    encodable = value.encode(errors="backslashreplace").decode()
    return f"'{encodable}" if encodable.startswith(("=", "+", "-", "@", "\t", "\r")) else encodable
