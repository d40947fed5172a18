"""How the trainings went: loss and validation accuracy by epoch, as rows and as a picture."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from compress.amounts import decimal
from compress.report.columns import BASELINE, Row, text_of
from compress.report.layout import clean
from compress.report.legend import LINE, MONO, SIZE, WIDTH, printable, title_of
from compress.report.pareto import DPI, STYLE
from compress.report.row_numbers import number_chains
from compress.report.shorten import brief, cut

KEYS = (
    *("chain", "seed", "training", "epoch", "loss", "train_accuracy", "validation_accuracy"),
    *("validation_loss", "samples_per_second"),
)
PANEL = 520  # pixels, as tall
TOP, LEFT, GAP, RIGHT, BOTTOM = 88, 96, 100, 40, 60
LETTERS = 150  # of a line of the key
MOST = 20  # lines that can be told apart
COLOURS = [*matplotlib.colormaps["tab20"].colors]  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Curve:
    """One training: the chains that share it, its seed, and its epochs' rows."""

    chains: tuple[str, ...]
    training: int
    """Which one of the chain's trainings, from 1."""
    seed: int
    epochs: tuple[Mapping[str, Any], ...]


def curve_rows(step_logs: Iterable[tuple[str, int, Iterable[Mapping[str, Any]]]]) -> list[Row]:
    """Return a row for every epoch of every (chain, seed, log), with the columns `KEYS`."""
    rows: list[Row] = []
    for chain, seed, step_log in step_logs:
        training = 1
        for line in step_log:
            if line.get("kind") == "epoch":
                known = {key: line[key] for key in KEYS if key in line}
                rows.append({"chain": chain, "seed": seed, "training": training, **known})
            elif line.get("kind") == "fit":
                training += 1
    return rows


def curves_csv(rows: Sequence[Row]) -> str | None:
    """Return the rows as CSV; None if there are none."""
    if not rows:
        return None
    return str(
        pd.DataFrame(list(rows), columns=list(KEYS)).to_csv(index=False, lineterminator="\n")
    )


def curves_of(rows: Iterable[Row]) -> list[Curve]:
    """Return every training of at least two epochs once, with all chains that share it."""
    trainings: dict[tuple[str, int, int], list[Mapping[str, Any]]] = {}
    for row in rows:
        key = (text_of(row, "chain"), int(row["seed"]), int(row["training"]))
        trainings.setdefault(key, []).append(row)
    shared: dict[tuple[Any, ...], list[str]] = {}
    epochs: dict[tuple[Any, ...], tuple[Mapping[str, Any], ...]] = {}
    for (chain, seed, training), lines in trainings.items():
        if len(lines) < 2:
            continue
        same = (seed, training, *((line["loss"], line["epoch"]) for line in lines))
        shared.setdefault(same, []).append(chain)
        epochs[same] = tuple(lines)
    return [Curve(tuple(chains), same[1], same[0], epochs[same]) for same, chains in shared.items()]


def curves_png(rows: Sequence[Row], table: Iterable[Row], about: Mapping[str, Any]) -> bytes | None:
    """Return a PNG, 1600 pixels wide: training loss and validation accuracy by epoch.

    A colour for each training that differs; several seeds of one share it, faint, with their mean
    drawn over them. Numbers are those of the tables. None without a training of two epochs.
    """
    curves = curves_of(rows)
    if not curves:
        return None
    labels = number_chains(table)
    groups: dict[tuple[str, int], list[Curve]] = {}
    for curve in curves:
        groups.setdefault((curve.chains[0], curve.training), []).append(curve)
    shown = dict(list(groups.items())[:MOST])
    words = [_words(group, labels) for group in shown.values()]
    left_out = len(groups) - len(shown)
    height = TOP + PANEL + BOTTOM + LINE * (len(words) + 2)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH / DPI, height / DPI), dpi=DPI, facecolor="white")
        canvas = FigureCanvasAgg(figure)
        wide = (WIDTH - LEFT - GAP - RIGHT) / 2
        low = height - TOP - PANEL
        panels = [
            figure.add_axes((left / WIDTH, low / height, wide / WIDTH, PANEL / height))
            for left in (LEFT, LEFT + wide + GAP)
        ]
        for number, group in enumerate(shown.values()):
            _draw(panels[0], group, "loss", COLOURS[number])
            _draw(panels[1], group, "validation_accuracy", COLOURS[number])
        _dress(panels[0], "loss in training (log scale)", logarithmic=True)
        _dress(panels[1], "accuracy on the validation split, %", logarithmic=False)
        _heading(figure, about, left_out, height)
        _key(figure, words, height)
        content = io.BytesIO()
        canvas.print_figure(content, format="png", metadata={"Software": None})
    return content.getvalue()


def _words(group: Sequence[Curve], labels: Mapping[str, str]) -> str:
    """Return the numbers of the chains that share a training, and the first one's text."""
    chains = group[0].chains
    numbers = [f"#{labels[c]}" for c in chains if labels.get(c)]
    first = "baseline" if BASELINE in chains else chains[0]
    which = f", training {group[0].training}" if group[0].training > 1 else ""
    many = ", ".join(numbers[:8]) + (", ..." if len(numbers) > 8 else "")
    for chain in (first, brief(first)):
        text = printable(clean(f"{many}{which}  {chain}".strip()))
        if len(text) <= LETTERS:
            return text
    return cut(text, LETTERS)


def _draw(axes: Axes, group: Sequence[Curve], key: str, colour: Any) -> None:
    scale = 100 if key.endswith("accuracy") else 1
    lines = [
        {int(e["epoch"]): scale * float(e[key]) for e in curve.epochs if e.get(key) is not None}
        for curve in group
    ]
    lines = [line for line in lines if line]
    if not lines:
        return
    if len(lines) > 1:
        for line in lines:
            axes.plot(list(line), list(line.values()), color=colour, linewidth=0.9, alpha=0.45)
    common = sorted(set.intersection(*(set(line) for line in lines)))
    mean = [sum(line[epoch] for line in lines) / len(lines) for epoch in common]
    style: Any = {"marker": "o", "markersize": 3.5} if len(common) <= 40 else {}
    axes.plot(common, mean, color=colour, linewidth=1.8, **style)


def _dress(axes: Axes, words: str, logarithmic: bool) -> None:
    axes.set_xlabel("epoch")
    axes.set_title(words, loc="left", fontsize=12)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(True, color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    values = [float(y) for line in axes.lines for y in np.asarray(line.get_ydata())]
    if logarithmic and values and min(values) > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: decimal(y)))
        axes.yaxis.set_minor_locator(NullLocator())
        if max(values) < 10 * min(values):  # there may be no power of ten in between
            low, high = axes.get_ylim()
            ticks = MaxNLocator(nbins=6, steps=[1, 2, 5, 10]).tick_values(low, high)
            axes.yaxis.set_major_locator(FixedLocator([y for y in ticks if low <= y <= high]))
    if not values:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color="#666666")


def _heading(figure: Figure, about: Mapping[str, Any], left_out: int, height: int) -> None:
    parts = [about.get("suite"), about.get("model"), "how the trainings went"]
    title = title_of(parts)
    words = "A line is a training; chains that begin alike share it. Numbers are the table's."
    if left_out:
        words += f" {left_out} more trainings stand in curves.csv only."
    bare: dict[str, Any] = {"parse_math": False, "va": "center", "x": 24 / WIDTH}
    figure.text(y=1 - 24 / height, s=title, fontsize=15, fontweight="bold", **bare)
    figure.text(y=1 - 52 / height, s=words, fontsize=11, color="#444444", **bare)


def _key(figure: Figure, words: Sequence[str], height: int) -> None:
    top = TOP + PANEL + BOTTOM
    for number, text in enumerate(words):
        y = 1 - (top + LINE * (number + 0.5)) / height
        figure.add_artist(
            Line2D([28 / WIDTH, 62 / WIDTH], [y, y], color=COLOURS[number], linewidth=3)
        )
        style: dict[str, Any] = {"fontsize": SIZE, "family": MONO, "parse_math": False}
        figure.text(74 / WIDTH, y, text, va="center", **style)
