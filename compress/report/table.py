"""The table of a comparison: Markdown for a file, the same layout in plain text for a terminal.

No line is wider than `WIDTH` columns. Further tables, which refer to rows by number, stand below
the main one in Markdown, and so does what all of it rests on; in a terminal they would scroll it
away, so there is only what must be read with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial

from compress.report import formatting, timing_words
from compress.report.about import facts, imbalance, legend, missing_rows, title, units
from compress.report.chains import by_chain, number_chains
from compress.report.further_tables import sections
from compress.report.layout import clean, shell_lines, width, wrap, wrap_chain
from compress.report.markup import MARKDOWN, PLAIN, WIDTH, Markup, code, figure_width
from compress.report.remarks import shared
from compress.report.section import Column, plain, section_blocks
from compress.report.timing_words import About
from compress.results.columns import group
from compress.results.record import BASELINE, CONTROL
from compress.results.table import Row, text_of
from compress.results.timed import Timed, main_timed, timings

MORE = (
    "In table.md: whether each difference is real, all latencies, what runs, and what it all rests "
    "on (data, classes, machine, A/A control, command)."
)
SHORTEST = 16  # columns of the chain
LONGEST_NOTE = 600  # characters; results.csv has all of it
UNVERIFIED = "unverified: its ONNX file was not shown to compute what the model does; not for use"


def markdown(rows: Iterable[Row], about: About) -> str:
    """Return the tables as Markdown with footnotes and what they rest on.

    Rows of several seeds are shown by chain (see `compress.results.seeds`).
    """
    single = list(rows)
    shown, seeds = by_chain(single, about)
    labels = number_chains(shown)
    footnotes: dict[str, int] = {}
    main = _main_table(shown, labels, about, footnotes, MARKDOWN)
    further = [
        block
        for section in sections(shown, labels, about)
        for block in section_blocks(section, labels)
    ]
    blocks = [
        *_head(single, about, timings(about), MARKDOWN),
        main,
        MARKDOWN.prose(legend(shown, _cells([main, *further], MARKDOWN), about)),
        [
            line
            for note, number in footnotes.items()
            for line in MARKDOWN.prose(note, f"{MARKDOWN.bullet}[{number}] ")
        ],
    ]
    if further:
        blocks += [*further, MARKDOWN.heading("What this rests on", 2)]
    sentences = facts(shown, about, seeds)
    blocks.append([line for fact in sentences for line in MARKDOWN.prose(fact, MARKDOWN.bullet)])
    return _joined([*blocks, _command(about, MARKDOWN)])


def text(rows: Iterable[Row], about: About) -> str:
    """Return the main table for a terminal, what must be read with it, and where the rest is.

    What the rows' notes say stands there once, with the numbers of the rows.
    """
    single = list(rows)
    shown, seeds = by_chain(single, about)
    labels = number_chains(shown)
    timed = main_timed(about)
    main = _main_table(shown, labels, about, {}, PLAIN)
    words = [
        legend(shown, _cells([main], PLAIN), about),
        units(about, seeds),
        *timing_words.denominators([timed], about),
    ]
    remarks = shared(shown, list(map(_notes, shown)), labels)
    blocks = [
        *_head(single, about, [timed], PLAIN),
        main,
        PLAIN.prose(" ".join(filter(None, words))),
        [line for remark in remarks for line in _hanging(remark)],
        PLAIN.prose(MORE),
    ]
    if missing_rows(single, about):  # it points at the command
        blocks.append(_command(about, PLAIN))
    return _joined(blocks)


def _head(
    rows: Sequence[Row], about: About, timed: Iterable[Timed], markup: Markup
) -> Iterator[list[str]]:
    """Yield what stands before the tables: the title, and what must be read first."""
    yield markup.heading(name, 1) if (name := title(about)) else []
    yield markup.prose(missing_rows(rows, about))
    yield from map(markup.prose, (*timing_words.warnings(timed, about), imbalance(about)))


def _hanging(remark: str) -> list[str]:
    first, *more = wrap(remark, WIDTH - 1)
    return [first, *(f"    {line}" for line in wrap(" ".join(more), WIDTH - 5) if line)]


def _cells(tables: Iterable[Sequence[str]], markup: Markup) -> str:
    return "\n".join(line for block in tables for line in block if line.startswith(markup.left))


def _command(about: About, markup: Markup) -> list[str]:
    command = clean(str(about.get("command") or ""))
    if not command:
        return []
    # A terminal's indentation would be copied into words that are broken between lines.
    indent = "    " if markup is MARKDOWN else ""
    lines = [indent + line for line in shell_lines(command, WIDTH - 4)]
    return ["This command reproduces the table:", "", *lines]


def _joined(blocks: Iterable[Sequence[str]]) -> str:
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
        first, *more = _chain_cell(row, _marks(row, footnotes, markup), room, markup)
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


def _marks(row: Row, footnotes: dict[str, int], markup: Markup) -> str:
    marks = ["[control]"] if text_of(row, "role") == CONTROL else []
    for note in _notes(row) if markup is MARKDOWN else ():  # in a terminal they name the rows
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
