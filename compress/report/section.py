"""A further table below the main one, which refers to its rows by number."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from compress.report.formatting import MISSING, WRITTEN
from compress.report.layout import clean, width
from compress.report.markup import (
    WIDTH,
    Markup,
    can_be_code,
    code,
    figure_width,
    grid,
    heading,
    paragraph,
)
from compress.report.shorten import cut, short
from compress.report.styles import step_names
from compress.results import columns
from compress.results.record import BASELINE
from compress.results.table import Row, text_of

SHORTEST = 18  # columns of a chain
LONGEST = 46
WIDEST = 40  # columns of a header that is not ours


@dataclass(frozen=True)
class Column:
    """A column of a further table: its header, what that means ('' if it is plain), its cells."""

    name: str
    words: str
    cell: Callable[[Row], str]


def plain(column: columns.Column, name: str = "") -> Column:
    """Return what a table shows of a column as the table of columns says."""
    write = WRITTEN[column.shown]
    return Column(name or column.header, column.explained, lambda row: write(row, column))


@dataclass(frozen=True)
class Section:
    """A question, how to read its answers, and these, in columns.

    A column that no row has is not drawn, nor is a row that has nothing; a section without any
    figure is nothing.
    """

    title: str
    words: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]


def section_blocks(section: Section, labels: Mapping[str, str], markup: Markup) -> list[list[str]]:
    """Return the section's title, words and tables, each as lines; nothing if it has no figure.

    There is more than one table where the columns do not fit beside each other.
    """
    drawn = [column for column in section.columns if _has_any(column, section.rows)]
    if not drawn:
        return []
    rows = [row for row in section.rows if any(c.cell(row) != MISSING for c in drawn)]
    said = " ".join(words for words in (section.words, *(c.words for c in drawn)) if words)
    columns = [
        [_fitted(clean(column.name), WIDEST, cut, markup), *map(column.cell, rows)]
        for column in drawn
    ]
    tables = [_table(rows, group, labels, markup) for group in _groups(columns, labels, markup)]
    return [heading(section.title, 2, markup), paragraph(said, markup), *tables]


def _has_any(column: Column, rows: Iterable[Row]) -> bool:
    return any(column.cell(row) != MISSING for row in rows)


def _table(
    rows: Sequence[Row], columns: list[list[str]], labels: Mapping[str, str], markup: Markup
) -> list[str]:
    numbers = [labels[text_of(row, "chain")] for row in rows]
    room = min(LONGEST, _room(columns, labels, markup))
    chains = [_chain(row, room, markup) for row in rows]
    header, *lines = zip(["#", *numbers], ["chain", *chains], *columns, strict=True)
    return grid(header, lines, 1, markup)


def _groups(
    columns: list[list[str]], labels: Mapping[str, str], markup: Markup
) -> list[list[list[str]]]:
    groups: list[list[list[str]]] = [[]]
    for column in columns:
        if groups[-1] and _room([*groups[-1], column], labels, markup) < SHORTEST:
            groups.append([])
        groups[-1].append(column)
    return groups


def _room(columns: list[list[str]], labels: Mapping[str, str], markup: Markup) -> int:
    """Return how many columns are left for the chain."""
    used = sum(figure_width(column) for column in [["#", *labels.values()], *columns])
    return WIDTH - markup.frame(len(columns) + 2) - used


def _chain(row: Row, room: int, markup: Markup) -> str:
    text, names = clean(text_of(row, "chain")) or MISSING, step_names(row)
    if text != BASELINE and can_be_code(text, markup):
        return code(short(text, room - 2, names))
    return _fitted(text, room, lambda whole, limit: short(whole, limit, names), markup)


def _fitted(text: str, room: int, shorten: Callable[[str, int], str], markup: Markup) -> str:
    """Return the text escaped and shortened to `room`: escaped it is longer than what it shows."""
    limit = room
    while width(shown := markup.escape(shorten(text, limit))) > room and limit > 1:
        limit -= 1
    return shown
