"""Further tables about accuracy: is a difference real, and is it the technique's?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from compress.report import formatting
from compress.report.about import imbalance, majority
from compress.report.section import Column, Section, plain
from compress.report.words import About
from compress.results.columns import group
from compress.results.table import Row, is_sound, number, text_of

MOST = 5  # seeds in one cell
UNEVEN = 1.5  # times as many items in a class as if all had as many
OVER = (
    "A control had the training alone: as many samples, and no technique. Only what a row has "
    "over its control is the technique's."
)


def accuracy_sections(
    rows: Sequence[Row], labels: Mapping[str, str], about: About
) -> list[Section]:
    """Return the tables about accuracy."""
    sound = tuple(filter(is_sound, rows))
    seeds = any("accuracy_seeds" in row for row in rows)
    return [_real(sound, seeds, about), _controls(sound, labels, seeds)]


def _real(rows: tuple[Row, ...], seeds: bool, about: About) -> Section:
    """Return the first table: the difference, and in what room is left the further measures."""
    difference = (
        Column("acc %", "acc %: Wilson's 95 % interval.", formatting.share_interval),
        _delta("accuracy", "Δ: the difference to the baseline", seeds),
        _p("accuracy", seeds),
        *map(plain, group("accuracy")),
    )
    of_seeds = Column("acc % of the seeds", "", _of_seeds)
    if not any(c.cell(row) != formatting.MISSING for c in (*difference, of_seeds) for row in rows):
        return Section("Further measures", "", _measures(about), rows)
    words = "Counts of items are means over the seeds." if seeds else ""
    columns = (*difference, *_measures(about), of_seeds)
    return Section("Is the difference in accuracy real?", words, columns, rows)


def _measures(about: About) -> tuple[Column, ...]:
    names = {"metric": str(about.get("metric") or "metric")}
    classes = len(about.get("class_counts") or [])
    # Where classes are about as frequent as each other, it is the accuracy once more.
    even = not imbalance(about) and majority(about) * classes < UNEVEN
    return tuple(
        plain(column, names.get(column.name, ""))
        for column in group("measures")
        if not (even and column.name == "balanced_accuracy")
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
