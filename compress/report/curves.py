"""How the trainings went: loss and validation accuracy by epoch, as rows and as a picture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from compress.report.chains import brief, number_chains
from compress.report.layout import clean, cut
from compress.report.picture import LINE, MONO, SIZE, STYLE, WIDTH, Picture, note, printable
from compress.report.timing_words import About
from compress.results.record import BASELINE
from compress.results.table import Row, text_of
from compress.system.amounts import decimal

KEYS = [
    *("chain", "seed", "training", "epoch", "loss", "train_accuracy", "validation_accuracy"),
    *("validation_loss", "samples_per_second"),
]
PANEL = 520  # pixels, as tall
TOP, LEFT, GAP, RIGHT, BOTTOM = 88, 96, 100, 40, 60
MARGIN = 24  # pixels left of the heading
LETTERS = 150  # of a line of the key
MOST = 20  # lines that can be told apart
COLOURS = [*matplotlib.colormaps["tab20"].colors]  # type: ignore[attr-defined]


class Curve(NamedTuple):
    """One training: the chains that share it, its seed, and its epochs' rows."""

    chains: list[str]
    training: int
    """Which one of the chain's trainings, from 1."""
    seed: int
    epochs: list[Row]


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
    return str(pd.DataFrame(rows, columns=KEYS).to_csv(index=False, lineterminator="\n"))


def curves_of(rows: Iterable[Row]) -> list[Curve]:
    """Return every training of at least two epochs once, with all chains that share it."""
    trainings: dict[tuple[str, int, int], list[Row]] = {}
    for row in rows:
        key = (text_of(row, "chain"), int(row["seed"]), int(row["training"]))
        trainings.setdefault(key, []).append(row)
    curves: dict[tuple[Any, ...], Curve] = {}
    for (chain, seed, training), epochs in trainings.items():
        if len(epochs) > 1:
            same = (seed, training, *((row["loss"], row["epoch"]) for row in epochs))
            curves.setdefault(same, Curve([], training, seed, epochs)).chains.append(chain)
    return list(curves.values())


@matplotlib.rc_context(STYLE)
def curves_png(rows: Sequence[Row], table: Iterable[Row], about: About) -> bytes | None:
    """Return a PNG, 1600 pixels wide: training loss and validation accuracy by epoch.

    A colour for each training that differs; several seeds of one share it, faint, with their mean
    drawn over them. Numbers are those of the tables. None without a training of two epochs.
    """
    groups: dict[tuple[str, int], list[Curve]] = {}
    for curve in curves_of(rows):
        groups.setdefault((curve.chains[0], curve.training), []).append(curve)
    if not groups:
        return None
    labels = number_chains(table)
    shown = list(groups.values())[:MOST]
    bottom = TOP + PANEL + BOTTOM
    picture = Picture(bottom + LINE * (len(shown) + 2))
    words = "Each line is a training, which chains that begin alike share. Numbers as in the table."
    if left_out := len(groups) - len(shown):
        words += f" {left_out} more trainings are in curves.csv only."
    picture.heading(MARGIN, about, "how the trainings went", words)
    wide = (WIDTH - LEFT - GAP - RIGHT) / 2
    loss = picture.panel(LEFT, TOP, wide, PANEL)
    accuracy = picture.panel(LEFT + wide + GAP, TOP, wide, PANEL)
    for i, (group, colour) in enumerate(zip(shown, COLOURS, strict=False)):
        _draw(loss, group, "loss", colour)
        _draw(accuracy, group, "validation_accuracy", colour)
        y = bottom + LINE * (i + 0.5)
        picture.line([28, 62], y, color=colour, linewidth=3)
        picture.text(74, y, _words(group, labels), fontsize=SIZE, family=MONO)
    _dress(loss, "loss in training (log scale)", logarithmic=True)
    _dress(accuracy, "accuracy on the validation split, %", logarithmic=False)
    return picture.png()


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
        note(axes, "not measured")
