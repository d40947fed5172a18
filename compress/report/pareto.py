"""The picture of a comparison: accuracy against latency and against size."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from compress.amounts import decimal
from compress.report import legend
from compress.report.columns import BASELINE, CONTROL, Row, ordered, text_of
from compress.report.labels import Box, place_labels
from compress.report.pareto_data import (
    Point,
    is_drawn,
    latency_axis,
    latency_points,
    size_points,
)
from compress.report.pareto_front import cut_below, pareto_front
from compress.report.row_numbers import number_chains
from compress.report.seeds import over_seeds, seeds_of
from compress.report.styles import LOOKS, look_name, precision, precisions

DPI = 100
PANEL_PIXELS = 560
LEFT, RIGHT, GAP, TOP, BOTTOM = 94, 20, 96, 88, 58  # pixels around the panels
MARKER = 9.0  # points
MOST = 12  # keys beside each other
STAR = 14  # pixels from the middle of the baseline's star to its points
STYLE: Any = {  # its keys are typed one by one
    "font.family": "DejaVu Sans",
    "font.size": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.unicode_minus": True,
}


def pareto_png(rows: Iterable[Row], about: Mapping[str, Any]) -> bytes:
    """Return a PNG, 1600 pixels wide: accuracy against CPU latency, and against the ONNX size.

    Points are numbered; the numbers' chains are listed below. Rows that failed or were not
    verified are listed and not drawn. With several seeds a point is their mean, and theirs are
    small and faint.
    """
    single = ordered(rows)
    several = len(seeds_of(single)) > 1
    shown: list[Row] = [*over_seeds(single)] if several else single
    labels = number_chains(shown)
    with matplotlib.rc_context(STYLE):
        entries = legend.entries(shown, labels)
        height = TOP + PANEL_PIXELS + BOTTOM + legend.height(entries)
        figure = Figure(figsize=(legend.WIDTH / DPI, height / DPI), dpi=DPI, facecolor="white")
        canvas = FigureCanvasAgg(figure)
        panels = _panels(figure, height)
        latency, size = latency_points(shown, labels), size_points(shown, labels)
        faint = single if several else []
        cut = cut_below([p.y for p in [*latency, *size]])
        for axes, points, seeds, what in (
            (panels[0], latency, latency_points(faint, labels), latency_axis(shown, about)),
            (panels[1], size, size_points(faint, labels), "ONNX file, kB"),
        ):
            _draw(axes, points, seeds, what, cut)
        _heading(figure, shown, about, height)
        legend.draw(figure, entries, height, top=TOP + PANEL_PIXELS + BOTTOM)
        canvas.draw()
        for axes, points in zip(panels, (latency, size), strict=True):
            _label(axes, points)
        content = io.BytesIO()
        canvas.print_figure(content, format="png", metadata={"Software": None})
    return content.getvalue()


def _panels(figure: Figure, height: int) -> list[Axes]:
    wide = (legend.WIDTH - LEFT - GAP - RIGHT) / 2
    bottom, tall = 1 - (TOP + PANEL_PIXELS) / height, PANEL_PIXELS / height
    lefts = (LEFT, LEFT + wide + GAP)
    return [figure.add_axes((x / legend.WIDTH, bottom, wide / legend.WIDTH, tall)) for x in lefts]


def _draw(
    axes: Axes, points: list[Point], seeds: list[Point], what: str, cut: float | None
) -> None:
    axes.set_xlabel(what)
    bars = "faint: single seeds" if seeds else "bars: 95 % intervals"
    axes.set_ylabel(f"accuracy, % ({bars})")
    if not points:
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, f"no row has both an accuracy and\n{what}", **_centred(axes))
        return
    floor = _limits(axes, points, seeds, cut)
    axes.grid(True, color="#ececec", linewidth=0.8)
    axes.set_axisbelow(True)
    for point in points:
        if point.chain == BASELINE:
            axes.axhline(point.y, color="#000000", alpha=0.25, linewidth=1, linestyle=(0, (6, 4)))
    front = [points[i] for i in pareto_front([(p.x, p.y) for p in points])]
    _steps(axes, front, floor)
    for point in seeds:
        axes.plot([point.x], [point.y], alpha=0.35, zorder=1.8, **_style(point, 0.5))
    for point in points:
        _mark(axes, point, floor)


def _centred(axes: Axes) -> dict[str, Any]:
    return {"transform": axes.transAxes, "ha": "center", "va": "center", "color": "#666666"}


def _limits(axes: Axes, points: list[Point], seeds: list[Point], cut: float | None) -> float:
    """Set both axes; return the accuracy at which points below the cut are drawn."""
    xs = [x for p in [*points, *seeds] for x in (p.x_low, p.x_high)]
    if max(xs) > 5 * min(xs):
        axes.set_xscale("log")
        decades = math.log10(max(xs) / min(xs))
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2.5 else (1,)))
        axes.xaxis.set_minor_locator(NullLocator())
        room = (max(xs) / min(xs)) ** 0.06
        axes.set_xlim(min(xs) / room, max(xs) * room)
    else:
        axes.set_xlim(max(0.0, min(xs) - _room(xs)), max(xs) + _room(xs))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: decimal(x, 10, commas=True)))
    above = [p for p in points if cut is None or p.y >= cut] or points
    kept = {p.chain for p in above}
    ys = [y for p in above for y in (p.y_low, p.y_high)]
    ys += [p.y for p in seeds if p.chain in kept]
    room = max(0.06 * (max(ys) - min(ys)), 0.2)
    below = room * (3 if len(above) < len(points) else 1)
    axes.set_ylim(min(ys) - below, max(ys) + room)
    return -math.inf if len(above) == len(points) else min(ys) - below / 2


def _room(xs: list[float]) -> float:
    return 0.06 * (max(xs) - min(xs)) or 0.2 * max(xs)


def _steps(axes: Axes, front: list[Point], floor: float) -> None:
    right = axes.get_xlim()[1]
    xs = [*(p.x for p in front), right]
    ys = [max(p.y, floor) for p in front]
    axes.step(xs, [*ys, ys[-1]], where="post", color="#9a9a9a", linewidth=1.6, zorder=1.5)


def _mark(axes: Axes, point: Point, floor: float) -> None:
    look = LOOKS[look_name(point.chain, point.control)]
    if point.y < floor:  # off the scale: at the floor; its label has the value
        y = floor
    else:
        y = point.y
        bars: dict[str, Any] = {"color": look.colour, "alpha": 0.55, "linewidth": 1.1, "zorder": 2}
        axes.plot([point.x, point.x], [point.y_low, point.y_high], **bars)
        axes.plot([point.x_low, point.x_high], [y, y], **bars)
    axes.plot([point.x], [y], zorder=4 if point.chain == BASELINE else 3, **_style(point))


def _style(point: Point, scale: float = 1.0) -> dict[str, Any]:
    name = look_name(point.chain, point.control)
    return legend.marker(name, precision(point.chain), scale * MARKER)


def _heading(figure: Figure, rows: list[Row], about: Mapping[str, Any], height: int) -> None:
    items = about.get("test_items")
    parts = [about.get("suite"), about.get("model"), f"{items} test items" if items else None]
    title = legend.title_of(parts)
    bare: dict[str, Any] = {"parse_math": False, "va": "center", "x": LEFT / legend.WIDTH}
    figure.text(y=1 - 24 / height, s=title, fontsize=15, fontweight="bold", **bare)
    drawn = [row for row in rows if is_drawn(row)]
    if not drawn:
        message = "nothing to draw: all rows failed, or none has an accuracy that was verified"
        figure.text(y=1 - 56 / height, s=message, color="#B00020", fontsize=13, **bare)
        return
    keys = _keys(drawn)
    lines = -(-len(keys) // MOST)
    figure.legend(
        handles=keys,
        loc="center left",
        bbox_to_anchor=((LEFT - 8) / legend.WIDTH, 1 - (50 + 6 * lines) / height),
        ncols=-(-len(keys) // lines),
        frameon=False,
        fontsize=11,
        handletextpad=0.3,
        columnspacing=1.2,
        borderpad=0,
    )


def _keys(rows: list[Row]) -> list[Line2D]:
    families = {look_name(text_of(row, "chain"), text_of(row, "role") == CONTROL) for row in rows}
    keys = [
        Line2D([], [], label=look.label, **legend.marker(name, "float32", MARKER))
        for name, look in LOOKS.items()
        if name in families
    ]
    for found in precisions(text_of(row, "chain") for row in rows):
        style = legend.marker("other", found, MARKER) | {"marker": "o", "color": "#333333"}
        keys.append(Line2D([], [], label=found, **style))
    return [*keys, Line2D([], [], color="#9a9a9a", linewidth=1.6, label="Pareto front")]


def _label(axes: Axes, points: list[Point]) -> None:
    if not points:
        return
    low = axes.get_ylim()[0]
    floor = (low + min(p.y_low for p in points if p.y >= low)) / 2
    scale = axes.transData.transform
    pixels = (scale((p.x, max(p.y, floor))) for p in points)
    at = [(float(x), float(y)) for x, y in pixels]
    lines: list[Box] = []
    for p, (x, y) in zip(points, at, strict=True):
        lines.append(
            (x - 1, float(scale((p.x, p.y_low))[1]), x + 1, float(scale((p.x, p.y_high))[1]))
        )
        lines.append(
            (float(scale((p.x_low, p.y))[0]), y - 1, float(scale((p.x_high, p.y))[0]), y + 1)
        )
        if p.chain == BASELINE:  # its star is larger than the other markers
            lines.append((x - STAR, y - STAR, x + STAR, y + STAR))
    lines += _step_boxes(axes, points, floor)
    box = axes.get_window_extent()
    texts = [p.label if p.y >= low else f"{p.label} (↓ {p.y:.1f} %)" for p in points]
    sizes = [(9.0 * len(text) + 2, 15.0) for text in texts]
    centres = place_labels(
        at, sizes, (box.x0, box.y0, box.x1, box.y1), MARKER * DPI / 72 / 2, lines
    )
    for text, place, centre in zip(texts, at, centres, strict=True):
        _write(axes, text, place, centre)


def _step_boxes(axes: Axes, points: list[Point], floor: float) -> list[Box]:
    """The front's horizontal lines, as thin boxes in pixels."""
    front = [points[i] for i in pareto_front([(p.x, p.y) for p in points])]
    ends = [*(p.x for p in front[1:]), axes.get_xlim()[1]]
    boxes = []
    for point, end in zip(front, ends, strict=True):
        y = max(point.y, floor)
        (left, middle), (right, _) = axes.transData.transform([(point.x, y), (end, y)])
        boxes.append((float(left), float(middle) - 1, float(right), float(middle) + 1))
    return boxes


def _write(axes: Axes, text: str, place: tuple[float, float], centre: tuple[float, float]) -> None:
    far = math.dist(place, centre) > 32
    axes.annotate(
        text,
        place,
        centre,
        xycoords="figure pixels",
        textcoords="figure pixels",
        ha="center",
        va="center",
        fontsize=11,
        zorder=5,
        arrowprops={"arrowstyle": "-", "color": "#888888", "linewidth": 0.7} if far else None,
    )
