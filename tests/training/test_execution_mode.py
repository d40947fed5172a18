"""How a training runs: chosen by measuring if it is long, kept, and never compiled for nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bench_fixtures import fresh_model, make_context, small_digits
from caches import Folder
from torch import nn

from compress.compressor import run
from compress.context import StepContext, StepLog
from compress.model import load, save
from compress.techniques import chain
from compress.training import execution_mode as pace_module
from compress.training import loop
from compress.training.batch_loader import Batch, BatchLoader
from compress.training.execution_mode import ExecutionMode, autotune, default_mode
from compress.training.layout import place_inputs
from compress.zoo.models import build_module

CPU = torch.device("cpu")


class Clocked:
    """Stands for `_Trial`: each way takes the seconds that it is given."""

    seconds: dict[str, Any]

    def __init__(self, model: Any, context: Any, batch: Any, way: ExecutionMode) -> None:
        self.way = way
        if "full" in self.seconds and (way.compiled or way.replayed):
            raise torch.OutOfMemoryError("CUDA out of memory")
        if way.compiled and "broken" in self.seconds:
            raise RuntimeError("no C++ compiler")

    def step(self) -> float:
        if str(self.way) == self.seconds.get("fails"):
            raise NotImplementedError("no kernel for this type")
        if str(self.way) not in self.seconds:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.seconds[str(self.way)]


@pytest.fixture
def context(tmp_path: Path) -> StepContext:
    return replace(make_context(small_digits()), tune=True, cache=Folder(tmp_path))


@pytest.fixture
def batch(context: StepContext) -> Batch:
    assert context.train is not None
    return BatchLoader(context.train, context.task, CPU, 0, 32).batch(torch.arange(32), 0)


def choose(
    context: StepContext,
    batch: Batch,
    monkeypatch: pytest.MonkeyPatch,
    seconds: dict[str, Any],
    steps: int = 1000,
    **more: Any,
) -> ExecutionMode:
    monkeypatch.setattr(pace_module, "_Trial", type("Trial", (Clocked,), {"seconds": seconds}))
    monkeypatch.setattr(pace_module, "MEASURED_FROM", 1.0)
    return autotune(fresh_model(small_digits()), context, steps, batch, **more)


USUAL = {"float32, channels_last": 0.10, "float32": 0.20}


def test_the_usual_way_stays_unless_another_is_clearly_faster(
    context: StepContext, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert choose(context, batch, monkeypatch, USUAL) == ExecutionMode("float32", True)
    context = replace(context, cache=None)
    assert choose(context, batch, monkeypatch, {**USUAL, "float32": 0.095}) == ExecutionMode(
        "float32", True
    )
    assert choose(context, batch, monkeypatch, {**USUAL, "float32": 0.05}) == ExecutionMode(
        "float32"
    )


def test_bfloat16_is_tried_only_where_the_hardware_has_it(
    context: StepContext, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = {"bfloat16, channels_last": 0.4, "bfloat16": 0.5, **USUAL}
    fast = replace(context, precision="bfloat16")
    assert choose(fast, batch, monkeypatch, slow) == ExecutionMode("float32", True)
    [row] = [row for row in fast.log.rows if row["kind"] == "pace"]
    assert row["seconds_per_step"] == slow


def test_compiling_must_pay_for_its_own_time(
    context: StepContext, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    ways = {**USUAL, "float32, channels_last, compiled": 0.05}
    long = {"steps": 100_000}
    bare = replace(context, cache=None)
    assert choose(bare, batch, monkeypatch, ways, **long) == ExecutionMode("float32", True, True)
    assert choose(bare, batch, monkeypatch, ways, steps=1000) == ExecutionMode("float32", True)
    traced = choose(bare, batch, monkeypatch, ways, **long, traced=False)
    assert traced == ExecutionMode("float32", True)
    assert choose(bare, batch, monkeypatch, {**ways, "broken": 0}, **long) == ExecutionMode(
        "float32", True
    )
    assert "no C++ compiler" in bare.log.rows[-1]["refused"]


def test_the_answer_is_kept_and_reused(
    context: StepContext, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert choose(context, batch, monkeypatch, {**USUAL, "float32": 0.05}) == ExecutionMode(
        "float32"
    )
    assert choose(context, batch, monkeypatch, USUAL) == ExecutionMode("float32"), "measured once"
    assert choose(context, batch, monkeypatch, USUAL, steps=1001) == ExecutionMode("float32")
    wider = replace(context, precision="bfloat16")
    ways = {"bfloat16": 1.0, "bfloat16, channels_last": 1.0, **USUAL}
    assert choose(wider, batch, monkeypatch, ways) == ExecutionMode("float32", True), (
        "another question"
    )


def test_a_way_for_which_memory_does_not_suffice_is_left_out(
    context: StepContext, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = replace(context, cache=None)
    assert choose(context, batch, monkeypatch, {"float32": 9.0}) == ExecutionMode("float32")
    assert choose(context, batch, monkeypatch, {}) == ExecutionMode("float32", True), (
        "halving will be tried"
    )


def test_a_way_that_fails_is_left_out_unless_it_is_the_usual_one(
    context: StepContext, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = replace(context, cache=None)
    ways = {**USUAL, "float32": 0.05, "fails": "float32"}
    assert choose(context, batch, monkeypatch, ways) == ExecutionMode("float32", True)
    with pytest.raises(NotImplementedError, match="no kernel"):
        choose(context, batch, monkeypatch, {**ways, "fails": "float32, channels_last"})


def test_measuring_draws_no_random_numbers(
    context: StepContext, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace_module, "MEASURED_FROM", 1.0)
    model = fresh_model(small_digits())
    model = replace(model, module=nn.Sequential(nn.Dropout(0.5), *model.module))
    before = torch.get_rng_state()
    autotune(model, context, 100, batch)
    assert torch.equal(torch.get_rng_state(), before)


def test_short_or_settled_trainings_are_not_tried_out(context: StepContext, batch: Batch) -> None:
    model = fresh_model(small_digits())
    expected = default_mode(model.module, context, batch)
    assert expected == ExecutionMode("float32", True)
    assert autotune(model, context, 10, batch) == expected
    assert autotune(model, replace(context, tune=False), 10**9, batch) == expected
    assert default_mode(nn.Linear(2, 2), context, batch) == ExecutionMode("float32")
    assert not context.log.rows


def test_many_steps_are_tried_out_however_small(
    context: StepContext, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = {"float32, channels_last": 0.10, "float32": 0.05}
    monkeypatch.setattr(pace_module, "_Trial", type("Trial", (Clocked,), {"seconds": seconds}))
    model = fresh_model(small_digits())
    few, many = pace_module.MEASURED_FROM_STEPS - 1, pace_module.MEASURED_FROM_STEPS
    assert autotune(model, context, few, batch) == ExecutionMode("float32", True)
    assert autotune(model, context, many, batch) == ExecutionMode("float32")


def test_really_measured(
    context: StepContext, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace_module, "MEASURED_FROM", 1.0)
    model = fresh_model(small_digits())
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    chosen = autotune(model, context, 100, batch)
    [row] = [row for row in context.log.rows if row["kind"] == "pace"]
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
    context: StepContext, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list(pace_module.further_options(torch.device("cuda"))) == ["replayed", "compiled"]
    assert list(pace_module.further_options(CPU)) == ["compiled"]
    monkeypatch.setattr(
        pace_module, "further_options", lambda device: {"replayed": 20, "compiled": 600}
    )
    usual = "float32, channels_last"
    ways = {**USUAL, f"{usual}, replayed": 0.02, f"{usual}, compiled, replayed": 0.019}
    bare = replace(context, cache=None)
    assert choose(bare, batch, monkeypatch, ways, steps=100) == ExecutionMode("float32", True)
    replayed = ExecutionMode("float32", True, replayed=True)
    assert choose(bare, batch, monkeypatch, ways, steps=1000) == replayed
    assert "compiled" not in [row["kind"] for row in bare.log.rows], "20 s need no compiling"
    assert choose(bare, batch, monkeypatch, ways, steps=100_000) == replayed, "hardly faster"
    assert "compiled" in [row["kind"] for row in bare.log.rows]
    crowded = replace(context, log=StepLog())
    assert choose(crowded, batch, monkeypatch, {**ways, "full": 1}, steps=1000) == ExecutionMode(
        "float32", True
    )
    assert "out of memory" in crowded.log.rows[-1]["refused"]
    assert choose(crowded, batch, monkeypatch, ways, steps=1000) == replayed, "that was no answer"
    ways[f"{usual}, compiled, replayed"] = 0.01
    both = ExecutionMode("float32", True, compiled=True, replayed=True)
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
    monkeypatch.setattr(loop, "autotune", lambda *_: ExecutionMode("float32", False, compiled=True))
    data = small_digits()
    context = make_context(data)
    made = run(chain("finetune(epochs=1)"), fresh_model(data), context)
    [fitted] = [row for row in context.log.rows if row["kind"] == "fit"]
    assert (fitted["pace"], len(calls)) == ("float32, compiled", 1)
    save(made, tmp_path, build_module)
    assert torch.equal(
        load(tmp_path, build_module).module(*made.example), made.module(*made.example)
    )
