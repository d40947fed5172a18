from __future__ import annotations

import itertools
import re

import pytest
from report_rows import ABOUT, gpu, row, timed

from compress.report.about import facts
from compress.report.chains import short
from compress.report.layout import cut, width
from compress.report.section import Column, Section, section_blocks
from compress.report.table import markdown, text
from compress.report.timing_words import warnings
from compress.results.timed import FORMS, timed_files, timed_on_gpu, timings


def _section(shown: str, title: str) -> str:
    """The part of a Markdown document below a title."""
    return shown.partition(f"## {title}\n\n")[2].partition("\n## ")[0].rstrip()


def _table(shown: str, title: str) -> str:
    part = _section(shown, title)
    return part[part.index("|") :]


BASE = row("baseline")
DOUBTED = {"trusted": False, "untrusted_because": ["it is made up"]}


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
        row("a()", -0.02, control_verdict="not shown", **added),
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
    more |= {"cuda_torch_ms_p50": 1.0, "cuda_speedup": 1.2, "cuda_verdict": None}
    more |= {"control_delta": -0.01, "control_verdict": "not shown"}
    others = timed_files("cpu1"), timed_files("cpu", "x"), gpu("cuda_torch_ms_p50", **DOUBTED)
    doubted = timed(*others)
    rows = [BASE, row("b ? (is it real?)"), row("a()", **more)]
    assert (
        "Against the baseline: ▲ better or faster, ▼ worse or slower, ≈ inconclusive, "
        "! timing unreliable: not shown to differ by more than its error."
    ) in " ".join(markdown(rows, doubted).split())
    # In a terminal there are no further tables.
    assert "Against the baseline: ≈ inconclusive. ±" in text(rows, doubted)


def test_every_setting_has_a_column():
    more = {"cpu4_batch8_speedup": 0.5, "cpu4_batch8_verdict": "slower", "cpu4_batch8_ms_p50": 9.0}
    rows = [BASE, row("a()", speedup=2.0, cpu_ms_iqr=0.5, **more)]
    shown = markdown(rows, timed(timed_files("cpu4_batch8")))
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
|  #| chain | conv| matmul| Q/DQ| int8 %| non-zero| gzip kB| peak MB|
| -:| ----- | ---:| -----:| ---:| -----:| -------:| ------:| ------:|
|  1| `a()` | 20/1|    0/2|    3|     99|      800|    4.32|    12.3|"""
    )


def test_the_gpu_has_a_table_only_where_it_was_timed():
    found = {"cuda_torch_ms_p50": 0.51, "cuda_torch_float16_ms_p50": 0.3, "cuda_speedup": 1.5}
    found |= {"cuda_verdict": "faster", "cuda_peak_bytes": 3e6, "cuda_note": "no TensorRT"}
    on_gpu = timed(*map(timed_on_gpu, FORMS))
    shown = markdown([BASE, row("a()", **found)], on_gpu)
    assert (
        _table(shown, "On the GPU")
        == """\
|  #| chain | float32| float16| speed-up| peak MB|
| -:| ----- | ------:| ------:| -------:| ------:|
|  1| `a()` |   0.510|   0.300|   1.50 ▲|    3.00|"""
    )
    assert "- GPU: no TensorRT (row 1).\n" in shown
    without = markdown([BASE, row("a()", cuda_note="no CUDA device")], on_gpu)
    assert "On the GPU" not in without
    assert "- GPU latency was not measured: no CUDA device.\n" in without
    doubted = timed(gpu("cuda_torch_ms_p50", **DOUBTED))
    found |= {"cuda_verdict": None}
    assert "1.50 !" in _table(markdown([BASE, row("a()", **found)], doubted), "On the GPU")


def test_the_file_on_the_gpu_has_its_own_speedup_and_trust():
    found = {"cuda_torch_ms_p50": 0.5, "cuda_ms_p50": 0.4, "cuda_speedup": 1.5}
    found |= {"cuda_file_speedup": 2.5, "cuda_file_speedup_low": 2.4, "cuda_file_speedup_high": 2.6}
    found |= {"cuda_verdict": "faster", "cuda_file_verdict": "faster"}
    rows = [BASE, row("a()", **found)]
    assert (
        _table(markdown(rows, timed(*map(timed_on_gpu, FORMS))), "On the GPU")
        == """\
|  #| chain | float32|  CUDA| speed-up|       file speed-up|
| -:| ----- | ------:| ----:| -------:| ------------------:|
|  1| `a()` |   0.500| 0.400|   1.50 ▲| 2.50 [2.40, 2.60] ▲|"""
    )
    doubted = timed(gpu("cuda_torch_ms_p50"), gpu("cuda_ms_p50", **DOUBTED))
    rows = [BASE, row("a()", **{**found, "cuda_file_verdict": None})]
    assert "|   1.50 ▲| 2.50 [2.40, 2.60] !|" in _table(markdown(rows, doubted), "On the GPU")


def test_every_column_of_the_gpu_warns():
    about = timed(
        gpu("cuda_torch_ms_p50", control=1.0, margin=0.01, trusted=True),
        gpu("cuda_torch_float16_ms_p50", control=None, **DOUBTED),
        gpu("cuda_ms_p50", control=1.1, bar=0.123, trusted=False, untrusted_because=["a", "b"]),
    )
    assert warnings(timings(about), about) == [
        "DO NOT TRUST the latencies on the GPU (float16): it is made up.",
        "DO NOT TRUST differences in latency below 12.3 % on the GPU (CUDA provider): a; b. What "
        "has ▲ or ▼ is shown to exceed that.",
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
    known = {"control": 1.0, "margin": 0.02, "trusted": True}
    about = timed(timed_files("cpu", "arm_4t", known=known), timed_files("cpu1", "old_cpu"))
    about |= {"other_machines": {"arm_4t": {"environment": {"cpu": "Neoverse", "threads": 4}}}}
    shown = markdown([BASE, row("a()", **there)], about)
    part = _section(shown, "On another machine: Neoverse")
    assert "Machine: Neoverse; 4 threads." in " ".join(part.split())
    assert "batch 1, 4 threads: 1.000, a verdict must exceed 2.0 %" in " ".join(part.split())
    assert "In results.csv: on_arm_4t_..." in " ".join(part.split()).replace("\\", "")
    assert "|  1| `a()` |  4.20  1.90 ±.10 ▲|" in part
    assert "|  1| `a()` |              7.00|" in _section(shown, "On another machine: old_cpu")


def test_another_runtime_has_its_columns_verdicts_and_table():
    """A second runtime needs a line in a run's log, and nothing of the report knows its name."""
    name = "openvino"
    one = timed_files("cpu", runtime=name, title="OpenVINO", known=DOUBTED)
    found = {one.names["ms_p50"]: 4.2, one.names["speedup"]: 1.9, one.names["verdict"]: "faster"}
    assert list(found) == [f"{name}_cpu_{end}" for end in ("ms_p50", "speedup", "verdict")]
    shown = markdown([BASE, row("a()", **found)], timed(one))
    assert "|  1| `a()` |       4.20  1.90 ▲|" in _section(shown, "In OpenVINO")
    assert "latencies in OpenVINO at batch 1, 2 threads: it is made up." in shown


def test_latencies_that_are_not_to_be_trusted_are_called_so_before_the_table():
    rows = [BASE, row("a()", speedup=2.0, cpu_verdict=None)]
    assert warnings(timings(ABOUT), ABOUT) == []
    why = "two copies of one file differ by 8.3 % on average"
    doubted = timed(trusted=False, bar=0.083, untrusted_because=[why])
    warning = (
        "DO NOT TRUST differences in latency below 8.3 % at batch 1, 2 threads: two copies of one "
        "file differ by 8.3 % on average. What has ▲ or ▼ is shown to exceed that."
    )
    for shown in (markdown(rows, doubted), text(rows, doubted)):
        words = " ".join(shown.split())
        assert words.index(warning) < words.index("chain")
        assert "2.00 ±.04 !" in shown
        assert "! timing unreliable: not shown to differ by more than its error" in words
    assert warnings([timed_files("cpu", "x", known=DOUBTED)], {}) == [
        "DO NOT TRUST the latencies on x at batch 1, all threads: it is made up."
    ]


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
    found = facts([BASE, row("a()")], ABOUT, [0])
    assert (
        "A/A control, the baseline against a second copy of itself: batch 1, 2 threads: 1.003 "
        "[0.998, 1.008], a verdict must exceed 1.2 %."
    ) in found
    assert (
        "Timed in 5 fresh processes for each number of threads, in each of which all files take "
        "turns in random order, round by round. The timing took 33 s."
    ) in found
    assert "Holm's procedure." in found
    assert "1 row besides the baseline." in found
    assert any("governor performance; GPU H100" in fact for fact in found)
    level = timed(denominator="optimization level 'basic'", denominator_gain=1.084)
    assert (
        "NOT THE DEFAULT DENOMINATOR at batch 1, 2 threads: speed-ups divide the baseline's time "
        "at optimization level 'basic', where it is 1.08 times as fast as at the default."
    ) in facts([BASE, row("a()")], level, [0])


def test_where_a_class_has_most_items_it_is_said_before_the_table():
    """97 of 100 items are of one class: a file that knows nothing is right in 97 %."""
    more = {"balanced_accuracy": 0.5}
    about = ABOUT | {"class_counts": [97, 3], "task": {"classes": ["sound", "broken"]}}
    rows = [BASE | more, row("a()", **more)]
    shown = markdown(rows, about)
    words = " ".join(shown.split())
    assert words.index("UNEVEN CLASSES: 97.0% of the test items are 'sound'") < words.index("| -:|")
    assert "Classes: 2, with 3 to 97 test items each; the most frequent, 'sound'" in words
    assert "bal. %" in _table(shown, REAL).partition("\n")[0]
    assert "50.00" in _table(shown, REAL)


@pytest.mark.parametrize(
    ("counts", "warned", "shown"),
    [
        ([50, 50], False, False),
        ([59, 41], False, False),  # of two classes, a little more than half is no wonder
        ([60, 40], True, True),
        ([51, 30, 19], True, True),
        ([45, 30, 25], False, False),
        ([44, 27, *[36] * 8], False, False),
        ([20, *[10] * 8], False, True),
        ([], False, False),
    ],
)
def test_balanced_accuracy_is_shown_where_it_is_another_figure(counts, warned, shown):
    about = ABOUT | {"class_counts": counts}
    words = markdown([BASE | {"balanced_accuracy": 0.5}], about)
    assert ("UNEVEN CLASSES" in words) == warned
    assert ("| bal. %|" in words) == shown


def test_results_without_verdicts_have_a_table():
    old = {"chain": "a()", "seed": 0, "status": "ok", "accuracy": 0.9, "accuracy_delta": -0.01}
    old |= {"cpu_ms_p50": 1.0, "cpu_ms_p90": 2.0, "cpu_speedup": 2.0}
    shown = markdown([{"chain": "baseline", "status": "ok", "accuracy": 0.91}, old], {})
    assert "|  1| `a()`    | 90.00| -1.00|" in shown
    assert not set("▲▼≈") & set(shown)
    assert "batch 32" not in shown


def test_columns_that_do_not_fit_make_a_second_table():
    def column(i: int) -> Column:
        return Column(f"column {i}", lambda row: "9" * 20, f"Of {i}.")

    section = Section("T", "", tuple(column(i) for i in range(5)), (BASE, row("x" * 200)))
    labels = {"baseline": "", "x" * 200: "1"}
    title, words, first, second = section_blocks(section, labels)
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
    names = ["prune_channels", "distill", "quantize"] if chain == CHAIN else []
    assert short(chain, limit, names) == shown
    assert width(shown) <= limit


def test_cut_keeps_what_fits():
    assert [cut("abc", limit) for limit in (3, 2, 1)] == ["abc", "a…", "…"]


def test_every_limit_is_kept():
    for chain, limit in itertools.product((CHAIN, "a() -> b()", "x y z" * 9), range(1, 60)):
        assert width(short(chain, limit, ["a_long_name"] * 3)) <= limit
