"""Columns as columns.toml lists them, and what was timed: machine, runtime, setting, columns."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib import resources
from typing import Any

from compress.timing.setting import DEFAULT, parse_setting

Known = Mapping[str, Any]
TEXT, WHOLE, REAL = "text", "int", "float"


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


@dataclass(frozen=True)
class Form:
    """One way to run rows on the GPU; `speed` begins the columns of its comparison, if any.

    `figure` is what its column holds: milliseconds, or items per second.
    """

    column: str
    words: str
    header: str
    explained: str = ""
    speed: str = ""
    figure: str = "ms_p50"


_TABLES = tomllib.loads((resources.files("compress.results") / "columns.toml").read_text())
FORMS = tuple(Form(name, **values) for name, values in _TABLES.pop("forms").items())
SEEDS_KINDS = _TABLES.pop("over_seeds")
"""How several seeds are combined (see `compress.results.seeds`), in words."""
PLAIN = {
    section: tuple(Column(name, **values) for name, values in table.items())
    for section, table in _TABLES.items()
}
"""The columns that `columns.toml` lists, by section."""
LATENCY = PLAIN["latency"]
"""The figures of a timing, by names without a prefix; those combined as a ratio compare files."""
GPU = "cuda"
"""The runtime of everything that is timed on the GPU."""
PEAK = "cuda_peak_bytes"


@dataclass(frozen=True)
class Timed:
    """One timing of all rows: its machine, runtime and setting, and its figures' columns."""

    setting: str
    words: str
    """The setting in words, such as `batch 1, 1 thread`."""
    where: str
    """The same with the machine and runtime, such as `on arm_4t at batch 1, 1 thread`."""
    names: Mapping[str, str]
    """Name of a figure of `LATENCY` -> its column."""
    machine: str = ""
    """The short name of another machine; '' for the run's own."""
    runtime: str = ""
    """'' for onnxruntime's CPU provider."""
    title: str = ""
    """The runtime's display name."""
    header: str = ""
    explained: str = ""
    known: Known = field(default_factory=dict)
    """Its A/A control, what speed-ups divide, the effort, and the machine's threads."""

    @property
    def trusted(self) -> bool:
        return self.known.get("trusted") is not False


def timed_files(
    setting: str, machine: str = "", runtime: str = "", title: str = "", known: Known | None = None
) -> Timed:
    """Return the timing of files at a setting of threads and batch size."""
    prefix = (f"on_{machine}_" if machine else "") + (f"{runtime}_" if runtime else "") + setting
    known = known or {}
    one = parse_setting(setting)
    words = replace(one, threads=one.threads or known.get("all_threads") or 0).words
    where = f"on {machine} " if machine else ""
    where += f"in {title or runtime} " if runtime else ""
    names = {figure.name: f"{prefix}_{figure.name}" for figure in LATENCY}
    return Timed(setting, words, f"{where}at {words}", names, machine, runtime, title, known=known)


def timed_on_gpu(form: Form, known: Known | None = None) -> Timed:
    """Return the timing of one form on the GPU."""
    names = {form.figure: form.column}
    if form.speed:
        names |= {f.name: f"{form.speed}_{f.name}" for f in LATENCY if f.seeds == "ratio"}
    return Timed(
        form.column,
        form.words,
        f"on the GPU ({form.words})",
        names,
        runtime=GPU,
        title="GPU",
        header=form.header,
        explained=form.explained,
        known=known or {},
    )


def timings(about: Mapping[str, Any]) -> tuple[Timed, ...]:
    """Return all timings of a run, from its description as it is derived."""
    return tuple(Timed(**one) for one in about.get("timings") or ())


def described(timed: Iterable[Timed]) -> list[dict[str, Any]]:
    """Return timings as a run's description holds them (JSON)."""
    return list(map(asdict, timed))


def of_files(about: Mapping[str, Any], machine: str = "", runtime: str = "") -> tuple[Timed, ...]:
    """Return the timings on a machine in a runtime; by default here, in onnxruntime on the CPU."""
    return tuple(t for t in timings(about) if (t.machine, t.runtime) == (machine, runtime))


def main_timed(about: Mapping[str, Any]) -> Timed:
    """Return the timing of the main table and picture: `cpu` if it was timed."""
    return next(iter(of_files(about)), timed_files(DEFAULT[0]))


def in_order(settings: Iterable[str]) -> tuple[str, ...]:
    """Return latency settings as a table shows them: the default ones first."""

    def rank(name: str) -> tuple[int, int, int]:
        setting = parse_setting(name)
        first = DEFAULT.index(name) if name in DEFAULT else len(DEFAULT)
        return first, setting.batch, setting.threads

    return tuple(sorted(settings, key=rank))
