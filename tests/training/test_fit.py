"""The training loop: schedule, masks, best epoch, and what it refuses."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from bench_fixtures import fresh_model, make_context, small_digits
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from compress.compressor import run
from compress.context import StepContext
from compress.errors import IllegalChain, StepFailed
from compress.system import progress
from compress.tasks.base import Subset
from compress.techniques import chain
from compress.training import (
    Batch,
    ExecutionMode,
    TrainingHooks,
    accuracy,
    evaluate,
    fit,
    labels_loss,
    one_cycle,
)
from compress.training.batch_loader import BatchLoader
from compress.training.execution_mode import runner
from compress.training.stepper import Stepper


@given(st.floats(0, 1))
def test_learning_rate_is_a_share_of_its_peak(progress: float) -> None:
    assert 0 <= one_cycle(progress) <= 1
    assert one_cycle(0) == 0
    assert one_cycle(0.2) == pytest.approx(1)
    assert one_cycle(1) == pytest.approx(0)


@pytest.mark.parametrize("items", [2, 3, 32, 33, 65, 97, 128, 160])
def test_any_number_of_steps_trains(items: int) -> None:
    data = small_digits()
    context = replace(make_context(data), train=Subset(data.train, torch.arange(items)))
    run(chain("train(epochs=1, batch_size=32)"), fresh_model(data), context)
    # A last batch of one item is left out: batch norm has no variance over it.
    assert context.log.samples == items - (items % 32 == 1)


@pytest.mark.parametrize("epochs", [3, 4])
def test_few_steps_are_said_with_what_gives_more(epochs: int) -> None:
    data = small_digits()
    context = replace(make_context(data), train=Subset(data.train, torch.arange(96)))
    run(chain(f"train(epochs={epochs}, batch_size=32)"), fresh_model(data), context)
    said = "the training had 9 step(s) in all, each on up to 32 items: a smaller batch_size"
    assert [note.startswith(said) for note in context.log.notes] == ([True] if epochs == 3 else [])


def test_one_item_is_too_few() -> None:
    data = small_digits()
    context = replace(make_context(data), train=Subset(data.train, torch.arange(1)))
    with pytest.raises(StepFailed, match="too few"):
        run(chain("train()"), fresh_model(data), context)


def test_best_keeps_the_best_validation_epoch() -> None:
    data = small_digits()
    context = make_context(data)
    step = chain("train(epochs=4, keep='best', batch_size=32)")
    model = run(step, fresh_model(data), context)
    scores = [row["validation_accuracy"] for row in context.log.rows if row["kind"] == "epoch"]
    assert len(scores) == 4
    assert accuracy(model.module, data.task, data.validation) == pytest.approx(max(scores))


def test_patience_ends_a_training_that_no_longer_gets_better() -> None:
    data = small_digits()
    context = make_context(data)
    step = chain("finetune(epochs=30, patience=2, learning_rate=1e-9)")
    run(step, fresh_model(data), context)
    epochs = [row for row in context.log.rows if row["kind"] == "epoch"]
    best = max(epochs, key=lambda row: (row["validation_accuracy"], -row["validation_loss"]))
    assert len(epochs) == best["epoch"] + 2 < 30
    [fitted] = [row for row in context.log.rows if row["kind"] == "fit"]
    assert fitted["best_epoch"] == best["epoch"]
    assert "training ended after" in context.log.notes[0]
    assert "validation" in step.needs


def exploding(at: int) -> tuple[StepContext, Callable[[torch.Tensor, Batch], torch.Tensor]]:
    """Return a loss that is not a number from an epoch on."""
    data = small_digits()
    context = make_context(data)
    steps = len(data.train) // 32

    def loss(outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        value = context.task.loss(outputs, batch.targets)
        return value * float("nan") if batch.progress >= (at - 1) / 4 + 1 / (8 * steps) else value

    return context, loss


def test_the_last_good_state_is_kept_when_the_loss_explodes() -> None:
    context, loss = exploding(3)
    model = fresh_model(small_digits())
    seen: list[dict[str, torch.Tensor]] = []
    settings = chain("finetune(epochs=4, batch_size=32)")

    def remember(view: int) -> None:
        seen.append({k: v.clone() for k, v in model.module.state_dict().items()})

    made = fit(model, context, settings, loss, TrainingHooks(after=remember))
    for name, value in made.module.state_dict().items():
        assert torch.equal(value, seen[1][name])
    [note] = context.log.notes
    assert "the loss became nan in epoch 3 of 4" in note
    assert "the state after epoch 2 was kept" in note
    assert [row["epoch"] for row in context.log.rows if row["kind"] == "epoch"] == [1, 2]


def test_training_stops_with_the_step_in_which_the_loss_explodes() -> None:
    context, loss = exploding(2)
    asked: list[float] = []

    def counted(outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        value = loss(outputs, batch)
        asked.append(float(value.detach()))
        return value

    settings = chain("finetune(epochs=4, batch_size=32)")
    fit(fresh_model(small_digits()), context, settings, counted)
    assert [math.isfinite(value) for value in asked] == [True] * (len(asked) - 1) + [False]


def test_a_training_tells_loss_and_accuracy_within_an_epoch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[progress.Event] = []

    class Listener:
        def take(self, event: progress.Event, source: str = "") -> None:
            told.append(event)

    monkeypatch.setattr(progress, "REPORT", 0.0)
    data = small_digits()
    context = make_context(data)
    losses: list[float] = []
    right: list[int] = []

    def loss(outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        value = context.task.loss(outputs, batch.targets)
        losses.append(float(value.detach()))
        right.append(int(context.task.correct(outputs, batch.targets).sum()))
        return value

    with progress.listening(Listener()):
        fit(fresh_model(data), context, chain("finetune(epochs=1, batch_size=32)"), loss)
    begun, *steps, ended = told
    assert begun == ["begin", "training on 320 images", 320, "images", 0, False, False]
    assert [step[:2] for step in steps] == [["at", 32 * number] for number in range(1, 11)]
    assert ended == ["end"]
    mean = (losses[0] + losses[1]) / 2
    assert [step[2] for step in steps[:2]] == [
        f"epoch 1 of 1, loss {losses[0]:.4f}, accuracy {right[0] / 32:.1%}",
        f"epoch 1 of 1, loss {mean:.4f}, accuracy {(right[0] + right[1]) / 64:.1%}",
    ]


def test_a_loss_that_explodes_at_once_fails_the_step() -> None:
    context, loss = exploding(1)
    settings = chain("finetune(epochs=4, batch_size=32)")
    with pytest.raises(StepFailed, match=r"became nan in epoch 1: try a smaller learning_rate"):
        fit(fresh_model(small_digits()), context, settings, loss)


def test_weights_that_explode_in_the_last_step_of_an_epoch_are_not_kept() -> None:
    """The loss is that of before the step, so it does not show it."""
    data = small_digits()
    context, model = make_context(data), fresh_model(data)

    def spoil(view: int) -> None:
        if view == 2:
            with torch.no_grad():
                next(model.module.parameters()).fill_(float("inf"))

    settings = chain("finetune(epochs=3, batch_size=32)")
    made = fit(model, context, settings, labels_loss(context), TrainingHooks(after=spoil))
    assert all(value.isfinite().all() for value in made.module.state_dict().values())
    [note] = context.log.notes
    assert "weights became infinite in epoch 3 of 3" in note
    assert "the state after epoch 2 was kept" in note


def test_infinities_that_were_there_before_are_none_of_the_trainings() -> None:
    data = small_digits()
    model = fresh_model(data, "mlp")
    model.module.register_buffer("mask", torch.full((4, 4), float("-inf")).triu(1))
    context = make_context(data)
    made = run(chain("finetune(epochs=2)"), model, context)
    assert torch.equal(made.module.get_buffer("mask"), model.module.get_buffer("mask"))
    assert [row["epoch"] for row in context.log.rows if row["kind"] == "epoch"] == [1, 2]


def test_the_note_names_the_epoch_that_is_kept() -> None:
    context, loss = exploding(4)
    settings = chain("finetune(epochs=4, batch_size=32, keep='best')")
    model = fit(fresh_model(small_digits()), context, settings, loss)
    epochs = [row for row in context.log.rows if row["kind"] == "epoch"]
    best = max(epochs, key=lambda row: (row["validation_accuracy"], -row["validation_loss"]))
    assert f"the state after epoch {best['epoch']} was kept" in context.log.notes[0]
    data = small_digits()
    assert accuracy(model.module, data.task, data.validation) == best["validation_accuracy"]


def test_an_empty_validation_split_judges_nothing() -> None:
    data = small_digits()
    context = replace(make_context(data), validation=Subset(data.train, torch.arange(0)))
    with pytest.raises(IllegalChain, match="needs validation"):
        run(chain("finetune(epochs=3, patience=1)"), fresh_model(data), context)
    run(chain("finetune(epochs=2)"), fresh_model(data), context)


def test_without_labels_the_curve_has_no_accuracy_in_training() -> None:
    data = small_digits()
    context = make_context(data)
    settings = chain("finetune(epochs=2)")
    fit(fresh_model(data), context, settings, labels_loss(context), TrainingHooks(labelled=False))
    assert not any("train_accuracy" in row for row in context.log.rows)


def test_the_curve_has_loss_accuracies_and_speed() -> None:
    data = small_digits()
    context = make_context(data)
    model = run(chain("train(epochs=3, batch_size=32)"), fresh_model(data), context)
    rows = [row for row in context.log.rows if row["kind"] == "epoch"]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert rows[-1]["validation_accuracy"] == accuracy(model.module, data.task, data.validation)
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert rows[-1]["train_accuracy"] > rows[0]["train_accuracy"]
    assert all(row["samples_per_second"] > 0 for row in rows)


def test_bfloat16_trains_and_leaves_float32_weights() -> None:
    data = small_digits()
    context = replace(make_context(data), precision="bfloat16")
    model = run(chain("train(epochs=8, batch_size=32)"), fresh_model(data), context)
    assert {parameter.dtype for parameter in model.module.parameters()} == {torch.float32}
    assert accuracy(model.module, data.task, data.test) > 0.6


class Hungry(nn.Module):
    """A linear layer that runs out of memory for more than `most` items at once."""

    def __init__(self, inner: nn.Module, most: int, error: Exception) -> None:
        super().__init__()
        self.inner, self.most, self.error = inner, most, error
        self.seen: list[int] = []

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.seen.append(len(inputs))
        if len(inputs) > self.most:
            raise self.error
        return self.inner(inputs)


OOM = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: not enough memory"),
    MemoryError(),
]


@pytest.mark.parametrize("error", OOM, ids=["cuda", "cpu", "python"])
def test_out_of_memory_halves_the_batch_and_gives_the_same_gradients(error: Exception) -> None:
    data = small_digits()
    context = replace(make_context(data), validation=None)
    plain = fresh_model(data, "mlp(width=8)")
    hungry = replace(plain.copy(), module=Hungry(plain.copy().module, 20, error))
    settings = chain("finetune(epochs=2, batch_size=64)")
    alike = fit(plain, context, settings, labels_loss(context))
    small = fit(hungry, context, settings, labels_loss(context))
    for ours, theirs in zip(
        small.module.inner.parameters(), alike.module.parameters(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)
    assert max(n for n in hungry.module.seen if n <= 20) == 16
    assert hungry.module.seen.count(64) == 1, "halved for good"
    [note] = context.log.notes
    assert "batches of 64 were split into 4 micro-batches" in note
    first, second = (row for row in context.log.rows if row["kind"] == "fit")
    assert "micro_batch" not in first
    assert second["micro_batch"] == 16
    assert first["samples"] == second["samples"]


def test_judging_halves_its_batches_too() -> None:
    data = small_digits()
    plain = fresh_model(data, "mlp(width=8)").module
    hungry = Hungry(plain, 20, OOM[0])
    assert evaluate(hungry, data.task, data.test) == pytest.approx(
        evaluate(plain, data.task, data.test)
    )
    assert hungry.seen[-1] == 16
    with pytest.raises(torch.OutOfMemoryError):
        evaluate(Hungry(plain, 0, OOM[0]), data.task, data.test)


def test_memory_that_runs_out_in_the_optimizer_is_told_and_not_tried_again() -> None:
    """Some weights may have been moved already: a second try would move them twice."""

    class Greedy(torch.optim.SGD):
        steps = 0

        def step(self, closure: Any = None) -> Any:
            Greedy.steps += 1
            raise OOM[0]

    data = small_digits()
    context = make_context(data)
    model = fresh_model(data, "mlp(width=8)")
    parameters = list(model.module.parameters())
    run, optimizer = runner(model.module, ExecutionMode(), None), Greedy(parameters, 0.1)
    stepper = Stepper(run, parameters, optimizer, labels_loss(context), context, ExecutionMode())
    batch = next(BatchLoader(data.train, data.task, context.device, 0, 32).epoch(0, 0))
    with pytest.raises(torch.OutOfMemoryError):
        stepper.step(batch)
    assert Greedy.steps == 1


def test_memory_that_does_not_suffice_for_two_items_is_an_error() -> None:
    data = small_digits()
    model = fresh_model(data, "mlp(width=8)")
    model = replace(model, module=Hungry(model.module, 1, OOM[0]))
    with pytest.raises(torch.OutOfMemoryError):
        fit(model, make_context(data), chain("finetune()"), lambda outputs, _: outputs.sum())


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    data = small_digits()
    model = fresh_model(data, "mlp(width=8)")
    model = replace(model, module=Hungry(model.module, 1, RuntimeError("shapes differ")))
    with pytest.raises(RuntimeError, match="shapes differ"):
        fit(model, make_context(data), chain("finetune()"), lambda outputs, _: outputs.sum())
    assert len(model.module.seen) == 1


class Wide(nn.Module):
    """Takes a megabyte or more for every item in between."""

    def __init__(self) -> None:
        super().__init__()
        self.widen, self.narrow = nn.Linear(64, 2**18), nn.Linear(2**18, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.narrow(self.widen(images.flatten(1)).tanh())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
@pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS")
def test_a_gpu_that_is_too_small_for_the_batch_trains_in_micro_batches() -> None:
    data = small_digits()
    context = replace(make_context(data), device=torch.device("cuda"), tune=False)
    step, total = chain("finetune(epochs=1, batch_size=160)"), torch.cuda.mem_get_info()[1]

    def trained() -> list[dict[str, Any]]:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        ours = replace(context, log=type(context.log)())
        run(step, replace(fresh_model(data), module=Wide()), ours)
        return [row for row in ours.log.rows if row["kind"] == "memory"]

    assert trained() == []
    peak = torch.cuda.max_memory_allocated()
    torch.cuda.set_per_process_memory_fraction(0.85 * peak / total)
    try:
        rows = trained()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert [row["micro_batches"] for row in rows] == [2]
    assert "out of memory" in rows[0]["error"]
