"""Two ways to write the same table: Markdown for a file, plain text for a terminal.

No line is wider than `WIDTH` columns, if the cells leave room.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from compress.report.layout import clean, width, wrap

WIDTH = 100
NARROWEST = 2  # columns of a figure: in Markdown a rule takes a dash and a colon
CHAIN = 1  # the index of the column of chains; all others hold figures

# What would start a list, a quote, a heading or a rule if it began a line of Markdown.
_BLOCK = re.compile(r"\d+(?=[.)](?: |$))|(?=[-+#=_])")
_MARKDOWN = {"<": "&lt;", ">": "&gt;", "&": "&amp;"} | {c: f"\\{c}" for c in "\\`*[]|~"}
_ESCAPES = str.maketrans(_MARKDOWN)


@dataclass(frozen=True)
class Markup:
    """How a table is written: what stands around its cells, and before an item.

    In Markdown a figure touches the line to its right: this leaves the chains nine columns more.
    """

    left: str
    between: str
    right: str
    bullet: str
    markdown: bool

    def escape(self, text: str) -> str:
        """Return what shows the text itself: no HTML, link, emphasis or table cell."""
        return text.translate(_ESCAPES) if self.markdown else text

    def width(self, text: str) -> int:
        """Return how many columns a text takes once it is escaped."""
        return width(self.escape(text))

    def guard(self, line: str) -> str:
        """Return a line of escaped text so that Markdown does not take its start for a block."""
        match = _BLOCK.match(line) if self.markdown else None
        return f"{match[0]}\\{line[match.end() :]}" if match else line

    def can_be_code(self, text: str) -> bool:
        """Return whether a code span can show the text: inside one nothing can be escaped."""
        return self.markdown and bool(text.strip()) and not set(text) & set("`|<\\&")

    def heading(self, text: str, level: int) -> list[str]:
        """Return a title, in as many lines as it takes."""
        return self.prose(text, "#" * level + " " if self.markdown else "")

    def prose(self, text: str, lead: str = "") -> list[str]:
        """Return the lines of a paragraph, or of an item that begins with `lead`.

        An item's further lines are indented, so that it stays one item.
        """
        limit = WIDTH - len(lead) - 1  # one column for the sign with which `guard` may begin
        lines = wrap(clean(text), limit, self.width)
        return [
            (" " * len(lead) if i else lead) + self.guard(self.escape(line))
            for i, line in enumerate(lines)
        ]

    def frame(self, cells: int) -> int:
        """Return how many columns a line of so many cells needs beside them.

        One of them holds the chain, and a blank behind it.
        """
        return width(self.left + self.right) + len(self.between) * (cells - 1) + self.markdown

    def grid(self, lines: Sequence[Sequence[str]]) -> list[str]:
        """Return a table of a header and the lines below it, whose cells are escaped already."""
        widths = [figure_width(column) for column in zip(*lines, strict=True)]
        widths[CHAIN] += self.markdown  # a chain may end with what would escape the line after it
        rule = ["-" * (w - 1) + (":" if self.markdown else "-") for w in widths]
        if self.markdown:
            rule[CHAIN] = "-" * (widths[CHAIN] - 1) + " "
        return [self._line(cells, widths) for cells in (lines[0], rule, *lines[1:])]

    def _line(self, cells: Sequence[str], widths: Sequence[int]) -> str:
        blanks = [" " * (w - width(cell)) for cell, w in zip(cells, widths, strict=True)]
        padded = [blank + cell for blank, cell in zip(blanks, cells, strict=True)]
        padded[CHAIN] = cells[CHAIN] + blanks[CHAIN]
        line = self.left + self.between.join(padded) + self.right
        return line if self.right else line.rstrip()


MARKDOWN = Markup("| ", "| ", "|", "- ", markdown=True)
PLAIN = Markup("", "  ", "", "", markdown=False)


def figure_width(cells: Iterable[str]) -> int:
    """Return how many columns a column of figures takes."""
    return max(NARROWEST, *map(width, cells))


def code(line: str) -> str:
    """Return a line as a code span, its indentation before it."""
    content = line.lstrip()
    return " " * (len(line) - len(content)) + f"`{content}`"
