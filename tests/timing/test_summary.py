"""Intervals, controls, denominators and verdicts, from seconds whose truth is known."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from made_up import SECONDS, Machine, raw_timings, timed

from compress.timing.collect import Effort
from compress.timing.raw_timings import CONTROL, RawTimings, process_ratios
from compress.timing.summary import summarise
from compress.timing.worker import DIFFERENT


def test_an_a_a_pair_is_indistinguishable_and_a_faster_file_is_faster():
    found = timed(Machine({**SECONDS, "slow": 0.008}))
    for setting in ("cpu", "cpu1"):
        same, fast, slow = (found[name, setting] for name in ("same", "fast", "slow"))
        assert same.low < 1 < same.high
        assert same.verdict == "indistinguishable"
        assert fast.speedup == pytest.approx(4, rel=0.03)
        assert fast.low <= fast.speedup <= fast.high
        assert (fast.verdict, slow.verdict) == ("faster", "slower")


def test_the_baseline_is_one_without_an_interval_or_verdict():
    base = timed(Machine(SECONDS))["base", "cpu"]
    assert (base.speedup, base.low, base.high, base.verdict) == (1, None, None, "")


def test_throughput_is_items_over_the_median():
    row = timed(Machine(SECONDS), settings=("cpu_batch32",))["base", "cpu_batch32"]
    assert row.per_second == pytest.approx(32 / (row.p50_ms / 1e3))


def test_noise_is_flagged():
    assert timed(Machine(SECONDS))["base", "cpu"].noisy


def test_the_margin_is_the_spread_of_the_control_over_processes():
    raw = raw_timings(Machine(SECONDS, between=0.01))
    control = summarise(raw).controls["cpu"]
    ratios = process_ratios(raw.series("cpu", "base"), raw.series("cpu", CONTROL))
    one = np.sqrt(np.mean(np.log(ratios) ** 2))
    assert np.log1p(control.margin) == pytest.approx(one / np.sqrt(len(ratios)))
    assert control.ratio.low < 1 < control.ratio.high
    assert control.trusted


def test_a_difference_within_the_margin_is_no_difference():
    """However many rounds say so: what one copy of the baseline does, proves nothing."""
    machine = Machine({"base": 1.01, "same": 1.0}, noise=1e-4, between=0.0)
    apart = Machine({"base": 1.01, "same": 1.0}, noise=1e-4, between=0.03)
    assert timed(machine)["same", "cpu"].verdict == "faster"
    assert timed(apart)["same", "cpu"].verdict == "indistinguishable"
    assert timed(apart).controls["cpu"].margin > 0.009


def test_a_run_with_a_wide_control_is_not_to_be_trusted():
    found = timed(Machine(SECONDS, between=0.2))
    control = found.controls["cpu"]
    assert control.margin > 0.05
    assert not control.trusted
    assert control.to_json()["trusted"] is False
    # What is not beyond the control's own width is neither faster nor indistinguishable.
    assert control.bar > 0.05
    assert found["same", "cpu"].verdict == ""
    assert found["fast", "cpu"].verdict == "faster"
    assert found["fast", "cpu"].low > 1 + control.bar


def test_a_difference_within_the_doubt_of_the_control_has_no_verdict():
    machine = Machine({"base": 1.12, "same": 1.0}, noise=1e-3, between=0.0)
    raw = raw_timings(machine, settings=("cpu",))
    assert summarise(raw)["same", "cpu"].verdict == "faster"
    shaken = [dict(part.settings["1"]) for part in raw.launched]
    for number, found in enumerate(shaken):  # the second copy of the baseline strays by 20 %
        factor = 1.2 if number % 2 else 1 / 1.2
        medians = [factor * seconds for seconds in found[CONTROL]["medians"]]
        found[CONTROL] = {**found[CONTROL], "medians": medians}
    launched = [replace(p, settings={"1": f}) for p, f in zip(raw.launched, shaken, strict=True)]
    doubted = summarise(replace(raw, launched=tuple(launched)))
    assert doubted["same", "cpu"].speedup == pytest.approx(1.12, rel=0.01)
    assert doubted["same", "cpu"].verdict == ""


def strayed(raw, factor):
    """What was collected, had the second copy of the baseline taken `factor` times as long."""
    launched = []
    for part in raw.launched:
        found = dict(part.settings["1"])
        medians = [factor * seconds for seconds in found[CONTROL]["medians"]]
        found[CONTROL] = {**found[CONTROL], "medians": medians}
        launched.append(replace(part, settings={"1": found}))
    return replace(raw, launched=tuple(launched))


def test_what_sets_two_copies_apart_in_every_process_does_not_average_out():
    raw = raw_timings(
        Machine({"base": 1.02, "same": 1.0}, noise=1e-3, between=0.0), settings=("cpu",)
    )
    found, apart, wide = (summarise(strayed(raw, factor)) for factor in (1.0, 1.03, 1.3))
    assert found["same", "cpu"].verdict == "faster"
    control = apart.controls["cpu"]
    assert control.ratio.high < 1
    assert control.margin < 0.02
    assert control.bar == pytest.approx(0.03, rel=0.05)
    assert control.trusted
    assert apart["same", "cpu"].verdict == "indistinguishable"
    assert not wide.controls["cpu"].trusted


def test_nothing_is_held_against_a_baseline_that_was_caught():
    raw = raw_timings(Machine(SECONDS), settings=("cpu",))
    assert summarise(raw)["fast", "cpu"].verdict == "faster"
    first, *others = raw.launched
    series = {**first.settings["1"]["base"], "error": f"{DIFFERENT} (by 50 %)"}
    caught = replace(first, settings={"1": {**first.settings["1"], "base": series}})
    found = summarise(replace(raw, launched=(caught, *others)))
    assert found["base", "cpu"].wrong
    assert (found["fast", "cpu"].speedup, found["fast", "cpu"].verdict) == (None, "")
    assert found["fast", "cpu"].p50_ms > 0


def test_a_level_within_what_two_copies_differ_by_is_not_the_denominator():
    machine = Machine(SECONDS, noise=1e-4, between=0.0, levels={"basic": 1.02})
    raw = raw_timings(machine, settings=("cpu",))
    assert summarise(raw).controls["cpu"].denominator == "basic"
    assert summarise(strayed(raw, 1.03)).controls["cpu"].denominator == ""


def test_a_level_that_was_left_out_is_not_the_denominator():
    raw = raw_timings(Machine(SECONDS, noise=1e-4, levels={"basic": 1.3}), settings=("cpu",))
    assert summarise(raw).controls["cpu"].denominator == "basic"
    fewer = [
        {name: series for name, series in part.settings["1"].items() if name != "(level basic)"}
        for part in raw.launched[3:]
    ]
    later = [replace(p, settings={"1": f}) for p, f in zip(raw.launched[3:], fewer, strict=True)]
    found = summarise(replace(raw, launched=(*raw.launched[:3], *later)))
    assert found.controls["cpu"].denominator == ""


def test_the_fastest_level_is_the_denominator_and_the_baseline_is_compared_with_it():
    levels = {"disabled": 0.5, "basic": 1.25, "extended": 1.1}
    found = timed(Machine(SECONDS, levels=levels))
    control = found.controls["cpu"]
    assert control.denominator == "basic"
    assert control.denominator_gain == pytest.approx(1.25, rel=0.02)
    assert control.levels["extended"] == pytest.approx(1.1, rel=0.02)
    assert found["fast", "cpu"].speedup == pytest.approx(4 / 1.25, rel=0.03)
    base = found["base", "cpu"]
    assert base.speedup == pytest.approx(1 / 1.25, rel=0.02)
    assert base.verdict == "slower"
    assert control.to_json()["denominator"] == "optimization level 'basic'"


def test_a_level_that_is_hardly_faster_is_not_the_denominator():
    found = timed(Machine(SECONDS, between=0.01, levels={"basic": 1.005}))
    assert found.controls["cpu"].denominator == ""
    assert found["base", "cpu"].speedup == 1


def test_many_rows_make_few_false_claims():
    """Forty copies of the baseline in each of ten runs: at most one run in twenty may claim."""
    names = {"base": 0.004, **{f"copy {i}": 0.004 for i in range(40)}}
    claims = 0
    for seed in range(10):
        found = timed(
            Machine(names, noise=0.05, rounds=8), settings=("cpu",), seed=seed, effort=Effort(1)
        )
        claims += any(row.verdict in ("faster", "slower") for row in found.rows.values())
    assert claims <= 1


def test_raw_seconds_give_the_figures_again_from_a_file():
    """As they are kept and as other machines send them: JSON, and arithmetic by hand on it."""
    whole = raw_timings(Machine(SECONDS))
    raw = RawTimings.from_json(json.loads(json.dumps(whole.to_json())))
    assert summarise(raw).rows == summarise(whole).rows
    row = summarise(raw)["fast", "cpu"]
    base, fast = raw.series("cpu", "base"), raw.series("cpu", "fast")
    calls = np.concatenate([call for one in fast for call in one["calls"]])
    assert 1e3 * np.median(calls) == pytest.approx(row.p50_ms)
    ratios = [np.divide(b["medians"], f["medians"]) for b, f in zip(base, fast, strict=True)]
    assert np.median(np.concatenate(ratios)) == pytest.approx(row.speedup)
    assert len(raw.series("cpu1", CONTROL)) == len(base)


def test_the_error_of_a_file_stands_with_it_and_the_others_have_figures():
    found = timed(Machine(SECONDS, errors={"fast": "cannot load"}))
    assert found["fast", "cpu"].error == "cannot load"
    assert found["fast", "cpu"].wrong
    assert found["fast", "cpu"].p50_ms is None
    assert found["same", "cpu"].speedup is not None


def test_a_file_that_failed_in_one_process_has_figures_of_the_others():
    raw = raw_timings(Machine(SECONDS))
    spoiled = [dict(part.settings) for part in raw.launched]
    failing = {"error": "onnxruntime cannot load the file: bad allocation", "medians": []}
    spoiled[0]["1"] = {**spoiled[0]["1"], "fast": failing}
    launched = tuple(replace(p, settings=s) for p, s in zip(raw.launched, spoiled, strict=True))
    row = summarise(replace(raw, launched=launched))["fast", "cpu"]
    assert (row.error, row.wrong) == ("", False)
    assert row.processes == len(raw.series("cpu", "fast")) - 1
    failing = {**failing, "error": "the outputs of the timed runs differ from the verified ones"}
    spoiled[0]["1"] = {**spoiled[0]["1"], "fast": failing}
    launched = tuple(replace(p, settings=s) for p, s in zip(raw.launched, spoiled, strict=True))
    row = summarise(replace(raw, launched=launched))["fast", "cpu"]
    assert row.wrong
    assert "differ from the verified" in row.error


def test_one_process_gives_a_speedup_without_an_interval():
    raw = raw_timings(Machine(SECONDS), settings=("cpu",))
    row = summarise(replace(raw, launched=raw.launched[:1]))["fast", "cpu"]
    assert row.speedup == pytest.approx(4, rel=0.1)
    assert (row.low, row.high, row.verdict) == (None, None, "")


def test_without_a_baseline_there_are_times_but_no_speedups():
    found = timed(Machine(SECONDS, errors={"base": "cannot load", CONTROL: "cannot load"}))
    assert found["same", "cpu"].p50_ms is not None
    assert found["same", "cpu"].speedup is None
    assert found.controls["cpu"].ratio is None
    assert not found.controls["cpu"].trusted


def test_if_every_process_dies_every_row_says_why():
    def dead(job_path, result_path, timeout):
        result_path.write_text("{half a res")

    found = summarise(raw_timings(Machine(SECONDS), launch=dead, effort=Effort(seconds=0.01)))
    assert "process 1 left no readable result" in found["base", "cpu"].error
    assert not found["base", "cpu"].wrong
    assert len(found.failures) == 20
