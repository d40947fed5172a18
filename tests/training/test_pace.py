"""How a training runs: chosen by measuring if it is long, kept, and never compiled for nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bench_fixtures import fresh_model, make_bench, small_digits
from shelves import Folder
from torch import nn

from compress.compressor import run
from compress.model import load, save
from compress.techniques import chain
from compress.training import loop
from compress.training import pace as pace_module
from compress.training.feed import Batch, Feed
from compress.training.pace import Pace, choose_pace, place_inputs, usual_pace
from compress.workbench import Journal, Workbench
from compress.zoo.models import build_module

CPU = torch.device("cpu")


class Clocked:
    """Stands for `_Trial`: each way takes the seconds that it is given."""

    seconds: dict[str, float]

    def __init__(self, model: Any, bench: Any, batch: Any, way: Pace) -> None:
        self.way = way
        if "full" in self.seconds and (way.compiled or way.replayed):
            raise torch.OutOfMemoryError("CUDA out of memory")
        if way.compiled and "broken" in self.seconds:
            raise RuntimeError("no C++ compiler")

    def step(self) -> float:
        if str(self.way) not in self.seconds:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.seconds[str(self.way)]


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return replace(make_bench(small_digits()), tune=True, shelf=Folder(tmp_path))


@pytest.fixture
def batch(bench: Workbench) -> Batch:
    assert bench.train is not None
    return Feed(bench.train, bench.task, CPU, 0, 32).batch(torch.arange(32), 0)


def choose(
    bench: Workbench,
    batch: Batch,
    monkeypatch: pytest.MonkeyPatch,
    seconds: dict[str, float],
    steps: int = 1000,
    **more: Any,
) -> Pace:
    monkeypatch.setattr(pace_module, "_Trial", type("Trial", (Clocked,), {"seconds": seconds}))
    monkeypatch.setattr(pace_module, "MEASURED_FROM", 1.0)
    return choose_pace(fresh_model(small_digits()), bench, steps, batch, **more)


USUAL = {"float32, channels_last": 0.10, "float32": 0.20}


def test_the_usual_way_stays_unless_another_is_clearly_faster(
    bench: Workbench, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert choose(bench, batch, monkeypatch, USUAL) == Pace("float32", True)
    bench = replace(bench, shelf=None)
    assert choose(bench, batch, monkeypatch, {**USUAL, "float32": 0.095}) == Pace("float32", True)
    assert choose(bench, batch, monkeypatch, {**USUAL, "float32": 0.05}) == Pace("float32")


def test_bfloat16_is_tried_only_where_the_hardware_has_it(
    bench: Workbench, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = {"bfloat16, channels_last": 0.4, "bfloat16": 0.5, **USUAL}
    fast = replace(bench, precision="bfloat16")
    assert choose(fast, batch, monkeypatch, slow) == Pace("float32", True)
    [row] = [row for row in fast.journal.rows if row["kind"] == "pace"]
    assert row["seconds_per_step"] == slow


def test_compiling_must_pay_for_its_own_time(
    bench: Workbench, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    ways = {**USUAL, "float32, channels_last, compiled": 0.05}
    long = {"steps": 100_000}
    bare = replace(bench, shelf=None)
    assert choose(bare, batch, monkeypatch, ways, **long) == Pace("float32", True, True)
    assert choose(bare, batch, monkeypatch, ways, steps=1000) == Pace("float32", True)
    traced = choose(bare, batch, monkeypatch, ways, **long, traced=False)
    assert traced == Pace("float32", True)
    assert choose(bare, batch, monkeypatch, {**ways, "broken": 0}, **long) == Pace("float32", True)
    assert "no C++ compiler" in bare.journal.rows[-1]["refused"]


def test_the_answer_is_kept_and_reused(
    bench: Workbench, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert choose(bench, batch, monkeypatch, {**USUAL, "float32": 0.05}) == Pace("float32")
    assert choose(bench, batch, monkeypatch, USUAL) == Pace("float32"), "measured once"
    assert choose(bench, batch, monkeypatch, USUAL, steps=1001) == Pace("float32")
    wider = replace(bench, precision="bfloat16")
    ways = {"bfloat16": 1.0, "bfloat16, channels_last": 1.0, **USUAL}
    assert choose(wider, batch, monkeypatch, ways) == Pace("float32", True), "another question"


def test_a_way_for_which_memory_does_not_suffice_is_left_out(
    bench: Workbench, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = replace(bench, shelf=None)
    assert choose(bench, batch, monkeypatch, {"float32": 9.0}) == Pace("float32")
    assert choose(bench, batch, monkeypatch, {}) == Pace("float32", True), "halving will be tried"


def test_measuring_draws_no_random_numbers(
    bench: Workbench, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace_module, "MEASURED_FROM", 1.0)
    model = fresh_model(small_digits())
    model = replace(model, module=nn.Sequential(nn.Dropout(0.5), *model.module))
    before = torch.get_rng_state()
    choose_pace(model, bench, 100, batch)
    assert torch.equal(torch.get_rng_state(), before)


def test_short_or_settled_trainings_are_not_tried_out(bench: Workbench, batch: Batch) -> None:
    model = fresh_model(small_digits())
    expected = usual_pace(model.module, bench)
    assert expected == Pace("float32", True)
    assert choose_pace(model, bench, 10, batch) == expected
    assert choose_pace(model, replace(bench, tune=False), 10**9, batch) == expected
    assert usual_pace(nn.Linear(2, 2), bench) == Pace("float32")
    assert not bench.journal.rows


def test_many_steps_are_tried_out_however_small(
    bench: Workbench, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = {"float32, channels_last": 0.10, "float32": 0.05}
    monkeypatch.setattr(pace_module, "_Trial", type("Trial", (Clocked,), {"seconds": seconds}))
    model = fresh_model(small_digits())
    few, many = pace_module.MEASURED_FROM_STEPS - 1, pace_module.MEASURED_FROM_STEPS
    assert choose_pace(model, bench, few, batch) == Pace("float32", True)
    assert choose_pace(model, bench, many, batch) == Pace("float32")


def test_really_measured(bench: Workbench, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace_module, "MEASURED_FROM", 1.0)
    model = fresh_model(small_digits())
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    chosen = choose_pace(model, bench, 100, batch)
    [row] = [row for row in bench.journal.rows if row["kind"] == "pace"]
    assert set(row["seconds_per_step"]) == {"float32, channels_last", "float32"}
    assert chosen.precision == "float32"
    assert all(torch.equal(before[k], v) for k, v in model.module.state_dict().items())


def test_inputs_get_the_layout_of_the_module() -> None:
    image, other = torch.rand(2, 3, 4, 5), torch.rand(2, 3)
    last, same = place_inputs((image, other), True)
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert same is other
    [back] = place_inputs((last,), False)
    assert back.is_contiguous()
    assert torch.equal(back, image)


def test_on_a_gpu_graphs_come_first_and_compiling_must_beat_them(
    bench: Workbench, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list(pace_module.manners(torch.device("cuda"))) == ["replayed", "compiled"]
    assert list(pace_module.manners(CPU)) == ["compiled"]
    monkeypatch.setattr(pace_module, "manners", lambda device: {"replayed": 20, "compiled": 600})
    usual = "float32, channels_last"
    ways = {**USUAL, f"{usual}, replayed": 0.02, f"{usual}, compiled, replayed": 0.019}
    bare = replace(bench, shelf=None)
    assert choose(bare, batch, monkeypatch, ways, steps=100) == Pace("float32", True)
    replayed = Pace("float32", True, replayed=True)
    assert choose(bare, batch, monkeypatch, ways, steps=1000) == replayed
    assert "compiled" not in [row["kind"] for row in bare.journal.rows], "20 s need no compiling"
    assert choose(bare, batch, monkeypatch, ways, steps=100_000) == replayed, "hardly faster"
    assert "compiled" in [row["kind"] for row in bare.journal.rows]
    crowded = replace(bench, journal=Journal())
    assert choose(crowded, batch, monkeypatch, {**ways, "full": 1}, steps=1000) == Pace(
        "float32", True
    )
    assert "out of memory" in crowded.journal.rows[-1]["refused"]
    assert choose(crowded, batch, monkeypatch, ways, steps=1000) == replayed, "that was no answer"
    ways[f"{usual}, compiled, replayed"] = 0.01
    both = Pace("float32", True, compiled=True, replayed=True)
    assert choose(bare, batch, monkeypatch, ways, steps=100_000) == both


def test_a_model_whose_training_was_compiled_can_be_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiler marks a module, and what a fresh build lacks no file can hold."""
    compiled, calls = torch.compile, []

    def traced(module: nn.Module, **options: Any) -> Any:
        calls.append(options)
        return compiled(module, backend="eager", **options)  # as inductor marks it, but at once

    monkeypatch.setattr(torch, "compile", traced)
    monkeypatch.setattr(loop, "choose_pace", lambda *_: Pace("float32", False, compiled=True))
    data = small_digits()
    bench = make_bench(data)
    made = run(chain("finetune(epochs=1)"), fresh_model(data), bench)
    [fitted] = [row for row in bench.journal.rows if row["kind"] == "fit"]
    assert (fitted["pace"], len(calls)) == ("float32, compiled", 1)
    save(made, tmp_path, build_module)
    assert torch.equal(
        load(tmp_path, build_module).module(*made.example), made.module(*made.example)
    )
