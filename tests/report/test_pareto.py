from __future__ import annotations

import io
import itertools
from dataclasses import asdict
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from report_rows import row_steps

from compress.report import pareto
from compress.report.chains import family, look_name, number_chains, precision
from compress.report.pareto import _keys, file_marker, pareto_png
from compress.report.pareto_data import (
    COUNTS,
    cut_below,
    latency_axis,
    latency_points,
    pareto_front,
    place_labels,
    size_points,
)
from compress.report.table import markdown
from compress.report.write import write_reports
from compress.results.record import Step
from compress.results.seeds import seeds_csv
from compress.results.table import to_csv
from compress.results.timed import described, timed_files

POINTS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12)


def _dominates(a, b):
    return a[0] <= b[0] and a[1] >= b[1] and a != b


@given(POINTS)
def test_the_front_is_what_nothing_dominates(points):
    front = pareto_front(points)
    expected = [i for i, p in enumerate(points) if not any(_dominates(q, p) for q in points)]
    assert sorted(front) == expected
    assert [points[i][0] for i in front] == sorted(points[i][0] for i in front)


def test_an_axis_is_cut_only_where_a_few_points_lie_far_below():
    assert cut_below([98, 97.5, 97, 11]) == 97
    assert cut_below([98, 80, 70, 60]) is None
    assert cut_below([98, 11]) is None
    assert cut_below([]) is None


@pytest.mark.parametrize(
    ("chain", "expected"),
    [
        ("quantize()", "precision"),
        ("cast('float16')", "precision"),
        ("finetune(epochs=1) -> cast('float16')", "precision"),
        ("prune_channels(macs=0.5) -> distill(epochs=3) -> quantize()", "prune_channels"),
        ("prune_channels(macs=0.5) -> cast('float16')", "prune_channels"),
        ("distill(student='s', epochs=3) -> cast('float16')", "distill"),
        ("distill(epochs=3)", "distill"),
        ("repeat(3, prune_weights(sparsity=0.5) -> finetune(epochs=1))", "prune_weights"),
        ("distill(student='quantize(x)', epochs=3)", "distill"),
        ("distill(epochs=3, student='s') -> factorize(rank=0.5)", "combined"),
        ("prune_weights(sparsity=0.5) -> factorize(rank=0.5)", "combined"),
        ("distill(loss=dkd(beta=1.0), student='s', epochs=1)", "distill"),
        (
            "repeat(2, prune_channels(macs=0.5) -> distill(loss=dist(temperature=1.0), "
            "hints=fitnets(layers=('a:b', 'c:d')), epochs=3), schedule='cubic') -> quantize()",
            "prune_channels",
        ),
        ("carve(ratio=0.5)", "carve"),
        ("carve(ratio=0.5) -> distill(epochs=3) -> quantize()", "carve"),
        ("carve(ratio=0.5) -> prune_channels(macs=0.5)", "combined"),
        ("sparsify(epochs=2) -> prune_channels(macs=0.5)", "prune_channels"),
        ("search(macs=0.4, epochs=1) -> distill(epochs=3) -> quantize()", "search"),
        ("search(macs=0.4) -> factorize(rank=0.5)", "combined"),
        ("train(student='cnn-tiny')", "other"),
    ],
)
def test_families(chain, expected):
    row = {"chain": chain, "steps": row_steps(chain)}
    assert family(row) == look_name(row) == expected
    assert look_name(row | {"role": "control"}) == "control"


def test_families_of_what_is_not_ours():
    theirs = asdict(Step("their_step", "their_step()"))
    lowered = asdict(Step("their_int8", "their_int8()", lowers=True))
    assert family({"chain": "baseline"}) == "baseline"
    assert family({"chain": "their_step()", "steps": (theirs,)}) == "other"
    assert family({"chain": "x", "steps": (theirs, lowered)}) == "other"
    # A plug-in that writes the file is drawn as what its file is.
    row = {"chain": "their_int8()", "steps": (lowered,), "precision": "int8"}
    assert (family(row), precision(row)) == ("precision", "int8")
    assert (family({"chain": ""}), precision({"chain": ""})) == ("other", "float32")


def test_a_float16_file_is_half_full_and_has_a_key_only_if_there_is_one():
    files = {"a()": "float32", "b()": "float16", "c()": "int8"}
    rows = [{"chain": chain, "precision": precision} for chain, precision in files.items()]
    few, all_three = _keys([{"chain": "baseline"}, rows[2]]), _keys(rows)
    assert [key.get_label() for key in few[-3:-1]] == ["float32", "int8"]
    assert [key.get_label() for key in all_three[-4:-1]] == ["float32", "float16", "int8"]
    found = list(map(precision, rows))
    assert found == ["float32", "float16", "int8"]
    looks = [file_marker("precision", number, 9.0) for number in found]
    assert [(look["fillstyle"], look["markerfacecolor"]) for look in looks] == [
        ("full", "white"),
        ("left", "#CC79A7"),
        ("full", "#CC79A7"),
    ]
    assert file_marker("baseline", "float32", 9.0)["markerfacecolor"] == "#000000"


def test_labels_lie_upon_nothing():
    points = [(100.0 + 9 * (i % 5), 100.0 + 7 * (i // 5)) for i in range(20)]
    boxes = [
        (x - 10, y - 8, x + 10, y + 8)
        for x, y in place_labels(points, [(20.0, 16.0)] * 20, (0, 0, 400, 400), 6)
    ]
    boxes += [(x - 6, y - 6, x + 6, y + 6) for x, y in points]
    crossed = [
        (i, j)
        for (i, a), (j, b) in itertools.combinations(enumerate(boxes), 2)
        if i < 20 and min(a[2], b[2]) - max(a[0], b[0]) > 0.01 < min(a[3], b[3]) - max(a[1], b[1])
    ]
    assert crossed == []
    assert all(b[0] >= 0 and b[1] >= 0 and b[2] <= 400 and b[3] <= 400 for b in boxes)


def _row(chain, accuracy=0.9, ms=1.0, **more):
    low, high = max(0.0, accuracy - 0.02), min(1.0, accuracy + 0.01)
    return {
        "chain": chain,
        "seed": 0,
        "status": "ok",
        "accuracy": accuracy,
        "accuracy_low": low,
        "accuracy_high": high,
        "cpu_ms_p50": ms,
        "onnx_bytes": int(1e5 * ms),
        **more,
    }


def test_a_latency_bar_is_the_speedups_interval_on_the_rows_own_latency():
    rows = [
        _row("baseline", ms=8.0),
        # Its speed-up refers to a baseline of 6.15 ms, at another optimization level.
        _row("quantize()", ms=4.1, cpu_speedup=1.5, cpu_speedup_low=1.2, cpu_speedup_high=2.0),
        _row("a()", ms=3.0),
        _row("b()", ms=3.0, status="unverified"),
    ]
    base, int8, bare = latency_points(rows, number_chains(rows), {})
    expected = (4.1 * 1.5 / 2.0, 4.1, 4.1 * 1.5 / 1.2)
    assert (int8.x_low, int8.x, int8.x_high) == pytest.approx(expected)
    assert (base.x_low, base.x_high, bare.x_low) == (8.0, 8.0, 3.0)
    assert (base.label, int8.label, bare.label) == ("", "1", "2")
    assert int8.y == pytest.approx(90)


def test_the_axis_says_if_its_latencies_are_not_to_be_trusted():
    rows = [_row("baseline")]
    assert latency_axis({}) == "CPU latency, ms (batch 1, all threads)"
    doubted = {"timings": described([timed_files("cpu", known=UNTRUSTED)])}
    assert latency_axis(doubted) == ("CPU latency, ms (batch 1, all threads) (not to be trusted)")
    assert pareto_png(rows, doubted) != pareto_png(rows, {})


@pytest.mark.parametrize(("count", "unit"), [("macs", 1e6), ("params", 1e3)])
def test_a_count_takes_the_place_of_the_latency(count, unit, monkeypatch):
    rows = [_row("baseline", macs=4e6, params=3e3), _row("a()", macs=1e6, params=2e3)]
    panels = []
    monkeypatch.setattr(
        pareto, "_draw", lambda axes, points, seeds, what, cut: panels.append((what, points))
    )
    pareto_png(rows, {}, count)
    pareto_png(rows, {})
    (words, points), (size, _), (latency, _), _ = panels
    assert (words, size) == (COUNTS[count][0], "ONNX file, kB")
    assert [point.x for point in points] == [row[count] / unit for row in rows]
    assert latency == latency_axis({})


def test_the_main_setting_is_drawn_and_controls_are_marked():
    rows = [_row("baseline", cpu1_ms_p50=9.0), _row("a()", role="control", cpu1_ms_p50=3.0)]
    for row in rows:
        del row["cpu_ms_p50"]
    about = {"timings": described([timed_files("cpu1")])}
    base, control = latency_points(rows, number_chains(rows), about)
    assert (base.x, control.x, base.look, control.look) == (9.0, 3.0, "baseline", "control")
    assert [p.look for p in size_points(rows, number_chains(rows))] == ["baseline", "control"]


UNTRUSTED = {"trusted": False, "untrusted_because": ["it is made up"]}
MANY = [
    _row("baseline", 0.98, 9.0),
    *(
        _row(f"prune_channels(macs=0.{i}) -> quantize()", 0.9 + i / 300, i / 2)
        for i in range(1, 20)
    ),
]
FAMILIES = (
    *("distill(student='s', epochs=1)", "prune_weights(sparsity=0.5)", "carve(ratio=0.5)"),
    *("prune_channels(macs=0.5)", "factorize(rank=0.5)", "quantize()", "cast('float16')"),
    *("prune_weights(sparsity=0.5) -> factorize(rank=0.5)", "train(student='s')"),
)
PRECISIONS = ("float32", "float16", "int8")
CASES = {
    "two": MANY[:2],
    "many": MANY,
    "one collapsed": [*MANY, _row("factorize(rank=0.1)", 0.1)],
    "seeds": [
        {**row, "seed": seed, "accuracy": row["accuracy"] - seed / 300}
        for row in [*MANY, _row("b()", 0.8, role="control")]
        for seed in range(3)
    ],
    "equal": [_row("baseline"), _row("a()"), _row("b()", seed=1)],
    "all failed": [{"chain": c, "status": "failed"} for c in ("baseline", "a()")],
    "no latency": [row | {"cpu_ms_p50": None} for row in MANY],
    "no intervals": [{"chain": "a()", "accuracy": 0.5, "onnx_bytes": 9, "cpu_ms_p50": 1.0}],
    "hostile": [_row("baseline"), _row("$\\frac$ 漢字 \x1b \udcff <b> " + "y" * 2000)],
    "none": [],
    "wide ticks": [_row("baseline", 0.986), _row("a()", 0.85)],  # up to 100.0
    "every family": [
        _row("baseline"),
        *(
            _row(chain, 0.9 - i / 99, 1 + i, steps=row_steps(chain), precision=PRECISIONS[i % 3])
            for i, chain in enumerate(FAMILIES)
        ),
        _row("train()", role="control"),
    ],
}


@cache
def drawn(name):
    return pareto_png(CASES[name], {"suite": "$x", "model": "漢", "test_items": 3})


@pytest.mark.parametrize("name", CASES)
def test_the_picture_can_be_drawn(name):
    content = drawn(name)
    assert len(content) < 300_000
    with Image.open(io.BytesIO(content)) as image:
        image.load()
        assert image.width == 1600
        assert 600 < image.height < 1500
        assert len(set(image.convert("L").tobytes())) > 2


@pytest.mark.parametrize("name", ["every family", "wide ticks"])
def test_nothing_touches_the_edges_at_the_sides(name):
    with Image.open(io.BytesIO(drawn(name))) as image:
        shown = image.convert("L")
        assert shown.crop((0, 0, 8, shown.height)).getextrema() == (255, 255)
        assert shown.crop((shown.width - 2, 0, shown.width, shown.height)).getextrema()[0] == 255


def test_the_same_rows_give_the_same_picture():
    assert drawn("many") == drawn.__wrapped__("many")


def test_the_files_are_written(tmp_path):
    write_reports(iter(MANY), {"suite": "digits"}, tmp_path / "new")
    folder = tmp_path / "new"
    assert {path.name for path in folder.iterdir()} == {"results.csv", "table.md", "pareto.png"}
    assert (folder / "results.csv").read_text() == to_csv(MANY, {})
    assert (folder / "table.md").read_text() == markdown(MANY, {"suite": "digits"})


def test_files_that_do_not_hold_any_more_are_removed(tmp_path):
    timed = {"cpu_speedup": 2.0, "cpu_speedup_low": 1.9, "cpu_speedup_high": 2.1}
    rows = [_row("baseline"), _row("a()", **timed), _row("a()", **timed, seed=1)]
    about = {"timings": described([timed_files("cpu")])}
    write_reports(rows, about, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"results.csv", "table.md", "pareto.png", "speedups.png", "seeds.csv"}
    assert (tmp_path / "seeds.csv").read_text() == seeds_csv(rows, about)
    write_reports(rows[:1], {}, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"results.csv", "table.md", "pareto.png"}
