"""The one table of columns: what each is, how it is derived, shown, and combined over seeds.

`columns.toml` is the table. CSV, tables, pictures, `compress-models list columns` and the docs
read it: a column is added by a measurement (or a derivation) and an entry there. A column of a
latency is repeated here for every setting, machine and runtime.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from compress.results.timed import (
    FORMS,
    GPU,
    LATENCY,
    PLAIN,
    SEEDS_KINDS,
    Column,
    Timed,
    of_files,
    timed_files,
    timed_on_gpu,
    timings,
)
from compress.timing.setting import DEFAULT

SEEDS = PLAIN["seeds"]
"""Columns of seeds.csv alone."""


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
        *PLAIN["rows"],
        *_of_timed(here),
        *PLAIN["graph"],
        *_of_timed(map(timed_on_gpu, FORMS)),
        *(*PLAIN["gpu"], *PLAIN["tail"]),
        *_of_timed(others),
    )


def _of_timed(timed: Iterable[Timed]) -> list[Column]:
    return [
        replace(
            figure,
            name=one.names[figure.name],
            words=f"{figure.words}, {one.where}",
            group="latency",
            apart=figure.apart and f"{figure.apart} {one.where}",
        )
        for one in timed
        for figure in LATENCY
        if figure.name in one.names
    ]


COLUMNS = columns({})
"""The columns of every run."""


def group(*names: str) -> tuple[Column, ...]:
    """Return the columns of some groups that tables show, group by group."""
    return tuple(c for name in names for c in COLUMNS if c.group == name and c.header)


def described() -> dict[str, str]:
    """Return a description of every column; those of latencies stand for all settings."""

    def anywhere(prefix: str, where: str) -> Timed:
        names = {figure.name: f"{prefix}_{figure.name}" for figure in LATENCY}
        return replace(timed_files(DEFAULT[0]), where=where, names=names)

    here, there = ("SETTING", "at a latency setting"), ("on_MACHINE_SETTING", "there")
    everywhere = _in_order([anywhere(*here)], [anywhere(*there)])
    return {column.name: _description(column) for column in (*everywhere, *SEEDS)}


def _description(column: Column) -> str:
    kind = ", ".join(part for part in (column.dtype, column.unit) if part)
    source = f" From: {column.source}." if column.source else ""
    return f"[{kind}] {column.words}.{source} Over seeds: {SEEDS_KINDS[column.seeds]}."
