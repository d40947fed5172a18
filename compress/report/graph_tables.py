"""A further table that says why a file is no faster: what it executes, and what it takes."""

from __future__ import annotations

from collections.abc import Sequence

from compress.report import formatting
from compress.report.columns import Row, number
from compress.report.section import Column, Section

COLUMNS = (
    Column(
        "conv",
        "conv, matmul: int8/float convolutions and matrix products in the graph that onnxruntime "
        "executes.",
        lambda row: formatting.pair(row, "int8_convs", "float_convs"),
    ),
    Column("matmul", "", lambda row: formatting.pair(row, "int8_matmuls", "float_matmuls")),
    Column(
        "Q/DQ",
        "Q/DQ: nodes left that only convert between int8 and float.",
        lambda row: formatting.count(number(row, "qdq_nodes")),
    ),
    Column(
        "int8 %",
        "int8 %: the share of MACs that are int8.",
        lambda row: formatting.percent(row, "int8_macs_share", 0),
    ),
    Column(
        "peak MB",
        "peak MB: memory that loading and running the file adds in a fresh process.",
        lambda row: formatting.size(row, "peak_bytes", 1e6),
    ),
    Column(
        "gzip kB",
        "gzip kB: the file, compressed.",
        lambda row: formatting.size(row, "gzip_bytes", 1e3),
    ),
    Column(
        "non-zero",
        "non-zero: parameters that are not zero.",
        lambda row: formatting.count(number(row, "nonzero_params")),
    ),
)


def graph_sections(rows: Sequence[Row]) -> list[Section]:
    """Return the table of what runs."""
    return [Section("What runs, and what does it take?", "", COLUMNS, tuple(rows))]
