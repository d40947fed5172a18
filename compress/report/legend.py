"""What the numbers and markers of the picture mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont
from matplotlib.ft2font import FT2Font
from matplotlib.lines import Line2D

from compress.report.layout import clean, wrap_chain
from compress.report.pareto_data import is_drawn
from compress.report.shorten import cut
from compress.report.styles import LOOKS, look_name, precision
from compress.results.record import BASELINE, CONTROL
from compress.results.table import Row, text_of

WIDTH = 1600  # pixels
MARGIN = 40
LINE = 20  # pixels from line to line
MONO = "DejaVu Sans Mono"
SIZE = 10.5  # points: 8.8 pixels a character
COLUMN = 81  # characters
LONGEST = 6  # lines of one chain


@dataclass(frozen=True)
class Entry:
    """A chain's number, its text in lines, and how it is drawn (None where it is not)."""

    label: str
    lines: tuple[str, ...]
    look: str
    precision: str
    drawn: bool


def entries(rows: Iterable[Row], labels: Mapping[str, str]) -> list[Entry]:
    """Return what the list below the picture says, in the order of the numbers."""
    by_chain: dict[str, list[Row]] = {}
    for row in rows:
        by_chain.setdefault(text_of(row, "chain"), []).append(row)
    return [
        _entry(labels[chain], chain, group)
        for chain, group in by_chain.items()
        if chain != BASELINE
    ]


def height(found: list[Entry]) -> int:
    """Return the list's height in pixels."""
    return max((sum(len(e.lines) for e in c) for c in _columns(found)), default=0) * LINE + 24


def draw(figure: Figure, found: list[Entry], total: int, top: int) -> None:
    """Write the list from `top` pixels below the figure's upper edge, in one or two columns."""
    for i, column in enumerate(_columns(found)):
        left = MARGIN + i * (WIDTH - MARGIN) // 2
        y = top + LINE / 2
        for entry in column:
            _write(figure, entry, left, y, total)
            y += LINE * len(entry.lines)


def marker(name: str, precision: str, size: float) -> dict[str, Any]:
    """Return how matplotlib draws a point of a family: its filling is the file's precision.

    float32 is hollow, float16 half full, int8 full, and so is the baseline's star.
    """
    look = LOOKS[name]
    hollow = precision == "float32" and name != BASELINE
    return {
        "linestyle": "none",
        "marker": look.marker,
        "color": look.colour,
        "fillstyle": "left" if precision == "float16" else "full",
        "markerfacecolor": "white" if hollow else look.colour,
        "markerfacecoloralt": "white",
        "markeredgewidth": 1.8,
        "markersize": size * {BASELINE: 1.8, CONTROL: 0.8}.get(name, 1.0),
    }


def title_of(parts: Iterable[object]) -> str:
    """Return what stands above a picture; a model may have a very long name."""
    return printable(clean(" · ".join(cut(str(part), 60) for part in parts if part)))


def printable(text: str) -> str:
    """Replace what the fonts cannot draw, which would warn, by a box."""
    return "".join(c if ord(c) in _glyphs() else "□" for c in text)


@cache
def _glyphs() -> frozenset[int]:
    fonts = (FT2Font(findfont(FontProperties(family=f))) for f in (MONO, "DejaVu Sans"))
    return frozenset.intersection(*(frozenset(font.get_charmap()) for font in fonts))


def _entry(label: str, chain: str, group: list[Row]) -> Entry:
    states = {text_of(row, "status") for row in group}
    bad = [state for state in ("failed", "unverified") if state in states]
    drawn = any(is_drawn(row) for row in group)
    remark = f" ({' and '.join(bad)}{' with some seeds' if drawn else ''})" if bad else ""
    lines = wrap_chain(printable(clean(chain)) + remark, COLUMN - 5)
    if len(lines) > LONGEST:
        lines = [*lines[: LONGEST - 1], f"... {remark.strip()}".rstrip()]
    return Entry(label, tuple(lines), look_name(group[0]), precision(group[0]), drawn)


def _columns(found: list[Entry]) -> list[list[Entry]]:
    """Split the list so that the first of two columns is the longer one, or is all of it."""
    total = sum(len(entry.lines) for entry in found)
    if len(found) < 2:
        return [found]
    first: list[Entry] = []
    used = 0
    for entry in found:
        if used >= total / 2:
            break
        first.append(entry)
        used += len(entry.lines)
    return [first, found[len(first) :]]


def _write(figure: Figure, entry: Entry, left: float, y: float, total: int) -> None:
    at = 1 - y / total
    if entry.drawn:
        x = (left + 8) / WIDTH
        style = marker(entry.look, entry.precision, 7.5)
        figure.add_artist(Line2D([x], [at], **style))
    ink = "#222222" if entry.drawn else "#888888"
    style = {"fontsize": SIZE, "family": MONO, "va": "center", "parse_math": False, "color": ink}
    figure.text((left + 46) / WIDTH, at, entry.label, ha="right", fontweight="bold", **style)
    for i, line in enumerate(entry.lines):
        figure.text((left + 56) / WIDTH, 1 - (y + i * LINE) / total, line, **style)
