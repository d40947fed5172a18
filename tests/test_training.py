"""The training loop: schedule, masks, best epoch, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from bench_fixtures import fresh_model, make_bench, small_digits
from hypothesis import given
from hypothesis import strategies as st

from compress.compressor import run
from compress.errors import StepFailed
from compress.task import Subset, augment_images
from compress.techniques import chain
from compress.training import accuracy, one_cycle


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
