"""A teacher of another spec sees the files as it decodes them, in the student's augmented views."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from bench_fixtures import images, make_context
from caches import Folder
from photo_folders import folder_of_photos
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv

from compress.benchmark.execute.run_spec import Limits, spec_of
from compress.benchmark.plan.graph import make_graph
from compress.benchmark.plan.plan import Plan, make_plan
from compress.benchmark.plan.suite import NamedTeacher, Suite
from compress.benchmark.plan.teachers import judged_teachers
from compress.compressor import run
from compress.context import StepContext, StepLog
from compress.errors import UserError
from compress.model import Model, identity
from compress.ranks import Ranks
from compress.system.pixel_cache import cached_sets
from compress.tasks.base import Split, Subset, TensorSplit
from compress.tasks.preprocessing import Settings
from compress.techniques import chain
from compress.techniques.teachers import Teacher
from compress.training import batch_loader, graphs, loop
from compress.training.batch_loader import BatchLoader, Reader
from compress.training.loop import _Fit
from compress.zoo import image_files
from compress.zoo.image_files import ImageFiles
from compress.zoo.models import fresh
from compress.zoo.pretrained import pretrained
from compress.zoo.transfer import load_transfer

CPU = torch.device("cpu")
NET = "resnet8(width=2)"
CHAIN = "distill(student='mlp(width=16)', teacher='big', epochs=2, batch_size=4"
PLAIN = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
OWN: dict[str, Any] = {"size": 24, "crop_pct": 0.8, "interpolation": "bicubic"}
LEVELS: dict[str, Any] = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4)}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return folder_of_photos(tmp_path / "photos")


def planned(photos: Path, augment: str = "none", side: int = 16, **keys: Any) -> Plan:
    """A suite of photographs of which the student sees `side` pixels, with a teacher 'big'."""
    weights = photos.parent / "weights.safetensors"
    torch.manual_seed(0)
    save_file(fresh(NET, images(24, classes=2)).module.state_dict(), weights)
    suite = Suite(
        "s",
        f"imagefolder:{photos}",
        NET,
        (f"train(epochs=1) -> {CHAIN})",),
        options={"size": side, "augment": augment, **PLAIN},
        teachers={"big": NamedTeacher(NET, str(weights), **keys)},
    )
    return make_plan(suite, device="cpu", step_threads=1)


def context_of(plan: Plan, **more: Any) -> StepContext:
    context = make_context(plan.data, plan.start)
    return replace(context, models=plan.teachers, log=StepLog(), **more)


def readers(plan: Plan, split: Split | None = None, seed: int = 0) -> tuple[Reader, Reader]:
    """The student's reader of the training items, and the teacher's."""
    split = plan.data.train if split is None else split
    [own] = Teacher([plan.teachers["big"]], context_of(plan), "logits", (), split).readers
    own.seed = seed
    return Reader(split, plan.data.task, CPU, seed), own


def files_of(split: Split) -> list[Path]:
    index = torch.arange(len(split))
    while isinstance(split, Subset):
        index, split = split.index[index], split.whole
    assert isinstance(split, ImageFiles)
    return [split.files[number] for number in index]


def by_torchvision(path: Path, spec: dict[str, Any] = LEVELS) -> Tensor:
    """An image as `OWN` says, by torchvision alone."""
    image = tv.resize(Image.open(path), [30], InterpolationMode.BICUBIC)
    return tv.normalize(tv.to_tensor(tv.center_crop(image, [24])), spec["mean"], spec["std"])


def recorded(model: Model) -> tuple[Model, list[Tensor]]:
    """A model, and a list of the images that it and its copies get."""
    got: list[Tensor] = []
    copy = model.copy()
    copy.module.register_forward_pre_hook(lambda _, inputs: got.append(inputs[0]))
    return copy, got


def equal(a: Model, b: Model) -> bool:
    ours, theirs = a.module.state_dict(), b.module.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


# --- which pixels -------------------------------------------------------------------------


def test_a_teacher_gets_what_its_own_spec_makes_of_the_file(photos: Path) -> None:
    plan = planned(photos, **OWN, **LEVELS)
    expected = torch.stack([by_torchvision(path) for path in files_of(plan.data.train)])
    model, got = recorded(plan.teachers["big"])
    step = chain(CHAIN + ", views=0)")
    run(step, plan.start, replace(context_of(plan), models={"big": model}))
    batches = [batch for batch in got if len(batch) > 1][-6:]  # two epochs of three batches
    seen = torch.cat(batches)
    assert len(seen) >= 2 * len(expected) - 1
    equals = (seen[:, None] == expected[None]).flatten(2).all(2)
    assert equals.any(1).all(), "not a level of any pixel differs"
    assert equals.any(0).all(), "every file was seen"
    assert plan.weights["teacher 'big'"].startswith(
        "sees shorter side to 30, bicubic, centre 24x24, mean 0.4/0.5/0.6, std 0.2/0.3/0.4, "
        "decoded for it; "
    )
    assert plan.teachers["big"].probe[0].shape == (4, 3, 24, 24)


@pytest.mark.parametrize(
    ("keys", "own"),
    [
        ({}, False),
        (LEVELS, False),
        ({"size": 16, "resize": "shorter", "interpolation": "bilinear", "exif": False}, False),
        ({"size": 24}, True),
        ({"resize": "exact"}, True),
        ({"crop_pct": 0.5}, True),
        ({"interpolation": "nearest"}, True),
        ({"antialias": False}, True),
        ({"exif": True}, True),
    ],
)
def test_only_another_spatial_spec_is_decoded_for(
    keys: dict[str, Any], own: bool, photos: Path
) -> None:
    plan = planned(photos, **keys)
    teacher = plan.teachers["big"]
    assert (teacher.sight is not None) == own
    assert (identity(teacher) != identity(planned(photos).teachers["big"])) == (
        own or "mean" in keys
    )
    steps = [make_graph(one).chain_runs[1].nodes[1].key for one in (plan, planned(photos))]
    assert (steps[0] != steps[1]) == (own or "mean" in keys)


def test_a_teacher_of_the_students_spec_costs_and_changes_nothing(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for number, keys in enumerate(({}, {"size": 16, "interpolation": "bilinear"})):
        plan = planned(photos, "flip-crop", **keys)
        decoded: list[Path] = []

        def decode(
            path: Path, *rest: Any, known: list[Path] = decoded, real: Any = image_files.decode
        ) -> np.ndarray:
            known.append(path)
            return real(path, *rest)

        spec = spec_of(plan, "s", tmp_path / str(number), tmp_path / "private", limits=Limits())
        assert spec.keep_pixels(plan) == ""
        with monkeypatch.context() as patch:
            patch.setattr(image_files, "decode", decode)
            results.append(run(chain(CHAIN + ")"), plan.start, context_of(plan)))
        assert (
            len(decoded)
            == len(set(decoded))
            == len(files_of(plan.data.train)) + len(files_of(plan.data.validation))
        )
        assert len(list(cached_sets(tmp_path / str(number)))) == 2, "of train and of test"
    assert equal(*results)


def test_another_spec_has_a_set_of_pixels_of_its_own(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(photos, **OWN)
    spec = spec_of(plan, "s", tmp_path / "store", tmp_path / "private", limits=Limits())
    assert spec.keep_pixels(plan) == ""
    sets = list(cached_sets(tmp_path / "store"))
    assert sorted(path.stat().st_size for path in sets) == [3 * 12 * s**2 for s in (16, 16, 24)]
    _, own = readers(plan)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=70_000))
    full = spec_of(plan, "s", tmp_path / "full", tmp_path / "private", limits=Limits())
    assert full.keep_pixels(planned(photos, **OWN)) == (
        "images of 24x24 are decoded anew whenever they are used: they take 20.7 kB, others there "
        "have 18.4 kB to come, and 70 kB is free there"
    )
    monkeypatch.undo()
    first = own.inputs(torch.arange(4), 0)[0]
    again = planned(photos, **OWN)
    spec.keep_pixels(again)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_files, "decode", None)  # all that is asked for was kept
        assert torch.equal(readers(again)[1].inputs(torch.arange(4), 0)[0], first)


def test_pixels_are_kept_for_the_teachers_that_chains_name(photos: Path, tmp_path: Path) -> None:
    plan = planned(photos, **OWN)
    idle = replace(plan, rows=[row for row in plan.rows if row.chain is None])
    spec = spec_of(idle, "s", tmp_path / "store", tmp_path / "private", limits=Limits())
    assert spec.keep_pixels(idle) == ""
    assert len(list(cached_sets(tmp_path / "store"))) == 2


def test_a_teacher_whose_images_had_their_size_gets_them_resized_to_it(photos: Path) -> None:
    """Also where that is the student's size: 'none' is what is known of it, and asked by no one."""
    plan = planned(photos)
    splits, task = (plan.data.train, plan.data.validation), plan.data.task
    for side in (16, 20):
        usual = Settings(size=(side, side), resize="none")
        sight = task.sight(Settings(), usual, splits)
        assert sight is not None
        assert sight.words.startswith(f"both sides to {side}x{side}, bilinear, mean")
        assert sight.of(plan.data.train).fetch(torch.arange(2))[0][0].shape == (2, 3, side, side)


def test_a_library_resizes_with_antialiasing_whatever_the_run_does(photos: Path) -> None:
    plan = planned(photos)
    preprocessing = plan.data.task.preprocessing  # type: ignore[attr-defined]
    rough = replace(preprocessing, fit=replace(preprocessing.fit, antialias=False))
    task = replace(plan.data.task, preprocessing=rough)  # type: ignore[type-var]
    known = pretrained("torchvision:resnet18", "DEFAULT")
    assert known is not None
    sight = task.sight(Settings(size=(24, 24)), known.settings, (plan.data.train,))
    assert sight is not None
    assert sight.task.preprocessing.fit.antialias  # type: ignore[attr-defined]


def test_items_that_are_not_the_same_are_refused(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(photos, **OWN)
    whole = Subset.remade
    monkeypatch.setattr(
        Subset, "remade", lambda self, how: Subset(whole(self, how), torch.arange(3))
    )
    with pytest.raises(UserError, match=r"Subset.remade.. gives 3 items where there are \d+"):
        Teacher([plan.teachers["big"]], context_of(plan), "logits", (), plan.data.train)


# --- the same views -----------------------------------------------------------------------


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


# --- learning from it ---------------------------------------------------------------------


def test_kept_answers_are_those_of_the_teachers_own_pixels_and_need_none(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(photos, "flip-crop", **OWN)
    train = Subset(plan.data.train, torch.arange(9))  # the last batch has one item
    keep = {"cache": Folder(tmp_path / "cache"), "setting": "photos", "train": train}
    first = run(chain(CHAIN + ", views=1, hard_weight=0)"), plan.start, context_of(plan, **keep))
    decoded: list[int] = []
    real = image_files.decode

    def decode(path: Path, fit: Any, channels: int) -> np.ndarray:
        decoded.append(fit.size[0])
        return real(path, fit, channels)

    monkeypatch.setattr(image_files, "decode", decode)
    context = context_of(plan, **keep)
    again = run(chain(CHAIN + ", views=1, hard_weight=0)"), plan.start, context)
    assert equal(first, again)
    [told] = [row for row in context.log.rows if row["kind"] == "soft_labels"]
    assert told["reused"] + told["asked"] == 2 * 8
    assert told["asked"] <= 1
    assert decoded.count(24) == told["asked"], "nothing is decoded for answers that are there"
    online = context_of(plan, train=train)
    asked = run(chain(CHAIN + ", views=0, hard_weight=0)"), plan.start, online)
    for name, value in asked.module.state_dict().items():
        torch.testing.assert_close(again.module.state_dict()[name], value, atol=2e-3, rtol=2e-2)
    other = replace(
        planned(photos, "flip-crop", **{**OWN, "interpolation": "box"}), suite=plan.suite
    )
    context = context_of(other, **keep)
    run(chain(CHAIN + ", views=1, hard_weight=0)"), other.start, context)
    [told] = [row for row in context.log.rows if row["kind"] == "soft_labels"]
    assert told["asked"] >= 8, "other pixels, other answers"


def test_a_training_that_was_stopped_goes_on_with_the_same_pixels(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(photos, "flip-crop", **OWN)
    step = chain(CHAIN.replace("epochs=2", "epochs=3") + ", views=0)")
    expected = run(step, plan.start, context_of(plan))
    monkeypatch.setattr(loop, "WORTH_KEEPING", 0.0)
    keep = _Fit._keep

    def keep_and_stop(self: Any) -> None:
        keep(self)
        raise KeyboardInterrupt

    cache = Folder(tmp_path / "cache")
    monkeypatch.setattr(_Fit, "_keep", keep_and_stop)
    with pytest.raises(KeyboardInterrupt):
        run(step, plan.start, context_of(plan, cache=cache, scope="s"))
    monkeypatch.setattr(_Fit, "_keep", keep)
    context = context_of(planned(photos, "flip-crop", **OWN), cache=cache, scope="s")
    assert equal(run(step, plan.start, context), expected)
    [told] = [row for row in context.log.rows if row["kind"] == "soft_labels"]
    assert told["asked"] == 2 * len(plan.data.train), "of two of the three epochs"


def test_an_ensemble_of_which_one_sees_its_own(photos: Path) -> None:
    plan = planned(photos, "flip", **OWN, **LEVELS)
    models = {"big": plan.teachers["big"], "same": plan.start}
    both = Teacher([*models.values()], context_of(plan), "logits", (1, 3), plan.data.train)
    student, own = readers(plan)
    loader = BatchLoader(plan.data.train, plan.data.task, CPU, 0, 4)
    batch = next(loader.epoch(0, 2, both.readers))
    with torch.no_grad():
        large = models["big"].module(*own.inputs(batch.index, 2))
        small = models["same"].module(*student.inputs(batch.index, 2))
    for one in (batch, replace(batch, seen=())):
        torch.testing.assert_close(both.ask(both.inputs(one)), large / 4 + small * 3 / 4)
    twice = Teacher([models["big"]] * 2, context_of(plan), "logits", (), plan.data.train)
    assert len(twice.readers) == 1, "equal specs are read once"


def test_hints_come_from_the_teachers_own_pixels(photos: Path) -> None:
    plan = planned(photos, "flip", crop_pct=0.5)
    model, got = recorded(plan.teachers["big"])
    step = chain("distill(student='resnet8(width=4)', teacher='big', epochs=1, hints='attention')")
    run(step, plan.start, replace(context_of(plan), models={"big": model}))
    _, own = readers(plan)
    expected = own.inputs(torch.arange(len(plan.data.train)), 0)[0]
    equals = (got[-1][:, None] == expected[None]).flatten(2).all(2)
    assert equals.any(1).all()


def test_a_transfer_set_of_files_is_decoded_for_the_teacher_too(
    photos: Path, tmp_path: Path
) -> None:
    loose = tmp_path / "loose"
    loose.mkdir()
    for number, path in enumerate(sorted((photos / "train").rglob("*.png"))):
        Image.open(path).rotate(180).save(loose / f"{number}.png")
    plan = planned(photos, **OWN, **LEVELS)
    name = f"imagefolder:{loose}"
    transfers = {name: load_transfer(name, plan.data)}
    _, own = readers(plan, transfers[name].items)
    expected = torch.stack([by_torchvision(path) for path in sorted(loose.glob("*.png"))])
    seen = own.inputs(torch.arange(12), 0)[0]
    assert {tuple(one.flatten().tolist()) for one in seen} == {
        tuple(one.flatten().tolist()) for one in expected
    }
    step = chain(CHAIN + f", hard_weight=0, transfer={name!r})")
    run(step, plan.start, context_of(plan, transfers=transfers))


def test_of_arrays_a_teacher_sees_the_students_pixels_and_a_note_says_so(
    photos: Path, tmp_path: Path
) -> None:
    plan = planned(photos, **OWN, **LEVELS)
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), np.uint8)
    np.savez(tmp_path / "x.npz", x=pixels)
    name = f"arrays:{tmp_path / 'x.npz'}"
    context = context_of(plan, transfers={name: load_transfer(name, plan.data)})
    run(chain(CHAIN + f", hard_weight=0, transfer={name!r})"), plan.start, context)
    [note] = [text for text in context.log.notes if "a teacher sees" in text]
    assert "sees 24x24, mean 0.4/0.5/0.6, std 0.2/0.3/0.4, made of the student's inputs" in note
    assert "as it should see them, shorter side to 30, bicubic, centre 24x24" in note
    items = context.transfers[name].items
    teacher = Teacher([plan.teachers["big"]], context, "logits", (), items)
    batch = BatchLoader(items, plan.data.task, CPU, 0, 4).batch(torch.arange(4), 0)
    resized = nn.functional.interpolate(batch.inputs[0], (24, 24), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(LEVELS[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        expected = plan.teachers["big"].module((resized - mean) / std)
    torch.testing.assert_close(teacher.ask(teacher.inputs(batch)), expected, rtol=1e-4, atol=1e-4)


class Fine(nn.Module):
    """Tells chequered images of single pixels of a side of 32 from gray ones, which they average
    to."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        fine = (x.std((1, 2, 3)) - 0.2) * self.scale
        return torch.stack([fine, -fine], 1)


def test_a_teachers_accuracy_is_that_on_its_own_pixels(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for name in ("chequered", "gray"):
            place = tmp_path / "photos" / part / name
            place.mkdir(parents=True)
            for number in range(20):
                level = 100 + number
                pixels = np.full((32, 32, 3), level, np.uint8)
                if name == "chequered":
                    pixels = (np.indices((32, 32)).sum(0) % 2 * 2 * level)[:, :, None]
                    pixels = pixels.repeat(3, 2).astype(np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.png")
    said = []
    for keys in ({"size": 32}, {}):
        suite = Suite(
            "s",
            f"imagefolder:{tmp_path / 'photos'}",
            NET,
            ("train(epochs=1)",),
            options={"size": 8, **PLAIN},
            teachers={"fine": NamedTeacher("Fine", **keys)},
        )
        plan = make_plan(suite, device="cpu", teachers={"fine": Fine()})
        said += judged_teachers(plan)
    assert "right on 100.0% of 4 validation images" in said[0]
    assert "DOUBTFUL" in said[1]


def test_a_teacher_of_own_pixels_can_be_replayed(photos: Path) -> None:
    """All it sees is in one tuple of inputs, as a recording needs it, and no hook is left."""
    plan = planned(photos, **OWN)
    teacher = Teacher([plan.teachers["big"]], context_of(plan), "logits", (), plan.data.train)
    graphs.refuse_hooks(teacher.models[0].module)
    loader = BatchLoader(plan.data.train, plan.data.task, CPU, 0, 4)
    batch = next(loader.epoch(0, 0, teacher.readers))
    assert [tuple(one.shape) for one in teacher.inputs(batch)] == [(4, 3, 16, 16), (4, 3, 24, 24)]


# --- what is refused ----------------------------------------------------------------------


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
def test_on_a_gpu_its_answers_to_its_own_pixels_are_recorded_and_replayed(photos: Path) -> None:
    plan = planned(photos, "flip-crop", **OWN)
    device = torch.device("cuda")
    on_gpu, on_cpu = (
        Teacher(
            [plan.teachers["big"]],
            replace(context_of(plan), device=place),
            "logits",
            (),
            plan.data.train,
        )
        for place in (device, CPU)
    )
    loader = BatchLoader(plan.data.train, plan.data.task, device, 0, 4)
    for epoch in range(12):
        for batch in loader.epoch(epoch, epoch, on_gpu.ready(12)):
            inputs = on_gpu.inputs(batch)
            expected = on_cpu.ask(tuple(tensor.cpu() for tensor in inputs))
            # The GPU may round to TF32.
            torch.testing.assert_close(on_gpu.ask(inputs).cpu(), expected, rtol=0.02, atol=0.02)
    assert on_gpu.replayed is not None
    on_gpu.forget()


def test_what_cannot_be_had_is_refused_before_any_work(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"teacher 'big': without antialiasing, interpolation is"):
        planned(photos, antialias=False, interpolation="lanczos")
    with pytest.raises(UserError, match=r"20x30 pixels, not 24x24, and resize is 'none'"):
        planned(photos, size=24, resize="none")
    with pytest.raises(UserError, match=r"teacher 'big': colors is L, and the images have 3"):
        planned(photos, colors="L")
    weights = tmp_path / "w.safetensors"
    save_file(fresh(NET, images(8, 1, 10)).module.state_dict(), weights)
    for keys, message in {
        ("crop_pct",): "teacher 'big': crop_pct: digits has no image files",
        ("resize", "exif"): "teacher 'big': resize, exif: digits has no image files",
    }.items():
        values: dict[str, Any] = {"crop_pct": 0.9, "resize": "exact", "exif": False}
        teacher = NamedTeacher(NET, str(weights), **{key: values[key] for key in keys})
        suite = Suite("s", "digits", NET, ("train()",), teachers={"big": teacher})
        with pytest.raises(UserError, match=message):
            make_plan(suite, device="cpu")
