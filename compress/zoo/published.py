"""Weights of the built-in ResNets that others have trained on CIFAR-10 and published."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.chain_parser import ModelName

OWNER = "akamaster/pytorch_resnet_cifar10"
PLACE = f"https://github.com/{OWNER}/raw/master/pretrained_models"
CLASSES = 10
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""With which they were trained: those of ImageNet."""


@dataclass(frozen=True)
class Published:
    """A file of weights."""

    file: str
    """Its name has the beginning of its SHA-256."""
    accuracy: float
    """On CIFAR-10's test images, as its page says."""

    @property
    def words(self) -> str:
        return f"{self.file} of {OWNER}"

    def download(self) -> dict[str, Tensor]:
        """Return the weights, downloaded once to torch's hub folder, the hash checked.

        Raises whatever torch and the network raise.
        """
        held = torch.hub.load_state_dict_from_url(
            f"{PLACE}/{self.file}",
            map_location="cpu",
            progress=False,
            check_hash=True,
            weights_only=True,
        )
        return dict(held["state_dict"])


PUBLISHED: Mapping[str, Published] = {
    "resnet20": Published("resnet20-12fca82f.th", 0.9173),
    "resnet32": Published("resnet32-d509ac18.th", 0.9263),
    "resnet44": Published("resnet44-014dd654.th", 0.9310),
    "resnet56": Published("resnet56-4bfd9763.th", 0.9339),
    "resnet110": Published("resnet110-1d1ed7c2.th", 0.9368),
}


def published(name: ModelName) -> Published | None:
    """Return the published weights of a built-in model of the usual width; None without any."""
    if name.source or name.options:
        return None
    return PUBLISHED.get(name.name)
