"""Models of torchvision and timm by name, with fresh weights."""

from __future__ import annotations

import contextlib
import difflib
import functools
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from compress.errors import UserError, nearest, unknown
from compress.zoo.stem import set_in_channels, shrink_stem

# Every option that could bring weights or files along, and what the task decides.
WEIGHTS = {
    *("weights", "weights_backbone", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay"),
    *("checkpoint_path", "cache_dir"),
}
OURS = WEIGHTS | {"num_classes", "in_channels", "in_chans", "features_only"}
UNEXPECTED = re.compile(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'")
SIZES = ("img_size", "image_size", "input_size")
"""Options for the size of the images that a model is built for."""


def full_names(name: str) -> list[str]:
    """Return a name of torchvision's or timm's models with the library's before it."""
    import torchvision.models

    found = []
    if name in torchvision.models.list_models(module=torchvision.models):
        found.append(f"torchvision:{name}")
    with contextlib.suppress(ImportError):
        import timm

        if timm.is_model(name):
            found.append(f"timm:{name}")
    return found


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
    _refuse_ours(full, options)
    arguments = {**_size_arguments(name, full, input_size), **options, "num_classes": num_classes}
    stem = arguments.pop("stem", None)
    if stem not in (None, "small"):
        raise UserError(f"stem of {full} can only be 'small', not {stem!r}")
    if not inspect.isclass(builder):
        arguments["weights"] = None
    if name in ("googlenet", "inception_v3"):
        # What torchvision does by default, but without its warning.
        arguments.setdefault("init_weights", True)
    module = _called(builder, full, arguments, inspect.unwrap(builder).__module__)
    set_in_channels(module, in_channels, full)
    if stem == "small":
        shrink_stem(module, full)
    return module


def _torchvision_builder(name: str) -> Callable[..., nn.Module]:
    import torchvision.models

    value = vars(torchvision.models).get(name)
    if inspect.isclass(value) and issubclass(value, nn.Module):
        return value
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise unknown("torchvision model", name, known, full_names(name))
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
        # Those that are alike, or a few: all of them are over a thousand.
        names = timm.list_models()
        near = difflib.get_close_matches(name, names, n=8, cutoff=0.3)
        raise unknown("timm model", name, near or names[:8], full_names(name))
    build = functools.partial(timm.create_model, name, pretrained=False)
    arguments = {"num_classes": num_classes, "in_chans": in_channels, **options}
    home = timm.model_entrypoint(name).__module__
    try:
        return _called(build, full, {"img_size": input_size, **arguments}, home)
    except UserError as error:
        cause = error.__cause__
        unknown_size = isinstance(cause, TypeError) and "img_size" in str(cause)
        if not unknown_size or "img_size" in options:
            raise
    # A convolutional network: its size does not depend on that of the images.
    return _called(build, full, arguments, home)


def _refuse_ours(full: str, options: Mapping[str, Any]) -> None:
    for key in sorted(OURS & options.keys()):
        why = (
            "models start from fresh weights, and weights are named beside the model"
            if key in WEIGHTS
            else "the task decides it"
        )
        raise UserError(f"{key} cannot be an option of {full}: {why}")


def _called(
    builder: Callable[..., Any], full: str, arguments: Mapping[str, Any], home: str
) -> nn.Module:
    """Call a library's builder; of an unknown option say which there are, as far as can be told.

    Builders pass their options on to a class, which the error names, of the module `home`.
    """
    try:
        return call(builder, full, arguments)
    except UserError as error:
        found = UNEXPECTED.match(str(error.__cause__))
        made = found and vars(sys.modules[home]).get(found[1])
        if not found or not inspect.isclass(made):
            raise
        # What has no default the builder gives.
        known = sorted(
            option
            for option, parameter in inspect.signature(made).parameters.items()
            if parameter.default is not parameter.empty and option not in OURS
        )
        raise UserError(
            f"{full} cannot be built: it has no option {found[2]!r}. "
            f"{nearest(found[2], known)}Known: {', '.join(known)}"
        ) from error.__cause__


def call(builder: Callable[..., Any], full: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Call a builder; what it raises becomes a UserError that names the model."""
    try:
        return builder(**arguments)
    except UserError:
        raise
    except Exception as error:  # a builder may raise anything: it is not ours
        reason = str(error) or repr(error)
        raise UserError(f"{full} cannot be built for these options and images: {reason}") from error
