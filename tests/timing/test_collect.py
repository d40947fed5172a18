"""How long is measured, in how many processes, and what becomes of those that die."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_up import SAMPLES, SECONDS, Machine, raw_timings

from compress.errors import UserError
from compress.system import processes
from compress.timing.collect import Effort, TimingRequest, _is_slow, collect
from compress.timing.launch import WorkerFailed, launch
from compress.timing.raw_timings import CONTROL, LEVELS, RawTimings, process_ratios
from compress.timing.summary import summarise


def test_a_quiet_machine_is_left_after_five_processes_for_every_thread_count():
    machine = Machine(SECONDS, noise=0.001, between=0.0005)
    found = raw_timings(
        machine, effort=Effort(seconds=1000), settings=("cpu", "cpu1", "cpu_batch32")
    )
    assert [job["threads"] for job in machine.jobs] == [2, 1] * 5
    assert [job["batches"] for job in machine.jobs] == [[1, 32], [1]] * 5
    assert len(found.series("cpu_batch32", "fast")) == 5
    assert found.seconds == pytest.approx(machine.now, abs=1e-3)


def test_a_noisy_one_is_measured_until_the_budget_ends():
    machine = Machine(SECONDS, between=0.05)
    found = raw_timings(machine, effort=Effort(seconds=100))
    # 100 s for 24 pairs of processes: 2.083 s each, and 0.3 to start, so twenty pairs fit.
    assert len(found.launched) == 40
    assert found.seconds <= 100


def test_the_budget_gives_way_to_five_processes():
    machine = Machine(SECONDS, between=0.05)
    assert len(raw_timings(machine, effort=Effort(seconds=0.001)).launched) == 10


def test_progress_tells_how_many_processes_come_whatever_the_budget():
    said: list[str] = []
    raw_timings(Machine(SECONDS, between=0.05), effort=Effort(seconds=0.5), progress=said.append)
    assert said == [f"process {i} of at least 10, budget 0.5 s" for i in range(1, 11)]
    said.clear()
    raw_timings(Machine(SECONDS, between=0.05), effort=Effort(seconds=60), progress=said.append)
    assert said[9:11] == ["process 10 of at least 10, budget 60 s", "process 11, budget 60 s"]


def test_processes_are_added_while_an_interval_is_wide_whatever_it_contains():
    """The answer, ten times faster or the same, must not decide when to stop."""
    counts = []
    for fast in (0.004, 0.0004):
        machine = Machine({**SECONDS, "fast": fast}, between=0.012)
        counts.append(len(raw_timings(machine, effort=Effort(seconds=1e4)).launched))
    assert counts[0] == counts[1] > 10


def test_each_process_has_a_seed_and_every_candidate_its_level():
    machine = Machine(SECONDS)
    raw_timings(machine, seed=7)
    seeds = [job["seed"] for job in machine.jobs]
    assert len(set(seeds)) == len(seeds)
    first = machine.jobs[0]["candidates"]
    assert first["fast"][1] == first["base"][1] == first[CONTROL][1] == "default"
    assert first[CONTROL][0] == first["base"][0]
    assert {first[name][1] for name in LEVELS} == {"disabled", "basic", "extended"}
    assert all(first[name][0] == first["base"][0] for name in LEVELS)


@pytest.mark.parametrize(
    ("speeds", "times"),
    # Not faster than 1.01 beyond doubt ends it from the third process on.
    [((0.5, 0.95, 1.03), (1, 2, None)), ((1.03, 0.99, 1.015), (None, 3, None))],
)
def test_levels_are_timed_for_as_long_as_they_may_be_the_denominator(speeds, times):
    levels = dict(zip(LEVELS.values(), speeds, strict=True))
    machine = Machine(SECONDS, noise=1e-4, between=1e-3, levels=levels)
    raw_timings(machine, settings=("cpu",))
    for level, expected in zip(LEVELS, times, strict=True):
        checkpoint = [level in job["candidates"] for job in machine.jobs]
        seen = len(checkpoint) if expected is None else expected
        assert checkpoint == [True] * seen + [False] * (len(checkpoint) - seen)
    assert len(machine.jobs) > 3


@pytest.mark.parametrize(
    ("speeds", "slow"),
    [
        ((0.91,), False),
        ((0.89,), True),
        ((0.99, 0.96), False),
        ((0.96, 0.97), True),
        ((1.0, 1.0, 1.03), False),  # may be 1.05 as well
        ((1.0, 1.0, 1.03, 1.0), True),  # may still be 1.03, but that is not what it looks like
        ((1.02, 1.02, 0.9, 1.03), False),
    ],
)
def test_what_a_level_must_reach_to_be_timed_again(speeds, slow):
    assert _is_slow(np.log(speeds)) is slow


def test_a_level_that_is_fast_at_one_batch_size_is_kept_for_all():
    machine = Machine(SECONDS, levels={"disabled": 0.5, "basic": 1.1, "extended": 1.1})

    def launch(job_path: Path, result_path: Path, timeout: float) -> None:
        machine.launch(job_path, result_path, timeout)
        result = json.loads(result_path.read_text())
        for series in (result["settings"]["32"][name] for name in LEVELS if name in checkpoint(-1)):
            series["medians"] = [2 * seconds for seconds in series["medians"]]
        result_path.write_text(json.dumps(result))

    def checkpoint(number: int) -> list[str]:
        return machine.jobs[number]["candidates"]

    raw_timings(machine, settings=("cpu", "cpu_batch32"), launch=launch)
    assert "(level basic)" in checkpoint(-1)
    assert "(level disabled)" not in checkpoint(1)


def test_a_process_that_dies_is_named_and_the_others_count():
    machine = Machine(SECONDS)

    def flaky(job_path: Path, result_path: Path, timeout: float) -> None:
        if job_path.name == "job-2.json":
            raise WorkerFailed("the timing process was killed by signal 9 (loading fast)")
        machine.launch(job_path, result_path, timeout)

    found = raw_timings(machine, launch=flaky, effort=Effort(seconds=0.01))
    sentence = "process 3: the timing process was killed by signal 9 (loading fast)"
    assert found.failures("cpu") == (sentence,)
    assert found.failures("cpu1") == ()
    # Five are to live: one more pair was started for the one that died.
    assert len(found.series("cpu", "fast")) == 5
    assert len(found.series("cpu1", "fast")) == 6


@pytest.mark.parametrize("word", ["loading", "running"])
def test_a_file_at_which_processes_die_is_set_aside(word: str):
    machine = Machine({**SECONDS, "bad": 0.004})

    def deadly(job_path: Path, result_path: Path, timeout: float) -> None:
        if "bad" in json.loads(job_path.read_text())["candidates"]:
            said = f"{word} bad"
            raise WorkerFailed(f"the timing process was killed by signal 11 ({said})", said)
        machine.launch(job_path, result_path, timeout)

    found = raw_timings(machine, launch=deadly, effort=Effort(seconds=0.01))
    assert [bool(part.failure) for part in found.launched] == [True] * 2 + [False] * 10
    assert len(found.series("cpu", "fast")) == 5
    timings = summarise(found)
    assert timings["fast", "cpu"].verdict == "faster"
    bad = timings["bad", "cpu"]
    assert bad.error == f"process 1: the timing process was killed by signal 11 ({word} bad)"
    assert not bad.wrong


def test_processes_that_die_at_the_baseline_are_not_told_from_others():
    def deadly(job_path: Path, result_path: Path, timeout: float) -> None:
        raise WorkerFailed("the timing process was killed by signal 11", "running base")

    found = raw_timings(Machine(SECONDS), launch=deadly, effort=Effort(seconds=0.01))
    assert len(found.launched) == 20


def test_half_a_result_is_no_result():
    def dead(job_path: Path, result_path: Path, timeout: float) -> None:
        result_path.write_text("{half a res")

    found = raw_timings(Machine(SECONDS), launch=dead, effort=Effort(seconds=0.01))
    assert all("left no readable result" in part.failure for part in found.launched)
    assert len(found.launched) == 20  # twice as many as were wanted, and no more


def test_raw_seconds_survive_json():
    found = raw_timings(Machine(SECONDS, rounds=3))
    again = RawTimings.from_json(json.loads(json.dumps(found.to_json())))
    assert again.to_json() == found.to_json()
    assert again.series("cpu1", "same") == found.series("cpu1", "same")


def test_a_processes_ratio_is_the_median_of_its_rounds():
    one = {"error": "", "medians": [1.0, 2.0, 9.0]}
    two = {"error": "", "medians": [2.0, 2.0, 3.0]}
    assert process_ratios([one, one, {**one, "error": "x"}], [two, None, two]) == [1]
    assert process_ratios([None, one], [two, {**two, "error": "x"}]) == []


def test_wrong_calls_are_refused_before_any_process_starts():
    def never(*_):
        raise AssertionError

    machine = Machine(SECONDS)
    with pytest.raises(UserError, match="baseline 'base' is not among"):
        raw_timings(replace(machine, seconds={"fast": 1.0}), launch=never)
    with pytest.raises(UserError, match="at least two processes"):
        raw_timings(machine, launch=never, effort=Effort(processes=1))
    with pytest.raises(UserError, match="no latency setting"):
        raw_timings(machine, launch=never, settings=("gpu",))
    request = TimingRequest({"base": Path("b")}, SAMPLES, {}, baseline="base")
    with pytest.raises(UserError, match="verified logits of 'base'"):
        collect(request, launch=never)
    request = replace(
        request, samples=[SAMPLES[0], SAMPLES[0][:3]], expected={"base": np.zeros((40, 1))}
    )
    with pytest.raises(UserError, match="the same number for every input"):
        collect(request, launch=never)


def test_a_process_that_hangs_is_ended(monkeypatch, tmp_path):
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho loading x >&2\nexec sleep 60\n")
    script.chmod(0o755)
    monkeypatch.setattr(processes.sys, "executable", str(script))
    with pytest.raises(WorkerFailed, match=r"took more than 1 s and was ended \(loading x\)"):
        launch(tmp_path / "job", tmp_path / "result", 1)


def test_a_process_that_fails_says_so(tmp_path):
    with pytest.raises(WorkerFailed, match="the timing process failed: FileNotFoundError"):
        launch(tmp_path / "missing.json", tmp_path / "result.json", 60)
