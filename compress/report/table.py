"""The table of a comparison: Markdown for a file, the same layout in plain text for a terminal.

No line is wider than `WIDTH` columns. Further tables, which refer to rows by number, stand below
the main one in Markdown; in a terminal they would scroll it away, so there they are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

from compress.report import formatting
from compress.report.about import facts, imbalance, legend, missing_rows, title
from compress.report.chains import by_chain, number_chains
from compress.report.further_tables import sections
from compress.report.layout import clean, shell_lines, width, wrap, wrap_chain
from compress.report.markup import MARKDOWN, PLAIN, WIDTH, Markup, code, figure_width
from compress.report.section import Column, plain, section_blocks
from compress.report.timing_words import About, warnings
from compress.results.columns import group
from compress.results.record import BASELINE, CONTROL
from compress.results.table import Row, text_of
from compress.results.timed import main_timed, timings

FURTHER = "Further tables (is a difference real, latencies, what runs): table.md."
SHORTEST = 16  # columns of the chain
LONGEST_NOTE = 600  # characters; results.csv has all of it
UNVERIFIED = "unverified: its ONNX file was not shown to compute what the model does; not for use"


def markdown(rows: Iterable[Row], about: About) -> str:
    """Return the tables as Markdown with footnotes and what they rest on.

    Rows of several seeds are shown by chain (see `compress.results.seeds`).
    """
    return _document(rows, about, MARKDOWN)


def text(rows: Iterable[Row], about: About) -> str:
    """Return the main table for a terminal, with its footnotes and what it rests on."""
    return _document(rows, about, PLAIN)


def _document(rows: Iterable[Row], about: About, markup: Markup) -> str:
    single = list(rows)
    shown, seeds = by_chain(single, about)
    labels = number_chains(shown)
    footnotes: dict[str, int] = {}
    main = _main_table(shown, labels, about, footnotes, markup)
    further = [
        block
        for section in sections(shown, labels, about)
        for block in section_blocks(section, labels)
    ]
    tables = [main, *further] if markup is MARKDOWN else [main]
    cells = "\n".join(line for block in tables for line in block if line.startswith(markup.left))
    blocks = [
        markup.heading(name, 1) if (name := title(about)) else [],
        markup.prose(missing_rows(single, about)),
        *map(markup.prose, (*warnings(timings(about), about), imbalance(about))),
        main,
        markup.prose(legend(shown, cells, about)),
        [
            line
            for note, number in footnotes.items()
            for line in markup.prose(note, f"{markup.bullet}[{number}] ")
        ],
    ]
    if markup is MARKDOWN and further:
        blocks += [*further, markup.heading("What this rests on", 2)]
    blocks.append(
        [line for fact in facts(shown, about, seeds) for line in markup.prose(fact, markup.bullet)]
    )
    if markup is PLAIN and further:
        blocks.append([FURTHER])
    if command := clean(str(about.get("command") or "")):
        # A terminal's indentation would be copied into words that are broken between lines.
        indent = "    " if markup is MARKDOWN else ""
        lines = [indent + line for line in shell_lines(command, WIDTH - 4)]
        blocks.append(["This command reproduces the table:", "", *lines])
    return "\n\n".join("\n".join(block) for block in blocks if any(block)) + "\n"


def _main_table(
    rows: Sequence[Row],
    labels: Mapping[str, str],
    about: About,
    footnotes: dict[str, int],
    markup: Markup,
) -> list[str]:
    """Return what every chain costs and gains; `footnotes` gains the rows', text -> number."""
    numbers = ["#", *(labels[text_of(row, "chain")] for row in rows)]
    for narrow in (False, True):
        columns = [[c.name, *map(c.cell, rows)] for c in _columns(rows, about, narrow)]
        used = sum(map(figure_width, [numbers, *columns]))
        room = WIDTH - markup.frame(len(columns) + 2) - used
        if room >= SHORTEST:
            break
    room = max(SHORTEST, room)
    header, *figures = zip(*columns, strict=True)
    lines = [["#", "chain", *header]]
    for row, number, values in zip(rows, numbers[1:], figures, strict=True):
        first, *more = _chain_cell(row, _marks(row, footnotes), room, markup)
        lines.append([number, first, *values])
        lines += [["", line, *([""] * len(values))] for line in more]
    return markup.grid(lines)


def _columns(rows: Sequence[Row], about: About, narrow: bool) -> list[Column]:
    """Return the main table's columns; `narrow` ones leave wide intervals to the further tables."""
    timed = main_timed(about)
    deviations = any("accuracy_sd" in row for row in rows)
    milliseconds = partial(formatting.show, key=timed.names["ms_p50"], write=formatting.brief)
    return [
        Column("acc % ±sd" if deviations else "acc %", formatting.accuracy),
        Column("Δ pt", formatting.delta),
        *map(plain, group("main")),
        Column("ms", milliseconds),
        Column("speed-up", partial(formatting.speedup, timed=timed, narrow=narrow)),
    ]


def _marks(row: Row, footnotes: dict[str, int]) -> str:
    marks = ["[control]"] if text_of(row, "role") == CONTROL else []
    for note in _notes(row):
        marks.append(f"[{footnotes.setdefault(note, len(footnotes) + 1)}]")
    return " ".join(marks)


def _notes(row: Row) -> list[str]:
    error, note = clean(text_of(row, "error")), clean(text_of(row, "note"))
    status = text_of(row, "status")
    if status == "failed":
        error = f"failed: {error or 'no reason was recorded'}"
    elif status == "unverified":
        error = f"{UNVERIFIED} ({error})" if error else UNVERIFIED
    notes = filter(None, (error, note))
    return [n if len(n) <= LONGEST_NOTE else f"{n[:LONGEST_NOTE]} ..." for n in notes]


def _chain_cell(row: Row, marks: str, room: int, markup: Markup) -> list[str]:
    """The lines of a chain's cell, its footnotes behind the last one or below it."""
    chain = clean(text_of(row, "chain")) or formatting.MISSING
    if chain != BASELINE and markup.can_be_code(chain):
        lines = [code(line) for line in wrap_chain(chain, room - 2)]
    else:
        lines = [markup.escape(line) for line in wrap_chain(chain, room, markup.width)]
    if not marks:
        return lines
    if width(lines[-1]) + 1 + width(marks) <= room:
        return [*lines[:-1], f"{lines[-1]} {marks}"]
    return [*lines, *(f"  {line}" for line in wrap(marks, room - 2))]
