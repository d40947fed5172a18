from __future__ import annotations

import itertools
import re

import pytest
from report_rows import ABOUT, row

from compress.report.about import facts
from compress.report.layout import width
from compress.report.markup import MARKDOWN
from compress.report.section import Column, Section, section_blocks
from compress.report.shorten import cut, short
from compress.report.table import markdown, text
from compress.report.trust import warnings


def _section(shown: str, title: str) -> str:
    """The part of a Markdown document below a title."""
    return shown.partition(f"## {title}\n\n")[2].partition("\n## ")[0].rstrip()


def _table(shown: str, title: str) -> str:
    part = _section(shown, title)
    return part[part.index("|") :]


BASE = row("baseline")


def test_is_the_difference_real():
    rows = [
        BASE,
        row("a()", -0.02, accuracy_p=2.2e-16),
        row("b()", agreement=1.0, lost=0, gained=0),
        row("c()", status="unverified"),
    ]
    shown = markdown(rows, ABOUT)
    assert (
        _section(shown, "Is the difference in accuracy real?")
        == """\
acc %: Wilson's 95 % interval. Δ: the difference to the baseline on the same items, with its paired
95 % interval. p: McNemar's exact test, before Holm's adjustment; the sign is the verdict after it.
same: items that the row answers as the baseline does, right or wrong. flips: lost/gained, items
that the baseline has right and the row wrong, and the reverse.

|  #| chain    |          acc %|                   Δ pt|     p| same %| flips|
| -:| -------- | -------------:| ---------------------:| ----:| -----:| ----:|
|   | baseline | [88.00, 92.00]|                      -|     -|      -|     -|
|  1| `a()`    | [86.00, 90.00]| -2.00 [-3.00, -1.00] ▼| 2e-16|  95.00|   7/3|
|  2| `b()`    | [88.00, 92.00]|  0.00 [-1.00, +1.00] ≈|     1| 100.00|   0/0|"""
    )


def test_what_a_technique_added_over_its_control():
    added = {"control": "b()", "control_delta": -0.005, "control_p": 0.3}
    added |= {"control_delta_low": -0.015, "control_delta_high": 0.005}
    rows = [
        BASE,
        row("a()", -0.02, control_verdict="indistinguishable", **added),
        row("b()", -0.015, role="control"),
        row("c()", control="not there"),
    ]
    title = "What did the technique add over training alone?"
    assert (
        _table(markdown(rows, ABOUT), title)
        == """\
|  #| chain | acc %| control| its acc %|                   Δ pt|  p|
| -:| ----- | ----:| ------:| --------:| ---------------------:| -:|
|  1| `a()` | 88.00|       2|     88.50| -0.50 [-1.50, +0.50] ≈| .3|"""
    )
    assert title not in markdown([BASE, rows[2]], ABOUT)


REAL = "Is the difference in accuracy real?"


def test_further_measures_need_no_table_of_their_own():
    rows = [BASE, row("a()", -0.02, ece=0.0123, metric=-1234.5678)]
    shown = markdown(rows, ABOUT | {"metric": "cost"})
    assert (
        _table(shown, REAL)
        == """\
|  #| chain    |          acc %|                   Δ pt|   p| same %| flips| ECE %|  cost|
| -:| -------- | -------------:| ---------------------:| --:| -----:| ----:| ----:| ----:|
|   | baseline | [88.00, 92.00]|                      -|   -|      -|     -|     -|     -|
|  1| `a()`    | [86.00, 90.00]| -2.00 [-3.00, -1.00] ▼| .01|  95.00|   7/3|  1.23| -1235|"""
    )
    assert "Further measures" not in shown
    assert "ECE: expected calibration error" in shown
    assert "top-5" not in shown


def test_further_measures_that_do_not_fit_stand_below_with_the_metrics_name():
    rows = [BASE, row("prune_channels(macs=0.5)", ece=0.0123, metric=-1234.5678, top5=0.999)]
    shown = markdown(rows, ABOUT | {"metric": "mine.py:cost|<b>"})
    first, second = re.findall(r"(?:^\|.*\n?)+", _section(shown, REAL), re.MULTILINE)
    assert "ECE" in first.partition("\n")[0]
    assert (
        second
        == """\
|  #| chain                      | mine.py:cost\\|&lt;b&gt;|
| -:| -------------------------- | ----------------------:|
|   | baseline                   |                       -|
|  1| `prune_channels(macs=0.5)` |                   -1235|"""
    )


def test_further_measures_alone_are_no_answer_to_another_question():
    shown = markdown([{"chain": "a()", "status": "ok", "accuracy": 0.9, "ece": 0.0123}], {})
    assert "|  1| `a()` |  1.23|" in _section(shown, "Further measures")
    assert REAL not in shown


def test_the_legend_explains_the_signs_of_the_further_tables_too():
    more = {"cpu1_speedup": 2.0, "cpu1_verdict": "faster", "on_x_cpu_ms_p50": 1.0}
    more |= {"on_x_cpu_speedup": 0.5, "on_x_cpu_verdict": "slower"}
    more |= {"cuda_torch_ms_p50": 1.0, "cuda_speedup": 1.2, "cuda_verdict": "faster"}
    doubted = ABOUT | {"cuda": {"controls": {"cuda_torch_ms_p50": {"trusted": False}}}}
    more |= {"cuda_verdict": None}
    rows = [BASE, row("b ? (is it real?)"), row("a()", **more)]
    assert (
        "Against the baseline: ▲ better or faster, ▼ worse or slower, ≈ no difference shown, "
        "! timing not to be trusted, and no difference beyond that doubt."
    ) in " ".join(markdown(rows, doubted).split())
    # In a terminal there are no further tables.
    assert "Against the baseline: ≈ no difference shown." in text(rows, doubted)


def test_every_setting_has_a_column():
    more = {"cpu4_batch8_speedup": 0.5, "cpu4_batch8_verdict": "slower", "cpu4_batch8_ms_p50": 9.0}
    rows = [BASE, row("a()", speedup=2.0, cpu_ms_iqr=0.5, **more)]
    shown = markdown(rows, ABOUT)
    assert (
        _table(shown, "How much faster, and is it real?")
        == """\
|  #| chain    |  batch 1, 2 threads| batch 8, 4 threads|
| -:| -------- | ------------------:| -----------------:|
|   | baseline |                1.00|                  -|
|  1| `a()`    | 2.00 [1.96, 2.04] ▲|             0.50 ▼|"""
    )
    assert "|  1| `a()`    |      1.00 / 1.25 ~|               9.00|" in shown
    assert "marks noise" in _section(shown, "How long does a call take?")
    assert "marks noise" not in markdown([BASE, row("a()")], ABOUT)


def test_what_runs():
    graph = {"int8_convs": 20, "float_convs": 1, "int8_matmuls": 0, "float_matmuls": 2}
    graph |= {"qdq_nodes": 3, "int8_macs_share": 0.987, "peak_bytes": 12_345_678}
    rows = [BASE, row("a()", gzip_bytes=4321, nonzero_params=800, **graph)]
    assert (
        _table(markdown(rows, ABOUT), "What runs, and what does it take?")
        == """\
|  #| chain | conv| matmul| Q/DQ| int8 %| peak MB| gzip kB| non-zero|
| -:| ----- | ---:| -----:| ---:| -----:| ------:| ------:| -------:|
|  1| `a()` | 20/1|    0/2|    3|     99|    12.3|    4.32|      800|"""
    )


def test_the_gpu_has_a_table_only_where_it_was_timed():
    gpu = {"cuda_torch_ms_p50": 0.51, "cuda_torch_float16_ms_p50": 0.3, "cuda_speedup": 1.5}
    gpu |= {"cuda_verdict": "faster", "cuda_peak_bytes": 3e6, "cuda_note": "no TensorRT"}
    shown = markdown([BASE, row("a()", **gpu)], ABOUT)
    assert (
        _table(shown, "On the GPU")
        == """\
|  #| chain | float32| float16| speed-up| peak MB|
| -:| ----- | ------:| ------:| -------:| ------:|
|  1| `a()` |   0.510|   0.300|   1.50 ▲|    3.00|"""
    )
    assert "- GPU: no TensorRT (row 1).\n" in shown
    without = markdown([BASE, row("a()", cuda_note="no CUDA device")], ABOUT)
    assert "On the GPU" not in without
    assert "- GPU latency was not measured: no CUDA device.\n" in without
    doubted = ABOUT | {"cuda": {"controls": {"cuda_torch_ms_p50": {"trusted": False}}}}
    gpu |= {"cuda_verdict": None}
    assert "1.50 !" in _table(markdown([BASE, row("a()", **gpu)], doubted), "On the GPU")


def test_the_file_on_the_gpu_has_its_own_speedup_and_trust():
    gpu = {"cuda_torch_ms_p50": 0.5, "cuda_ms_p50": 0.4, "cuda_speedup": 1.5}
    gpu |= {"cuda_file_speedup": 2.5, "cuda_file_speedup_low": 2.4, "cuda_file_speedup_high": 2.6}
    gpu |= {"cuda_verdict": "faster", "cuda_file_verdict": "faster"}
    rows = [BASE, row("a()", **gpu)]
    assert (
        _table(markdown(rows, ABOUT), "On the GPU")
        == """\
|  #| chain | float32|  CUDA| speed-up|       file speed-up|
| -:| ----- | ------:| ----:| -------:| ------------------:|
|  1| `a()` |   0.500| 0.400|   1.50 ▲| 2.50 [2.40, 2.60] ▲|"""
    )
    doubted = ABOUT | {"cuda": {"controls": {"cuda_ms_p50": {"trusted": False}}}}
    rows = [BASE, row("a()", **{**gpu, "cuda_file_verdict": None})]
    assert "|   1.50 ▲| 2.50 [2.40, 2.60] !|" in _table(markdown(rows, doubted), "On the GPU")


def test_every_column_of_the_gpu_warns():
    columns = {
        "cuda_ms_p50": {"control": 1.1, "margin": 0.123, "trusted": False, "doubts": ["a", "b"]},
        "cuda_torch_float16_ms_p50": {"control": None, "trusted": False},
        "cuda_torch_ms_p50": {"control": 1.0, "margin": 0.01, "trusted": True},
    }
    about = ABOUT | {"cuda": {"controls": columns}}
    assert warnings([BASE, row("a()")], about) == [
        "DO NOT TRUST the latencies on the GPU (float16): two copies of one file differ too much.",
        "DO NOT TRUST the latencies on the GPU (CUDA provider): a; b.",
    ]
    (told,) = [fact for fact in facts([BASE], about, [0]) if fact.startswith("A/A control")]
    assert told.endswith(
        "; GPU, float32: 1.000, a verdict must exceed 1.0 %; GPU, float16: not timed; "
        "GPU, CUDA provider: 1.100, a verdict must exceed 12.3 %."
    )


def test_other_machines_have_a_table_each():
    there = {"on_arm_4t_cpu_ms_p50": 4.2, "on_arm_4t_cpu_speedup": 1.9}
    there |= {"on_arm_4t_cpu_speedup_low": 1.8, "on_arm_4t_cpu_speedup_high": 2.0}
    there |= {"on_arm_4t_cpu_verdict": "faster", "on_old_cpu_cpu1_ms_p50": 7.0}
    elsewhere = {
        "arm_4t": {
            "environment": {"cpu": "Neoverse", "threads": 4},
            "latency": {"cpu": {"control": 1.0, "margin": 0.02, "trusted": True}},
        }
    }
    shown = markdown([BASE, row("a()", **there)], ABOUT | {"elsewhere": elsewhere})
    part = _section(shown, "On another machine: Neoverse")
    assert "Machine: Neoverse; 4 threads." in " ".join(part.split())
    assert "batch 1, 4 threads: 1.000, a verdict must exceed 2.0 %" in " ".join(part.split())
    assert "|  1| `a()` |  4.20  1.90 ±.10 ▲|" in part
    assert "|  1| `a()` |              7.00|" in _section(shown, "On another machine: old_cpu")


def _latency(**changes):
    return ABOUT | {"latency": {"cpu": {**ABOUT["latency"]["cpu"], **changes}}}


def test_latencies_that_are_not_to_be_trusted_are_called_so_before_the_table():
    rows = [BASE, row("a()", speedup=2.0, cpu_verdict=None)]
    assert warnings(rows, ABOUT) == []
    why = "on average two copies of one file differ by 8.3 %"
    doubted = _latency(trusted=False, margin=0.083, doubts=[why])
    warning = (
        "DO NOT TRUST the latencies at batch 1, 2 threads: on average two copies of one file "
        "differ by 8.3 %."
    )
    for shown in (markdown(rows, doubted), text(rows, doubted)):
        words = " ".join(shown.split())
        assert words.index(warning) < words.index("chain")
        assert "2.00 ±.04 !" in shown
        assert "! timing not to be trusted, and no difference" in " ".join(shown.split())
    remote = {"on_x_cpu_ms_p50": 1.0}
    there = {"elsewhere": {"x": {"latency": {"cpu": {"trusted": False, "control": 1.1}}}}}
    assert warnings([row("a()", **remote)], there)[0].startswith(
        "DO NOT TRUST the latencies on x at batch 1, all threads: "
    )


def test_where_the_files_were_timed_is_told_if_it_was_elsewhere():
    environment = {**ABOUT["environment"], "cpu": "Here", "threads": 2}
    about = ABOUT | {"environment": environment, "timed_on": {"cpu": "There", "threads": 16}}
    shown = " ".join(markdown([BASE, row("a()", speedup=2.0)], about).split())
    assert "Machine: Here; 2 threads" in shown
    assert "Timed on another machine: There; 16 threads." in shown
    assert "batch 1, 16 threads" in shown
    same = ABOUT | {"environment": environment, "timed_on": {"cpu": "Here", "threads": 2}}
    assert "another machine" not in markdown([BASE, row("a()", speedup=2.0)], same)


def test_the_foot_says_what_the_latencies_rest_on():
    found = facts([BASE, row("a()")], _latency(), [0])
    assert (
        "A/A control, the baseline against a second copy of itself: batch 1, 2 threads: 1.003 "
        "[0.998, 1.008], a verdict must exceed 1.2 %."
    ) in found
    assert (
        "Timed in 5 fresh processes for each number of threads, in each of which all files take "
        "turns in random order, round by round. It took 33 s in all."
    ) in found
    assert "Holm's procedure." in found
    assert "1 row beside the baseline." in found
    assert any("governor performance; GPU H100" in fact for fact in found)
    level = _latency(denominator="optimization level 'basic'", denominator_gain=1.084)
    assert (
        "NOT THE DEFAULT DENOMINATOR at batch 1, 2 threads: speed-ups divide the baseline's time "
        "at optimization level 'basic', where it is 1.08 times as fast as at the default."
    ) in facts([BASE, row("a()")], level, [0])


def test_results_of_old_have_no_verdicts_and_still_a_table():
    old = {"chain": "a()", "seed": 0, "status": "ok", "accuracy": 0.9, "accuracy_delta": -0.01}
    old |= {"cpu_ms_p50": 1.0, "cpu_ms_p90": 2.0, "cpu_speedup": 2.0, "cpu_batch32_per_s": 5e3}
    shown = markdown([{"chain": "baseline", "status": "ok", "accuracy": 0.91}, old], {})
    assert "|  1| `a()`    | 90.00| -1.00|" in shown
    assert not set("▲▼≈") & set(shown)
    assert "batch 32" not in shown


def test_columns_that_do_not_fit_make_a_second_table():
    def column(i: int) -> Column:
        return Column(f"column {i}", f"Of {i}.", lambda row: "9" * 20)

    section = Section("T", "", tuple(column(i) for i in range(5)), (BASE, row("x" * 200)))
    labels = {"baseline": "", "x" * 200: "1"}
    title, words, first, second = section_blocks(section, labels, MARKDOWN)
    assert (title, words) == (["## T"], ["Of 0. Of 1. Of 2. Of 3. Of 4."])
    assert all(width(line) <= 100 for line in first + second)
    assert [first[0].count("column"), second[0].count("column")] == [3, 2]


CHAIN = "prune_channels(macs=0.5) -> distill(student='a(b)', epochs=3) -> quantize()"


@pytest.mark.parametrize(
    ("chain", "limit", "shown"),
    [
        (CHAIN, 80, CHAIN),
        (CHAIN, 40, "prune_channels→distill→quantize"),
        (CHAIN, 25, "prune_c.→distill→quantize"),
        (CHAIN, 12, "pru.→dis.→q…"),
        ("finetune(epochs=2, learning_rate=0.1)", 16, "finetune(epochs…"),
        ("漢" * 9, 8, "漢漢漢…"),
        ("baseline", 8, "baseline"),
    ],
)
def test_short_chains(chain, limit, shown):
    assert short(chain, limit) == shown
    assert width(shown) <= limit


def test_cut_keeps_what_fits():
    assert [cut("abc", limit) for limit in (3, 2, 1)] == ["abc", "a…", "…"]


def test_every_limit_is_kept():
    for chain, limit in itertools.product((CHAIN, "a() -> b()", "x y z" * 9), range(1, 60)):
        assert width(short(chain, limit)) <= limit
