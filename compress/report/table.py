"""The table of a comparison: Markdown for a file, the same layout in plain text for a terminal.

No line is wider than `WIDTH` columns. Further tables, which refer to rows by number, stand below
the main one in Markdown; in a terminal they would scroll it away, so there they are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from compress.report.about import facts, imbalance, legend, unfinished
from compress.report.accuracy_tables import accuracy_sections
from compress.report.graph_tables import graph_sections
from compress.report.latency_tables import latency_sections
from compress.report.layout import clean, shell_lines
from compress.report.main_table import main_table
from compress.report.markup import MARKDOWN, PLAIN, WIDTH, Markup, heading, item, paragraph
from compress.report.row_numbers import number_chains
from compress.report.section import section_blocks
from compress.report.trust import warnings
from compress.results.seeds import over_seeds, seeds_of
from compress.results.table import Row, ordered

FURTHER = "Further tables (is a difference real, latencies, what runs): table.md."


def markdown(rows: Iterable[Row], about: Mapping[str, Any]) -> str:
    """Return the tables as Markdown with footnotes and what they rest on.

    Rows of several seeds are shown by chain (see `compress.report.seeds`).
    """
    return _document(ordered(rows), about, MARKDOWN)


def text(rows: Iterable[Row], about: Mapping[str, Any]) -> str:
    """Return the main table for a terminal, with its footnotes and what it rests on."""
    return _document(ordered(rows), about, PLAIN)


def _document(rows: Sequence[Row], about: Mapping[str, Any], markup: Markup) -> str:
    seeds = seeds_of(rows)
    shown = over_seeds(rows, about) if len(seeds) > 1 else list(rows)
    labels = number_chains(shown)
    notes: dict[str, int] = {}
    table = main_table(shown, labels, about, notes, markup)
    further = _further(shown, labels, about, markup)
    tables = [table, *further] if markup is MARKDOWN else [table]
    title = str(about.get("suite") or "")
    blocks = [
        heading(title, 1, markup) if title else [],
        paragraph(unfinished(rows, about), markup),
        *(paragraph(warning, markup) for warning in (*warnings(about), imbalance(about))),
        table,
        paragraph(legend(shown, _lines(tables, markup), about), markup),
        [line for note, i in notes.items() for line in item(f"[{i}] ", note, markup)],
    ]
    if markup is MARKDOWN:
        blocks += [*further, heading("What this rests on", 2, markup)] if further else []
    blocks.append([line for fact in facts(shown, about, seeds) for line in item("", fact, markup)])
    if markup is PLAIN and further:
        blocks.append([FURTHER])
    blocks.append(_command(clean(str(about.get("command") or "")), markup))
    return "\n\n".join("\n".join(block) for block in blocks if any(block)) + "\n"


def _further(
    rows: Sequence[Row], labels: Mapping[str, str], about: Mapping[str, Any], markup: Markup
) -> list[list[str]]:
    sections = [
        *accuracy_sections(rows, labels, about),
        *latency_sections(rows, about),
        *graph_sections(rows),
    ]
    return [block for section in sections for block in section_blocks(section, labels, markup)]


def _lines(blocks: Sequence[Sequence[str]], markup: Markup) -> str:
    """Return those lines of the blocks that are lines of a table."""
    return "\n".join(line for block in blocks for line in block if line.startswith(markup.left))


def _command(command: str, markup: Markup) -> list[str]:
    if not command:
        return []
    # A terminal's indentation would be copied into words that are broken between lines.
    indent = "    " if markup.code else ""
    lines = [indent + line for line in shell_lines(command, WIDTH - 4)]
    return ["This command gives the table:", "", *lines]
