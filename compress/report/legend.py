"""What the numbers and markers of the picture of points mean: the list of chains below it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from matplotlib.lines import Line2D

from compress.report.chains import LOOKS, look_name, precision
from compress.report.layout import clean, wrap_chain
from compress.report.pareto_data import is_drawn
from compress.report.picture import LINE, WIDTH, Picture, marker, printable
from compress.results.record import BASELINE, CONTROL
from compress.results.table import Row, text_of

MARGIN = 40
COLUMN = 81  # characters
LONGEST = 6  # lines of one chain


class Entry(NamedTuple):
    """A chain's number, its text in lines, and how it is drawn (False where it is not)."""

    label: str
    lines: list[str]
    look: str
    precision: str
    drawn: bool


def entries(rows: Iterable[Row], labels: Mapping[str, str]) -> list[Entry]:
    """Return what the list below the picture says, in the order of the numbers."""
    by_chain: dict[str, list[Row]] = {}
    for row in rows:
        by_chain.setdefault(text_of(row, "chain"), []).append(row)
    by_chain.pop(BASELINE, None)
    return [_entry(labels[chain], chain, group) for chain, group in by_chain.items()]


def height(listed: list[Entry]) -> int:
    """Return the list's height in pixels."""
    return max(sum(len(e.lines) for e in column) for column in _columns(listed)) * LINE + 24


def draw(picture: Picture, listed: list[Entry], top: int) -> None:
    """Write the list from `top` pixels below the picture's upper edge, in one or two columns."""
    for i, column in enumerate(_columns(listed)):
        left = MARGIN + i * (WIDTH - MARGIN) // 2
        y = top + LINE / 2
        for entry in column:
            color = "#222222" if entry.drawn else "#888888"
            picture.chain(left + 56, y, entry.label, entry.lines, color)
            if entry.drawn:
                x, middle = picture.at(left + 8, y)
                style = file_marker(entry.look, entry.precision, 7.5)
                picture.figure.add_artist(Line2D([x], [middle], **style))
            y += LINE * len(entry.lines)


def file_marker(look: str, precision: str, size: float) -> dict[str, Any]:
    """Return how matplotlib draws a point of a family: its filling is the file's precision.

    float32 is hollow, float16 half full, int8 full, and so is the baseline's star.
    """
    hollow = precision == "float32" and look != BASELINE
    filling = "none" if hollow else "left" if precision == "float16" else "full"
    size *= {BASELINE: 1.8, CONTROL: 0.8}.get(look, 1.0)
    return marker(LOOKS[look], size, filling)


def _entry(label: str, chain: str, group: list[Row]) -> Entry:
    states = {text_of(row, "status") for row in group}
    bad = [state for state in ("failed", "unverified") if state in states]
    drawn = any(is_drawn(row) for row in group)
    remark = f" ({' and '.join(bad)}{' with some seeds' if drawn else ''})" if bad else ""
    lines = wrap_chain(printable(clean(chain)) + remark, COLUMN - 5)
    if len(lines) > LONGEST:
        lines = [*lines[: LONGEST - 1], f"... {remark.strip()}".rstrip()]
    return Entry(label, lines, look_name(group[0]), precision(group[0]), drawn)


def _columns(listed: list[Entry]) -> list[list[Entry]]:
    """Split the list so that the first of two columns is the longer one, or is all of it."""
    if len(listed) < 2:
        return [listed]
    total = sum(len(entry.lines) for entry in listed)
    first: list[Entry] = []
    while sum(len(entry.lines) for entry in first) < total / 2:
        first.append(listed[len(first)])
    return [first, listed[len(first) :]]
