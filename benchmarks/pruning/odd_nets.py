"""Small nets of kinds that people report as broken by pruning tools: images of 32 x 32 x 3."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Net(nn.Module):
    """Layers, and a forward written in full."""

    def __init__(self, give: Callable[..., Tensor], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.give = give

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.give(self, *inputs)


def block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


def unet(num_classes: int) -> nn.Module:
    """Two ways down, two ways up, and what went down concatenated to what comes up."""

    def give(m: Any, x: Tensor) -> Tensor:
        a = m.a(x)
        b = m.b(F.max_pool2d(a, 2))
        c = m.c(F.max_pool2d(b, 2))
        b = m.d(torch.cat([b, m.up(c)], 1))
        a = m.e(torch.cat([a, F.interpolate(b, scale_factor=2.0, mode="bilinear")], dim=-3))
        return m.out(a.mean((2, 3)))

    return Net(
        give,
        a=block(3, 16),
        b=block(16, 32),
        c=block(32, 64),
        up=nn.ConvTranspose2d(64, 32, 2, 2),
        d=block(64, 32),
        e=block(48, 32),
        out=nn.Linear(32, num_classes),
    )


def shared(num_classes: int) -> nn.Module:
    """A module called twice, and two linear layers of one weight."""

    def give(m: Any, x: Tensor) -> Tensor:
        x = m.twice(m.twice(m.stem(x))).mean((2, 3))
        return m.out(F.relu(m.third(F.relu(m.second(F.relu(m.first(x)))))))

    net = Net(
        give,
        stem=block(3, 32, 2),
        twice=block(32, 32),
        first=nn.Linear(32, 96),
        second=nn.Linear(96, 32),
        third=nn.Linear(32, 96),
        out=nn.Linear(96, num_classes),
    )
    net.get_submodule("third").weight = net.get_parameter("first.weight")  # type: ignore[assignment]
    return net


def two_inputs(num_classes: int) -> nn.Module:
    """An image, and the same image at half the size."""

    def give(m: Any, x: Tensor, half: Tensor) -> Tensor:
        x = m.join(torch.cat([m.large(x), m.small(half)], 1) * m.gate(half).sigmoid())
        return m.out(x.mean((2, 3)))

    return Net(
        give,
        large=block(3, 32, 2),
        small=block(3, 32),
        gate=nn.Conv2d(3, 1, 3, 1, 1),
        join=block(64, 64),
        out=nn.Linear(64, num_classes),
    )


def cat_last(num_classes: int) -> nn.Module:
    """Tokens whose neighbours are concatenated along the last axis, as Swin merges patches."""

    def give(m: Any, x: Tensor) -> Tensor:
        x = m.norm(m.patches(x).permute(0, 2, 3, 1))
        x = torch.cat([x[:, ::2, ::2], x[:, 1::2, ::2], x[:, ::2, 1::2], x[:, 1::2, 1::2]], -1)
        return m.out(F.gelu(m.merge(x)).mean((1, 2)))

    return Net(
        give,
        patches=nn.Conv2d(3, 32, 4, 4),
        norm=nn.LayerNorm(32),
        merge=nn.Linear(128, 64),
        out=nn.Linear(64, num_classes),
    )


def pixel_shuffle(num_classes: int) -> nn.Module:
    def give(m: Any, x: Tensor) -> Tensor:
        x = F.pixel_shuffle(m.wide(m.stem(x)), 2)
        return m.out(m.last(F.pixel_unshuffle(m.after(x), 2)).mean((2, 3)))

    return Net(
        give,
        stem=block(3, 32, 2),
        wide=block(32, 128),
        after=block(32, 16),
        last=block(64, 64),
        out=nn.Linear(64, num_classes),
    )


def spatial_mask(num_classes: int) -> nn.Module:
    """A mask of one channel multiplies a feature map, as in CBAM."""

    def give(m: Any, x: Tensor) -> Tensor:
        x = m.features(x)
        return m.out(m.last(x * torch.sigmoid(m.mask(x))).mean((2, 3)))

    return Net(
        give,
        features=block(3, 32),
        mask=nn.Conv2d(32, 1, 7, 1, 3),
        last=block(32, 64, 2),
        out=nn.Linear(64, num_classes),
    )


def conv1d(num_classes: int) -> nn.Module:
    """The rows of an image as a sequence; a grouped and a depthwise convolution among it."""

    def give(m: Any, x: Tensor) -> Tensor:
        x = F.relu(m.norm(m.stem(x.flatten(1, 2))))
        x = F.relu(m.grouped(x))
        return m.out((x + F.relu(m.depthwise(x))).mean(2))

    return Net(
        give,
        stem=nn.Conv1d(96, 64, 3, 1, 1),
        norm=nn.BatchNorm1d(64),
        grouped=nn.Conv1d(64, 64, 5, 1, 2, groups=4),
        depthwise=nn.Conv1d(64, 64, 3, 1, 1, groups=64),
        out=nn.Linear(64, num_classes),
    )


def frozen(num_classes: int) -> nn.Module:
    """A body whose weights are not to be trained."""
    body = nn.Sequential(block(3, 32), block(32, 64, 2)).requires_grad_(False)
    return nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, num_classes))


def reparametrized(num_classes: int) -> nn.Module:
    """Weights that are computed in every pass, in the old way and in the new one."""
    old: Any = nn.utils.weight_norm
    return nn.Sequential(
        *(old(nn.Conv2d(3, 32, 3, 2, 1)), nn.ReLU()),
        *(nn.utils.parametrizations.weight_norm(nn.Conv2d(32, 64, 3, 2, 1)), nn.ReLU()),
        *(nn.utils.parametrizations.spectral_norm(nn.Conv2d(64, 64, 3, 1, 1)), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, num_classes)),
    )


def group_norm(num_classes: int) -> nn.Module:
    """A residual block with norms over groups of channels, and over all of them."""

    def norm(groups: int, channels: int) -> nn.Module:
        return nn.GroupNorm(groups, channels)

    def give(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        return m.out(m.down(F.relu(x + m.inner(x))).mean((2, 3)))

    inner = nn.Sequential(
        *(nn.Conv2d(64, 64, 3, 1, 1), norm(8, 64), nn.ReLU(), nn.Conv2d(64, 64, 3, 1, 1)),
        norm(8, 64),
    )
    return Net(
        give,
        stem=nn.Sequential(nn.Conv2d(3, 64, 3, 2, 1), norm(8, 64), nn.ReLU()),
        inner=inner,
        down=nn.Sequential(nn.Conv2d(64, 128, 3, 2, 1), norm(1, 128), nn.ReLU()),
        out=nn.Linear(128, num_classes),
    )


def recurrent(num_classes: int) -> nn.Module:
    """A convolution before a recurrent layer."""

    def give(m: Any, x: Tensor) -> Tensor:
        x = m.mix(m.stem(x))
        states, _ = m.gru(x.permute(0, 2, 1, 3).flatten(2))
        return m.out(states[:, -1])

    return Net(
        give,
        stem=block(3, 32, 2),
        mix=block(32, 16),
        gru=nn.GRU(16 * 16, 32, batch_first=True),
        out=nn.Linear(32, num_classes),
    )


def encoder(num_classes: int) -> nn.Module:
    """torch's own transformer layer, whose weights are read past their layers' forward."""

    def give(m: Any, x: Tensor) -> Tensor:
        return m.out(m.layer(m.patches(x).flatten(2).transpose(1, 2)).mean(1))

    return Net(
        give,
        patches=nn.Conv2d(3, 64, 4, 4),
        layer=nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True),
        out=nn.Linear(64, num_classes),
    )
