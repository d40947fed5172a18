"""Two ways to write the same table: Markdown for a file, plain text for a terminal.

No line is wider than `WIDTH` columns, if the cells leave room.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from compress.report.layout import clean, escape, guard, pad, width, wrap

WIDTH = 100
NARROWEST = 2  # columns of a figure: in Markdown a rule takes a dash and a colon


@dataclass(frozen=True)
class Markup:
    """How a table is written: what stands around cells, before items, and for special signs.

    In Markdown a figure touches the line to its right: this leaves the chains nine columns more.
    """

    left: str
    between: str
    right: str
    bullet: str
    heading: str
    escape: Callable[[str], str]
    guard: Callable[[str], str]
    code: bool

    def frame(self, cells: int) -> int:
        """Return how many columns a line of so many cells needs beside them.

        One of them holds texts, and a blank behind it.
        """
        return width(self.left + self.right) + len(self.between) * (cells - 1) + self.code


MARKDOWN = Markup("| ", "| ", "|", "- ", "#", escape, guard, True)
PLAIN = Markup("", "  ", "", "", "", str, str, False)


def figure_width(cells: Iterable[str]) -> int:
    """Return how many columns a column of figures takes."""
    return max(NARROWEST, *map(width, cells))


def code(line: str) -> str:
    """Return a line as a code span, its indentation before it."""
    content = line.lstrip()
    return " " * (len(line) - len(content)) + f"`{content}`"


def can_be_code(text: str, markup: Markup) -> bool:
    """Return whether a code span can show the text: inside one nothing can be escaped."""
    return markup.code and bool(text.strip()) and not set(text) & set("`|<\\&")


def heading(text: str, level: int, markup: Markup) -> list[str]:
    """Return a title, in as many lines as it takes."""
    lead = markup.heading * level + " " if markup.heading else ""
    limit = WIDTH - len(lead) - 1
    lines = wrap(clean(text), limit, lambda line: width(markup.escape(line)))
    shown = [markup.guard(markup.escape(line)) for line in lines]
    return [(lead if i == 0 else "") + line for i, line in enumerate(shown)]


def item(mark: str, content: str, markup: Markup) -> list[str]:
    """Return a footnote or fact; its further lines are indented, so that it stays one item."""
    return _prose(markup.bullet + mark, content, markup)


def paragraph(content: str, markup: Markup) -> list[str]:
    """Return prose."""
    return _prose("", content, markup)


def _prose(lead: str, content: str, markup: Markup) -> list[str]:
    indent = " " * len(lead)
    limit = WIDTH - len(lead) - 1  # one column for the sign with which `guard` may begin
    lines = wrap(clean(content), limit, lambda line: width(markup.escape(line)))
    return [
        (indent if i else lead) + markup.guard(markup.escape(line)) for i, line in enumerate(lines)
    ]


def grid(
    header: Sequence[str], lines: Sequence[Sequence[str]], texts: int, markup: Markup
) -> list[str]:
    """Return a table. The column of index `texts` holds texts, the others figures.

    `lines` are those below the header, as many cells in each; they are escaped already.
    """
    widths = [figure_width(column) for column in zip(header, *lines, strict=True)]
    widths[texts] += markup.code  # a text may end with what would escape the line after it
    colon = ":" if markup.code else "-"
    rule = [
        "-" * (w - markup.code) + " " * markup.code if i == texts else "-" * (w - 1) + colon
        for i, w in enumerate(widths)
    ]
    return [_line(cells, widths, texts, markup) for cells in (header, rule, *lines)]


def _line(cells: Sequence[str], widths: Sequence[int], texts: int, markup: Markup) -> str:
    padded = [
        pad(cell, w, right=i != texts)
        for i, (cell, w) in enumerate(zip(cells, widths, strict=True))
    ]
    line = markup.left + markup.between.join(padded) + markup.right
    return line if markup.right else line.rstrip()
