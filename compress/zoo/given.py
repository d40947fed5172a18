"""Modules as people give them: reparametrized weights are baked in, random outputs refused."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.overrides import TorchFunctionMode

from compress.errors import UserError
from compress.tasks.base import Tensors

DRAWING = {
    *("rand", "rand_like", "randn", "randn_like", "randint", "randint_like", "randperm", "normal"),
    *("normal_", "uniform_", "bernoulli", "bernoulli_", "multinomial", "exponential_", "random_"),
    *("rrelu", "gumbel_softmax"),
}
"""Functions of torch that draw random numbers; of dropouts `_draws` decides."""
SAME = 1e-3
"""The allowed difference of two answers, as a fraction of the largest |logit|."""


def reparametrized(module: nn.Module) -> list[tuple[str, str, str]]:
    """Return (layer, weight, kind) of all weights that are computed from others in every pass."""
    return [
        (path, name, kind)
        for path, layer in module.named_modules()
        for name, kind in (*_by_hooks(layer), *_by_parametrizations(layer))
    ]


def _by_hooks(layer: nn.Module) -> Iterator[tuple[str, str]]:
    for hook in layer._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm):
            yield hook.name, "weight_norm"
        elif isinstance(hook, SpectralNorm):
            yield hook.name, "spectral_norm"
        elif isinstance(hook, prune.BasePruningMethod):
            yield hook._tensor_name, "pruning mask"


def _by_parametrizations(layer: nn.Module) -> Iterator[tuple[str, str]]:
    if parametrize.is_parametrized(layer):
        chains: Any = layer.parametrizations
        for name, chain in chains.items():
            yield name, " and ".join(type(one).__name__ for one in chain)


def bake(module: nn.Module) -> frozenset[str]:
    """Make plain weights of reparametrized ones, in place; return the names of masked weights.

    Nothing that takes layers apart, and no file, knows of the tensors that they are computed from.
    A weight is frozen if all of these are.
    """
    masked = set()
    for path, name, kind in reparametrized(module):
        layer = module.get_submodule(path)
        known = (f"{name}_", f"parametrizations.{name}.")
        sources = [p for key, p in layer.named_parameters() if key.startswith(known)]
        if kind == "weight_norm":
            remove_weight_norm(layer, name)
        elif kind == "spectral_norm":
            remove_spectral_norm(layer, name)
        elif kind == "pruning mask":
            prune.remove(layer, name)
            masked.add(f"{path}.{name}".lstrip("."))
        else:
            # Copies share the class that torch made for the first, and takes the weight out of.
            shared = type(layer)
            layer.__class__ = type(shared.__name__, shared.__bases__, dict(vars(shared)))
            parametrize.remove_parametrizations(layer, name)
        trained = any(source.requires_grad for source in sources)
        weight = getattr(layer, name).detach().clone()
        delattr(layer, name)
        layer.register_parameter(name, nn.Parameter(weight, requires_grad=trained))
    return frozenset(masked)


def refuse_random(module: nn.Module, inputs: Tensors, what: str) -> None:
    """Raise UserError if a module in eval mode gives the same inputs other outputs each time."""
    with torch.no_grad():
        first, second = (_flat(module(*inputs)) for _ in range(2))
        if all(_alike(a, b) for a, b in zip(first, second, strict=True)):
            return
        with _Draws() as draws:
            module(*inputs)
    raise UserError(
        f"{what} gives other outputs for the same inputs each time, in eval mode too: "
        + (
            f"it draws random numbers by {', '.join(draws.seen)}. Have it do so while it trains "
            f"alone, such as F.dropout(x, p, training=self.training)"
            if draws.seen
            else "it remembers earlier inputs, or draws random numbers"
        )
    )


def _alike(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether two answers are the same, places where they are no numbers included."""
    finite = first.isfinite() & second.isfinite()
    if not torch.equal(first[~finite].nan_to_num(), second[~finite].nan_to_num()):
        return False
    one, other = first[finite], second[finite]
    return not one.numel() or bool((one - other).abs().max() <= SAME * one.abs().max())


def _flat(outputs: Any) -> list[torch.Tensor]:
    if isinstance(outputs, torch.Tensor):
        return [outputs.float()]
    values = list(outputs.values()) if isinstance(outputs, Mapping) else outputs
    if not isinstance(values, list | tuple):
        return []
    return [tensor for value in values for tensor in _flat(value)]


class _Draws(TorchFunctionMode):
    """Collects which functions draw random numbers, and where they are called."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, None] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, given = getattr(func, "__name__", ""), kwargs or {}
        if name in DRAWING or ("dropout" in name and _on(args, given)):
            self.seen[f"{name}() in {_caller(sys._getframe(1))}"] = None
        return func(*args, **given)


def _on(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call of a dropout (input, p, training) drops anything."""
    p = kwargs.get("p", args[1] if len(args) > 1 else 0.5)
    return bool(p and kwargs.get("training", args[2] if len(args) > 2 else True))


def _caller(frame: FrameType | None) -> str:
    """Return the first frame that is not torch's, as 'function (file, line)'."""
    package = str(Path(torch.__file__).parent)
    while frame is not None and frame.f_code.co_filename.startswith(package):
        frame = frame.f_back
    if frame is None:
        return "torch"
    code = frame.f_code
    return f"{code.co_qualname} ({Path(code.co_filename).name}, line {frame.f_lineno})"
