from __future__ import annotations

import io

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from report_rows import ABOUT, row, timed

from compress.report.forest import _lines, speedups_png
from compress.report.forest_data import (
    Interval,
    delta_axis,
    delta_intervals,
    explanation,
    forest_rows,
    speed_intervals,
    speed_series,
)
from compress.report.picture import Picture
from compress.results.timed import timed_files

BASE = row("baseline")
DOUBTED = timed(trusted=False, margin=0.1)


def series_of(*settings, about=ABOUT):
    """Return series for settings, whether or not a row has an interval there."""
    rows = [{timed_files(name).names["speedup_high"]: 2.0 for name in settings}]
    return speed_series(rows, about)


def test_speedups_have_their_intervals():
    found = row("a()", speedup=2.0, cpu1_speedup=0.5)
    both = series_of("cpu", "cpu1", about=timed(timed_files("cpu1")))
    assert speed_intervals(found, both) == [
        Interval(0, 2.0, 0.98 * 2, 1.02 * 2, True),
        Interval(1, 0.5, 0.5, 0.5, False),
    ]
    doubted = series_of("cpu", about=DOUBTED)
    assert speed_intervals(found, doubted)[0].claimed, "beyond what the control doubts"
    unsure = {**found, "cpu_verdict": None}
    assert not speed_intervals(unsure, doubted)[0].claimed
    assert speed_intervals(row("a()", cpu_speedup_low=0.0), series_of("cpu")) == []


def test_differences_are_in_points():
    found = row("a()", -0.02, control_delta=0.01, control_verdict="better")
    base, control = delta_intervals(found)
    assert (base.series, base.value, base.low, base.high) == (0, -2.0, -3.0, pytest.approx(-1.0))
    assert (control.series, control.value, control.low, control.claimed) == (1, 1.0, 1.0, True)
    assert delta_intervals({**found, "status": "unverified"}) == []


def test_only_settings_with_intervals_have_a_series():
    rows = [BASE, row("a()", cpu1_speedup=2.0)]
    (series,) = speed_series(rows, timed(timed_files("cpu1")))
    assert (series.look.label, series.margin) == ("batch 1, 2 threads", 0.012)
    (doubted,) = speed_series(rows, DOUBTED | {"environment": {}})
    assert doubted.look.label == "batch 1, all threads (not trusted)"


def test_the_baseline_and_what_failed_have_no_row():
    rows = [BASE, row("a()"), {"chain": "b()", "status": "failed"}]
    assert [drawn.row["chain"] for drawn in forest_rows(rows, series_of("cpu"))] == ["a()"]
    bare = [{"chain": "a()", "accuracy": 0.9, "accuracy_delta": 0.1, "cpu_speedup": 2.0}]
    assert forest_rows(bare, series_of("cpu")) == []


def _intervals(*values, half=0.1):
    return [Interval(0, value, value - half, value + half, True) for value in values]


@pytest.mark.parametrize(
    ("values", "low", "high", "linear"),
    [
        ((-0.1, 0.2, -1.1), -1.2, 0.3, 0),
        ((-1.6, -12.0), -12.1, 0.0, 0),  # one that is far from the other is no reason to bend it
        ((-0.1, -0.2, -60.0), -60.1, 0.0, 2),
        ((-0.1, -0.2, -4.4), -4.5, 0.0, 0),
        ((*(-0.1,) * 16, -4.4, -14.2), -14.3, 0.0, 0),
        ((*(-0.1,) * 16, -4.4, -84.2), -84.3, 0.0, 5),
        ((-0.1, -14.0, -15.0, -60.0, -70.0, -14.5), -70.1, 0.0, 0),
        ((*(-0.1,) * 5, -24.0, *(-0.1,) * 5, -24.0), -24.1, 0.0, 2),  # ten of twelve
        ((*(-0.1,) * 5, -24.0, *(-0.1,) * 4, -24.0), -24.1, 0.0, 0),  # nine of eleven are too few
        ((), -2.0, 0.0, 0),
    ],
)
def test_the_axis_holds_all_and_collapsed_rows_do_not_squeeze_the_others(values, low, high, linear):
    axis = delta_axis(_intervals(*values))
    room = 0.06 * (high - low)
    ends = (1.2 * low, 0.1 * linear) if linear else (low - room, high + room)
    assert axis == pytest.approx((*ends, linear))


@example([(0.0, 5e-324, 0)])
@given(st.lists(st.tuples(st.floats(-100, 20), st.floats(0, 300), st.integers(0, 1)), min_size=1))
def test_every_interval_is_on_the_axis(found):
    intervals = [Interval(i, v, v - half, v + half, True) for v, half, i in found]
    axis = delta_axis(intervals)
    assert all(axis.low < one.low and one.high < axis.high for one in intervals)
    assert axis.low < 0 < axis.high
    assert all(axis.low <= tick <= axis.high for tick in axis.ticks)


@given(st.lists(st.floats(-100, 20), min_size=1))
def test_five_sixths_of_the_rows_and_all_within_10_points_are_on_its_linear_part(values):
    linear = delta_axis(_intervals(*values)).linear or 100
    inside = [value for value in values if abs(value) <= linear]
    assert len(inside) >= (5 / 6 * len(values) if len(values) > 5 else len(values) - 1)
    assert all(value in inside for value in values if abs(value) <= 10)


def test_intervals_of_few_seeds_do_not_squeeze_the_axis():
    axis = delta_axis(_intervals(-1.0, -1.5, half=40.0))
    assert axis.linear == 2.0
    assert axis.ticks == [-20.0, -10.0, -5.0, -2.0, -1.0, 0.0, 1.0, 2.0, 5.0, 10.0, 20.0]


def _drawn(rows, monkeypatch):
    """Return the two panels of a picture."""
    panels = []
    panel = Picture.panel

    def kept(*arguments):
        panels.append(panel(*arguments))
        return panels[-1]

    monkeypatch.setattr(Picture, "panel", kept)
    assert speedups_png(rows, ABOUT)
    return panels


def test_both_panels_hold_every_interval(monkeypatch):
    wide = {"cpu_speedup_low": 1.2, "cpu_speedup_high": 8.99}
    far = {"accuracy_delta_low": -0.191, "accuracy_delta_high": -0.049}
    rows = [BASE, row("a()", -0.016), row("b()", -0.12, 3.23, **wide, **far)]
    rows.append(row("c()", -0.03, 0.2, cpu_speedup_low=0.05, cpu_speedup_high=0.8))
    speeds, deltas = _drawn(rows, monkeypatch)
    for axes, lowest, highest in ((speeds, 0.05, 8.99), (deltas, -19.1, 0.0)):
        low, high = axes.get_xlim()
        assert low < lowest < highest < high
        assert not axes.texts, "what is on the axis needs no words"
    assert deltas.get_xscale() == "linear"


def test_a_collapsed_row_bends_the_axis_and_the_axis_says_so(monkeypatch):
    rows = [BASE, *(row(f"{name}()", -0.001) for name in "abcdef"), row("far()", -0.8)]
    _, deltas = _drawn(rows, monkeypatch)
    assert deltas.get_xlim()[0] < -81
    assert deltas.get_xscale() == "symlog"
    assert deltas.get_xlabel() == "difference in accuracy, points (log scale beyond ±2)"


def test_the_reading_says_what_a_hollow_marker_may_be():
    rows = [BASE, row("a()", speedup=2.0)]
    said = explanation(rows, speed_series(rows, DOUBTED), several=True)
    assert said == (
        "Means over the seeds. Bars: 95 % intervals. Filled markers: a verdict; hollow ones: "
        "inconclusive, or timing not to be trusted. Grey: what a verdict must exceed by the "
        "A/A control."
    )
    assert "not to be trusted" not in explanation(rows, speed_series(rows, ABOUT), False)
    assert explanation([{"chain": "a()"}], [], False) == (
        "Bars: 95 % intervals. These results have no verdicts."
    )


MANY = [BASE, *(row(f"prune_channels(macs=0.{i})", -i / 100, 1 + i / 9) for i in range(1, 30))]
CASES = {
    "two": [BASE, row("a()", 0.01, 1.5)],
    "many": MANY,
    "seeds": [{**found, "seed": seed} for found in MANY for seed in range(3)],
    "a wide and a narrow interval": [
        BASE,
        row("a()", speedup=1.5, cpu_speedup_high=1e9),
        row("b()", speedup=1.0001),
    ],
    "seven settings": [
        BASE,
        row(
            "a()",
            **{
                f"cpu{i}_speedup{end}": value
                for i in range(1, 8)
                for end, value in (("", 2.0), ("_low", 1.9), ("_high", 2.2))
            },
        ),
    ],
    "no speed": [{k: v for k, v in found.items() if not k.startswith("cpu")} for found in MANY[:3]],
    "no accuracy": [
        {k: v for k, v in found.items() if not k.startswith("accuracy")} for found in MANY[:3]
    ],
    "collapsed": [BASE, row("a()", -0.8), row("b()", -0.001), row("c()", control_delta=-0.9)],
    "hostile": [BASE, row("$\\frac$ 漢字 \x1b \udcff <b> " + "y(" * 900, role="control")],
    "the same chain twice": [BASE, row("a()", seed=None), row("a()", seed=None)],
}


SEVEN = timed(*(timed_files(f"cpu{i}") for i in range(1, 8)))


@pytest.mark.parametrize("name", CASES)
def test_the_picture_can_be_drawn(name):
    about = (SEVEN if name == "seven settings" else ABOUT) | {"suite": "$x", "model": "漢"}
    content = speedups_png(CASES[name], about)
    with Image.open(io.BytesIO(content)) as image:
        image.load()
        assert image.width == 1600
        assert 200 < image.height < 3000
        assert len(set(image.convert("L").tobytes())) > 2
    assert speedups_png(CASES[name], about) == content


def test_a_long_name_does_not_hide_the_options():
    student = "torchvision:VisionTransformer(patch_size=4, num_layers=3, num_heads=4)"
    lines = _lines(row(f"distill(student='{student}', hard_weight=0.5, epochs=3)"))
    assert lines[0] == "distill(student='torchvision:VisionT…',"
    assert "epochs=3" in lines[-1]
    short = _lines(row(f"distill(student='{student[:24]}', epochs=3)"))
    assert any(student[:24] in line for line in short), "what fits is left alone"


def test_without_an_interval_there_is_no_picture():
    assert speedups_png([BASE, {"chain": "a()", "cpu_speedup": 2.0, "accuracy": 0.5}], {}) is None
    assert speedups_png([], {}) is None
