"""Every loss with ten classes and with a hundred: one MNIST digit, and two side by side.

    python benchmarks/distillation/classes.py --out reports/distillation/classes

Both tasks have the same digits, halved to 14 x 14 pixels, as many training items, the same student
and teacher; what differs is how many classes an answer tells apart. Training pairs are drawn from
the training digits with replacement; in the test split every test digit stands once on the left
and once on the right.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import compress

ITEMS = 20_000
"""For training, of either task."""
TEACHER = "resnet20"
STUDENT = "cnn-small(width=16)"
LOSSES = (
    "",
    ", loss=kd(temperature=2.0, standardize=True)",
    ", loss=kd(temperature=2.0, weight=9.0, standardize=True)",
    ", loss=logits(weight=0.1), hard_weight=1.0",
    ", loss='dkd', hard_weight=1.0",
    ", loss=dist(temperature=1.0), hard_weight=1.0",
)
"""Further options of `distill`, with the weights and temperatures of the other suites; the weight
of 9 is the one that the code of Sun et al. 2024 has for a hundred classes."""
Pair = tuple[np.ndarray, np.ndarray]


def halved(images: np.ndarray) -> np.ndarray:
    """Return the means of 2 x 2 pixels."""
    count, height, width = images.shape
    blocks = images.reshape(count, height // 2, 2, width // 2, 2)
    return blocks.mean(axis=(2, 4)).round().astype(np.uint8)


def one(digits: Pair, chosen: np.ndarray) -> Pair:
    return digits[0][chosen], digits[1][chosen]


def two(digits: Pair, left: np.ndarray, right: np.ndarray) -> Pair:
    images, labels = digits
    return np.concatenate([images[left], images[right]], axis=2), 10 * labels[left] + labels[right]


def tasks(data_root: Path | None) -> dict[str, tuple[Pair, Pair]]:
    """Return the training and the test items of both tasks."""
    from torchvision.datasets import MNIST

    from compress.zoo.data import data_root as found

    root = found(data_root)
    parts = MNIST(root, train=True), MNIST(root, train=False)
    train, test = ((halved(part.data.numpy()), part.targets.numpy()) for part in parts)
    chance = np.random.default_rng(0)
    left, right = chance.choice(len(train[1]), (2, ITEMS))
    every = np.arange(len(test[1]))
    return {
        "ten": (one(train, left), test),
        "hundred": (two(train, left, right), two(test, every, chance.permutation(every))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    asked = f"student='{STUDENT}', epochs={options.epochs}"
    for name, (train, test) in tasks(options.data_root).items():
        suite = compress.Suite(
            name=f"MNIST, {name} classes",
            data=name,
            model=TEACHER,
            baseline="train(epochs=4)",
            chains=(f"train({asked})", *(f"distill({asked}{loss})" for loss in LOSSES)),
            seeds=tuple(range(options.seeds)),
            timings=("cpu",),
            timing_seconds=20,
            controls=False,
        )
        classes = [f"{number:0{len(str(train[1].max()))}}" for number in range(train[1].max() + 1)]
        data = compress.from_arrays(*train, *test, classes=classes, name=name)
        print(compress.bench(suite, data=data, out=options.out / name))


if __name__ == "__main__":
    main()
