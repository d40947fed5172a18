"""Small nets whose every tensor is random, as models that the deploy tests share."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from compress.deploy.export import export
from compress.model import Model


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.left = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.left_norm = nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 10)

    def forward(self, images: Tensor) -> Tensor:
        hidden = torch.relu(self.norm(self.stem(images)))
        hidden = torch.relu(hidden + self.left_norm(self.left(hidden)))
        return self.head(hidden.mean((2, 3)))


class TwoHeads(nn.Module):
    """Returns its auxiliary head before the main one, as GoogLeNet does in training."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 8, 3)
        self.main = nn.Linear(8, 10)
        self.aux = nn.Linear(8, 10)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        hidden = self.body(images).relu().mean((2, 3))
        return {"aux": self.aux(hidden), "logits": self.main(hidden)}


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(6, 10)
        self.right = nn.Linear(4, 10)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return self.left(first) + self.right(second).relu()


def cnn() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)),
    )


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 32), nn.ReLU(), nn.Linear(32, 10))


def transformer() -> nn.Module:
    return VisionTransformer(
        image_size=16,
        patch_size=4,
        num_layers=2,
        num_heads=2,
        hidden_dim=32,
        mlp_dim=64,
        num_classes=10,
    )


BUILDERS = {"cnn": cnn, "residual": Residual, "mlp": mlp, "transformer": transformer}


def images(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def randomized(module: nn.Module, seed: int = 0) -> nn.Module:
    """Randomise every tensor, and estimate the statistics of batch norms on data.

    Random weights can prove nothing: a transformer's head starts at zero.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            scale = 1 / parameter[0].numel() ** 0.5 if parameter.dim() > 1 else 0.3
            offset = 1.0 if parameter.dim() == 1 else 0.0
            parameter.copy_(offset + scale * torch.randn(parameter.shape, generator=generator))
        module.train()
        if any(isinstance(part, nn.BatchNorm2d) for part in module.modules()):
            for _ in range(30):
                module(images(64, seed))
    return module.eval()


def built(name: str) -> Model:
    return Model(randomized(BUILDERS[name]()), (torch.zeros(1, 3, 16, 16),))


@functools.cache
def float_file(name: str) -> bytes:
    """Return the float ONNX file of a net above; exporting takes seconds, so once per run."""
    return export(built(name))
