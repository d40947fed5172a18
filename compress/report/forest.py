"""The picture of the differences: speed-ups and accuracies against the baseline, row by row."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from compress.amounts import decimal
from compress.report.columns import CONTROL, Row, ordered, text_of
from compress.report.forest_data import (
    DELTA_LANES,
    Lane,
    Mark,
    beyond_words,
    delta_marks,
    delta_range,
    forest_rows,
    reading,
    speed_lanes,
    speed_marks,
)
from compress.report.layout import clean, wrap_chain
from compress.report.legend import LINE, MONO, SIZE, WIDTH, printable, title_of
from compress.report.pareto import DPI, STYLE
from compress.report.row_numbers import number_chains
from compress.report.seeds import over_seeds, seeds_of
from compress.report.shorten import brief
from compress.report.styles import step_names
from compress.report.words import About

LEFT, MIDDLE, GAP, RIGHT = 24, 450, 50, 30  # pixels: the chains, then both panels
TOP, KEY, BOTTOM = 84, 22, 62  # the heading, a line of the keys, below the panels
PANEL = (WIDTH - MIDDLE - GAP - RIGHT) / 2
LANE, PAD = 17, 14  # pixels of a lane, and of the room between rows
LETTERS = 40  # of a line of a chain
LINES = 3  # of a chain
GREY = "#d5d5d5"
MARKER = 7.5  # points


def speedups_png(rows: Iterable[Row], about: Mapping[str, Any]) -> bytes | None:
    """Return a PNG, 1600 pixels wide: every row's speed-ups and differences in accuracy.

    Each has its 95 % interval; a filled marker is a verdict. Numbers are those of the tables.
    None if no row has an interval.
    """
    single = ordered(rows)
    several = len(seeds_of(single)) > 1
    shown: list[Row] = [*over_seeds(single)] if several else single
    lanes = speed_lanes(shown, about)
    drawn = forest_rows(shown, tuple(lanes), about)
    if not drawn:
        return None
    labels = number_chains(shown)
    chains = [(labels[text_of(row, "chain")], _lines(row)) for row in drawn]
    tall = [_height(len(lines), max(2, len(lanes))) for _, lines in chains]
    top = TOP + KEY * max(1, (len(lanes) + 1) // 2)
    height = top + sum(tall) + BOTTOM
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH / DPI, height / DPI), dpi=DPI, facecolor="white")
        canvas = FigureCanvasAgg(figure)
        speeds, deltas = _panels(figure, sum(tall), height)
        _stripes(figure, tall, top, height)
        _chains(figure, chains, tall, top, height)
        _speeds(speeds, [speed_marks(row, tuple(lanes), about) for row in drawn], lanes, tall)
        _deltas(deltas, [delta_marks(row) for row in drawn], len(_delta_lanes(drawn)), tall)
        _heading(figure, about, reading(drawn, list(lanes.values()), several), height)
        _key(figure, list(lanes.values()), MIDDLE, top, height)
        _key(figure, _delta_lanes(drawn), MIDDLE + PANEL + GAP, top, height)
        content = io.BytesIO()
        canvas.print_figure(content, format="png", metadata={"Software": None})
    return content.getvalue()


def _lines(row: Row) -> list[str]:
    chain = text_of(row, "chain")
    mark = " [control]" if text_of(row, "role") == CONTROL else ""
    # Where it is too long, the names of the steps say more than the first options do.
    for text in (chain, brief(chain), " -> ".join(step_names(chain)) or chain):
        lines = wrap_chain(printable(clean(text)) + mark, LETTERS)
        if len(lines) <= LINES:
            return lines
    return [*lines[: LINES - 1], "..."]


def _delta_lanes(rows: Sequence[Row]) -> list[Lane]:
    """Return the lanes of differences: one, if no row has a control."""
    second = any(mark.lane for row in rows for mark in delta_marks(row))
    return [*DELTA_LANES[: 1 + second]]


def _height(lines: int, lanes: int) -> int:
    return max(lines * LINE, lanes * LANE) + PAD


def _panels(figure: Figure, tall: int, height: int) -> tuple[Axes, Axes]:
    panels = []
    for left in (MIDDLE, MIDDLE + PANEL + GAP):
        box = (left / WIDTH, BOTTOM / height, PANEL / WIDTH, tall / height)
        axes = figure.add_axes(box, facecolor="none")
        axes.set_ylim(tall, 0)  # pixels from the panel's upper edge
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.grid(True, axis="x", color="#e4e4e4", linewidth=0.8)
        axes.set_axisbelow(True)
        panels.append(axes)
    return panels[0], panels[1]


def _stripes(figure: Figure, tall: Sequence[int], top: int, height: int) -> None:
    """Shade every other row, so that the eye stays in it."""
    for i, pixels in enumerate(tall):
        if i % 2 == 0:
            box = (LEFT / WIDTH, 1 - (top + pixels) / height)
            size = ((WIDTH - LEFT - RIGHT) / WIDTH, pixels / height)
            figure.add_artist(Rectangle(box, *size, color="#f6f6f6", zorder=-1, linewidth=0))
        top += pixels


def _chains(
    figure: Figure,
    chains: Sequence[tuple[str, list[str]]],
    tall: Sequence[int],
    top: int,
    height: int,
) -> None:
    style: dict[str, Any] = {"fontsize": SIZE, "family": MONO, "va": "center", "parse_math": False}
    for (label, lines), pixels in zip(chains, tall, strict=True):
        first = top + pixels / 2 - LINE * (len(lines) - 1) / 2
        at = (LEFT + 38) / WIDTH, 1 - first / height
        figure.text(*at, label, ha="right", fontweight="bold", **style)
        for i, line in enumerate(lines):
            figure.text((LEFT + 48) / WIDTH, 1 - (first + i * LINE) / height, line, **style)
        top += pixels


def _speeds(
    axes: Axes, marks: Sequence[list[Mark]], lanes: Mapping[str, Lane], tall: Sequence[int]
) -> None:
    axes.set_xlabel("speed-up over the baseline, times (log scale)")
    values = [1.0, *(mark.value for row in marks for mark in row)]
    ends = [end for row in marks for mark in row for end in (mark.low, mark.high)]
    # An interval that is wider than all that is to be seen leaves the panel.
    low = max(min([*values, *ends]), min(values) / 2)
    high = min(max([*values, *ends]), max(values) * 2)
    room = max((high / low) ** 0.05, 1.01)
    axes.set_xscale("log")
    axes.set_xlim(low / room, high * room)
    subs = (1, 2, 5) if high > 30 * low else (1, 1.5, 2, 3, 4, 5, 7)
    axes.xaxis.set_major_locator(LogLocator(subs=subs) if high > 3 * low else MaxNLocator(6))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: decimal(x, 10)))
    axes.axvline(1, color="#777777", linewidth=1.2, zorder=1.5)
    looks = list(lanes.values())
    for row, middles, box in zip(marks, _middles(tall, len(looks)), _boxes(tall), strict=True):
        for mark in row:
            _margin(axes, looks, mark.lane, middles, box)
            _draw(axes, mark, looks[mark.lane], middles[mark.lane])
    if not lanes:
        _say(axes, "no row has a speed-up with an interval")


def _margin(
    axes: Axes, looks: Sequence[Lane], lane: int, middles: list[float], box: tuple[float, float]
) -> None:
    """Shade what a speed-up must exceed, up to the row's edges in its outer lanes."""
    upper = box[0] if lane == 0 else middles[lane] - LANE / 2
    lower = box[1] if lane == len(looks) - 1 else middles[lane] + LANE / 2
    bound = 1 + looks[lane].margin
    style: dict[str, Any] = {"color": GREY, "linewidth": 0, "zorder": 1}
    axes.fill_betweenx([upper, lower], 1 / bound, bound, **style)


def _deltas(axes: Axes, marks: Sequence[list[Mark]], lanes: int, tall: Sequence[int]) -> None:
    axes.set_xlabel("difference in accuracy, points")
    low, high = delta_range([mark for row in marks for mark in row])
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(MaxNLocator(7))
    signed = FuncFormatter(lambda x, _: ("+" if x > 0 else "") + decimal(x, 10))
    axes.xaxis.set_major_formatter(signed)
    axes.axvline(0, color="#777777", linewidth=1.2, zorder=1.5)
    for row, middles in zip(marks, _middles(tall, lanes), strict=True):
        for mark in row:
            look, y = DELTA_LANES[mark.lane], middles[mark.lane]
            if mark.value >= low:
                _draw(axes, mark, look, y)
            else:
                _draw_beyond(axes, mark, look, y)
    if not any(marks):
        _say(axes, "no row has a difference in accuracy")


def _say(axes: Axes, words: str) -> None:
    axes.set_xticks([])
    axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center", color="#666666")


def _boxes(tall: Sequence[int]) -> list[tuple[float, float]]:
    """Return the upper and lower edge of every row, in pixels from the panel's upper edge."""
    edges = [0, *itertools.accumulate(tall)]
    return [(float(upper), float(lower)) for upper, lower in itertools.pairwise(edges)]


def _middles(tall: Sequence[int], lanes: int) -> list[list[float]]:
    """Return where the lanes of every row are, in pixels from the panel's upper edge."""
    starts = [(upper + lower) / 2 - LANE * (lanes - 1) / 2 for upper, lower in _boxes(tall)]
    return [[start + LANE * lane for lane in range(lanes)] for start in starts]


def _draw(axes: Axes, mark: Mark, look: Lane, y: float) -> None:
    axes.plot([mark.low, mark.high], [y, y], color=look.colour, linewidth=1.8, zorder=2)
    axes.plot([mark.value], [y], zorder=3, **_style(look, mark.claimed))


def _draw_beyond(axes: Axes, mark: Mark, look: Lane, y: float) -> None:
    """Draw at the left edge what lies beyond it, its value and interval written beside it."""
    low, high = axes.get_xlim()
    arrow, place, words = (low + share * (high - low) for share in (0.0, 0.04, 0.065))
    style: dict[str, Any] = {"color": look.colour, "va": "center", "fontsize": 10.5}
    axes.text(arrow, y, "◂", **style)
    axes.plot([place], [y], zorder=3, **_style(look, mark.claimed))
    axes.text(words, y, beyond_words(mark), **style)


def _style(look: Lane, filled: bool) -> dict[str, Any]:
    return {
        "linestyle": "none",
        "marker": look.marker,
        "color": look.colour,
        "markerfacecolor": look.colour if filled else "white",
        "markeredgewidth": 1.5,
        "markersize": MARKER,
    }


def _heading(figure: Figure, about: About, words: str, height: int) -> None:
    parts = [about.get("suite"), about.get("model"), "what differs from the baseline"]
    title = title_of(parts)
    bare: dict[str, Any] = {"parse_math": False, "va": "center", "x": LEFT / WIDTH}
    figure.text(y=1 - 24 / height, s=title, fontsize=15, fontweight="bold", **bare)
    figure.text(y=1 - 54 / height, s=words, fontsize=11, color="#444444", **bare)


def _key(figure: Figure, lanes: Sequence[Lane], left: float, top: int, height: int) -> None:
    if not lanes:
        return
    figure.legend(
        handles=[Line2D([], [], label=lane.words, **_style(lane, True)) for lane in lanes],
        loc="lower left",
        bbox_to_anchor=((left - 8) / WIDTH, 1 - (top - 4) / height),
        ncols=2,
        frameon=False,
        fontsize=10.5,
        handletextpad=0.3,
        columnspacing=1.2,
        borderpad=0,
        labelspacing=0.3,
    )
