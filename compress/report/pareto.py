"""The picture of a comparison: accuracy against latency and against size."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from compress.report import pareto_data
from compress.report.chains import LOOKS, Look, by_chain, look_name, number_chains, precision
from compress.report.layout import clean, wrap_chain
from compress.report.pareto_data import Point, is_drawn
from compress.report.picture import DPI, LINE, STYLE, WIDTH, Picture, marker, note, printable
from compress.report.timing_words import About
from compress.results.record import BASELINE, CONTROL
from compress.results.table import Row, is_sound, ordered, text_of
from compress.system.amounts import decimal

PANEL = 560  # pixels, as tall
LEFT, RIGHT, GAP, TOP, BOTTOM = 94, 20, 96, 88, 58  # pixels around the panels
MARKER = 9.0  # points
MOST = 12  # keys beside each other
LIST = 40  # pixels left of the list of chains
LETTERS = 76  # of a line of a chain
LONGEST = 6  # lines of one chain
STAR = 14  # pixels from the middle of the baseline's star to its points
Entry = tuple[Row, list[str]]
"""A row in the list below the picture, and the lines of its chain."""
FRONT: dict[str, Any] = {"color": "#9a9a9a", "linewidth": 1.6}


@matplotlib.rc_context(STYLE)
def pareto_png(rows: Iterable[Row], about: About, count: str = "") -> bytes:
    """Return a PNG, 1600 pixels wide: accuracy against CPU latency, and against the ONNX size.

    A `count` (a key of `pareto_data.COUNTS`) takes the place of the latency.

    Points are numbered; the numbers' chains are listed below. Rows that failed or were not
    verified are listed and not drawn. With several seeds a point is their mean, and theirs are
    small and faint.
    """
    single = ordered(rows)
    shown, seeds = by_chain(single, about)
    labels = number_chains(shown)
    columns = _columns([(row, _lines(row)) for row in shown if text_of(row, "chain") != BASELINE])
    bottom = TOP + PANEL + BOTTOM
    picture = Picture(bottom + LINE * max(map(_line_count, columns)) + 24)
    _heading(picture, shown, about)
    kinds = (shown, single if len(seeds) > 1 else [])
    if count:
        words = pareto_data.COUNTS[count][0]
        first = [pareto_data.count_points(rows, labels, count) for rows in kinds]
    else:
        words = pareto_data.latency_axis(about)
        first = [pareto_data.latency_points(rows, labels, about) for rows in kinds]
    size = [pareto_data.size_points(rows, labels) for rows in kinds]
    cut = pareto_data.cut_below([point.y for point in [*first[0], *size[0]]])
    wide = (WIDTH - LEFT - GAP - RIGHT) / 2
    for left, (points, of_seeds), what in (
        (LEFT, first, words),
        (LEFT + wide + GAP, size, "ONNX file, kB"),
    ):
        _draw(picture.panel(left, TOP, wide, PANEL), points, of_seeds, what, cut)
    for i, column in enumerate(columns):
        _list(picture, column, labels, LIST + i * (WIDTH - LIST) // 2, bottom)
    return picture.png()


def _draw(
    axes: Axes, points: list[Point], seeds: list[Point], what: str, cut: float | None
) -> None:
    axes.set_xlabel(what)
    bars = "faint: single seeds" if seeds else "bars: 95 % intervals"
    axes.set_ylabel(f"accuracy, % ({bars})")
    if not points:
        axes.set(xticks=[], yticks=[])
        note(axes, f"no row has both an accuracy and\n{what}")
        return
    floor = _limits(axes, points, seeds, cut)
    for point in points:
        if point.chain == BASELINE:
            axes.axhline(point.y, color="#000000", alpha=0.25, linewidth=1, linestyle=(0, (6, 4)))
    front = [points[i] for i in pareto_data.pareto_front([(p.x, p.y) for p in points])]
    steps_x = [*(point.x for point in front), axes.get_xlim()[1]]
    steps_y = [max(point.y, floor) for point in [*front, front[-1]]]
    axes.step(steps_x, steps_y, where="post", zorder=1.5, **FRONT)
    for point in seeds:
        axes.plot([point.x], [point.y], alpha=0.35, zorder=1.8, **_style(point, 0.5))
    for point in points:
        _mark(axes, point, floor)
    steps = list(zip(steps_x, steps_x[1:], steps_y, strict=False))
    _label(axes, points, steps, floor)


def _limits(axes: Axes, points: list[Point], seeds: list[Point], cut: float | None) -> float:
    """Set both axes; return the accuracy at which points below the cut are drawn."""
    xs = [x for p in [*points, *seeds] for x in (p.x_low, p.x_high)]
    low, high = min(xs), max(xs)
    if high > 5 * low:
        axes.set_xscale("log")
        decades = math.log10(high / low)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2.5 else (1,)))
        axes.xaxis.set_minor_locator(NullLocator())
        room = (high / low) ** 0.06
        axes.set_xlim(low / room, high * room)
    else:
        room = 0.06 * (high - low) or 0.2 * high
        axes.set_xlim(max(0.0, low - room), high + room)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: decimal(x, 10, commas=True)))
    above = [p for p in points if cut is None or p.y >= cut] or points
    chains = {p.chain for p in above}
    ys = [y for p in above for y in (p.y_low, p.y_high)]
    ys += [p.y for p in seeds if p.chain in chains]
    room = max(0.06 * (max(ys) - min(ys)), 0.2)
    below = room * (3 if len(above) < len(points) else 1)
    axes.set_ylim(min(ys) - below, max(ys) + room)
    return -math.inf if len(above) == len(points) else min(ys) - below / 2


def _mark(axes: Axes, point: Point, floor: float) -> None:
    if point.y >= floor:  # else it is off the scale: at the floor; its label has the value
        bars: dict[str, Any] = {"color": LOOKS[point.look].colour, "alpha": 0.55, "linewidth": 1.1}
        axes.plot([point.x, point.x], [point.y_low, point.y_high], zorder=2, **bars)
        axes.plot([point.x_low, point.x_high], [point.y, point.y], zorder=2, **bars)
    front = 4 if point.chain == BASELINE else 3
    axes.plot([point.x], [max(point.y, floor)], zorder=front, **_style(point))


def _style(point: Point, scale: float = 1.0) -> dict[str, Any]:
    return file_marker(point.look, point.precision, scale * MARKER)


def _heading(picture: Picture, rows: list[Row], about: About) -> None:
    items = about.get("test_items")
    picture.heading(LEFT, about, f"{items} test items" if items else "")
    drawn = list(filter(is_drawn, rows))
    if not drawn:
        message = "nothing to draw: all rows failed, or none has an accuracy that was verified"
        picture.text(LEFT, 56, message, color="#B00020", fontsize=13)
        return
    keys = _keys(drawn)
    lines = -(-len(keys) // MOST)
    style = {"loc": "center left", "ncols": -(-len(keys) // lines), "fontsize": 11}
    picture.key(keys, LEFT - 8, 50 + 6 * lines, **style)


def _keys(rows: list[Row]) -> list[Line2D]:
    families, precisions = set(map(look_name, rows)), set(map(precision, rows))
    styles = {
        look.label: file_marker(name, "float32", MARKER)
        for name, look in LOOKS.items()
        if name in families
    }
    integers = " or ".join(sorted({"int8", "int4"} & precisions, reverse=True)) or "int8"
    for name, filling in (("float32", "none"), ("float16", "left"), (integers, "full")):
        if name != "float16" or name in precisions:
            look = Look(LOOKS["other"].colour, "o", name)
            styles[name] = marker(look, MARKER, filling) | {"color": "#333333"}
    styles["Pareto front"] = FRONT
    return [Line2D([], [], label=label, **style) for label, style in styles.items()]


def _label(
    axes: Axes, points: list[Point], steps: list[tuple[float, float, float]], floor: float
) -> None:
    """Write the points' numbers where they hide nothing; `steps` are the front's horizontals."""
    pixels = axes.transData.transform
    places: list[tuple[float, float]] = []
    lines = []
    for p in points:
        x, y = pixels((p.x, max(p.y, floor)))
        (left, bottom), (right, top) = pixels([(p.x_low, p.y_low), (p.x_high, p.y_high)])
        places.append((float(x), float(y)))
        lines += [(x - 1, bottom, x + 1, top), (left, y - 1, right, y + 1)]
        if p.chain == BASELINE:  # its star is larger than the other markers
            lines.append((x - STAR, y - STAR, x + STAR, y + STAR))
    for start, end, value in steps:
        (left, y), (right, _) = pixels([(start, value), (end, value)])
        lines.append((left, y - 1, right, y + 1))
    texts = [p.label if p.y >= floor else f"{p.label} (↓ {p.y:.1f} %)" for p in points]
    sizes = [(9.0 * len(text) + 2, 15.0) for text in texts]
    radius = MARKER * DPI / 72 / 2
    bounds = axes.get_window_extent().extents
    centres = pareto_data.place_labels(places, sizes, bounds, radius, lines)
    for text, place, centre in zip(texts, places, centres, strict=True):
        far = math.dist(place, centre) > 32
        arrow = {"arrowstyle": "-", "color": "#888888", "linewidth": 0.7} if far else None
        style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 11, "zorder": 5}
        in_pixels: dict[str, Any] = {"xycoords": "figure pixels", "textcoords": "figure pixels"}
        axes.annotate(text, place, centre, arrowprops=arrow, **in_pixels, **style)


def file_marker(look: str, precision: str, size: float) -> dict[str, Any]:
    """Return how matplotlib draws a point of a family: its filling is the file's precision.

    float32 is hollow, float16 half full, integers full, and so is the baseline's star.
    """
    hollow = precision == "float32" and look != BASELINE
    filling = "none" if hollow else "left" if precision == "float16" else "full"
    size *= {BASELINE: 1.8, CONTROL: 0.8}.get(look, 1.0)
    return marker(LOOKS[look], size, filling)


def _lines(row: Row) -> list[str]:
    """Return a chain's lines in the list below the picture."""
    remark = "" if is_sound(row) else f" ({text_of(row, 'status')})"
    lines = wrap_chain(printable(clean(text_of(row, "chain"))) + remark, LETTERS)
    return lines if len(lines) <= LONGEST else [*lines[: LONGEST - 1], f"...{remark}"]


def _line_count(column: Iterable[Entry]) -> int:
    return sum(len(lines) for _, lines in column)


def _columns(entries: list[Entry]) -> list[list[Entry]]:
    """Split the list so that the first of two columns is the longer one, or is all of it."""
    split = 0
    while _line_count(entries[:split]) < _line_count(entries) / 2:
        split += 1
    return [entries[:split], entries[split:]]


def _list(
    picture: Picture, column: Iterable[Entry], labels: Mapping[str, str], left: float, top: float
) -> None:
    """Write a column of the list, the markers of what is drawn before the numbers."""
    y = top + LINE / 2
    for row, lines in column:
        drawn = is_drawn(row)
        label = labels[text_of(row, "chain")]
        picture.chain(left + 56, y, label, lines, "#222222" if drawn else "#888888")
        if drawn:
            picture.line([left + 8], y, **file_marker(look_name(row), precision(row), 7.5))
        y += LINE * len(lines)
