"""Small networks for small images: a plain CNN and a multilayer perceptron."""

from __future__ import annotations

import math

from torch import nn


def cnn_small(
    num_classes: int, in_channels: int, input_size: tuple[int, int], width: int = 64
) -> nn.Sequential:
    """Two 3x3 convolutions (`width` and twice that many channels), each pooled, then a linear.

    Raises ValueError for images of under 4 pixels.
    """
    if min(input_size) < 4:
        raise ValueError("images must be at least 4x4 pixels, since they are halved twice")
    height, across = input_size[0] // 4, input_size[1] // 4
    return nn.Sequential(
        nn.Conv2d(in_channels, width, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(2 * width * height * across, num_classes),
    )


def mlp(
    num_classes: int, in_channels: int, input_size: tuple[int, int], width: int = 256
) -> nn.Sequential:
    """Three linear layers, of `width`, half of that, and the number of classes."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(in_channels * math.prod(input_size), width),
        nn.ReLU(),
        nn.Linear(width, width // 2),
        nn.ReLU(),
        nn.Linear(width // 2, num_classes),
    )
