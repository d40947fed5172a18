"""The main table: what every chain costs and gains, each row with its number and footnotes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from compress.report import formatting
from compress.report.layout import clean, width, wrap, wrap_chain
from compress.report.markup import WIDTH, Markup, can_be_code, code, figure_width, grid
from compress.report.words import About
from compress.results.columns import group
from compress.results.record import BASELINE, CONTROL
from compress.results.table import Row, number, text_of
from compress.results.timed import Timed, main_timed

MAIN = group("main")
HEADER = ("Δ pt", *(column.header for column in MAIN), "ms", "speed-up")
SHORTEST = 16  # columns of the chain
LONGEST_NOTE = 600  # characters; results.csv has all of it
UNVERIFIED = "unverified: its ONNX file was not shown to compute what the model does; not for use"


def main_table(
    rows: Sequence[Row],
    labels: Mapping[str, str],
    about: About,
    notes: dict[str, int],
    markup: Markup,
) -> list[str]:
    """Return the lines of the table; footnotes are numbered in `notes`, text -> number."""
    timed = main_timed(about)
    figures = [[labels[text_of(row, "chain")], *_figures(row, timed)] for row in rows]
    accuracy = "acc % ±sd" if any("accuracy_sd" in row for row in rows) else "acc %"
    header = ["#", accuracy, *HEADER]
    used = sum(figure_width(column) for column in zip(header, *figures, strict=True))
    room = max(SHORTEST, WIDTH - markup.frame(len(header) + 1) - used)
    lines = []
    for row, (label, *values) in zip(rows, figures, strict=True):
        chain = _chain_cell(row, _marks(row, notes), room, markup)
        lines.append([label, chain[0], *values])
        lines += [["", more, *([""] * len(values))] for more in chain[1:]]
    return grid([header[0], "chain", *header[1:]], lines, 1, markup)


def _figures(row: Row, timed: Timed) -> list[str]:
    return [
        formatting.accuracy(row),
        formatting.delta(row),
        *(formatting.WRITTEN[column.shown](row, column) for column in MAIN),
        formatting.brief(number(row, timed.names["ms_p50"])),
        formatting.speedup(row, timed),
    ]


def _marks(row: Row, notes: dict[str, int]) -> str:
    marks = ["[control]"] if text_of(row, "role") == CONTROL else []
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


def _chain_cell(row: Row, marks: str, room: int, markup: Markup) -> list[str]:
    """The lines of a chain's cell, its footnotes behind the last one or below it."""
    chain = clean(text_of(row, "chain")) or formatting.MISSING
    if chain != BASELINE and can_be_code(chain, markup):
        lines = [code(line) for line in wrap_chain(chain, room - 2)]
    else:
        broken = wrap_chain(chain, room, lambda line: width(markup.escape(line)))
        lines = [markup.escape(line) for line in broken]
    if not marks:
        return lines
    if width(lines[-1]) + 1 + width(marks) <= room:
        return [*lines[:-1], f"{lines[-1]} {marks}"]
    return [*lines, *(f"  {line}" for line in wrap(marks, room - 2))]
