"""Networks to time, as ONNX files with random weights. What they answer plays no part here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from compress.deploy.export import export
from compress.deploy.session import session
from compress.model import Model, items_like
from compress.tasks.image_classification import ImageClassification, Preprocessing
from compress.zoo.models import fresh

SAMPLES = 64


@dataclass(frozen=True)
class Network:
    """A file, the inputs it is fed, and what it answers."""

    name: str
    path: Path
    samples: np.ndarray
    expected: np.ndarray


SMALL_TO_LARGE = {
    "mlp, 8 px": ("mlp", 1, 8),
    "cnn-small, 8 px": ("cnn-small", 1, 8),
    "cnn-small, 28 px": ("cnn-small", 1, 28),
    "resnet20, 32 px": ("resnet20", 3, 32),
    "resnet56, 32 px": ("resnet56", 3, 32),
    "shufflenet, 64 px": ("torchvision:shufflenet_v2_x1_0", 3, 64),
    "mobilenet_v2, 96 px": ("torchvision:mobilenet_v2", 3, 96),
    "efficientnet_b0, 96 px": ("torchvision:efficientnet_b0", 3, 96),
    "resnet18, 128 px": ("torchvision:resnet18", 3, 128),
    "resnet18, 224 px": ("torchvision:resnet18", 3, 224),
}


def by_name(names: list[str], folder: Path) -> dict[str, Network]:
    """Export networks of `SMALL_TO_LARGE` into a folder."""
    return {name: _exported(name, *SMALL_TO_LARGE[name], folder) for name in names}


def _exported(name: str, model: str, channels: int, side: int, folder: Path) -> Network:
    torch.manual_seed(0)
    spec = Preprocessing(channels, (side, side), (0.5,) * channels, (0.25,) * channels)
    task = ImageClassification("random", tuple("0123456789"), spec)
    return written(name, fresh(model, task), folder)


def written(name: str, model: Model, folder: Path) -> Network:
    """Write a model's file and what it answers for `SAMPLES` random inputs."""
    path = folder / f"{name.replace(' ', '').replace(',', '-')}.onnx"
    path.write_bytes(export(model))
    samples = items_like(model.example, SAMPLES, seed=1)[0].numpy()
    runner = session(path)
    answers = [runner.run({"input": samples[i : i + 8]}) for i in range(0, SAMPLES, 8)]
    return Network(name, path, samples, np.concatenate(answers))


# --- stacks of equal layers, to which work can be added exactly -----------------------------------

LAYERS = 100


def stack(layer: Callable[[], nn.Module], head: nn.Module, layers: int) -> nn.Module:
    """Return `layers` equal layers, each followed by a ReLU, and a head."""
    torch.manual_seed(0)
    body = (part for _ in range(layers) for part in (layer(), nn.ReLU()))
    return nn.Sequential(*body, head)


def pooled(channels: int) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


STACKS = {
    "3x3 convolutions, 16 channels, 16 px": (
        lambda: nn.Conv2d(16, 16, 3, padding=1),
        lambda: pooled(16),
        (16, 16, 16),
    ),
    "3x3 convolutions, 32 channels, 32 px": (
        lambda: nn.Conv2d(32, 32, 3, padding=1),
        lambda: pooled(32),
        (32, 32, 32),
    ),
    "matrix products, 512 x 512": (
        lambda: nn.Linear(512, 512),
        lambda: nn.Linear(512, 10),
        (512,),
    ),
}


def stacks(name: str, added: list[int], folder: Path) -> Iterator[Network]:
    """Yield the stack of `LAYERS` layers, then the same with some layers more."""
    layer, head, shape = STACKS[name]
    for more in [0, *added]:
        module = stack(layer, head(), LAYERS + more).eval()
        example = (torch.zeros(1, *shape),)
        yield written(f"{name} plus {more}", Model(module, example), folder)
