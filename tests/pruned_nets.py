"""Nets to prune, and what is asked of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from compress import counts
from compress.compressor import run
from compress.context import StepContext, StepLog
from compress.model import Model, forward
from compress.tasks.image_classification import ImageClassification, Preprocessing
from compress.techniques import chain
from compress.zoo.models import fresh

TASK = ImageClassification(
    "test", tuple("0123456789"), Preprocessing(3, (32, 32), (0.5,) * 3, (0.25,) * 3)
)


def prepared(name: str) -> Model:
    """Return a model whose every tensor is random, batch-norm statistics included."""
    torch.manual_seed(0)
    model = fresh(name, TASK)
    for module in model.module.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


def step_context() -> StepContext:
    return StepContext(TASK, log=StepLog())


NETS = [
    "cnn-small(width=16)",
    "mlp",
    "resnet20",
    "torchvision:resnet18(stem='small')",
    "torchvision:mobilenet_v2(stem='small', width_mult=0.5)",
    "torchvision:VisionTransformer(patch_size=8, num_layers=2, num_heads=2, hidden_dim=32, "
    "mlp_dim=64)",
]


class Net(nn.Module):
    """Layers, and a forward written in full."""

    def __init__(self, forward: Callable[[nn.Module, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.give = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.give(self, x)


def of(module: nn.Module, *shape: int) -> Model:
    """Return a model of a module whose norms do something, and noise."""
    torch.manual_seed(0)
    for layer in module.modules():
        if isinstance(layer, (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.2)
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean, std=0.2)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
    return Model(module.eval(), (torch.randn(2, *shape),))


def pruned(text: str, model: Model) -> tuple[nn.Module, StepContext]:
    """Return what a step makes of a model, which gives finite outputs of the same shape."""
    context = step_context()
    result = run(chain(text), model, context)
    assert (
        forward(result.module, model.items(3)).shape == forward(model.module, model.items(3)).shape
    )
    return result.module, context


def share(after: nn.Module, model: Model) -> float:
    return counts.macs(after, model.example) / counts.macs(model.module, model.example)


def kept_rows(before: Tensor, after: Tensor) -> list[int]:
    """Return which rows of a vector or matrix are left, by their values."""
    rows = [tuple(row) for row in before.reshape(len(before), -1)[:, :1].tolist()]
    return [rows.index(tuple(row)) for row in after.reshape(len(after), -1)[:, :1].tolist()]
