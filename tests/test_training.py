"""The training loop: schedule, masks, best epoch, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from bench_fixtures import fresh_model, make_bench, small_digits
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from compress.compressor import run
from compress.errors import StepFailed
from compress.task import Subset, augment_images
from compress.techniques import chain
from compress.training import accuracy, fit, one_cycle


@given(st.floats(0, 1))
def test_learning_rate_is_a_share_of_its_peak(progress: float) -> None:
    assert 0 <= one_cycle(progress) <= 1
    assert one_cycle(0) == 0
    assert one_cycle(0.2) == pytest.approx(1)
    assert one_cycle(1) == pytest.approx(0)


@pytest.mark.parametrize("items", [2, 3, 32, 33, 65, 97, 128, 160])
def test_any_number_of_steps_trains(items: int) -> None:
    data = small_digits()
    bench = replace(make_bench(data), train=Subset(data.train, torch.arange(items)))
    run(chain("train(epochs=1, batch_size=32)"), fresh_model(data), bench)
    # A last batch of one item is left out: batch norm has no variance over it.
    assert bench.journal.samples == items - (items % 32 == 1)


def test_one_item_is_too_few() -> None:
    data = small_digits()
    bench = replace(make_bench(data), train=Subset(data.train, torch.arange(1)))
    with pytest.raises(StepFailed, match="too few"):
        run(chain("train()"), fresh_model(data), bench)


def test_best_keeps_the_best_validation_epoch() -> None:
    data = small_digits()
    bench = make_bench(data)
    step = chain("train(epochs=4, keep='best', batch_size=32)")
    model = run(step, fresh_model(data), bench)
    scores = [row["validation_accuracy"] for row in bench.journal.rows if row["kind"] == "epoch"]
    assert len(scores) == 4
    assert accuracy(model.module, data.task, data.validation) == pytest.approx(max(scores))


def test_bfloat16_trains_and_leaves_float32_weights() -> None:
    data = small_digits()
    bench = replace(make_bench(data), precision="bfloat16")
    model = run(chain("train(epochs=8, batch_size=32)"), fresh_model(data), bench)
    assert {parameter.dtype for parameter in model.module.parameters()} == {torch.float32}
    assert accuracy(model.module, data.task, data.test) > 0.6


@pytest.mark.parametrize("flip", [False, True])
def test_augmented_images_are_shifted_and_mirrored_copies(flip: bool) -> None:
    """Every result is found among all shifts of the padded image and of its mirror image."""
    torch.manual_seed(0)
    images = torch.rand(6, 2, 8, 8)
    made = augment_images(images, torch.Generator().manual_seed(1), flip=flip)
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1))
    for before, after in zip(padded, made, strict=True):
        shifts = [before[:, y : y + 8, x : x + 8] for y in range(3) for x in range(3)]
        if flip:
            shifts += [shift.flip(2) for shift in shifts]
        assert any(torch.equal(after, shift) for shift in shifts)


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
    bench = make_bench(data)
    plain = fresh_model(data, "mlp(width=8)")
    hungry = replace(plain.copy(), module=Hungry(plain.copy().module, 20, error))
    settings = chain("finetune(epochs=2, batch_size=64)")
    alike = fit(plain, bench, settings, lambda out, y, _: bench.task.loss(out, y))
    small = fit(hungry, bench, settings, lambda out, y, _: bench.task.loss(out, y))
    for ours, theirs in zip(
        small.module.inner.parameters(), alike.module.parameters(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)
    assert max(n for n in hungry.module.seen if n <= 20) == 16
    assert hungry.module.seen.count(64) == 1, "halved for good"
    [note] = bench.journal.notes
    assert "batches of 64 went through in 4 parts" in note
    first, second = (row for row in bench.journal.rows if row["kind"] == "fit")
    assert "micro_batch" not in first
    assert second["micro_batch"] == 16
    assert first["samples"] == second["samples"]


def test_memory_that_does_not_suffice_for_two_items_is_an_error() -> None:
    data = small_digits()
    model = fresh_model(data, "mlp(width=8)")
    model = replace(model, module=Hungry(model.module, 1, OOM[0]))
    with pytest.raises(torch.OutOfMemoryError):
        fit(model, make_bench(data), chain("finetune()"), lambda out, y, _: out.sum())


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    data = small_digits()
    model = fresh_model(data, "mlp(width=8)")
    model = replace(model, module=Hungry(model.module, 1, RuntimeError("shapes differ")))
    with pytest.raises(RuntimeError, match="shapes differ"):
        fit(model, make_bench(data), chain("finetune()"), lambda out, y, _: out.sum())
    assert len(model.module.seen) == 1
