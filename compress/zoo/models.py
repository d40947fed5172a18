"""Models by name, with fresh weights."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from compress.chain_parser import ModelName, parse_model_name
from compress.ensemble import AVERAGES, MOST_MEMBERS, Ensemble, settle
from compress.errors import UserError, clause, first_line, unknown
from compress.find_heads import Judge
from compress.heads import heads_by_path, set_all_heads
from compress.model import Blueprint, Model
from compress.model import load as load_saved
from compress.tasks.base import Task
from compress.zoo.code import from_file
from compress.zoo.given import bake, refuse_random, reparametrized
from compress.zoo.libraries import SIZES, call, from_timm, from_torchvision, full_names
from compress.zoo.resnet import CifarResNet
from compress.zoo.small import cnn_small, mlp

BUILT_IN: Mapping[str, Callable[..., nn.Module]] = {
    "cnn-small": cnn_small,
    "mlp": mlp,
    **{f"resnet{n}": functools.partial(CifarResNet, n) for n in (8, 14, 20, 32, 44, 56, 110)},
}
MOST_ALTOGETHER = 256
"""Members of an ensemble of ensembles."""
LIBRARIES = {"torchvision": from_torchvision, "timm": from_timm}

MODELS: Mapping[str, str] = {
    "cnn-small": "two 3x3 convolutions and a linear layer; option width=64",
    "mlp": "three linear layers; option width=256",
    **{
        f"resnet{n}": f"{n}-layer residual network for small images (He et al. 2015, section "
        f"4.2); option width=16"
        for n in (8, 14, 20, 32, 44, 56, 110)
    },
    "ensemble": "several of one model, averaged: ensemble(of='resnet20', members=3); option "
    "average='logits'",
    "torchvision:NAME": "any classification model of torchvision; options: stem='small' for "
    "small images, and what torchvision's builder takes",
    "timm:NAME": "any model of timm (pip install 'compress-models[timm]') and its options",
    "FILE.py:FACTORY": "your own code, with --allow-code FILE.py: a function that takes "
    "num_classes and, if it wants them, in_channels and input_size, and returns an nn.Module",
}


def fresh(
    name: str,
    task: Task,
    allow_code: Collection[Path] = (),
    *,
    load: Callable[[nn.Module], object] | None = None,
    judge: Judge | None = None,
    like: Model | None = None,
) -> Model:
    """Build the named model for a task, in eval mode, with weights that are not trained.

    The weights come from torch's global generator: seed it first. `load` replaces them by trained
    ones, and then `judge` may decide which of several outputs are the logits. A model of the same
    name as `like` takes over where its outputs are. Raises UserError if the name is unknown, or the
    model does not map the task's inputs to outputs of its shape.
    """
    blueprint = Blueprint(name, task.arguments())
    module = _built(blueprint, allow_code).eval()
    if load is not None:
        try:
            load(module)
        except UserError:
            if not reparametrized(module):
                raise
            bake(module)  # the weights may be those of a model that was saved: plain ones
            load(module)
    masked = bake(module)
    model = Model(module, task.probe(), masked, blueprint=blueprint, inputs=task.inputs)
    if like is not None and like.blueprint == blueprint:
        set_all_heads(module, heads_by_path(like.module))
    else:
        _check_output(name, model, task, judge)
    return model


def build_module(blueprint: Blueprint, allow_code: Collection[Path] = ()) -> nn.Module:
    """Build a fresh module from its blueprint, of plain weights alone.

    The arguments are those of `Task.arguments`; of images `num_classes`, `in_channels` and
    `input_size` (height, width). Raises UserError if the factory is unknown, not allowed, or
    refuses its options.
    """
    module = _built(blueprint, allow_code)
    bake(module)
    return module


def _built(blueprint: Blueprint, allow_code: Collection[Path]) -> nn.Module:
    """Build a fresh module as its factory makes it."""
    name = parse_model_name(blueprint.factory)
    arguments = dict(blueprint.arguments)
    if name.source.endswith(".py"):
        return from_file(name.source, name.name, name.options, arguments, allow_code)
    if name.source in LIBRARIES:
        return LIBRARIES[name.source](name.name, name.options, **arguments)
    if not name.source and name.name == "ensemble":
        return _ensemble(name, arguments, allow_code)
    if name.source or name.name not in BUILT_IN:
        full = f"{name.source}:{name.name}".lstrip(":")
        if full == "search":
            raise UserError(
                "'search' is no model but a step, which looks for one: write "
                "search(params=0.3, family='resnet', epochs=...) -> distill(...)"
            )
        raise unknown("model", full, MODELS, full_names(name.name))
    return _built_in(name, arguments)


def load(folder: str | Path, allow_code: Collection[str | Path] = ()) -> Model:
    """Rebuild the model in `folder` (`model.safetensors` and `blueprint.json`).

    A model whose factory is a user's own file needs that file in `allow_code`. Raises UserError
    if the files are missing, damaged, or name code that is not allowed.
    """
    allowed = tuple(Path(path) for path in allow_code)
    return load_saved(Path(folder), functools.partial(build_module, allow_code=allowed))


def _ensemble(
    name: ModelName, arguments: Mapping[str, Any], allow_code: Collection[Path]
) -> Ensemble:
    options = {"members": 2, "average": "probabilities", **name.options}
    of, members, average = (options.pop(key, None) for key in ("of", "members", "average"))
    if options:
        raise unknown("option of ensemble", next(iter(options)), ["of", "members", "average"])
    if not isinstance(of, str) or average not in AVERAGES:
        raise UserError(
            f"an ensemble is written ensemble(of='MODEL', members=3), its average one of "
            f"{', '.join(AVERAGES)}"
        )
    if not isinstance(members, int) or not 1 <= members <= MOST_MEMBERS:
        raise UserError(f"an ensemble has 1 to {MOST_MEMBERS} members, not {members!r}")
    if members * _members(of) > MOST_ALTOGETHER:
        raise UserError(f"{name.name} has more than {MOST_ALTOGETHER} members altogether")
    modules = [build_module(Blueprint(of, arguments), allow_code) for _ in range(members)]
    return Ensemble(modules, str(average))


def _members(name: str) -> int:
    """Return how many models a name stands for."""
    model = parse_model_name(name)
    if model.source or model.name != "ensemble":
        return 1
    members, of = model.options.get("members", 2), model.options.get("of")
    if not isinstance(members, int) or not isinstance(of, str):
        return 1  # it is refused when it is built
    return members * _members(of)


def _built_in(name: ModelName, arguments: Mapping[str, Any]) -> nn.Module:
    builder = BUILT_IN[name.name]
    known = inspect.signature(builder).parameters.keys() - arguments.keys()
    for key, value in name.options.items():
        if key not in known:
            raise unknown(f"option of {name.name}", key, known)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(f"{key} of {name.name} must be a positive whole number, not {value!r}")
    return call(builder, name.name, {**arguments, **name.options})


def _check_output(name: str, model: Model, task: Task, judge: Judge | None) -> None:
    shape = " and ".join("x".join(map(str, tensor.shape[1:])) for tensor in model.probe)
    try:
        refuse_random(model.module, model.items(), name)
        output = settle(model, task.output_shape(), judge)
    except UserError as error:
        raise UserError(str(error).replace("the model", name, 1)) from error
    except (RuntimeError, ValueError, TypeError, AssertionError, IndexError) as error:
        reason = clause(first_line(error))
        raise UserError(
            f"{name} cannot take inputs of {shape}: {reason}. {_misfit(name, task)}".strip()
        ) from error
    expected = (1, *task.output_shape())
    if output.shape != expected:
        raise UserError(
            f"{name} returns outputs of shape {tuple(output.shape)} for one item, but the task "
            f"{task.name} needs {expected}: one logit for each class"
        )


def _misfit(name: str, task: Task) -> str:
    """Return what to do about inputs that a model cannot take."""
    options = parse_model_name(name).options
    option = next((option for option in SIZES if option in options), None)
    given = task.arguments().get("input_size")
    size = options[option] if option else None
    if given is None or not isinstance(size, int | list | tuple):
        return task.misfit
    sides = [size, size] if isinstance(size, int) else [*size]
    if sides == [*given]:
        return task.misfit
    how = f"--size {sides[0]}" if len({*sides}) == 1 else f"size = {sides} in a suite"
    return f"It is built for {option}={size}: give the data that size, too ({how})"
