from __future__ import annotations

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from compress.report import cells
from compress.report.layout import width
from compress.report.table import markdown, text

ROWS = [
    {
        "chain": "prune_channels(macs=0.5) -> distill(epochs=3) -> quantize()",
        "seed": 0,
        "status": "ok",
        "accuracy": 0.9722,
        "accuracy_delta": -0.0084,
        "accuracy_low": 0.95,
        "accuracy_high": 0.985,
        "params": 9_200,
        "macs": 230_000,
        "onnx_bytes": 14_100,
        "cpu_ms_p50": 0.0312,
        "note": "kept 51 %",
        "cpu_speedup": 3.95,
        "cpu_speedup_low": 3.9,
        "cpu_speedup_high": 4.02,
    },
    {
        "chain": "baseline",
        "seed": 0,
        "status": "ok",
        "accuracy": 0.9806,
        "accuracy_delta": 0.0,
        "accuracy_low": 0.965,
        "accuracy_high": 0.993,
        "params": 76_700,
        "macs": 11_200_000,
        "onnx_bytes": 309_000,
        "cpu_ms_p50": 0.1234,
        "cuda_note": "no CUDA device",
    },
    {
        "chain": "factorize(rank=0.5)",
        "seed": 0,
        "status": "failed",
        "error": "<b>|\nx",
        "note": None,
    },
    {
        "chain": "quantize()",
        "seed": 0,
        "status": "unverified",
        "accuracy": 0.9,
        "note": "kept 51 %",
    },
]
ABOUT = {
    "suite": "digits",
    "data": "digits",
    "model": "cnn",
    "baseline": "train(epochs=9)",
    "command": "compress-models run digits",
    "test_items": 360,
    "notes": ["One note."],
    "environment": {
        "cpu": "EPYC",
        "threads": 4,
        "flags": ["avx2"],
        "date": "2026-10-02",
        "versions": {"torch": "2.11.0"},
    },
}
MARKDOWN = """\
# digits

| chain                      |      acc % |  Δ pt | params |  MACs |   kB |     ms |  speed-up |
| -------------------------- | ---------: | ----: | -----: | ----: | ---: | -----: | --------: |
| baseline                   | 98.06 ±1.4 |     - |  76.7k | 11.2M |  309 |  0.123 |         - |
| `prune_channels(macs=0.5)` | 97.22 ±1.8 | -0.84 |  9.20k |  230k | 14.1 | 0.0312 | 3.95 ±.06 |
| `-> distill(epochs=3)`     |            |       |        |       |      |        |           |
| `-> quantize()` [1]        |            |       |        |       |      |        |           |
| `factorize(rank=0.5)` [2]  |     failed |     - |      - |     - |    - |      - |         - |
| `quantize()` [3] [1]       | unverified |     - |      - |     - |    - |      - |         - |

- [1] kept 51 %
- [2] failed: &lt;b&gt;\\| x
- [3] unverified: its ONNX file was not shown to compute what the model does; not for use

"""
FACTS = """\
Data: digits, 360 test items. Model: cnn. Baseline: train(epochs=9).
Machine: EPYC; 4 threads; avx2; torch 2.11.0; 2026-10-02.
acc % ± half of Wilson's 95 % interval; Δ pt: points against the baseline of the same seed; kB: the
ONNX file in 1000 bytes; ms: median CPU latency of one item; speed-up ± half of a bootstrap's 95 %
interval, timed against the baseline. Accuracy, kB and ms are those of the ONNX file, parameters
and MACs those of the model.
GPU latency was not measured: no CUDA device.
One note.

This command gives the table:

compress-models run digits
"""


def test_markdown():
    table = markdown(ROWS, ABOUT)
    assert table.startswith(MARKDOWN)
    assert table.endswith(
        "- One note.\n\nThis command gives the table:\n\n    compress-models run digits\n"
    )


def test_plain_text():
    shown = text(ROWS, ABOUT)
    assert shown.endswith(FACTS)
    assert "prune_channels(macs=0.5)" in shown
    assert "`" not in shown
    assert "[2] failed: <b>| x\n" in shown


def test_seeds_are_told_apart():
    rows = [{"chain": "baseline", "seed": seed, "status": "ok"} for seed in (0, 1)]
    assert "baseline [seed 0]" in text(rows, {})
    assert "baseline [seed 1]" in markdown(rows, {})
    assert "seed 0]" not in text(rows[:1], {})


def test_reasons_for_no_gpu_are_said_once_and_measured_ones_pointed_at():
    rows = [{"chain": f"a{i}()", "cuda_note": "no CUDA device."} for i in range(3)]
    assert text(rows, {}).count("no CUDA device.") == 1
    rows[0]["cuda_ms_p50"] = 1.0
    assert "GPU latency of 1 of 3 rows: results.csv, cuda_ms_p50." in text(rows, {})


HOSTILE = "<script>alert(1)</script> `x` | y\n\n# z <img src=x> [l](javascript:1) \\| \x1b[2J"


def test_no_html_nor_control_character_passes():
    row = {"chain": HOSTILE, "seed": 0, "status": "failed", "error": HOSTILE, "note": HOSTILE + "2"}
    about = {"suite": HOSTILE, "data": HOSTILE, "model": HOSTILE, "notes": [HOSTILE]}
    shown = markdown([row], about)
    assert "<" not in shown
    assert "\x1b" not in shown + text([row], about)
    assert "](" not in shown.replace("\\](", "")
    for line in shown.splitlines():
        assert not line.startswith("|") or len(re.findall(r"(?<!\\)\|", line)) == 9


texts = st.one_of(st.text(max_size=200), st.text("ab(,) ->'`|<", min_size=60, max_size=300))
sizes = st.one_of(st.none(), st.floats(0, 1e15))
hostile_rows = st.fixed_dictionaries(
    {"chain": texts, "seed": st.integers(0, 2), "status": st.sampled_from(["ok", "failed"])},
    optional={
        "error": texts,
        "note": texts,
        "accuracy": st.floats(0, 1),
        "accuracy_low": st.just(0.0),
        "accuracy_high": st.floats(0, 1),
        "accuracy_delta": st.floats(-1, 1),
        "params": st.integers(0, 10**14),
        "macs": st.integers(0, 10**14),
        "onnx_bytes": st.integers(1, 10**11),
        "cpu_ms_p50": sizes,
        "cpu_speedup": sizes,
        "cpu_speedup_low": st.just(0.0),
        "cpu_speedup_high": sizes,
    },
)


WIDE = {
    "chain": "0" * 17,
    "seed": 0,
    "status": "ok",
    "cpu_ms_p50": 6.067435181000086e-135,
    "accuracy_low": 0.0,
    "accuracy": 0.0,
    "accuracy_delta": 1.0,
    "cpu_speedup": 0.0,
    "onnx_bytes": 1,
    "accuracy_high": 1.0795043020987005e-186,
    "cpu_speedup_high": 1999999.0,
    "cpu_speedup_low": 0.0,
}


@settings(max_examples=150, deadline=None)
@example([WIDE], "")
@given(st.lists(hostile_rows, max_size=4), texts)
def test_no_line_is_wider_than_100_columns_and_every_table_row_has_8_cells(rows, words):
    about = {"suite": words, "data": words, "command": words, "notes": [words]}
    for shown in (markdown(rows, about), text(rows, about)):
        assert all(width(line) <= 100 for line in shown.splitlines())
    table = [line for line in markdown(rows, about).splitlines() if line.startswith("| ")]
    assert all(len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) == 9 for line in table)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (999, "999"),
        (999_700, "1.00M"),
        (76_700, "76.7k"),
        (1.5e9, "1.50G"),
        (1e16, "1e+16"),
    ],
)
def test_counts(value, shown):
    assert cells.count(value) == shown


@pytest.mark.parametrize(
    ("value", "low", "high", "shown"),
    [
        (1.52, 1.49, 1.55, "1.52 ±.03"),
        (1.0, None, None, "1.00"),
        (12.34, 12.0, 12.8, "12.3 ±.4"),
        (123.4, 118.0, 128.0, "123 ±5"),
        (1.5, 1.499, 1.501, "1.50 ±.001"),
        (None, None, None, "-"),
        (float("nan"), None, None, "-"),
    ],
)
def test_speedups(value, low, high, shown):
    row = {"cpu_speedup": value, "cpu_speedup_low": low, "cpu_speedup_high": high}
    assert cells.speedup(row) == shown


def test_small_differences_have_no_sign():
    assert cells.delta({"accuracy_delta": -0.000001}) == "0.00"
    assert cells.delta({"accuracy_delta": 0.0123}) == "+1.23"
