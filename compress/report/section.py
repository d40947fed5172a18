"""A further table below the main one, which refers to its rows by number."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from compress.report.chains import short, step_names
from compress.report.formatting import MISSING, cell
from compress.report.layout import clean, cut, width
from compress.report.markup import MARKDOWN, WIDTH, code, figure_width
from compress.results import columns
from compress.results.record import BASELINE
from compress.results.table import Row, text_of

SHORTEST = 18  # columns of a chain
LONGEST = 46
WIDEST = 40  # columns of a header that is not ours


class Column(NamedTuple):
    """A column of a further table: its header, its cells, what the header means ('' if plain)."""

    name: str
    cell: Callable[[Row], str]
    explained: str = ""


def plain(column: columns.Column, name: str = "") -> Column:
    """Return what a table shows of a column as the table of columns says."""
    return Column(name or column.header, partial(cell, column=column), column.explained)


class Section(NamedTuple):
    """A question, how to read its answers, and these, in columns.

    A column that no row has is not drawn, nor is a row that has nothing; a section without any
    figure is nothing.
    """

    title: str
    explained: str
    columns: Sequence[Column]
    rows: Sequence[Row]


def section_blocks(section: Section, labels: Mapping[str, str]) -> list[list[str]]:
    """Return the section's title, words and tables in Markdown, each as lines.

    Nothing if it has no figure. There is more than one table where the columns do not fit
    beside each other.
    """

    def has_any(column: Column) -> bool:
        return any(column.cell(row) != MISSING for row in section.rows)

    drawn = list(filter(has_any, section.columns))
    if not drawn:
        return []
    rows = [row for row in section.rows if any(c.cell(row) != MISSING for c in drawn)]
    explained = " ".join(filter(None, (section.explained, *(c.explained for c in drawn))))
    columns = [
        [_fitted(clean(column.name), WIDEST, cut), *map(column.cell, rows)] for column in drawn
    ]
    groups: list[list[list[str]]] = [[]]
    for column in columns:
        if groups[-1] and _room([*groups[-1], column], labels) < SHORTEST:
            groups.append([])
        groups[-1].append(column)
    tables = [_table(rows, group, labels) for group in groups]
    return [MARKDOWN.heading(section.title, 2), MARKDOWN.prose(explained), *tables]


def _table(rows: list[Row], columns: list[list[str]], labels: Mapping[str, str]) -> list[str]:
    numbers = [labels[text_of(row, "chain")] for row in rows]
    room = min(LONGEST, _room(columns, labels))
    chains = [_chain(row, room) for row in rows]
    return MARKDOWN.grid([*zip(["#", *numbers], ["chain", *chains], *columns, strict=True)])


def _room(columns: list[list[str]], labels: Mapping[str, str]) -> int:
    """Return how many columns are left for the chain."""
    used = sum(figure_width(column) for column in [["#", *labels.values()], *columns])
    return WIDTH - MARKDOWN.frame(len(columns) + 2) - used


def _chain(row: Row, room: int) -> str:
    text, names = clean(text_of(row, "chain")) or MISSING, step_names(row)
    if text != BASELINE and MARKDOWN.can_be_code(text):
        return code(short(text, room - 2, names))
    return _fitted(text, room, partial(short, names=names))


def _fitted(text: str, room: int, shorten: Callable[[str, int], str]) -> str:
    """Return the text escaped and shortened to `room`: escaped it is longer than what it shows."""
    limit = room
    while width(shown := MARKDOWN.escape(shorten(text, limit))) > room and limit > 1:
        limit -= 1
    return shown
