"""The table of a comparison: Markdown for a file, the same layout in plain text for a terminal.

No line is wider than `WIDTH` columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compress.report import cells
from compress.report.about import facts
from compress.report.columns import BASELINE, Row, number, ordered, text_of
from compress.report.layout import (
    clean,
    escape,
    guard,
    pad,
    shell_lines,
    width,
    wrap,
    wrap_chain,
)

WIDTH = 100
HEADER = ("chain", "acc %", "Δ pt", "params", "MACs", "kB", "ms", "speed-up")
LONGEST_NOTE = 600  # characters; results.csv has all of it
UNVERIFIED = "unverified: its ONNX file was not shown to compute what the model does; not for use"

Cells = list[str]


@dataclass(frozen=True)
class _Dialect:
    """How a table is written: what stands around cells, before items, and for special signs."""

    left: str
    between: str
    right: str
    bullet: str
    escape: Callable[[str], str]
    guard: Callable[[str], str]
    code: bool


_MARKDOWN = _Dialect("| ", " | ", " |", "- ", escape, guard, True)
_PLAIN = _Dialect("", "  ", "", "", str, str, False)


def markdown(rows: Iterable[Row], about: Mapping[str, Any]) -> str:
    """Return the table as Markdown with its footnotes and what it rests on."""
    return _document(ordered(rows), about, _MARKDOWN)


def text(rows: Iterable[Row], about: Mapping[str, Any]) -> str:
    """Return the table for a terminal, with its footnotes and what it rests on."""
    return _document(ordered(rows), about, _PLAIN)


def _document(rows: list[Row], about: Mapping[str, Any], dialect: _Dialect) -> str:
    notes: dict[str, int] = {}
    blocks = [_title(about, dialect), _table(rows, notes, dialect)]
    blocks.append([line for n, i in notes.items() for line in _item(f"[{i}] ", n, dialect)])
    blocks.append([line for fact in facts(rows, about) for line in _item("", fact, dialect)])
    if command := clean(str(about.get("command") or "")):
        blocks.append(["This command gives the table:"])
        # A terminal's indentation would be copied into words that are broken between lines.
        indent = "    " if dialect.code else ""
        blocks.append([indent + line for line in shell_lines(command, WIDTH - 4)])
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def _title(about: Mapping[str, Any], dialect: _Dialect) -> list[str]:
    title = clean(str(about.get("suite") or ""))
    lines = wrap(title, WIDTH - 3, lambda line: width(dialect.escape(line))) if title else []
    shown = [dialect.guard(dialect.escape(line)) for line in lines]
    return [("# " if dialect.code and i == 0 else "") + line for i, line in enumerate(shown)]


def _item(mark: str, content: str, dialect: _Dialect) -> list[str]:
    """One footnote or fact, continued with an indentation that keeps it one list item."""
    lead = dialect.bullet + mark
    indent = " " * len(lead)
    limit = WIDTH - len(lead) - 1  # one column for the sign with which `guard` may begin
    lines = wrap(clean(content), limit, lambda line: width(dialect.escape(line)))
    return [
        (indent if i else lead) + dialect.guard(dialect.escape(line))
        for i, line in enumerate(lines)
    ]


def _table(rows: list[Row], notes: dict[str, int], dialect: _Dialect) -> list[str]:
    figures = [_figures(row) for row in rows]
    widths = [max(map(width, column)) for column in zip(HEADER[1:], *figures, strict=True)]
    frame = width(dialect.left + dialect.right) + len(dialect.between) * len(widths)
    room = max(20, WIDTH - frame - sum(widths))
    seeds = len({row.get("seed") for row in rows}) > 1
    chains = [_chain_cell(row, _marks(row, seeds, notes), room, dialect) for row in rows]
    widths = [max(width(line) for cell in [[HEADER[0]], *chains] for line in cell), *widths]
    lines = [_line(HEADER, widths, dialect), _rule(widths, dialect)]
    for chain, values in zip(chains, figures, strict=True):
        lines.append(_line([chain[0], *values], widths, dialect))
        blank = [""] * len(values)
        lines += [_line([more, *blank], widths, dialect) for more in chain[1:]]
    return lines


def _figures(row: Row) -> Cells:
    return [
        cells.accuracy(row),
        cells.delta(row),
        cells.count(number(row, "params")),
        cells.count(number(row, "macs")),
        cells.kilobytes(row),
        cells.plain(number(row, "cpu_ms_p50")),
        cells.speedup(row),
    ]


def _line(values: Sequence[str], widths: list[int], dialect: _Dialect) -> str:
    padded = (pad(v, w, right=i > 0) for i, (v, w) in enumerate(zip(values, widths, strict=True)))
    line = dialect.left + dialect.between.join(padded) + dialect.right
    return line if dialect.right else line.rstrip()


def _rule(widths: list[int], dialect: _Dialect) -> str:
    colon = ":" if dialect.code else "-"
    dashes = ["-" * widths[0], *("-" * (w - 1) + colon for w in widths[1:])]
    return dialect.left + dialect.between.join(dashes) + dialect.right


def _marks(row: Row, seeds: bool, notes: dict[str, int]) -> str:
    marks = [f"[seed {row.get('seed')}]"] if seeds else []
    for note in _notes(row):
        marks.append(f"[{notes.setdefault(note, len(notes) + 1)}]")
    return " ".join(marks)


def _notes(row: Row) -> list[str]:
    error, note = clean(text_of(row, "error")), clean(text_of(row, "note"))
    status = text_of(row, "status")
    found = []
    if status == "failed":
        found.append(f"failed: {error or 'no reason was recorded'}")
    elif status == "unverified":
        found.append(f"{UNVERIFIED} ({error})" if error else UNVERIFIED)
    elif error:
        found.append(error)
    found += [note] if note else []
    return [n if len(n) <= LONGEST_NOTE else f"{n[:LONGEST_NOTE]} ..." for n in found]


def _chain_cell(row: Row, marks: str, room: int, dialect: _Dialect) -> list[str]:
    """The lines of a chain's cell, its seed and footnotes behind the last one or below it."""
    chain = clean(text_of(row, "chain")) or cells.MISSING
    # A code span is easiest to read, but inside one nothing can be escaped.
    if dialect.code and chain != BASELINE and not set(chain) & set("`|<\\&"):
        lines = [_code(line) for line in wrap_chain(chain, room - 2)]
    else:
        broken = wrap_chain(chain, room, lambda line: width(dialect.escape(line)))
        lines = [dialect.escape(line) for line in broken]
    if not marks:
        return lines
    if width(lines[-1]) + 1 + width(marks) <= room:
        return [*lines[:-1], f"{lines[-1]} {marks}"]
    return [*lines, *(f"  {line}" for line in wrap(marks, room - 2))]


def _code(line: str) -> str:
    content = line.lstrip()
    return " " * (len(line) - len(content)) + f"`{content}`"
