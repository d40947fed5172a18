"""A teacher that sees its own pixels sees them in the student's augmented views."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from own_sight import CPU, OWN, context_of, planned, readers
from PIL import Image
from torch import Tensor

from compress.ranks import Ranks
from compress.tasks.base import Split, Subset, Tensors, TensorSplit
from compress.techniques.teachers import Teacher
from compress.training import batch_loader
from compress.training.batch_loader import BatchLoader


def made_photos(root: Path, picture: Any, count: int = 24, side: int = 256) -> Path:
    """A folder of images that a function makes of their numbers, uint8 (side, side, 3)."""
    generator = np.random.default_rng(0)
    for part in ("train", "test"):
        for number in range(count):
            path = root / part / "ab"[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture(generator, side)).save(path)
    return root


def marked(generator: np.random.Generator, side: int) -> np.ndarray:
    """Black, with a white square anywhere."""
    picture = np.zeros((side, side, 3), np.uint8)
    top, left = generator.integers(0, side - 24, 2)
    picture[top : top + 24, left : left + 24] = 255
    return picture


def views_of(root: Path, augment: str, sides: tuple[int, int], view: int = 3) -> Sequence[Tensor]:
    """The training images as student and teacher see them in a view."""
    plan = planned(root, augment, sides[0], size=sides[1])
    index = torch.arange(len(plan.data.train))
    return [reader.inputs(index, view)[0] for reader in readers(plan, seed=5)]


def centre(image: Tensor) -> tuple[float, float] | None:
    """The middle of what is white, in shares of the sides; None where it may be cut off."""
    white = image.mean(0) > 0.5
    if not white.any() or white[0].any() or white[-1].any():
        return None
    if white[:, 0].any() or white[:, -1].any():
        return None
    rows, columns = (axis.float() for axis in white.nonzero().unbind(1))
    side = len(white)
    return float((rows.mean() + 0.5) / side), float((columns.mean() + 0.5) / side)


@pytest.mark.parametrize("augment", ["flip", "crop", "flip-crop", "flip-resizedcrop"])
@pytest.mark.parametrize("sides", [(64, 224), (96, 40)])
def test_both_see_the_same_part_of_an_image_and_the_same_mirror_image(
    augment: str, sides: tuple[int, int], tmp_path: Path
) -> None:
    root = made_photos(tmp_path / "photos", marked)
    pairs = list(zip(*views_of(root, augment, sides), strict=True))
    plain = list(zip(*views_of(root, "none", sides), strict=True))
    found = moved = 0
    for (student, teacher), (before, _) in zip(pairs, plain, strict=True):
        places = [centre(student), centre(teacher)]
        if None in places:
            continue
        found += 1
        one, other = (np.array(place) for place in places)
        assert abs(one - other).max() < 1 / min(sides), "within a pixel"
        moved += centre(before) is None or abs(one - np.array(centre(before))).max() > 2 / 64
    assert found >= 8
    assert moved >= 3, "else nothing was shown"


def test_both_have_the_same_square_cut_out(tmp_path: Path) -> None:
    white = made_photos(
        tmp_path / "photos", lambda _, side: np.full((side, side, 3), 255, np.uint8)
    )
    small, large = views_of(white, "cutout", (32, 112))
    for student, teacher in zip(small, large, strict=True):
        student_hole, teacher_hole = (
            (image == 0).all(0).repeat_interleave(factor, 0).repeat_interleave(factor, 1)
            for image, factor in ((student, 7), (teacher, 2))
        )
        assert student_hole.any()
        border = student_hole ^ teacher_hole
        assert border.float().mean() < 2 * 112 * 2 * 7 / 224**2


def coloured(generator: np.random.Generator, side: int) -> np.ndarray:
    return np.broadcast_to(generator.integers(40, 200, 3, np.uint8), (side, side, 3)).copy()


def test_both_are_mixed_with_the_same_other_image_and_recoloured_alike(tmp_path: Path) -> None:
    root = made_photos(tmp_path / "photos", coloured)
    plain, _ = views_of(root, "none", (8, 28))
    for augment, most in (("mixup", 1e-6), ("jitter", 1.01 / 255), ("jitter-mixup", 1.01 / 255)):
        student, teacher = (one.mean((2, 3)) for one in views_of(root, augment, (8, 28)))
        assert (student - teacher).abs().max() <= most
        assert (student - plain.mean((2, 3))).abs().max() > 0.1


@pytest.mark.parametrize("augment", ["flip-crop-mixup", "flip-resizedcrop-jitter-cutout"])
def test_what_a_teacher_sees_does_not_depend_on_who_reads(
    augment: str, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(photos, augment, **OWN)
    seen = []
    for workers, in_memory in ((1, False), (4, False), (4, True)):
        with monkeypatch.context() as patch:
            patch.setattr(batch_loader, "READERS", workers)
            if not in_memory:
                patch.setattr(batch_loader, "resident", lambda split, device: split)
            _, own = readers(plan)
            own.hold()
            loader = BatchLoader(plan.data.train, plan.data.task, CPU, 0, 4)
            batches = list(loader.epoch(1, 1, [own]))
            assert all(len(batch.seen) == 1 for batch in batches)
            seen.append(torch.cat([batch.seen[0][0] for batch in batches]))
            for batch in batches:
                [alone] = own.inputs(batch.index, 1)
                assert torch.equal(alone, batch.seen[0][0])
                assert torch.equal(batch.of(slice(1, 3)).seen[0][0], alone[1:3])
            assert not next(iter(loader.epoch(1, 1))).seen, "only who wants it gets it"
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], seen[2])


class Watched(Split):
    """Notes which threads fetch its items, and whether two do at once."""

    busy = False
    """Whether one of them all is being fetched from."""

    def __init__(self, inner: Split) -> None:
        self.inner, self.threads, self.clashes = inner, set[str](), 0

    def __len__(self) -> int:
        return len(self.inner)

    def fetch(self, index: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        self.clashes += Watched.busy
        Watched.busy = True
        time.sleep(0.002)
        self.threads.add(threading.current_thread().name.partition("_")[0])
        fetched = self.inner.fetch(index)
        Watched.busy = False
        return fetched


@pytest.mark.parametrize("held", [False, True])
def test_what_lies_in_memory_is_read_by_the_thread_that_trains(
    held: bool, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU may hold it, to which one thread talks; of files, one batch at a time is fetched."""
    plan = planned(photos, "flip", **OWN)
    student, own = readers(plan)
    monkeypatch.setattr(batch_loader, "resident", lambda split, device: split)
    own.split = Watched(own.split)
    if held:
        monkeypatch.setattr(batch_loader, "in_memory", lambda split: split is own.split)
    loader = BatchLoader(Watched(student.split), student.task, CPU, 0, 4)
    expected = list(loader.epoch(0, 0))
    batches = list(loader.epoch(0, 0, [own]))
    assert isinstance(loader.split, Watched)
    assert loader.split.threads == {"reading"}
    assert own.split.threads == {"MainThread" if held else "reading"}
    assert held or not own.split.clashes + loader.split.clashes
    for batch, alone in zip(batches, expected, strict=True):
        assert torch.equal(batch.inputs[0], alone.inputs[0])
        assert torch.equal(batch.seen[0][0], own.inputs(batch.index, 0)[0])


def test_its_items_are_held_in_memory_where_they_are_asked_for_again(photos: Path) -> None:
    plan = planned(photos, "flip", **OWN)
    teacher = Teacher([plan.teachers["big"]], context_of(plan), "logits", (), plan.data.train)
    [own] = teacher.ready(1)
    assert isinstance(own.split, Subset)
    assert list(teacher.ready(2)) == [own]
    assert isinstance(own.split, TensorSplit)


class Inverted(Subset):
    """Some items as negatives."""

    def fetch(self, index: Tensor) -> tuple[Tensors, Tensor]:
        (images,), targets = super().fetch(index)
        return (255 - images,), targets


def test_what_a_subset_of_another_class_makes_of_items_is_not_lost(photos: Path) -> None:
    plan = planned(photos, **OWN)
    negatives = Inverted(plan.data.train, torch.arange(4))
    context = context_of(plan)
    teacher = Teacher([plan.teachers["big"]], context, "logits", (), negatives)
    assert not teacher.readers
    [note] = context.log.notes
    assert "these items have no files to be made anew" in note
    assert Subset(negatives, torch.arange(2)).remade(plan.data.task.preprocessing.fit) is None  # type: ignore[attr-defined]


def test_each_of_several_processes_sees_its_part(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(photos, "flip-crop-mixup", **OWN)
    _, own = readers(plan)
    loader = BatchLoader(plan.data.train, plan.data.task, CPU, 0, 8)
    whole = next(loader.epoch(0, 0, [own]))
    for rank in range(2):
        with monkeypatch.context() as patch:
            patch.setattr("compress.ranks._ranks", Ranks(rank, 2))
            part = next(loader.epoch(0, 0, [own]))
        assert torch.equal(part.seen[0][0], whole.seen[0][0][rank::2])
        assert part.whole == 8
