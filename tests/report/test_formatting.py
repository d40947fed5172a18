from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.report import formatting
from compress.results.columns import Column
from compress.results.timed import LATENCY, Timed
from compress.system import amounts

NAMES = {figure.name: f"a_{figure.name}" for figure in LATENCY}
A = Timed("a", "a", "at a", NAMES)
DOUBTED = Timed("a", "a", "at a", NAMES, known={"trusted": False})


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (999, "999"),
        (999_700, "1.00M"),
        (76_700, "76.7k"),
        (1.5e9, "1.50G"),
        (1e16, "10.0P"),
    ],
)
def test_counts(value, shown):
    assert formatting.show({"x": value}, "x", amounts.count) == shown


@pytest.mark.parametrize(
    ("value", "low", "high", "shown"),
    [
        (1.52, 1.49, 1.55, "1.52 ±.03 ▲"),
        (1.0, None, None, "1.00 ▲"),
        (12.34, 12.0, 12.8, "12.3 ±.4 ▲"),
        (123.4, 118.0, 128.0, "123 ±5 ▲"),
        (1.5, 1.499, 1.501, "1.50 ±.01 ▲"),  # never rounded to nothing
        (1.5, 1.5, 1.5, "1.50 ±0 ▲"),
        (3.23, 1.2, 8.7, "3.23 (1.2 to 8.7) ▲"),  # ±3.8 would reach below zero
        (2.0, 1.641, 2.44, "2.00 ±.40 ▲"),
        (2.0, 1.63, 2.45, "2.00 (1.6 to 2.5) ▲"),
        (0.5, 0.25, 1.0, "0.50 (0.25 to 1.0) ▲"),
        (40.0, 9.96, 160.0, "40.0 (10 to 160) ▲"),
        (2.0, 0.0, 1e7, "2.00 (0.000 to >9999) ▲"),
        (0.01, 0.004, 0.03, "0.01 (0.004 to 0.030) ▲"),
        (2000.0, 1200.0, 5000.0, "2000 (1200 to 5000) ▲"),
        (2.0, 0.0, float("inf"), "2.00 ▲"),
        (2e7, 1e7, 3e7, "20000000 ▲"),
        (None, None, None, "-"),
        (float("nan"), None, None, "-"),
    ],
)
def test_speedups(value, low, high, shown):
    row = {"a_speedup": value, "a_speedup_low": low, "a_speedup_high": high, "a_verdict": "faster"}
    assert formatting.speedup(row, A) == shown


def test_a_narrow_column_has_no_wide_intervals():
    row = {"a_speedup": 3.23, "a_speedup_low": 1.2, "a_speedup_high": 8.7, "a_verdict": "faster"}
    assert formatting.speedup(row, A, narrow=True) == "3.23 ▲"
    row |= {"a_speedup_low": 3.2, "a_speedup_high": 3.26}
    assert formatting.speedup(row, A, narrow=True) == "3.23 ±.03 ▲"


@given(st.floats(0.05, 50), st.floats(0, 3))
def test_no_speedup_reaches_below_zero_or_far_beside_its_interval(value, log_half):
    low, high = value * math.exp(-log_half), value * math.exp(log_half)
    shown = formatting.speedup(
        {"a_speedup": value, "a_speedup_low": low, "a_speedup_high": high}, A
    )
    if "±" in shown:
        half = (high - low) / 2
        assert low == pytest.approx(value - half, abs=0.021 * value)
        assert high == pytest.approx(value + half, abs=0.021 * value)


def test_a_speedup_with_its_interval():
    row = {"a_speedup": 2.874, "a_speedup_low": 2.67, "a_speedup_high": 13.04}
    assert formatting.ratio(row, A) == "2.87 [2.67, 13.0]"
    assert formatting.ratio({**row, "a_verdict": "slower"}, A) == "2.87 [2.67, 13.0] ▼"
    assert formatting.ratio({**row, "a_verdict": "slower"}, DOUBTED) == "2.87 [2.67, 13.0] ▼"
    assert formatting.ratio(row, DOUBTED) == "2.87 [2.67, 13.0] !"
    assert formatting.ratio({"a_speedup": 1.0, "chain": "baseline"}, DOUBTED) == "1.00"


@pytest.mark.parametrize(
    ("value", "low", "high", "verdict", "main", "interval"),
    [
        (-0.0084, -0.0204, 0.0036, "not shown", "-0.84 ±1.2 ≈", "[-2.04, +0.36] ≈"),
        (-0.001, -0.002, 0.0, "equivalent", "-0.10 ±.10 =", "[-0.20, 0.00] ="),
        (0.0008, -0.0012, 0.0028, "mixed", "+0.08 ±.20 ?", "[-0.12, +0.28] ?"),
        (-0.66, -0.67, -0.65, "worse", "-66.0 ±1.0 ▼", "[-67.00, -65.00] ▼"),
        (0.5, -1.0, 1.0, "better", "+50.0 ±100 ▲", "[-100.00, +100.00] ▲"),
        (-0.000001, None, None, "", "0.00", ""),
        (0.0123, None, None, None, "+1.23", ""),
    ],
)
def test_differences(value, low, high, verdict, main, interval):
    row = {
        "accuracy_delta": value,
        "accuracy_delta_low": low,
        "accuracy_delta_high": high,
        "accuracy_verdict": verdict,
    }
    assert formatting.delta(row) == main
    assert formatting.difference(row, "accuracy").partition(" ")[2] == interval
    assert formatting.delta({**row, "chain": "baseline"}) == "-"


def test_accuracies():
    row = {"accuracy": 0.98765, "accuracy_low": 0.97, "accuracy_high": 1.0}
    assert formatting.accuracy(row) == "98.77"
    assert formatting.accuracy({**row, "accuracy_sd": 0.0012}) == "98.77 ±.12"
    assert formatting.share_interval(row) == "[97.00, 100.00]"
    for status in ("failed", "unverified"):
        assert formatting.accuracy({**row, "status": status}) == status
        assert formatting.share_interval({**row, "status": status}) == "-"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1.0, "1"),
        (0.996, "1"),
        (0.5234, ".52"),
        (0.05, ".05"),
        (0.00123, ".0012"),
        (2.2e-16, "2e-16"),
        (0.0, "1e-99"),
    ],
)
def test_p_values(value, shown):
    assert formatting.p_value(value) == shown


def test_milliseconds_mark_noise():
    row = {"a_ms_p50": 0.0734, "a_ms_p90": 1.5, "a_ms_iqr": 0.2 * 0.0734}
    assert formatting.milliseconds(row, A) == "0.0734 / 1.50"
    assert formatting.milliseconds({}, A) == "-"
    assert formatting.milliseconds({**row, "a_ms_iqr": 0.0148}, A) == "0.0734 / 1.50 ~"
    assert formatting.brief(0.0734) == "0.073"
    assert formatting.brief(0.734) == "0.734"


@pytest.mark.parametrize(
    ("value", "kilobytes", "megabytes"),
    [
        (0, "0.00", "0.00"),
        (1, "0.00100", "1 B"),
        (640, "0.640", "640 B"),
        (1_234_567, "1235", "1.23"),
        (50e9, "50000000", "50000"),
        (5e12, "5 TB", "5000000"),
        (5e15, "5 PB", "5 PB"),
    ],
)
def test_sizes_are_in_their_columns_unit_or_have_their_own(value, kilobytes, megabytes):
    row = {"x": value}
    assert formatting.cell(row, Column("x", "", shown="kB")) == kilobytes
    assert formatting.cell(row, Column("x", "", shown="MB")) == megabytes


def test_pairs_of_counts():
    column = Column("a", "", shown="pair", beside="b")
    assert formatting.cell({"a": 20, "b": 81.667}, column) == "20/81.7"
    assert formatting.cell({"a": 0}, column) == "0/-"
    assert formatting.cell({}, column) == "-"


def test_every_way_to_write_a_column_is_a_cell():
    row = {"x": 0.98765, "y": 3}
    columns = {key: Column("x", "", shown=key) for key in formatting.FORMATS}
    columns["pair"] = Column("x", "", shown="pair", beside="y")
    cells = {key: formatting.cell(row, column) for key, column in columns.items()}
    assert cells == {
        "%": "98.77",
        "whole %": "99",
        "count": "1",
        "kB": "1 B",
        "MB": "1 B",
        "figure": "0.9877",
        "pair": "1.0/3",
    }
