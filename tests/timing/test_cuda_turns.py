"""Rows take turns on a made-up device: speed-ups, what does not fit, what breaks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from fake_cuda import IMAGES, Costly, Fake, logits, net

from compress.errors import first_line, out_of_memory
from compress.runtimes.torch_cuda import Form
from compress.timing.cuda import Feeds, module_candidate, take_turns
from compress.timing.interleave import Plan
from compress.timing.summary import summarise

PLAN = Plan(seconds=0.0, min_rounds=6, block_seconds=0.002)


class Rows:
    """Modules of given costs as candidates, and the order in which they were placed."""

    def __init__(self, device: Fake, **costs: float) -> None:
        self.device, self.costs, self.order = device, costs, []
        self.module = net()
        self.expected = logits(self.module)
        self.noise = np.random.default_rng(0)

    @property
    def makers(self):
        return {name: lambda name=name: self.make(name) for name in self.costs}

    def make(self, name: str):
        self.order.append(name)
        made = module_candidate(
            Costly(self.module, self.costs[name]),
            Form(),
            Feeds((IMAGES,), self.device),
            self.expected,
            self.device,
        )
        return replace(made, stopwatch=self.noisy)

    def noisy(self, call, index):
        seconds, outputs = self.device.stopwatch(call, index)
        return seconds * float(np.exp(self.noise.normal(0, 0.01))), outputs


def raw_timings(rows: Rows, batch: int = 1):
    return take_turns(
        rows.makers, baseline="base", batch=batch, device=rows.device, plan=PLAN, repetitions=5
    )


def turns(rows: Rows):
    return summarise(raw_timings(rows))


def test_rows_have_speedups_intervals_and_verdicts_over_repetitions():
    device = Fake()
    rows = Rows(device, base=1e-3, same=1e-3, fast=5e-4)
    found = turns(rows)
    fast, same = found["fast", "cpu"], found["same", "cpu"]
    assert fast.speedup == pytest.approx(2, rel=0.02)
    assert fast.low <= fast.speedup <= fast.high
    assert (fast.verdict, same.verdict) == ("faster", "indistinguishable")
    assert fast.p50_ms == pytest.approx(0.5, rel=0.02)
    assert (fast.processes, fast.rounds) == (5, 30)
    control = found.controls["cpu"]
    assert control.ratio.low < 1 < control.ratio.high
    assert 0 < control.margin < 0.02
    assert device.frees == 5


def test_every_repetition_places_everything_anew_in_another_order():
    rows = Rows(Fake(), base=1e-3, other=1e-3)
    turns(rows)
    # The control is placed by the baseline's own maker.
    placed = [tuple(rows.order[i : i + 3]) for i in range(0, len(rows.order), 3)]
    assert len(placed) == 5
    assert all(sorted(order) == ["base", "base", "other"] for order in placed)
    assert len(set(placed)) > 1


def test_what_does_not_fit_together_is_timed_beside_the_baseline_alone():
    class Small(Fake):
        """Two modules fit."""

        placed = 0

        def free(self) -> None:
            super().free()
            self.placed = 0

    device = Small()
    rows = Rows(device, base=1e-3, one=5e-4, two=2e-3)
    plain = rows.make

    def make(name: str):
        if device.placed == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nAdvice")
        device.placed += 1
        return plain(name)

    rows.make = make
    found = turns(rows)
    assert found["one", "cpu"].speedup == pytest.approx(2, rel=0.02)
    assert found["two", "cpu"].speedup == pytest.approx(0.5, rel=0.02)
    assert found["one", "cpu"].processes == found["two", "cpu"].processes == 5
    assert found.controls["cpu"].ratio.value == pytest.approx(1, rel=0.02)


def test_what_does_not_fit_at_all_has_a_reason():
    rows = Rows(Fake(), base=1e-3, huge=1e-3)
    plain = rows.make

    def make(name: str):
        if name == "huge":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nAdvice")
        return plain(name)

    rows.make = make
    found = turns(rows)
    assert found["huge", "cpu"].error == (
        "the GPU's memory is full: OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB."
    )
    assert found["base", "cpu"].speedup == 1


def test_an_error_of_one_row_leaves_the_others():
    rows = Rows(Fake(), base=1e-3, bad=1e-3, good=5e-4)
    plain = rows.make

    def make(name: str):
        if name == "bad":
            raise RuntimeError("no kernel image is available")
        return plain(name)

    rows.make = make
    found = turns(rows)
    assert found["bad", "cpu"].error == "RuntimeError: no kernel image is available"
    assert found["good", "cpu"].speedup == pytest.approx(2, rel=0.02)


def test_a_broken_device_ends_the_repetitions():
    device = Fake(breaks_after=2)
    found = turns(Rows(device, base=1e-3, good=5e-4))
    assert device.frees == 2
    assert found["good", "cpu"].processes == 2


def test_raw_seconds_hold_every_repetition():
    found = raw_timings(Rows(Fake(), base=1e-3))
    assert len(found.series("cpu", "base")) == 5
    assert all(len(one["medians"]) >= 6 for one in found.series("cpu", "base"))


def test_the_setting_is_that_of_the_batch():
    for batch, setting in ((1, "cpu"), (32, "cpu_batch32")):
        assert raw_timings(Rows(Fake(), base=1e-3), batch=batch).settings == (setting,)


def test_errors_of_memory_are_told_from_others():
    assert out_of_memory("CUDA out of memory. Tried to allocate 20.00 MiB")
    assert out_of_memory("BFCArena::AllocateRawInternal Failed to allocate memory for requested")
    assert not out_of_memory("CUDA error: an illegal memory access was encountered")
    assert first_line(RuntimeError("what\nadvice")) == "what"
    assert first_line(NotImplementedError()) == "NotImplementedError"
