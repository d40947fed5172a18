"""A table of numbered chains and their figures, no line of which is wider than a report's."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from compress.report.layout import wrap_chain
from compress.report.markup import WIDTH, Markup, code, figure_width

SHORTEST = 16
"""Columns of the chain, at least."""

Cell = str | Sequence[str]
"""A text, or its lines."""


def chain_table(
    header: Sequence[str], rows: Sequence[tuple[str, Sequence[Cell]]], markup: Markup
) -> list[str]:
    """Return the lines of a table; a row is a chain and its figures, under the `header`.

    A chain takes as many lines as it needs, and so does a figure.
    """
    cells = [[[one] if isinstance(one, str) else one for one in figures] for _, figures in rows]
    numbers = ["#", *(str(number) for number in range(1, len(rows) + 1))]
    columns = [numbers]
    for place, name in enumerate(header):
        columns.append([name, *(line for row in cells for line in row[place])])
    room = WIDTH - markup.frame(len(columns) + 1) - sum(map(figure_width, columns))
    lines = [["#", "chain", *header]]
    for number, (chain, _), figures in zip(numbers[1:], rows, cells, strict=True):
        parts = [[number], _chain_lines(chain, max(SHORTEST, room), markup), *figures]
        lines += [list(line) for line in zip_longest(*parts, fillvalue="")]
    return markup.grid(lines)


def _chain_lines(chain: str, room: int, markup: Markup) -> list[str]:
    if markup.can_be_code(chain):
        return [code(line) for line in wrap_chain(chain, room - 2)]
    return [markup.escape(line) for line in wrap_chain(chain, room, markup.width)]
