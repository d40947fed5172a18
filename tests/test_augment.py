"""Augmentation: every result is found again by hand, and depends on item and view alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from bench_fixtures import small_digits

from compress.stateless_rng import StatelessRNG
from compress.tasks.image_classification import ImageClassification, augment_images


def images(count: int = 6) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.rand(count, 2, 8, 8) + 0.1


@pytest.mark.parametrize("augments", [["crop"], ["flip", "crop"], ["flip"]])
def test_shifted_and_mirrored_copies(augments: list[str]) -> None:
    """Every result is found among all shifts of the padded image and of its mirror image."""
    given = images(40)
    made = augment_images(given, StatelessRNG(torch.arange(40)), augments)
    padded = torch.nn.functional.pad(given, (1, 1, 1, 1))
    found = []
    for before, padding, after in zip(given, padded, made, strict=True):
        shifts = [before] if "crop" not in augments else []
        if "crop" in augments:
            shifts = [padding[:, y : y + 8, x : x + 8] for y in range(3) for x in range(3)]
        if "flip" in augments:
            shifts += [shift.flip(2) for shift in shifts]
        [index] = [i for i, shift in enumerate(shifts) if torch.equal(after, shift)]
        found.append(index)
    assert len(set(found)) >= min(2 * len(augments), 9), "not always the same one"


def test_cutout_leaves_a_square_hole_of_half_the_side() -> None:
    given = images(50)
    made = augment_images(given, StatelessRNG(torch.arange(50)), ["cutout"])
    sizes = set()
    for before, after in zip(given, made, strict=True):
        hole = (after == 0).all(0)
        rows, columns = hole.any(1).nonzero().flatten(), hole.any(0).nonzero().flatten()
        assert torch.equal(hole.nonzero(), torch.cartesian_prod(rows, columns))
        assert torch.equal(after[:, ~hole], before[:, ~hole])
        assert len(rows) <= 4
        assert len(columns) <= 4
        assert rows.diff().unique().tolist() in ([], [1])
        sizes.add((len(rows), len(columns)))
    assert (4, 4) in sizes, "and where it lies inside it is whole"
    assert len(sizes) > 1, "the centre is anywhere, so that a part may lie beyond the border"


def test_mixup_mixes_inputs_and_targets_in_one_share() -> None:
    data = small_digits()
    task = replace(data.task, augment="mixup")
    index, others = torch.arange(8), torch.arange(8, 16)
    first, second = (
        (task.prepare(raw, torch.device("cpu")), targets)
        for raw, targets in (data.train.fetch(index), data.train.fetch(others))
    )
    (inputs,), targets = task.mix(first, second, StatelessRNG(index))
    assert torch.allclose(targets.sum(1), torch.ones(8))
    for i in range(8):
        ours, theirs = first[0][0][i], second[0][0][i]
        differ = ours != theirs
        share = ((inputs[i] - ours)[differ] / (theirs - ours)[differ]).mean()
        expected = torch.zeros(10)
        expected[first[1][i]] += 1 - share
        expected[second[1][i]] += share
        torch.testing.assert_close(targets[i], expected, atol=1e-4, rtol=1e-3)
    assert task.loss(torch.zeros(8, 10), targets) == pytest.approx(2.302585, rel=1e-5)
    assert task.correct(targets, targets).all()


def test_an_image_is_augmented_alike_in_every_batch() -> None:
    given, order = images(20), torch.randperm(20)
    every = ["flip", "crop", "cutout"]
    whole = augment_images(given, StatelessRNG(torch.arange(20), view=3), every)
    shuffled = augment_images(given[order], StatelessRNG(order, view=3), every)
    assert torch.equal(shuffled, whole[order])
    assert not torch.equal(
        augment_images(given, StatelessRNG(torch.arange(20), view=4), every), whole
    )


@pytest.mark.parametrize("wrong", ["rotate", "flip-flip", "flip-", "", "none-flip"])
def test_unknown_augmentations_are_refused(wrong: str) -> None:
    task = small_digits().task
    with pytest.raises(ValueError, match="joined by hyphens"):
        replace(task, augment=wrong)


def test_augmentations_by_name() -> None:
    task = small_digits().task
    assert replace(task, augment="none").augments == ()
    full = replace(task, augment="flip-crop-cutout-mixup")
    assert full.augments == ImageClassification.AUGMENTS
    assert full.mixes
    assert full.augmented
    assert not task.mixes
    assert not task.augmented
