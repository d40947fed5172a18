"""A further table that says why a file is no faster: what it executes, and what it takes."""

from __future__ import annotations

from collections.abc import Sequence

from compress.report.section import Section, plain
from compress.results.columns import group
from compress.results.table import Row


def graph_sections(rows: Sequence[Row]) -> list[Section]:
    """Return the table of what runs."""
    columns = tuple(map(plain, group("runs", "takes")))
    return [Section("What runs, and what does it take?", "", columns, tuple(rows))]
