"""The columns of a result, in the order of every table, and results.csv."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from compress.timing.setting import DEFAULT, parse_setting

Row = Mapping[str, Any]

BASELINE = "baseline"
CONTROL = "control"  # the role of a row that the harness added

_OF_SETTING = (
    *("ms_p50", "ms_p90", "ms_iqr", "per_s"),
    *("speedup", "speedup_low", "speedup_high", "verdict"),
)
_HEAD = (
    *("chain", "seed", "status", "error", "role"),
    *("accuracy", "accuracy_low", "accuracy_high"),
    *("accuracy_delta", "accuracy_delta_low", "accuracy_delta_high"),
    *("accuracy_p", "accuracy_verdict", "agreement", "lost", "gained", "top5", "ece", "metric"),
    *("control", "control_delta", "control_delta_low", "control_delta_high"),
    *("control_p", "control_verdict"),
    *("params", "nonzero_params", "macs", "onnx_bytes", "gzip_bytes", "peak_bytes"),
)
_TAIL = (
    *("int8_convs", "float_convs", "int8_matmuls", "float_matmuls", "qdq_nodes"),
    *("int8_macs_share", "cuda_ms_p50", "cuda_trt_ms_p50"),
    *("cuda_file_speedup", "cuda_file_speedup_low", "cuda_file_speedup_high", "cuda_file_verdict"),
    "cuda_torch_ms_p50",
    *("cuda_torch_float16_ms_p50", "cuda_torch_bfloat16_ms_p50", "cuda_graph_ms_p50"),
    "cuda_batch32_per_s",
    *("cuda_speedup", "cuda_speedup_low", "cuda_speedup_high", "cuda_verdict"),
    *("cuda_peak_bytes", "cuda_note"),
    *("top1_agreement", "max_abs_error", "train_samples", "seconds", "note", "onnx_path"),
)


def _of(setting: str) -> tuple[str, ...]:
    return tuple(f"{setting}_{figure}" for figure in _OF_SETTING)


COLUMNS = (*_HEAD, *(column for name in DEFAULT for column in _of(name)), *_TAIL)
"""The columns of every result; `columns` adds those of further settings and machines."""
INTEGERS = frozenset(
    {
        *("seed", "n", "lost", "gained", "params", "nonzero_params", "macs"),
        *("onnx_bytes", "gzip_bytes", "peak_bytes", "cuda_peak_bytes", "train_samples"),
        *("int8_convs", "float_convs", "int8_matmuls", "float_matmuls", "qdq_nodes"),
    }
)
_TEXTS = frozenset(
    {
        *("chain", "status", "error", "role", "control", "cuda_note", "note", "onnx_path"),
        *("seeds", "accuracy_seeds"),
    }
)
_SETTING = r"cpu(?:[1-9]\d{0,3})?(?:_batch[1-9]\d{0,5})?"
_LOCAL = re.compile(rf"({_SETTING})_(?:{'|'.join(_OF_SETTING)})")
_REMOTE = re.compile(rf"on_(.+)_({_SETTING})_(?:{'|'.join(_OF_SETTING)})")


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


def is_text(key: str) -> bool:
    """Return whether a column holds texts, not numbers."""
    return key in _TEXTS or key.endswith("_verdict")


def ordered(rows: Iterable[Row]) -> list[Row]:
    """Return the rows with the baseline (of every seed) first, otherwise in their own order."""
    return sorted(rows, key=lambda row: row.get("chain") != BASELINE)


def settings(rows: Iterable[Row]) -> tuple[str, ...]:
    """Return the latency settings for which a row has a column: the default trio's first."""
    found = {match[1] for match in _matches(_LOCAL, rows)}
    return tuple(sorted(found, key=_rank))


def machines(rows: Iterable[Row]) -> dict[str, tuple[str, ...]]:
    """Return the other machines on which files were timed: slug -> settings."""
    found: dict[str, set[str]] = {}
    for match in _matches(_REMOTE, rows):
        found.setdefault(match[1], set()).add(match[2])
    return {slug: tuple(sorted(found[slug], key=_rank)) for slug in sorted(found)}


def timing_of(key: str) -> tuple[str, str] | None:
    """Return whose latency a column is: the machine ('' for this one), the setting; or None."""
    if match := _LOCAL.fullmatch(key):
        return "", match[1]
    match = _REMOTE.fullmatch(key)
    return (match[1], match[2]) if match else None


def columns(rows: Sequence[Row]) -> tuple[str, ...]:
    """Return `COLUMNS`, further settings' after the default trio's, other machines' at the end."""
    further = [column for name in settings(rows) if name not in DEFAULT for column in _of(name)]
    cut = len(COLUMNS) - len(_TAIL)
    present = {key for row in rows for key in row}
    remote = (f"on_{slug}_{name}" for slug, names in machines(rows).items() for name in names)
    elsewhere = [column for name in remote for column in _of(name) if column in present]
    return (*COLUMNS[:cut], *further, *COLUMNS[cut:], *elsewhere)


def frame(rows: Iterable[Row], only: Sequence[str] | None = None) -> pd.DataFrame:
    """Return the rows as a frame, baseline first, missing integers as `<NA>`.

    Its columns are `only`, or those of `columns`; other keys are left out. Accuracies are
    fractions, sizes bytes, latencies milliseconds.
    """
    wanted = ordered(rows)
    keys = columns(wanted) if only is None else only
    return pd.DataFrame({key: _column(key, [row.get(key) for row in wanted]) for key in keys})


def to_csv(rows: Iterable[Row], only: Sequence[str] | None = None) -> str:
    """Return the rows as CSV: an empty cell is a figure that was not measured.

    A text that a spreadsheet would take for a formula is prefixed by a quote.
    """
    table = frame(rows, only)
    for key in filter(is_text, table.columns):
        table[key] = table[key].map(_harmless)
    return str(table.to_csv(index=False, lineterminator="\n"))


def _matches(pattern: re.Pattern[str], rows: Iterable[Row]) -> Iterable[re.Match[str]]:
    keys = dict.fromkeys(key for row in rows for key in row)
    return (match for key in keys if (match := pattern.fullmatch(key)))


def _rank(name: str) -> tuple[int, int, int]:
    setting = parse_setting(name)
    first = DEFAULT.index(name) if name in DEFAULT else len(DEFAULT)
    return first, setting.batch, setting.threads


def _column(key: str, values: list[Any]) -> pd.Series[Any]:
    if is_text(key):
        return pd.Series(values, dtype=object)
    if key in INTEGERS and all(_missing(value) or value == int(value) for value in values):
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
