"""A VGG-like net for CIFAR-10: `--model benchmarks/pruning/vgg_like.py:vgg --allow-code ...`.

Simonyan and Zisserman 2015 (arXiv 1409.1556), configuration A at a quarter of its width, with batch
norms and one linear layer: 0.58 M parameters, 9.9 M MACs at 32 x 32 pixels.
"""

from __future__ import annotations

from torch import nn

WIDTHS = (16, "M", 32, "M", 64, 64, "M", 128, 128, "M", 128, 128, "M")


def vgg(num_classes: int, in_channels: int) -> nn.Module:
    """Return the net, untrained; images need 32 pixels a side."""
    layers: list[nn.Module] = []
    for width in WIDTHS:
        if isinstance(width, int):
            conv = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(width), nn.ReLU()]
            in_channels = width
        else:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(in_channels, num_classes))
