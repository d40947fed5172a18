"""Models of torchvision and timm by name, with fresh weights."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from compress.errors import UserError, unknown
from compress.zoo.stem import set_in_channels, shrink_stem

# What the data decides, and every way in which a name could bring weights or files along.
WEIGHTS = {
    *("weights", "weights_backbone", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay"),
    *("checkpoint_path", "cache_dir"),
}
OURS = WEIGHTS | {"num_classes", "in_channels", "in_chans", "features_only"}


def from_torchvision(
    name: str,
    options: Mapping[str, Any],
    num_classes: int,
    in_channels: int,
    input_size: tuple[int, int],
) -> nn.Module:
    """Build a classification model, or a model class, of torchvision; nothing is downloaded.

    `stem='small'` suits small images; every other option goes to torchvision. Raises UserError
    for unknown names and options.
    """
    builder = _torchvision_builder(name)
    full = f"torchvision:{name}"
    arguments = dict(options)
    stem = arguments.pop("stem", None)
    if stem not in (None, "small"):
        raise UserError(f"stem of {full} can only be 'small', not {stem!r}")
    _refuse_ours(full, arguments)
    if not inspect.isclass(builder):
        arguments["weights"] = None
    for key, value in _size_arguments(name, full, input_size).items():
        arguments.setdefault(key, value)
    if name in ("googlenet", "inception_v3"):
        # What torchvision does by default, but without its warning.
        arguments.setdefault("init_weights", True)
    module = call(builder, full, {**arguments, "num_classes": num_classes})
    set_in_channels(module, in_channels, full)
    if stem == "small":
        shrink_stem(module, full)
    return module


def _torchvision_builder(name: str) -> Callable[..., nn.Module]:
    import torchvision.models

    found = vars(torchvision.models).get(name)
    if inspect.isclass(found) and issubclass(found, nn.Module):
        return found
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise unknown("torchvision model", name, known)
    return torchvision.models.get_model_builder(name)


def _size_arguments(name: str, full: str, size: tuple[int, int]) -> dict[str, Any]:
    """Return the arguments of those models that must know the size of the images."""
    if name.startswith("maxvit"):
        return {"input_size": size}
    if name.startswith("vit_") or name == "VisionTransformer":
        if size[0] != size[1]:
            raise UserError(f"{full} takes only square images, not {size[0]}x{size[1]}: set size")
        return {"image_size": size[0]}
    return {}


def from_timm(
    name: str,
    options: Mapping[str, Any],
    num_classes: int,
    in_channels: int,
    input_size: tuple[int, int],
) -> nn.Module:
    """Build a model of timm; nothing is downloaded. Options go to timm.

    Raises UserError for unknown names and options, or where timm is not installed.
    """
    try:
        import timm
    except ImportError:
        raise UserError(
            f"timm:{name} needs timm, which is not installed: pip install 'compress-models[timm]'"
        ) from None
    full = f"timm:{name}"
    _refuse_ours(full, options)
    if not timm.is_model(name):
        raise unknown("timm model", name, _timm_names(name))
    arguments = {"num_classes": num_classes, "in_chans": in_channels, **options}
    try:
        return timm.create_model(name, pretrained=False, img_size=input_size, **arguments)
    except TypeError as error:
        if "img_size" not in str(error) or "img_size" in options:
            raise _rejected(full, error) from error
    except (ValueError, RuntimeError, AssertionError) as error:
        raise _rejected(full, error) from error
    # A convolutional network: its size does not depend on that of the images.
    return call(timm.create_model, full, {"model_name": name, "pretrained": False, **arguments})


def _timm_names(name: str) -> list[str]:
    """Return the names of timm that begin alike, or a few: all of them are over a thousand."""
    import difflib

    import timm

    names = timm.list_models()
    return difflib.get_close_matches(name, names, n=8, cutoff=0.3) or names[:8]


def _refuse_ours(full: str, options: Mapping[str, Any]) -> None:
    for key in sorted(OURS & options.keys()):
        why = (
            "models start from fresh weights, and weights are given beside the model"
            if key in WEIGHTS
            else "the task decides it"
        )
        raise UserError(f"{key} cannot be an option of {full}: {why}")


def call(builder: Callable[..., Any], full: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Call a builder; what it raises becomes a UserError that names the model."""
    try:
        return builder(**arguments)
    except UserError:
        raise
    except Exception as error:  # a builder may raise anything: it is not ours
        raise _rejected(full, error) from error


def _rejected(full: str, error: Exception) -> UserError:
    return UserError(f"{full} cannot be built for these options and images: {error or repr(error)}")
