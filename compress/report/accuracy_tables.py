"""Further tables about accuracy: is a difference real, and is it the technique's?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from compress.report import formatting
from compress.report.columns import Row, number, text_of
from compress.report.section import Column, Section
from compress.report.words import About

MOST = 5  # seeds in one cell
SAME = "same: items that the row answers as the baseline does, right or wrong."
FLIPS = "flips: lost/gained, items that the baseline has right and the row wrong, and the reverse."
OVER = (
    "A control had the training alone: as many samples, and no technique. Only what a row has "
    "over its control is the technique's."
)


def accuracy_sections(
    rows: Sequence[Row], labels: Mapping[str, str], about: About
) -> list[Section]:
    """Return the tables about accuracy."""
    sound = tuple(r for r in rows if text_of(r, "status") not in ("failed", "unverified"))
    seeds = any("accuracy_seeds" in row for row in rows)
    return [_real(sound, seeds, about), _controls(sound, labels, seeds)]


def _real(rows: tuple[Row, ...], seeds: bool, about: About) -> Section:
    """Return the first table: the difference, and in what room is left the further measures."""
    difference = (
        Column("acc %", "acc %: Wilson's 95 % interval.", formatting.share_interval),
        _delta("accuracy", "Δ: the difference to the baseline", seeds),
        _p("accuracy", seeds),
        Column("same %", SAME, lambda row: formatting.percent(row, "agreement")),
        Column("flips", FLIPS, lambda row: formatting.pair(row, "lost", "gained")),
    )
    of_seeds = Column("acc % of the seeds", "", _of_seeds)
    if not any(c.cell(row) != formatting.MISSING for c in (*difference, of_seeds) for row in rows):
        return Section("Further measures", "", _measures(about), rows)
    words = "Counts of items are means over the seeds." if seeds else ""
    columns = (*difference, *_measures(about), of_seeds)
    return Section("Is the difference in accuracy real?", words, columns, rows)


def _measures(about: About) -> tuple[Column, ...]:
    return (
        Column(
            "ECE %",
            "ECE: expected calibration error, how far a file's confidence lies from its accuracy.",
            lambda row: formatting.percent(row, "ece"),
        ),
        Column(
            "top-5 %",
            "top-5: the label is among the five likeliest.",
            lambda row: formatting.percent(row, "top5"),
        ),
        Column(
            str(about.get("metric") or "metric"),
            "",
            lambda row: formatting.figure(number(row, "metric")),
        ),
    )


def _controls(rows: tuple[Row, ...], labels: Mapping[str, str], seeds: bool) -> Section:
    shown = tuple(row for row in rows if number(row, "control_delta") is not None)
    found = {text_of(row, "chain"): row for row in rows}
    columns = (
        Column("acc %", "", lambda row: formatting.percent(row, "accuracy")),
        Column(
            "control", "", lambda row: labels.get(text_of(row, "control")) or formatting.MISSING
        ),
        Column(
            "its acc %",
            "",
            lambda row: formatting.percent(found.get(text_of(row, "control"), {}), "accuracy"),
        ),
        _delta("control", "Δ: the difference to the control", seeds),
        _p("control", seeds),
    )
    return Section("What did the technique add over training alone?", OVER, columns, shown)


def _delta(question: str, words: str, seeds: bool) -> Column:
    interval = (
        "of the same seed, mean over the seeds with its 95 % interval, the wider one of Student's "
        "t over seeds and of the items'"
        if seeds
        else "on the same items, with its paired 95 % interval"
    )
    return Column("Δ pt", f"{words} {interval}.", lambda row: formatting.difference(row, question))


def _p(question: str, seeds: bool) -> Column:
    test = (
        "the larger one of the paired t-test over seeds and of a z-test over the items"
        if seeds
        else "McNemar's exact test"
    )
    words = f"p: {test}, before Holm's adjustment; the sign is the verdict after it."
    return Column("p", words, lambda row: formatting.p_value(number(row, f"{question}_p")))


def _of_seeds(row: Row) -> str:
    values = [f"{100 * float(value):.2f}" for value in text_of(row, "accuracy_seeds").split()]
    shown = values if len(values) <= MOST else [*values[:MOST], "…"]
    return " ".join(shown) or formatting.MISSING
