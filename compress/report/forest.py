"""The picture of the differences: speed-ups and accuracies against the baseline, row by row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from compress.report import forest_data
from compress.report.chains import Look, brief, by_chain, number_chains, step_names
from compress.report.forest_data import DELTA_LOOKS, ForestRow, Interval, Series
from compress.report.layout import clean, wrap_chain
from compress.report.picture import LINE, STYLE, WIDTH, Picture, marker, note, printable
from compress.report.timing_words import About
from compress.results.record import CONTROL
from compress.results.table import Row, text_of
from compress.system.amounts import decimal

LEFT, MIDDLE, GAP, RIGHT = 24, 450, 50, 30  # pixels: the chains, then both panels
TOP, KEY, BOTTOM = 84, 22, 62  # the heading, a line of the keys, below the panels
PANEL = (WIDTH - MIDDLE - GAP - RIGHT) / 2
STEP, PAD = 17, 14  # pixels between the intervals of a row, and of the room between rows
LETTERS = 40  # of a line of a chain
LINES = 3  # of a chain
GREY = "#d5d5d5"
MARKER = 7.5  # points


class Band(NamedTuple):
    """What is drawn of a row, and its edges in pixels from the panels' upper edge."""

    label: str
    lines: list[str]
    speeds: list[Interval]
    deltas: list[Interval]
    upper: float
    lower: float

    def middle(self, number: int, count: int) -> float:
        """Return where the interval of a series is, of so many series."""
        return (self.upper + self.lower - STEP * (count - 1)) / 2 + STEP * number


@matplotlib.rc_context(STYLE)
def speedups_png(rows: Iterable[Row], about: About) -> bytes | None:
    """Return a PNG, 1600 pixels wide: every row's speed-ups and differences in accuracy.

    Each has its 95 % interval; a filled marker is a verdict. Numbers are those of the tables.
    None if no row has an interval.
    """
    shown, seeds = by_chain(rows, about)
    series = forest_data.speed_series(shown, about)
    drawn = forest_data.forest_rows(shown, series)
    if not drawn:
        return None
    bands = _bands(drawn, number_chains(shown), max(2, len(series)))
    delta_looks = DELTA_LOOKS[: 1 + any(delta.series for one in drawn for delta in one.deltas)]
    top, tall = TOP + KEY * max(1, (len(series) + 1) // 2), bands[-1].lower
    picture = Picture(top + tall + BOTTOM)
    words = forest_data.explanation((one.row for one in drawn), series, len(seeds) > 1)
    picture.heading(LEFT, about, "what differs from the baseline", words)
    for i, band in enumerate(bands):
        _name(picture, band, top, shaded=i % 2 == 0)
    speed_looks = [one.look for one in series]
    _speeds(_panel(picture, MIDDLE, top, tall, speed_looks), bands, series)
    _deltas(_panel(picture, MIDDLE + PANEL + GAP, top, tall, delta_looks), bands, delta_looks)
    return picture.png()


def _panel(picture: Picture, left: float, top: float, tall: float, looks: Sequence[Look]) -> Axes:
    """Return axes in which y is in pixels from their upper edge, below the key of the looks."""
    axes = picture.panel(left, top, PANEL, tall)
    axes.set_ylim(tall, 0)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    if looks:
        keys = [Line2D([], [], label=look.label, **_style(look, True)) for look in looks]
        style = {"loc": "lower left", "ncols": 2, "fontsize": 10.5, "labelspacing": 0.3}
        picture.key(keys, left - 8, top - 4, **style)
    return axes


def _bands(rows: Sequence[ForestRow], labels: Mapping[str, str], count: int) -> list[Band]:
    bands: list[Band] = []
    upper = 0
    for row, speeds, deltas in rows:
        lines = _lines(row)
        lower = upper + max(len(lines) * LINE, count * STEP) + PAD
        bands.append(Band(labels[text_of(row, "chain")], lines, speeds, deltas, upper, lower))
        upper = lower
    return bands


def _lines(row: Row) -> list[str]:
    chain = text_of(row, "chain")
    ending = " [control]" if text_of(row, "role") == CONTROL else ""
    # Where it is too long, the names of the steps say more than the first options do.
    for text in (chain, brief(chain), " -> ".join(step_names(row)) or chain):
        lines = wrap_chain(printable(clean(text)) + ending, LETTERS)
        if len(lines) <= LINES:
            return lines
    return [*lines[: LINES - 1], "..."]


def _name(picture: Picture, band: Band, top: int, shaded: bool) -> None:
    """Write the row's chain, and shade every other row, so that the eye stays in it."""
    if shaded:
        corner = picture.at(LEFT, top + band.lower)
        size = (WIDTH - LEFT - RIGHT) / WIDTH, (band.lower - band.upper) / picture.height
        shade = Rectangle(corner, *size, color="#f6f6f6", zorder=-1, linewidth=0)
        picture.figure.add_artist(shade)
    first = top + (band.upper + band.lower - LINE * (len(band.lines) - 1)) / 2
    picture.chain(LEFT + 48, first, band.label, band.lines)


def _speeds(axes: Axes, bands: Sequence[Band], series: Sequence[Series]) -> None:
    axes.set_xlabel("speed-up over the baseline, times (log scale)")
    intervals = [interval for band in bands for interval in band.speeds]
    low = min([1.0, *(interval.low for interval in intervals)])
    high = max([1.0, *(interval.high for interval in intervals)])
    room = max((high / low) ** 0.05, 1.01)
    axes.set_xscale("log")
    axes.set_xlim(low / room, high * room)
    subs = (1,) if high > 1e3 * low else (1, 2, 5) if high > 30 * low else (1, 1.5, 2, 3, 4, 5, 7)
    axes.xaxis.set_major_locator(LogLocator(subs=subs) if high > 3 * low else MaxNLocator(6))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: decimal(x, 10)))
    axes.axvline(1, color="#777777", linewidth=1.2, zorder=1.5)
    for band in bands:
        for interval in band.speeds:
            y = band.middle(interval.series, len(series))
            # What a speed-up must exceed is shaded, up to the row's edges by its first and last.
            upper = band.upper if interval.series == 0 else y - STEP / 2
            lower = band.lower if interval.series == len(series) - 1 else y + STEP / 2
            bound = 1 + series[interval.series].margin
            axes.fill_betweenx([upper, lower], 1 / bound, bound, color=GREY, linewidth=0, zorder=1)
            _draw(axes, interval, series[interval.series].look, y)
    if not series:
        axes.set_xticks([])
        note(axes, "no row has a speed-up with an interval")


def _deltas(axes: Axes, bands: Sequence[Band], looks: Sequence[Look]) -> None:
    axis = forest_data.delta_axis([interval for band in bands for interval in band.deltas])
    scale = f" (log scale beyond ±{decimal(axis.linear)})" if axis.linear else ""
    axes.set_xlabel(f"difference in accuracy, points{scale}")
    if axis.linear:
        axes.set_xscale("symlog", linthresh=axis.linear)
    axes.set_xlim(axis.low, axis.high)
    axes.xaxis.set_major_locator(FixedLocator(axis.ticks) if axis.linear else MaxNLocator(7))
    axes.xaxis.set_minor_locator(NullLocator())
    signed = FuncFormatter(lambda x, _: ("+" if x > 0 else "") + decimal(x, 10))
    axes.xaxis.set_major_formatter(signed)
    axes.axvline(0, color="#777777", linewidth=1.2, zorder=1.5)
    for band in bands:
        for interval in band.deltas:
            y = band.middle(interval.series, len(looks))
            _draw(axes, interval, looks[interval.series], y)
    if not any(band.deltas for band in bands):
        axes.set_xticks([])
        note(axes, "no row has a difference in accuracy")


def _draw(axes: Axes, interval: Interval, look: Look, y: float) -> None:
    axes.plot([interval.low, interval.high], [y, y], color=look.colour, linewidth=1.8, zorder=2)
    axes.plot([interval.value], [y], zorder=3, **_style(look, interval.claimed))


def _style(look: Look, filled: bool) -> dict[str, Any]:
    return marker(look, MARKER, "full" if filled else "none", edge=1.5)
