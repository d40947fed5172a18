"""Nets to prune, and what is asked of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress import counts
from compress.compressor import Compressor, run
from compress.context import StepContext, StepLog
from compress.model import Model, forward
from compress.tasks.image_classification import ImageClassification, Preprocessing
from compress.techniques import chain
from compress.techniques.prune_channels import PruneChannels
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


def cut_alone(text: str) -> Compressor:
    """Return a step that prunes, and leaves the weights of what is left as they are."""
    [step] = chain(text).steps
    return replace(step, calibration=0) if isinstance(step, PruneChannels) else step


def pruned(text: str, model: Model) -> tuple[nn.Module, StepContext]:
    """Return what a step makes of a model, which gives finite outputs of the same shape."""
    context = step_context()
    result = run(cut_alone(text), model, context)
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


def shuffled() -> Net:
    """Return a net whose grouped convolutions have a channel shuffle, by views, between them."""

    def shuffle(m: nn.Module, x: Tensor) -> Tensor:
        x = F.relu(m.grouped(F.relu(m.stem(x))))
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return m.out(F.relu(m.again(x)).mean((2, 3)))

    return Net(
        shuffle,
        stem=nn.Conv2d(3, 32, 3, 2, 1),
        grouped=nn.Conv2d(32, 64, 3, 1, 1, groups=2),
        again=nn.Conv2d(64, 64, 3, 2, 1, groups=2),
        out=nn.Linear(64, 10),
    )


def recurrent(side: int, states: int) -> Net:
    """Return a net that reads images of one channel line by line, after two convolutions."""

    def read(m: nn.Module, x: Tensor) -> Tensor:
        x = F.relu(m.mix(F.relu(m.stem(x))))
        found, _ = m.gru(x.permute(0, 2, 1, 3).flatten(2))
        return m.out(found[:, -1])

    return Net(
        read,
        stem=nn.Conv2d(1, 16, 3, 1, 1),
        mix=nn.Conv2d(16, 8, 1),
        gru=nn.GRU(side * 8, states, batch_first=True),
        out=nn.Linear(states, 10),
    )
