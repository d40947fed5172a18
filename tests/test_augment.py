"""Augmentation: every result is found again by hand, and depends on item and view alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from bench_fixtures import small_digits

from compress.stateless_rng import StatelessRNG
from compress.tasks.augmentation import AREA, augment_images, augment_photos
from compress.tasks.image_classification import ImageClassification

PHOTO = ["resizedcrop"]


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


def test_a_resized_crop_is_a_part_of_the_image_resized_to_the_whole() -> None:
    """Of an image whose levels tell where a pixel lies, the result tells which part it was."""
    down, across = torch.meshgrid(torch.arange(100), torch.arange(80), indexing="ij")
    image = torch.stack([down, across]).to(torch.uint8)
    made = augment_photos(image.repeat(200, 1, 1, 1), StatelessRNG(torch.arange(200)), PHOTO)
    assert made.shape == (200, 2, 100, 80)
    shares, ratios, places = [], [], set()
    for rows, columns in made.float():
        assert (rows - rows[:, :1]).abs().max() <= 1
        assert (columns - columns[:1]).abs().max() <= 1
        steps = [float(rows[90, 0] - rows[10, 0]) / 80, float(columns[0, 70] - columns[0, 10]) / 60]
        shares.append(steps[0] * steps[1])
        ratios.append(steps[1] * 80 / (steps[0] * 100))
        places.add((int(rows[0, 0]), int(columns[0, 0])))
    assert AREA[0] - 0.03 < min(shares) < 0.42
    assert 0.85 < max(shares) <= 1
    assert 0.72 < min(ratios) < 0.8
    assert 1.2 < max(ratios) < 1.38
    assert len(places) > 150


def test_jitter_changes_brightness_contrast_and_saturation() -> None:
    """Measured on gray stripes and on one colour, where each can be told from the others."""
    stripes = torch.tensor([60, 160], dtype=torch.uint8).repeat(4).expand(3, 8, 8)
    made = augment_photos(stripes.repeat(300, 1, 1, 1), StatelessRNG(torch.arange(300)), ["jitter"])
    assert torch.equal(made[:, 0], made[:, 2]), "gray stays gray"
    low, high = made[:, 0, 0, 0].float(), made[:, 0, 0, 1].float()
    brightness, contrast = (low + high) / 220, (high - low) / 100
    for factors in (brightness, contrast / brightness):
        assert 0.56 < factors.min() < 0.65
        assert 1.35 < factors.max() < 1.44
    assert abs(torch.corrcoef(torch.stack([brightness, contrast / brightness]))[0, 1]) < 0.15
    colour = torch.tensor([120, 60, 90], dtype=torch.uint8).view(3, 1, 1).expand(3, 8, 8)
    made = augment_photos(colour.repeat(300, 1, 1, 1), StatelessRNG(torch.arange(300)), ["jitter"])
    red, green, blue = made[:, :, 0, 0].float().unbind(1)
    luma = (0.2989 * red + 0.587 * green + 0.114 * blue) / (0.2989 * 120 + 0.587 * 60 + 0.114 * 90)
    assert (luma - brightness).abs().max() < 0.03, "neither contrast nor saturation changes it"
    saturation = (red - green) / 60 / luma / (contrast / brightness)
    assert 0.5 < saturation.min() < 0.7
    assert 1.3 < saturation.max() < 1.5


def test_photos_are_augmented_by_item_and_view_alone() -> None:
    given = torch.randint(0, 256, (20, 3, 16, 16), dtype=torch.uint8)
    order = torch.randperm(20)
    whole = augment_photos(given, StatelessRNG(torch.arange(20), view=3), [*PHOTO, "jitter"])
    shuffled = augment_photos(given[order], StatelessRNG(order, view=3), [*PHOTO, "jitter"])
    assert torch.equal(shuffled, whole[order])
    other = augment_photos(given, StatelessRNG(torch.arange(20), view=4), [*PHOTO, "jitter"])
    assert not torch.equal(other, whole)
    assert torch.equal(augment_photos(given, StatelessRNG(torch.arange(20)), ["flip"]), given)


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
    full = replace(task, augment="flip-crop-jitter-cutout-mixup")
    assert {*full.augments, "resizedcrop"} == {*ImageClassification.AUGMENTS}
    with pytest.raises(ValueError, match="one is enough"):
        replace(task, augment="crop-resizedcrop")
    assert full.augments_raw
    assert not replace(task, augment="flip-crop").augments_raw
    assert full.mixes
    assert full.augmented
    assert not task.mixes
    assert not task.augmented
