"""The grids: data, model and space of each, and the chains that a search would measure of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import mnist14
import numpy as np

from compress.api import prepare
from compress.benchmark.plan.plan import Plan
from compress.benchmark.plan.splits import splits_for
from compress.benchmark.plan.suite import FINAL, SEARCH, Option, Suite
from compress.compressor import Compressor
from compress.recommender.draw import Params
from compress.recommender.space import Space
from compress.recommender.space_file import Wishes, read_wishes
from compress.recommender.work import shapes_of
from compress.zoo.data import data_root

TRAIN, VAL, TEST = 5000, 3000, 6000
"""Of CIFAR-10: training images that recoveries learn from, test images that serve validation, and
test images that judge."""


@dataclass(frozen=True)
class Grid:
    """A small space of chains, all of which are trained."""

    name: str
    model: str
    space: str
    epochs: int
    """Of a full recovery."""
    write: Callable[[Path], Path]
    """Writes the data as `arrays:PATH` reads it, unless it is there."""
    baseline: str | None = None
    weights: str | None = None
    """Below the data root."""
    precision: str = "auto"
    options: Mapping[str, Option] = field(default_factory=dict)

    def wishes(self, folder: Path) -> Wishes:
        """Return what every chain of the grid is made of."""
        (folder / "space.toml").write_text(self.space)
        return read_wishes(folder / "space.toml")

    def plans(self, folder: Path) -> tuple[Plan, Plan]:
        """Return the plan of the search and that of the test."""
        data = self.write(folder / f"{self.name}.npz")
        suite = Suite(
            "grid",
            f"arrays:{data}",
            self.model,
            (),
            baseline=self.baseline,
            weights=None if self.weights is None else str(data_root() / self.weights),
            timings=("cpu",),
            controls=False,
            splits=FINAL,
            precision=self.precision,
            options=self.options,
        )
        final, _, _ = prepare(suite, step_threads=1, threads=1, progress=False)
        searched = replace(final.suite, splits=SEARCH)
        return replace(final, suite=searched, data=splits_for(SEARCH, final.data)), final

    def levels_of(self, space: Space, params: Params) -> Iterator[tuple[str, Compressor]]:
        """Yield the chains that a search would measure of a draw."""
        full = space.chain(params, self.epochs)
        if (shapes := shapes_of(full)) is not None:
            yield "untrained", shapes
            short = space.chain(params, self.epochs // 4)
            if repr(short) != repr(full):
                yield "short", short
        yield "full", full


def part_of_cifar10(path: Path) -> Path:
    """Write a fixed part of the training images, and of the test images, some to choose by.

    The weights of the baseline have seen every training image, and none of the others.
    """
    if not path.exists():
        root = data_root() / "cifar10"
        with np.load(root / "train-0.npz") as train, np.load(root / "test.npz") as test:
            arrays = {f"{name}_train": train[name][:TRAIN] for name in "xy"}
            arrays |= {f"{name}_val": test[name][:VAL] for name in "xy"}
            arrays |= {f"{name}_test": test[name][VAL : VAL + TEST] for name in "xy"}
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **arrays)
    return path


MNIST14 = """
only = ["distill", "carve", "prune_channels", "quantize"]
longest = 3

[distill]
student = ["resnet20(width=4)"]
loss = ["kd"]
learning_rate = [0.001]

[carve]
ratio = [0.67, 0.34]
by = ["even"]

[prune_channels]
macs = [0.7, 0.5, 0.35]
criterion = ["l2"]
scope = ["local"]

[quantize]
max_drop = ["none"]
"""
CIFAR10 = """
only = ["distill", "carve", "prune_channels", "factorize", "quantize"]
longest = 3

[distill]
student = "none"
loss = ["kd"]
learning_rate = [0.001]

[carve]
ratio = [0.67]
by = ["even"]

[prune_channels]
macs = [0.85, 0.7, 0.5]
criterion = ["l2"]
scope = ["local"]

[factorize]
macs = [0.6]

[quantize]
max_drop = ["none"]
"""
GRIDS = {
    grid.name: grid
    for grid in (
        Grid(
            "mnist14",
            "resnet20(width=8)",
            MNIST14,
            4,
            mnist14.write_arrays,
            baseline="train(epochs=10)",
            precision="float32",
        ),
        Grid(
            "cifar10",
            "resnet20",
            CIFAR10,
            4,
            part_of_cifar10,
            weights="weights/resnet20-cifar10.safetensors",
            options={"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
        ),
    )
}
