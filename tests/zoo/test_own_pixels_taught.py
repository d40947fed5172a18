"""Learning from a teacher that sees its own pixels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from caches import Folder
from own_sight import (
    CHAIN,
    CPU,
    LEVELS,
    NET,
    OWN,
    PLAIN,
    by_torchvision,
    context_of,
    equal,
    planned,
    readers,
    recorded,
)
from PIL import Image
from torch import Tensor, nn

from compress.benchmark.plan.plan import make_plan
from compress.benchmark.plan.suite import NamedTeacher, Suite
from compress.benchmark.plan.teachers import judged_teachers
from compress.compressor import run
from compress.tasks.base import Subset
from compress.techniques import chain
from compress.techniques.teachers import Teacher
from compress.training import graphs, loop
from compress.training.batch_loader import BatchLoader
from compress.training.loop import _Fit
from compress.zoo import image_files
from compress.zoo.transfer import load_transfer


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
