"""Rows as they are shown: flat dicts by column, and results.csv."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from compress.results.columns import columns
from compress.results.record import BASELINE
from compress.results.timed import TEXT, WHOLE, Column

Row = Mapping[str, Any]
"""A figure or text by column; and `steps` (see `compress.results.record`), `missing`: reasons."""


def number(row: Row, key: str | None) -> float | None:
    """Return a figure of the row as a finite float; None where it was not measured."""
    value = row.get(key or "")
    if value is None or value is pd.NA or not math.isfinite(value):
        return None
    return float(value)


def text_of(row: Row, key: str | None) -> str:
    """Return a text of the row, '' where there is none."""
    value = row.get(key or "")
    return value if isinstance(value, str) else ""


def ordered(rows: Iterable[Row]) -> list[Row]:
    """Return the rows with the baseline (of every seed) first, otherwise in their own order."""
    return sorted(rows, key=lambda row: row.get("chain") != BASELINE)


def is_sound(row: Row) -> bool:
    """Return whether the row neither failed nor has a file that was not verified."""
    return text_of(row, "status") not in ("failed", "unverified")


def frame(
    rows: Iterable[Row], about: Mapping[str, Any], only: Sequence[Column] | None = None
) -> pd.DataFrame:
    """Return the rows as a frame, baseline first, missing integers as `<NA>`.

    Its columns are `only`, or those of the run that is described in `about`; other keys are left
    out. Accuracies are fractions, sizes bytes, latencies milliseconds.
    """
    in_order = ordered(rows)
    shown = columns(about) if only is None else only
    return pd.DataFrame({c.name: _column(c, [row.get(c.name) for row in in_order]) for c in shown})


def to_csv(
    rows: Iterable[Row], about: Mapping[str, Any], only: Sequence[Column] | None = None
) -> str:
    """Return the rows as CSV: an empty cell is a figure that was not measured.

    A text that a spreadsheet would take for a formula is prefixed by a quote.
    """
    table = frame(rows, about, only)
    for column in columns(about) if only is None else only:
        if column.dtype == TEXT:
            table[column.name] = table[column.name].map(_harmless)
    return str(table.to_csv(index=False, lineterminator="\n"))


def _column(column: Column, values: list[Any]) -> pd.Series[Any]:
    if column.dtype == TEXT:
        return pd.Series(values, dtype=object)
    if column.dtype == WHOLE and all(pd.isna(v) or v == int(v) for v in values):
        # A float in between would round what does not fit its 53 bits.
        whole = [None if pd.isna(value) else int(value) for value in values]
        return pd.Series(whole, dtype="Int64")
    return pd.Series([math.nan if pd.isna(value) else value for value in values], dtype="float64")


def _harmless(value: Any) -> str | None:
    if not isinstance(value, str):
        return None
    encodable = value.encode(errors="backslashreplace").decode()
    return f"'{encodable}" if encodable.startswith(("=", "+", "-", "@", "\t", "\r")) else encodable
