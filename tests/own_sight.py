"""Suites of photographs with a teacher that sees them by a spec of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from bench_fixtures import images, make_context
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv

from compress.benchmark.plan.plan import Plan, make_plan
from compress.benchmark.plan.suite import NamedTeacher, Suite
from compress.context import StepContext, StepLog
from compress.model import Model
from compress.tasks.base import Split, Subset
from compress.techniques.teachers import Teacher
from compress.training.batch_loader import Reader
from compress.zoo.image_files import ImageFiles
from compress.zoo.models import fresh

CPU = torch.device("cpu")
NET = "resnet8(width=2)"
CHAIN = "distill(student='mlp(width=16)', teacher='big', epochs=2, batch_size=4"
PLAIN = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
OWN: dict[str, Any] = {"size": 24, "crop_pct": 0.8, "interpolation": "bicubic"}
LEVELS: dict[str, Any] = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4)}


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
