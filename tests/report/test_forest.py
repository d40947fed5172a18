from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from report_rows import ABOUT, row, timed

from compress.report.forest import _lines, speedups_png
from compress.report.forest_data import (
    Interval,
    beyond_words,
    delta_intervals,
    delta_range,
    explanation,
    forest_rows,
    speed_intervals,
    speed_series,
)
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
    ("values", "lowest", "highest"),
    [
        ((-0.1, 0.2, -1.1), -1.2, 0.3),
        ((-0.1, -0.2, -60.0), -0.3, 0.0),  # the collapsed one is drawn at the edge
        ((-0.1, -0.2, -4.4), -4.5, 0.0),
        ((*(-0.1,) * 16, -4.4, -14.2), -4.5, 0.0),
        ((-0.1, -14.0, -15.0, -60.0, -70.0, -14.5), -70.1, 0.0),
        ((*(-0.1,) * 5, -14.0, *(-0.1,) * 5, -14.0), -0.2, 0.0),  # ten of twelve
        ((*(-0.1,) * 5, -14.0, *(-0.1,) * 4, -14.0), -14.1, 0.0),  # nine of eleven would be less
        ((), -2.0, 0.0),
    ],
)
def test_collapsed_rows_do_not_squeeze_the_others(values, lowest, highest):
    low, high = delta_range(_intervals(*values))
    room = 0.06 * (highest - lowest)
    assert (low, high) == pytest.approx((lowest - room, highest + room))


@given(st.lists(st.floats(-100, 20), min_size=1))
def test_five_sixths_of_the_rows_and_all_within_10_points_are_on_the_axis(values):
    low, _ = delta_range(_intervals(*values))
    inside = [value for value in values if value >= low]
    assert len(inside) >= (5 / 6 * len(values) if len(values) > 5 else len(values) - 1)
    assert all(value in inside for value in values if value >= -10)


def test_a_difference_to_a_control_is_on_the_axis_too():
    low, _ = delta_range([*_intervals(0.0), Interval(1, -9.0, -9.5, -8.5, True)])
    assert low < -9.0


def test_what_lies_beyond_the_axis_has_its_value_and_interval_written():
    (found,) = delta_intervals(row("a()", -0.1417))
    assert beyond_words(found) == "-14.2 [-15.2, -13.2]"
    assert beyond_words(Interval(0, -60.0, -60.0, -60.0, True)) == "-60.0"


def test_a_verdict_beyond_the_axis_is_still_seen():
    near = [BASE, *(row(f"{name}()", -0.001) for name in "abcdef")]
    pictures = {
        verdict: speedups_png([*near, row("far()", -0.8, accuracy_verdict=verdict)], ABOUT)
        for verdict in ("worse", "not shown")
    }
    assert pictures["worse"] != pictures["not shown"]


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


def test_intervals_of_few_seeds_do_not_squeeze_the_axis():
    low, high = delta_range(_intervals(-1.0, -1.5, half=40.0))
    assert low >= -3 * 1.2
    assert high <= 2 * 1.2


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
