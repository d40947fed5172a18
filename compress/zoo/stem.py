"""Fitting the first layers of a network to the images: their channels, and their small size."""

from __future__ import annotations

from torch import nn

from compress.errors import UserError

ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.GELU)
NORMS = (nn.BatchNorm2d, nn.GroupNorm, nn.Identity)


def set_in_channels(module: nn.Module, channels: int, name: str) -> None:
    """Replace the first convolution by a fresh one that takes `channels` channels."""
    path, conv = _first_conv(module, name)
    if conv.in_channels == channels:
        return
    if conv.groups != 1:
        raise UserError(f"the first layer of {name} is grouped: it cannot take {channels} channels")
    fresh = nn.Conv2d(
        channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        conv.stride,  # type: ignore[arg-type]
        conv.padding,  # type: ignore[arg-type]
        conv.dilation,  # type: ignore[arg-type]
        bias=conv.bias is not None,
        padding_mode=conv.padding_mode,
    )
    module.set_submodule(path, fresh)


def shrink_stem(module: nn.Module, name: str) -> None:
    """Keep the resolution in the first layers, for images of about 32 pixels.

    A ResNet gets a 3x3 convolution of stride 1 and no max pooling (as is usual on CIFAR); in
    other networks the first convolution gets stride 1, and a max pooling right after it goes.
    Raises UserError where that makes no sense.
    """
    path, conv = _first_conv(module, name)
    pool = _pool_after(module, path)
    if conv.stride == (1, 1) and pool is None:
        raise UserError(f"the first layers of {name} keep the resolution already: drop stem")
    if conv.stride == conv.kernel_size and conv.stride != (1, 1):
        raise UserError(
            f"{name} cuts images into patches of {conv.kernel_size} pixels, so it has no stem "
            f"to make small: drop stem, and use a smaller patch_size or larger images"
        )
    if conv.kernel_size == (7, 7):
        outputs = conv.out_channels
        small = nn.Conv2d(conv.in_channels, outputs, 3, padding=1, bias=conv.bias is not None)
        nn.init.kaiming_normal_(small.weight, mode="fan_out", nonlinearity="relu")
        module.set_submodule(path, small)
    else:
        conv.stride = (1, 1)
    if pool is not None:
        module.set_submodule(pool, nn.Identity())


def _first_conv(module: nn.Module, name: str) -> tuple[str, nn.Conv2d]:
    for path, layer in module.named_modules():
        if isinstance(layer, nn.Conv2d):
            return path, layer
    raise UserError(f"{name} has no convolution, so its first layers cannot be changed")


def _pool_after(module: nn.Module, conv: str) -> str | None:
    """Return the path of a max pooling with nothing but norms and activations before it."""
    leaves = [(path, leaf) for path, leaf in module.named_modules() if not list(leaf.children())]
    start = [path for path, _ in leaves].index(conv) + 1
    for path, leaf in leaves[start:]:
        if isinstance(leaf, nn.MaxPool2d):
            return path
        if not isinstance(leaf, ACTIVATIONS + NORMS):
            return None
    return None
