"""Curves of trainings: rows, what is drawn once, and a picture that is not empty."""

from __future__ import annotations

import io
from functools import cache
from typing import Any

import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image
from report_rows import ABOUT, row

from compress.report.curves import (
    KEYS,
    MOST,
    _dress,
    curve_rows,
    curves_csv,
    curves_of,
    curves_png,
)


def step_log(*trainings: list[float]) -> list[dict[str, Any]]:
    """Return the log of some trainings, given their epochs' losses."""
    rows: list[dict[str, Any]] = []
    for losses in trainings:
        for number, loss in enumerate(losses, 1):
            accuracy = {"validation_accuracy": 1 - loss / 10, "train_accuracy": 1 - loss / 12}
            rows.append({"kind": "epoch", "epoch": number, "loss": loss, **accuracy})
        rows += [{"kind": "fit", "samples": 1}, {"kind": "note", "text": "x"}]
    return rows


TWO = [
    ("a() -> b()", 0, step_log([2.0, 1.0], [0.9, 0.5, 0.4])),
    ("a() -> c()", 0, step_log([2.0, 1.0])),
    ("d()", 0, step_log([3.0])),
]
TABLE = [row("baseline"), *(row(chain) for chain, _, _ in TWO)]


def test_a_row_for_every_epoch_of_every_training() -> None:
    rows = curve_rows(TWO)
    assert [(r["chain"], r["training"], r["epoch"]) for r in rows] == [
        *(("a() -> b()", 1, 1), ("a() -> b()", 1, 2)),
        *(("a() -> b()", 2, 1), ("a() -> b()", 2, 2), ("a() -> b()", 2, 3)),
        *(("a() -> c()", 1, 1), ("a() -> c()", 1, 2)),
        ("d()", 1, 1),
    ]
    text = curves_csv(rows)
    assert text is not None
    table = pd.read_csv(io.StringIO(text))
    assert list(table.columns) == list(KEYS)
    assert table["loss"].tolist() == [2, 1, 0.9, 0.5, 0.4, 2, 1, 3]
    assert curves_csv([]) is None


def test_a_training_that_chains_share_is_drawn_once() -> None:
    found = curves_of(curve_rows(TWO))
    assert [(curve.chains, curve.training) for curve in found] == [
        (["a() -> b()", "a() -> c()"], 1),
        (["a() -> b()"], 2),
    ], "one epoch makes no curve"


def pixels(content: bytes | None) -> Image.Image:
    assert content is not None
    picture = Image.open(io.BytesIO(content)).convert("RGB")
    assert picture.width == 1600
    return picture


def test_the_picture_has_a_colour_for_each_training() -> None:
    picture = pixels(curves_png(curve_rows(TWO), TABLE, ABOUT))
    colours = {colour for _, colour in picture.getcolors(1 << 24) or []}
    assert {(31, 119, 180), (174, 199, 232)} <= colours
    alone = pixels(curves_png(curve_rows(TWO[1:2]), TABLE, ABOUT))
    assert (174, 199, 232) not in {colour for _, colour in alone.getcolors(1 << 24) or []}
    assert picture.height == alone.height + 20


def test_nothing_to_draw_is_no_picture() -> None:
    assert curves_png([], TABLE, ABOUT) is None
    assert curves_png(curve_rows(TWO[2:]), TABLE, ABOUT) is None


@cache
def alone(chain: str) -> Image.Image:
    """Return the picture of one training of a chain."""
    return pixels(curves_png(curve_rows([(chain, 0, step_log([2, 1]))]), [row(chain)], ABOUT))


@pytest.mark.parametrize("chain", ["$\\frac{", "<b>&", "é\x00ß", "x" * 4000, ""])
def test_any_text_can_be_drawn(chain: str) -> None:
    assert alone(chain).height == alone("a()").height, "one line of the key, however long the text"


def test_seeds_share_a_colour_and_many_trainings_are_cut() -> None:
    seeds = [("a()", seed, step_log([2 + seed, 1 + seed])) for seed in range(3)]
    one = pixels(curves_png(curve_rows(seeds[:1]), TABLE, ABOUT))
    assert pixels(curves_png(curve_rows(seeds), TABLE, ABOUT)).height == one.height
    many = [(f"a(x={i})", 0, step_log([2 + i, 1 + i])) for i in range(MOST + 9)]
    picture = pixels(curves_png(curve_rows(many), TABLE, ABOUT))
    assert picture.height == one.height + 20 * (MOST - 1)


@pytest.mark.parametrize("values", [(0.7, 0.15), (0.036, 0.031), (9.9, 1.1), (0.5, 0.001)])
def test_the_loss_can_be_read_off(values: tuple[float, float]) -> None:
    """On a logarithmic axis of less than a decade no power of ten may be seen."""
    axes = Figure().add_subplot()
    axes.plot([1, 2], values)
    _dress(axes, "loss", logarithmic=True)
    low, high = axes.get_ylim()
    ticks = [tick for tick in axes.get_yticks() if low <= tick <= high]
    assert len(ticks) >= 2
    labels = [axes.yaxis.get_major_formatter()(tick) for tick in ticks]
    assert [float(text) for text in labels] == pytest.approx(ticks)


def test_missing_or_odd_figures_leave_gaps() -> None:
    rows = curve_rows([("a()", 0, [{"kind": "epoch", "epoch": i, "loss": -1.0} for i in (1, 2)])])
    picture = pixels(curves_png(rows, TABLE, ABOUT))
    right = picture.crop((900, 90, 1560, 590))
    colours = {colour for _, colour in right.getcolors(1 << 24) or []}
    assert (31, 119, 180) not in colours, "nothing was judged, so no line is there"
    assert (31, 119, 180) in {c for _, c in picture.crop((0, 90, 800, 590)).getcolors(1 << 24)}
