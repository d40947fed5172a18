"""The one table of columns: what each is, how it is derived, shown, and combined over seeds.

CSV, tables, pictures, `compress-models list columns` and the docs read it. A column is added by a
measurement (or a derivation) and a row of this table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from compress.results.timed import (
    FORMS,
    GPU,
    LATENCY,
    PEAK,
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
    """How a table writes it: a key of `compress.report.formatting.WRITTEN`."""
    beside: str = ""
    """A second column that stands in the same cell, behind a slash."""
    explained: str = ""
    """What a table says of its header; '' where that is plain."""
    apart: str = ""
    """What a note calls it if the seeds' figures lie apart; '' for none."""


def _text(name: str, words: str, seeds: str = "first", **more: Any) -> Column:
    return Column(name, words, dtype=TEXT, seeds=seeds, **more)


def _count(name: str, words: str, source: str, **more: Any) -> Column:
    return Column(name, words, source, **{"unit": "count", "dtype": WHOLE, "shown": "count"} | more)


def _bytes(name: str, words: str, source: str, **more: Any) -> Column:
    return Column(name, words, source, unit="bytes", dtype=WHOLE, **more)


def _share(name: str, words: str, source: str, **more: Any) -> Column:
    return Column(name, words, source, **{"unit": "fraction", "shown": "%"} | more)


def _difference(question: str, beside: str, verdict: str) -> tuple[Column, ...]:
    """Return the columns of a paired difference in accuracy."""
    names = [f"{question}_{end}" for end in ("delta", "delta_low", "delta_high", "p", "verdict")]
    kinds: dict[str, Any] = {"seeds": "difference", "group": question}
    paired = "the answers of both files to the same items"
    return (
        _share(names[0], f"accuracy over that of {beside}", paired, **kinds),
        _share(names[1], "lower end of its 95 % interval", "Bonett and Price 2012", **kinds),
        _share(names[2], "upper end of its 95 % interval", "Bonett and Price 2012", **kinds),
        Column(names[3], "p of no difference", "McNemar's exact test", **kinds),
        Column(names[4], verdict, "the p-values of all rows, by Holm", dtype=TEXT, **kinds),
    )


_ROW = (
    _text("chain", "the steps; `baseline` is what they start from"),
    Column("seed", "of the run of the chain", dtype=WHOLE, seeds="none"),
    _text(
        "status", "ok, failed, or unverified: not shown to compute what its module does", "status"
    ),
    _text("error", "why it is not ok", "said"),
    _text("role", "`control`: added as another row's control of equal cost"),
)
_ACCURACY = (
    _share("accuracy", "share of right answers of the file", "answers to the test split"),
    _share("accuracy_low", "lower end of its 95 % interval", "Wilson", seeds="none"),
    _share("accuracy_high", "upper end of its 95 % interval", "Wilson", seeds="none"),
    *_difference(
        "accuracy", "the baseline", "better, equivalent (within the margin), worse, or not shown"
    ),
    _share(
        "accuracy_bound",
        "one-sided lower 95 % bound of accuracy_delta",
        "Tango 1998, with continuity",
        seeds="difference",
        group="accuracy",
    ),
    Column(
        "equivalence_p",
        "p of a loss of the margin or more",
        "one-sided; Tango 1998, with continuity",
        seeds="difference",
        group="accuracy",
    ),
    _share(
        "agreement",
        "share of answers equal to the baseline's",
        "answers of both files",
        group="accuracy",
        header="same %",
        explained="same: items that the row answers as the baseline does, right or wrong.",
    ),
    _count(
        "lost",
        "items that the baseline has right and the row wrong",
        "answers of both files",
        group="accuracy",
        header="flips",
        shown="pair",
        beside="gained",
        explained="flips: lost/gained, items that the baseline has right and the row wrong, and "
        "the reverse.",
    ),
    _count(
        "gained", "items that the row has right and the baseline wrong", "answers of both files"
    ),
    _share(
        "balanced_accuracy",
        "mean over classes of the share of right answers",
        "answers to the test split",
        group="measures",
        header="bal. %",
        explained="bal.: balanced accuracy, the mean of the classes' own.",
    ),
    _share(
        "top5",
        "share of items whose label is among the five likeliest; with more than ten classes",
        "answers to the test split",
        group="measures",
        header="top-5 %",
        explained="top-5: the label is among the five likeliest.",
    ),
    _share(
        "ece",
        "expected calibration error: how far confidence lies from accuracy",
        "confidence of the answers; 15 bins (Guo et al. 2017)",
        group="measures",
        header="ECE %",
        explained="ECE: expected calibration error, how far a file's confidence lies from its "
        "accuracy.",
    ),
    Column(
        "metric",
        "your own metric",
        "called with outputs and targets",
        group="measures",
        header="metric",
        shown="figure",
    ),
)
_CONTROL = (
    _text("control", "chain of the row's control of equal cost"),
    *_difference("control", "the control", "better, worse, or not shown"),
)
_SIZES = (
    _count("params", "parameters of the module", "counted", apart="parameters"),
    _count(
        "nonzero_params",
        "parameters that are not zero",
        "counted",
        group="takes",
        header="non-zero",
        explained="non-zero: parameters that are not zero.",
    ),
    _count("macs", "multiply-accumulates for one item", "counted in a forward", apart="MACs"),
    _bytes("onnx_bytes", "the ONNX file", "its length", apart="bytes of the ONNX file"),
    _bytes(
        "gzip_bytes",
        "the ONNX file, gzipped",
        "its length",
        group="takes",
        header="gzip kB",
        shown="kB",
        explained="gzip kB: the file, compressed.",
    ),
    _bytes(
        "peak_bytes",
        "memory that loading and running the file adds",
        "a fresh process, one item at a time",
        group="takes",
        header="peak MB",
        shown="MB",
        explained="peak MB: memory that loading and running the file adds in a fresh process.",
    ),
)
_EXECUTED = "the graph that onnxruntime executes"
_RUNS = (
    _count(
        "int8_convs",
        "int8 convolutions",
        _EXECUTED,
        group="runs",
        header="conv",
        shown="pair",
        beside="float_convs",
        explained="conv, matmul: int8/float convolutions and matrix products in the graph that "
        "onnxruntime executes.",
    ),
    _count("float_convs", "float convolutions", _EXECUTED),
    _count(
        "int8_matmuls",
        "int8 matrix products",
        _EXECUTED,
        group="runs",
        header="matmul",
        shown="pair",
        beside="float_matmuls",
    ),
    _count("float_matmuls", "float matrix products", _EXECUTED),
    _count(
        "qdq_nodes",
        "nodes left that only convert between int8 and float",
        _EXECUTED,
        group="runs",
        header="Q/DQ",
        explained="Q/DQ: nodes left that only convert between int8 and float.",
    ),
    _share(
        "int8_macs_share",
        "share of MACs that are int8",
        _EXECUTED,
        group="runs",
        header="int8 %",
        shown="whole %",
        explained="int8 %: the share of MACs that are int8.",
    ),
    _text("precision", "what the file's weights are stored in", source="the file"),
)
_TAIL = (
    _share("top1_agreement", "share of the file's answers equal to its module's", "512 test items"),
    Column("max_abs_error", "largest difference of logits to its module's", "512 test items"),
    _count("train_samples", "items that the chain's training has seen", "counted"),
    Column("seconds", "of the chain's steps", "the clock", unit="s"),
    _text("note", "what is worth knowing of the row", "said"),
    _text("onnx_path", "where the file lies in the run's folder", "none"),
)
SEEDS = (
    _count("n", "seeds that count", "rows that are ok", group="seeds"),
    _text("seeds", "which they are", group="seeds"),
    _share("accuracy_sd", "standard deviation of accuracy", "n - 1", group="seeds"),
    _text("accuracy_seeds", "the seeds' accuracies", group="seeds"),
)
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


_GPU = (
    *(column for form in FORMS for column in of_timed(timed_on_gpu(form))),
    _bytes(
        PEAK,
        "memory that a module takes on the GPU",
        "tensors at one item in float32, weights included",
        group="gpu",
        header="peak MB",
        shown="MB",
        explained="peak MB: the GPU's memory.",
    ),
    _text("cuda_note", "why figures of the GPU are missing, and what they rest on", "said"),
)


def columns(about: Mapping[str, Any]) -> tuple[Column, ...]:
    """Return the columns of a run, in the order of results.csv.

    Those of the default settings and of the GPU are always there, those of further settings,
    runtimes and machines where something was timed.
    """
    usual = [timed_files(setting) for setting in DEFAULT]
    further = [timed for timed in of_files(about) if timed.setting not in DEFAULT]
    others = [t for t in timings(about) if t.runtime != GPU and (t.machine or t.runtime)]
    return (
        *(*_ROW, *_ACCURACY, *_CONTROL, *_SIZES),
        *(column for timed in [*usual, *further] for column in of_timed(timed)),
        *(*_RUNS, *_GPU, *_TAIL),
        *(column for timed in others for column in of_timed(timed)),
    )


COLUMNS = columns({})
"""The columns of every run."""
_BY_NAME = {column.name: column for column in (*COLUMNS, *SEEDS)}


def column(name: str) -> Column:
    """Return a column that every run has."""
    return _BY_NAME[name]


def group(*names: str) -> tuple[Column, ...]:
    """Return the columns of some groups that tables show, group by group."""
    return tuple(c for name in names for c in COLUMNS if c.group == name and c.header)


def described() -> dict[str, str]:
    """Return what is said of every column; those of latencies stand for all settings."""
    found = [c for c in COLUMNS if not c.name.startswith(DEFAULT)]
    at = next(number for number, c in enumerate(found) if c.name == _RUNS[0].name)
    some = replace(timed_files(DEFAULT[0]), where="at a latency setting", names=_any("SETTING"))
    there = replace(some, where="there", names=_any("on_MACHINE_SETTING"))
    shown = [*found[:at], *of_timed(some), *found[at:], *of_timed(there), *SEEDS]
    return {c.name: _said(c) for c in shown}


def _any(prefix: str) -> dict[str, str]:
    return {figure.name: f"{prefix}_{figure.name}" for figure in LATENCY}


def _said(column: Column) -> str:
    kind = ", ".join(part for part in (column.dtype, column.unit) if part)
    source = f" From: {column.source}." if column.source else ""
    return f"[{kind}] {column.words}.{source} Over seeds: {SEEDS_KINDS[column.seeds]}."
