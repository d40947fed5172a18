"""Images per second of training: a plain loop, ours, and distillation with and without its cache.

    python benchmarks/distillation/speed.py --out reports/distillation [--items 4096] [--rounds 3]

All ways take turns, round by round, on the first `--items` images of CIFAR-10's training set; each
turn is one whole epoch, and the first one of each way is not counted. The plain loop is what
tutorials write: a DataLoader with workers, images transformed one by one, float32, SGD. Ours runs
in the precision and layout that trying out finds for a long training.

A bound stands below the table: how many images per second there would be if every multiply-add of
the training ran as fast as in a large matrix product.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from common import publish, table
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from compress.benchmark.store.store import Store, StoredStepCache
from compress.compressor import run, seed_everything
from compress.context import StepContext, StepLog
from compress.counts import macs
from compress.model import Model
from compress.tasks.base import Data, Subset
from compress.tasks.image_classification import ImageClassification
from compress.techniques import chain
from compress.training import execution_mode
from compress.training.execution_mode import usual_precision
from compress.zoo.data import data_root, load_data
from compress.zoo.models import fresh
from compress.zoo.weights import load_weights

MODELS = {
    "ResNet-20": "resnet20",
    "MobileNetV2, half width": "torchvision:mobilenet_v2(width_mult=0.5)",
    "ViT-tiny": "torchvision:VisionTransformer(patch_size=4, num_layers=6, num_heads=4, "
    "hidden_dim=128, mlp_dim=384)",
}
BATCH = 128
SIDE = 2048
"""Of the square matrices whose product shows how fast this machine multiplies."""
PASSES = 3
"""Of a training step, each as many multiply-adds as the forward one: values, their gradients, and
those of the weights."""


class Images(Dataset[tuple[torch.Tensor, int]]):
    """What tutorials train on: one image after another, through torchvision's transforms."""

    def __init__(self, data: Data) -> None:
        from PIL import Image

        (images,), targets = data.train.fetch(torch.arange(len(data.train)))
        self.images = [Image.fromarray(x) for x in images.permute(0, 2, 3, 1).numpy()]
        self.targets = targets.tolist()
        assert isinstance(data.task, ImageClassification)
        spec = data.task.preprocessing
        self.transform = v2.Compose(
            [
                v2.RandomCrop(spec.size, padding=spec.size[0] // 8),
                v2.RandomHorizontalFlip(),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(spec.mean, spec.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.images[index]), self.targets[index]


class Plain:
    """The loop of the tutorials, an epoch a call; the optimizer lives on, as it would."""

    def __init__(self, module: nn.Module, data: Data, device: torch.device) -> None:
        self.module, self.device = module.to(device), device
        self.loader = DataLoader(
            Images(data), BATCH, shuffle=True, num_workers=2, persistent_workers=True
        )
        self.optimizer = torch.optim.SGD(module.parameters(), 0.01, momentum=0.9)

    def __call__(self) -> float:
        started = time.perf_counter()
        self.module.train()
        for images, targets in self.loader:
            images, targets = images.to(self.device), targets.to(self.device)
            self.optimizer.zero_grad()
            loss = nn.functional.cross_entropy(self.module(images), targets)
            loss.backward()
            self.optimizer.step()
        return time.perf_counter() - started


class Step:
    """A step of ours for one epoch: the seconds of its loop, without starting and validating."""

    def __init__(self, text: str, model: Model, bench: StepContext) -> None:
        self.step, self.model, self.bench = chain(text), model, bench
        self.pace = ""

    def __call__(self) -> float:
        bench = replace(self.bench, log=StepLog())
        # What is measured stands for a long training, which would have been tried out.
        with patch.object(execution_mode, "MEASURED_FROM", 0.0):
            run(self.step, self.model, bench)
        [row] = [row for row in bench.log.rows if row["kind"] == "fit"]
        self.pace = str(row["pace"])
        return float(row["seconds"])


def ways_of(
    name: str, data: Data, teacher: Model, folder: Path, device: torch.device
) -> dict[str, Callable[[], float]]:
    """Return every way to train a model for an epoch."""
    seed_everything(0)
    bench = StepContext(
        task=data.task,
        train=data.train,
        teacher=teacher,
        models={},
        build=lambda wanted: fresh(wanted, data.task),
        device=device,
        precision=usual_precision(device),
        tune=True,
        cache=StoredStepCache(Store(folder), "speed"),
        setting=data.identity(),
    )
    model = fresh(name, data.task)
    options = f"epochs=1, batch_size={BATCH}, optimizer='sgd', learning_rate=0.01"
    return {
        "plain loop": Plain(fresh(name, data.task).module, data, device),
        "train": Step(f"finetune({options})", model, bench),
        "distill, teacher asked each time": Step(f"distill({options}, views=0)", model, bench),
        "distill, cache filled": Step(f"distill({options}, views=1)", model, bench),
    }


def filling(name: str, data: Data, teacher: Model, folder: Path, device: torch.device) -> float:
    """Return the seconds of an epoch that asks the teacher and keeps what it says."""
    ways = ways_of(name, data, teacher, folder, device)
    ways["distill, teacher asked each time"]()  # the first epoch of a process is slower
    return ways["distill, cache filled"]()


def measured(ways: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of every way's epochs, taken in turns in random order."""
    for way in ways.values():
        way()
    chance = random.Random(0)
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name in chance.sample(list(ways), len(ways)):
            found[name].append(ways[name]())
    return found


def peak(device: torch.device, precision: str, calls: int = 12) -> float:
    """Return the multiply-adds per second of a large matrix product, the fastest of some calls."""
    dtype = getattr(torch, precision)
    left, right = (torch.randn(SIDE, SIDE, device=device, dtype=dtype) for _ in range(2))
    least = float("inf")
    for _ in range(calls):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        torch.mm(left, right)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        least = min(least, time.perf_counter() - started)
    return SIDE**3 / least


def bound(label: str, each: int, found: dict[str, list[float]], items: int, device: Any) -> str:
    """Say how fast training could be if all of its multiply-adds ran as in a matrix product."""
    told = []
    for precision in dict.fromkeys(["float32", usual_precision(device)]):
        most = peak(device, precision) / (PASSES * each)
        told.append(f"{most:.0f} images/s in {precision}")
    shares = [f"{way} {items / np.median(found[way]):.0f}" for way in ("plain loop", "train")]
    return f"- {label} ({each / 1e6:.1f}M MACs): {', '.join(told)}; reached: {', '.join(shares)}"


def rows(label: str, items: int, found: dict[str, list[float]], fill: float) -> list[list[object]]:
    plain = np.array(found["plain loop"])
    lines: list[list[object]] = []
    for way, seconds in found.items():
        ratios = plain / np.array(seconds)
        lines.append(
            [
                label,
                way,
                f"{items / np.median(seconds):.0f}",
                f"{np.median(ratios):.2f} ({ratios.min():.2f} to {ratios.max():.2f})",
            ]
        )
    online = float(np.median(found["distill, teacher asked each time"]))
    cached = float(np.median(found["distill, cache filled"]))
    # The least n with fill + (n - 1) cached < n online; one epoch alone cannot gain anything.
    pays = max(2, 1 + int(max(0.0, fill - cached) / max(online - cached, 1e-9)))
    lines.append([label, "filling the cache", f"{items / fill:.0f}", f"pays from epoch {pays}"])
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--items", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    data = load_data("cifar10", mean=mean, std=std)
    data = replace(data, train=Subset(data.train, torch.arange(options.items)))
    teacher = fresh("resnet56", data.task)
    weights = data_root() / "weights" / "resnet56-cifar10.safetensors"
    load_weights(teacher.module, str(weights), "resnet56")
    lines: list[list[object]] = []
    bounds: list[str] = []
    paces: list[str] = []
    for label in options.models:
        with tempfile.TemporaryDirectory() as folder:
            fill = filling(MODELS[label], data, teacher, Path(folder), device)
            ways = ways_of(MODELS[label], data, teacher, Path(folder), device)
            found = measured(ways, options.rounds)
        paces += [f"{label} {way.pace}" for way in ways.values() if isinstance(way, Step)][:1]
        lines += rows(label, options.items, found, fill)
        student = fresh(MODELS[label], data.task)
        each = macs(student.module, student.example)
        bounds.append(bound(label, each, found, options.items, device))
        print(table(("model", "way", "images/s", "times the plain loop"), lines[-5:]))
    command = "python benchmarks/distillation/speed.py --out reports/distillation"
    command += f" --items {options.items} --rounds {options.rounds}"
    publish(
        options.out / "speed.md",
        "Images per second of training",
        [
            table(("model", "way", "images/s", "times the plain loop"), lines),
            f"One epoch of {options.items} images of CIFAR-10 at batch {BATCH} a turn, all ways in "
            f"turns, {options.rounds} rounds: medians, and the least and the largest ratio within "
            "a round. The teacher is ResNet-56. Plain loop: DataLoader with two workers, "
            "torchvision's transforms image by image, float32, SGD. Ours, as tried out for long "
            f"trainings: {'; '.join(paces)}. Pays: from this epoch on, filling the cache and using "
            "it has taken less time than asking each time.\n",
            f"If every multiply-add of a training ({PASSES} times those of a forward pass) ran as "
            f"fast as in a product of two {SIDE} x {SIDE} matrices:\n\n" + "\n".join(bounds) + "\n",
        ],
        command,
    )


if __name__ == "__main__":
    main()
