"""One row for every chain from the rows of its seeds."""

from __future__ import annotations

import csv
import io
import math

import pytest
from report_rows import ABOUT, gpu, row, timed
from scipy import stats

from compress.report.table import markdown
from compress.results.seeds import over_seeds, seeds_csv, seeds_of, why_not_equivalent
from compress.results.table import number
from compress.results.timed import timed_files
from compress.stats.pairs import Difference
from compress.stats.replication import mean_lower_bound, mean_noninferiority_p


def test_a_deterministic_chain_can_be_worse():
    rows = _seeds("baseline", (0, 0, 0))
    lost = {"accuracy_p": 1e-12, "control_delta": -0.6, "control_p": 0.2}
    rows += _seeds("a()", (-0.6, -0.6, -0.6), **lost)
    rows[4] |= {"accuracy_p": 1e-9, "control_p": 0.3}
    found = over_seeds(rows, ABOUT)[1]
    assert (found["accuracy_p"], found["accuracy_verdict"]) == (1e-9, "worse")
    assert (found["control_p"], found["control_verdict"]) == (0.3, "not shown")
    assert found["accuracy_delta_low"] == pytest.approx(-0.61)


def _seeds(chain, deltas, **more):
    return [row(chain, delta, seed=seed, **more) for seed, delta in enumerate(deltas)]


def test_rows_of_a_chain_become_one():
    rows = [
        *_seeds("a()", (-0.03, -0.01, -0.02), cpu_ms_p50=3.0, lost=4),
        *_seeds("baseline", (0.0, 0.0, 0.0)),
    ]
    base, found = over_seeds(rows, ABOUT)
    assert (base["chain"], found["chain"]) == ("baseline", "a()")
    assert (found["n"], found["seeds"], found["status"], found["error"]) == (3, "0 1 2", "ok", "")
    assert found["accuracy"] == pytest.approx(0.88)
    assert found["accuracy_sd"] == pytest.approx(0.01)
    assert [float(value) for value in found["accuracy_seeds"].split()] == [0.87, 0.89, 0.88]
    assert found["accuracy_delta"] == pytest.approx(-0.02)
    assert found["accuracy_p"] == pytest.approx(1 - math.sqrt(12 / 14))
    # At p = 0.074 three seeds do not show it, though each seed's own items do.
    assert found["accuracy_verdict"] == "not shown"
    assert (found["cpu_ms_p50"], found["lost"], found["params"]) == (3.0, 4, 1000)
    assert found["note"] == ""
    assert "accuracy_low" not in found
    assert "accuracy_p" not in base
    assert "accuracy_verdict" not in base


def test_holm_runs_over_the_rows():
    rows = _seeds("baseline", (0, 0, 0))
    for name in "abc":  # p = 0.0253 each: below 5 % alone, above it with three
        rows += _seeds(f"{name}()", (0.019, 0.023, 0.030))
    *_, last = over_seeds(rows, ABOUT)
    assert last["accuracy_p"] == pytest.approx(stats.ttest_1samp([0.019, 0.023, 0.030], 0).pvalue)
    assert 0.05 / 3 < last["accuracy_p"] < 0.05
    assert last["accuracy_verdict"] == "not shown"
    assert over_seeds(rows[:6], ABOUT)[-1]["accuracy_verdict"] == "better"


def test_the_difference_to_a_control_is_tested_as_well():
    rows = _seeds("baseline", (0, 0, 0))
    for seed, delta in enumerate((-0.010, -0.011, -0.012)):
        more = {"control": "b()", "control_delta": delta, "control_p": 0.5}
        rows.append(row("a()", seed=seed, control_verdict="not shown", **more))
    found = over_seeds(rows, ABOUT)[1]
    assert found["control"] == "b()"
    assert found["control_p"] == pytest.approx(
        stats.ttest_1samp([-0.010, -0.011, -0.012], 0).pvalue
    )
    assert found["control_verdict"] == "worse"


def test_with_one_seed_left_its_own_test_stays():
    rows = _seeds("baseline", (0, 0, 0)) + _seeds("a()", (-0.02, -0.03, -0.02))
    rows[3] |= {"status": "failed", "error": "no memory"}
    rows[4] |= {"status": "unverified", "error": "logits differ"}
    rows[5] |= {"accuracy_p": 0.012, "note": "kept 51 %"}
    found = over_seeds(rows, ABOUT)[1]
    assert (found["n"], found["seeds"], found["status"]) == (1, "2", "ok")
    assert (found["accuracy_p"], found["accuracy_verdict"]) == (0.012, "worse")
    assert found["accuracy_delta_low"] == pytest.approx(-0.03)
    assert "accuracy_sd" not in found
    assert found["note"] == (
        "1 of 3 seeds failed (no memory); 1 of 3 seeds were not verified (logits differ); "
        "a single seed is left: its p and interval are over test items; kept 51 %"
    )


def test_a_row_is_failed_only_if_all_its_seeds_are():
    rows = _seeds("baseline", (0, 0)) + _seeds("a()", (-0.02, -0.03), status="failed", error="e")
    found = over_seeds(rows, ABOUT)[1]
    assert (found["status"], found["error"], found["n"], found["note"]) == ("failed", "e", 0, "")
    assert "accuracy_p" not in found
    rows[3]["status"] = "unverified"
    assert over_seeds(rows, ABOUT)[1]["status"] == "unverified"
    assert "failed" in markdown(rows[:3], {})


def test_what_differs_between_seeds_is_said():
    rows = _seeds("baseline", (0, 0)) + _seeds("a()", (-0.02, -0.03, -0.01))
    rows[3] |= {"params": 1060, "cpu_ms_p50": 2.12, "onnx_bytes": 5100, "note": "slow"}
    rows[2] |= {"cpu_verdict": "faster"}
    base, found = over_seeds(rows, ABOUT)
    assert base["note"] == "1 of 3 seeds missing"
    assert found["note"] == (
        "parameters: up to 6 % apart between seeds; latency at batch 1, all threads: up to 6 % "
        "apart between seeds; seed 1: slow"
    )
    assert found["cpu_verdict"] == "mixed"
    assert found["params"] == pytest.approx(3060 / 3)


def test_a_seed_without_a_baseline_counts_for_accuracy_only():
    rows = _seeds("baseline", (0, 0, 0)) + _seeds("a()", (-0.02, -0.03, -0.01))
    rows[5] |= {"accuracy_delta": None}
    found = over_seeds(rows, ABOUT)[1]
    assert (found["n"], found["accuracy_delta"]) == (3, pytest.approx(-0.025))
    assert found["note"] == "compared with the baseline in 2 of 3 seeds"


def test_a_seed_whose_baseline_was_not_verified_enters_no_test():
    rows = _seeds("baseline", (0, 0, 0)) + _seeds("a()", (-0.02, -0.03, -0.9))
    rows[2]["status"] = "unverified"
    # Its row has a difference all the same, but no p.
    rows[5] |= {"accuracy_p": None, "accuracy_delta_low": None, "accuracy_delta_high": None}
    found = over_seeds(rows, ABOUT)[1]
    assert found["accuracy_delta"] == pytest.approx(-0.025)
    assert found["accuracy_p"] == pytest.approx(stats.ttest_1samp([-0.02, -0.03], 0).pvalue)
    assert found["note"] == "compared with the baseline in 2 of 3 seeds"
    rows[4]["accuracy_p"] = None
    found = over_seeds(rows, ABOUT)[1]
    assert (found["accuracy_delta"], found["accuracy_p"]) == (-0.02, 0.01)
    assert found["note"] == "compared with the baseline in 1 of 3 seeds"


def test_differences_without_a_test_have_a_mean():
    old = {"accuracy_p": None, "accuracy_verdict": None}
    rows = _seeds("baseline", (0, 0)) + _seeds("a()", (-0.02, -0.03), **old)
    found = over_seeds(rows, ABOUT)[1]
    assert found["accuracy_delta"] == pytest.approx(-0.025)
    assert "accuracy_p" not in found
    assert "accuracy_delta_low" not in found
    assert "accuracy_verdict" not in found


FURTHER = (
    *(timed_files("cpu4_batch32"), timed_files("cpu1", "arm_4t"), timed_files("cpu", "arm_4t")),
    *(timed_files("cpu1"), gpu("cuda_trt_ms_p50"), gpu("cuda_torch_ms_p50"), gpu("cuda_ms_p50")),
    timed_files("cpu", runtime="fake", title="Fake"),
)


@pytest.mark.parametrize(
    ("column", "words"),
    [
        ("cpu_ms_p50", "latency at batch 1, all threads"),
        ("cpu4_batch32_ms_p50", "latency at batch 32, 4 threads"),
        ("on_arm_4t_cpu1_ms_p50", "latency on arm_4t at batch 1, 1 thread"),
        ("cuda_trt_ms_p50", "latency on the GPU (TensorRT provider)"),
        ("fake_cpu_ms_p50", "latency in Fake at batch 1, all threads"),
    ],
)
def test_no_note_has_a_columns_name(column, words):
    rows = [row("a()", seed=seed, **{column: 1.0 + 0.12 * seed}) for seed in range(2)]
    (found,) = over_seeds(rows, timed(*FURTHER))
    assert found["note"] == f"{words}: up to 12 % apart between seeds"


def test_speed_of_every_setting_machine_and_runtime_is_merged():
    keys = ("cpu1", "cuda", "cuda_file", "on_arm_4t_cpu", "fake_cpu")
    rows = [
        row(chain, seed=seed, **{f"{key}_speedup": 2.0**seed for key in keys})
        for chain in ("baseline", "a()")
        for seed in range(3)
    ]
    found = over_seeds(rows, timed(*FURTHER))[1]
    assert [found[f"{key}_speedup"] for key in keys] == pytest.approx([2.0] * 5)
    assert all(number(found, f"{key}_speedup_low") < 2 for key in keys)


def test_equivalence_is_over_seeds_and_items():
    """Three seeds of 10 000 items, each a few items worse: within a point, not within a tenth."""
    flips = ((30, 20), (28, 21), (33, 20))
    rows = _seeds("baseline", (0, 0, 0))
    for seed, (lost, gained) in enumerate(flips):
        more = {"lost": lost, "gained": gained, "items": 10_000, "seed": seed, "accuracy_p": 0.2}
        rows.append(row("a()", (gained - lost) / 10_000, **more))
    differences = [Difference(lost, gained, 10_000) for lost, gained in flips]
    for margin, verdict in ((1.0, "equivalent"), (0.1, "not shown")):
        found = over_seeds(rows, ABOUT | {"margin": margin})[1]
        assert found["accuracy_verdict"] == verdict
        assert found["accuracy_bound"] == mean_lower_bound(differences)
        assert found["equivalence_p"] == mean_noninferiority_p(differences, margin / 100)
        assert (found["accuracy_bound"] > -margin / 100) == (verdict == "equivalent")


def test_one_seed_is_itself():
    found = over_seeds([row("baseline"), row("a()", -0.02, 2.0, accuracy_p=0.01)], ABOUT)[1]
    assert (found["n"], found["accuracy"], found["accuracy_p"]) == (1, 0.88, 0.01)
    assert (found["accuracy_verdict"], found["cpu_verdict"], found["note"]) == (
        "worse",
        "faster",
        "",
    )


def test_seeds_are_found_in_order():
    assert seeds_of([{"seed": 2}, {"seed": 0}, {"seed": 2}, {}]) == [0, 2]


def test_the_csv_holds_a_row_for_a_chain():
    rows = _seeds("baseline", (0, 0)) + _seeds("a()", (-0.02, -0.03), lost=3)
    rows[3]["lost"] = 4
    base, found = csv.DictReader(io.StringIO(seeds_csv(rows, ABOUT)))
    assert list(base)[:7] == ["chain", "n", "seeds", "status", "error", "role", "accuracy"]
    assert (base["chain"], found["n"], found["seeds"]) == ("baseline", "2", "0 1")
    assert (found["params"], found["lost"]) == ("1000", "3.5")
    assert float(found["accuracy_sd"]) == pytest.approx(0.01 / math.sqrt(2))
    assert "seed" not in found
    assert "onnx_path" not in found


def test_what_is_said_of_the_gpu_for_any_seed_is_said():
    notes = ["no TensorRT; float32 in channels_last.", "no TensorRT", "", "no CUDA graph"]
    rows = [row("baseline", seed=number, cuda_note=note) for number, note in enumerate(notes)]
    (found,) = over_seeds(rows, ABOUT)
    assert found["cuda_note"] == "no TensorRT; float32 in channels_last; no CUDA graph"


@pytest.mark.parametrize(
    ("bound", "p", "shown"),
    [
        (-0.0123, 0.31, "-1.23 (p 0.31 before"),
        (-0.010004, 0.05002, "-1.0004 (p 0.05002 before"),
        (-0.009998, 0.0499996, "-0.9998 (p 0.0499996 before"),
        (-0.01, 0.05, "-1.00 (p 0.05 before"),
    ],
)
def test_a_row_at_the_margin_has_the_digits_that_say_on_which_side(bound, p, shown):
    one = row("a()", -0.002, accuracy_bound=bound, equivalence_p=p, accuracy_verdict="not shown")
    assert f"may differ by {shown}" in why_not_equivalent([one], {**ABOUT, "margin": 1.0}, "a()")
