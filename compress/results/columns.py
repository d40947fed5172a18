"""The one table of columns: what each is, how it is derived, shown, and combined over seeds.

`columns.toml` is the table. CSV, tables, pictures, `compress-models list columns` and the docs
read it: a column is added by a measurement (or a derivation) and an entry there. The columns of
latencies are made here, for every setting, machine and runtime.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any

from compress.results.timed import (
    FORMS,
    GPU,
    LATENCY,
    Timed,
    of_files,
    timed_files,
    timed_on_gpu,
    timings,
)
from compress.timing.setting import DEFAULT

TEXT, WHOLE, REAL = "text", "int", "float"
SEEDS_KINDS = {
    "mean": "mean",
    "difference": "mean of paired differences, tested over seeds and over items",
    "ratio": "geometric mean; the verdict that they share, else mixed",
    "first": "what they share",
    "status": "ok if any is",
    "said": "all that is said, each once",
    "none": "left out",
}
"""How several seeds are combined (see `compress.results.seeds`)."""


@dataclass(frozen=True)
class Column:
    """A column of results.csv."""

    name: str
    words: str
    """What it is."""
    source: str = ""
    """How it is measured, or what it is derived from."""
    unit: str = ""
    dtype: str = REAL
    seeds: str = "mean"
    """How several seeds are combined: a key of `SEEDS_KINDS`."""
    group: str = "row"
    header: str = ""
    """In a table; '' for a column that no table shows by itself."""
    shown: str = ""
    """How a table writes it: a key of `compress.report.formatting.FORMATS`."""
    beside: str = ""
    """A second column that stands in the same cell, behind a slash."""
    explained: str = ""
    """What a table says of its header; '' where that is plain."""
    apart: str = ""
    """What a note calls it if the seeds' figures lie apart; '' for none."""


def _read() -> dict[str, tuple[Column, ...]]:
    """Return what `columns.toml` says, by its sections."""
    text = (resources.files("compress.results") / "columns.toml").read_text()
    return {
        section: tuple(Column(name, **values) for name, values in table.items())
        for section, table in tomllib.loads(text).items()
    }


_PLAIN = _read()
SEEDS = _PLAIN["seeds"]
"""Columns of seeds.csv alone."""


def of_timed(timed: Timed) -> tuple[Column, ...]:
    """Return the columns of what was timed."""
    found = []
    for figure in LATENCY:
        if name := timed.names.get(figure.name):
            column = Column(
                name,
                f"{figure.words}, {timed.where}",
                figure.source,
                figure.unit,
                TEXT if figure.name == "verdict" else REAL,
                "ratio" if figure.compares else "mean",
                "latency",
                apart=f"latency {timed.where}" if figure.name == "ms_p50" else "",
            )
            found.append(column)
    return tuple(found)


def columns(about: Mapping[str, Any]) -> tuple[Column, ...]:
    """Return the columns of a run, in the order of results.csv.

    Those of the default settings and of the GPU are always there, those of further settings,
    runtimes and machines where something was timed.
    """
    further = [timed for timed in of_files(about) if timed.setting not in DEFAULT]
    others = [t for t in timings(about) if t.runtime != GPU and (t.machine or t.runtime)]
    return _in_order([*map(timed_files, DEFAULT), *further], others)


def _in_order(here: Iterable[Timed], others: Iterable[Timed]) -> tuple[Column, ...]:
    return (
        *_PLAIN["rows"],
        *(column for timed in here for column in of_timed(timed)),
        *_PLAIN["graph"],
        *(column for form in FORMS for column in of_timed(timed_on_gpu(form))),
        *(*_PLAIN["gpu"], *_PLAIN["tail"]),
        *(column for timed in others for column in of_timed(timed)),
    )


COLUMNS = columns({})
"""The columns of every run."""


def group(*names: str) -> tuple[Column, ...]:
    """Return the columns of some groups that tables show, group by group."""
    return tuple(c for name in names for c in COLUMNS if c.group == name and c.header)


def described() -> dict[str, str]:
    """Return what is said of every column; those of latencies stand for all settings."""

    def anywhere(prefix: str, where: str) -> Timed:
        names = {figure.name: f"{prefix}_{figure.name}" for figure in LATENCY}
        return replace(timed_files(DEFAULT[0]), where=where, names=names)

    here, there = ("SETTING", "at a latency setting"), ("on_MACHINE_SETTING", "there")
    found = _in_order([anywhere(*here)], [anywhere(*there)])
    return {column.name: _said(column) for column in (*found, *SEEDS)}


def _said(column: Column) -> str:
    kind = ", ".join(part for part in (column.dtype, column.unit) if part)
    source = f" From: {column.source}." if column.source else ""
    return f"[{kind}] {column.words}.{source} Over seeds: {SEEDS_KINDS[column.seeds]}."
