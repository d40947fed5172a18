"""The residual blocks of a network: those that can be taken out and leave every shape as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compress.model import forward
from compress.rebuild import Skipped
from compress.surgery import replace_layer
from compress.tasks.base import Tensors

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


@dataclass(frozen=True)
class Stage:
    """Blocks of one class that follow one another in a container, by path."""

    blocks: tuple[str, ...]
    removable: frozenset[str]

    def among(self, wanted: Callable[[str], bool]) -> Stage:
        """Return the stage with only the blocks that are wanted."""
        blocks = tuple(path for path in self.blocks if wanted(path))
        return Stage(blocks, self.removable & set(blocks))

    def evenly(self, count: int) -> tuple[str, ...]:
        """Return `count` blocks, evenly spread, with all that cannot be removed.

        At least one, and at least those that must stay.
        """
        fixed = [i for i, path in enumerate(self.blocks) if path not in self.removable]
        total = len(self.blocks)
        count = min(total, max(count, len(fixed), 1))
        chosen = [i * total // count for i in range(count)]
        for needed in fixed:
            if needed not in chosen:
                free = [i for i in chosen if i not in fixed]
                chosen.remove(min(free, key=lambda i: abs(i - needed)))
                chosen.append(needed)
        return tuple(self.blocks[i] for i in sorted(chosen))


def stages(module: nn.Module, inputs: Tensors) -> list[Stage]:
    """Return every stage with at least one removable block; `inputs` are a few real items.

    A block is removable if it maps a tensor to one of the same shape and its input goes past it:
    with all its weights set to zero, except those of its norms, its output still depends on its
    input; and the module must work without it: `nn.TransformerEncoder` looks into its first layer.
    """
    calls = _single_calls(module, inputs)
    result: list[Stage] = []
    inside: list[str] = []
    for path, container in module.named_modules():
        if not isinstance(container, CONTAINERS) or any(
            path.startswith(f"{block}.") for block in inside
        ):
            continue
        groups: dict[type[nn.Module], list[str]] = {}
        for name, child in container.named_children():
            place = f"{path}.{name}" if path else name
            has_weights = any(True for _ in child.parameters())
            if place in calls and has_weights and type(child) not in CONTAINERS:
                groups.setdefault(type(child), []).append(place)
        for places in groups.values():
            removable = frozenset(
                place
                for place in places
                if _has_bypass(module.get_submodule(place), *calls[place])
                and _works_without(module, place, inputs)
            )
            if removable:
                result.append(Stage(tuple(places), removable))
                inside += places
    return result


def without(module: nn.Module, paths: Sequence[str]) -> nn.Module:
    """Return the module with the blocks at some paths taken out, in place."""
    for path in paths:
        replace_layer(module, path, Skipped())
    return module


def _single_calls(module: nn.Module, inputs: Tensors) -> dict[str, tuple[Tensor, Tensor]]:
    """Return input and output of every submodule that is called once, with one tensor each.

    Further arguments may be passed if they carry nothing, such as a mask that is None.
    """
    calls: dict[str, tuple[Tensor, Tensor]] = {}
    unsuitable: set[str] = set()
    handles = []
    for path, layer in module.named_modules():

        def record(
            _layer: nn.Module, args: Any, kwargs: Any, output: Any, path: str = path
        ) -> None:
            first, *others = [*args, *kwargs.values()] or [None]
            if path in calls or not args or any(x is not None and x is not False for x in others):
                unsuitable.add(path)
            elif isinstance(first, Tensor) and isinstance(output, Tensor):
                calls[path] = (first.detach().clone(), output.detach())

        handles.append(layer.register_forward_hook(record, with_kwargs=True))
    try:
        forward(module, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return {path: call for path, call in calls.items() if path not in unsuitable}


def _has_bypass(block: nn.Module, inputs: Tensor, output: Tensor) -> bool:
    """Whether the input reaches the output of a block whose weights are zero."""
    if inputs.shape != output.shape or not inputs.is_floating_point():
        return False
    empty = copy.deepcopy(block).eval()
    # Transformers in their first form end a block with a norm, which would let nothing past.
    norms = {id(p) for m in empty.modules() if isinstance(m, NORMS) for p in m.parameters()}
    others = [parameter for parameter in empty.parameters() if id(parameter) not in norms]
    # Another input: had the output been made by the weights alone, it would stay the same. Not a
    # constant more: a norm takes that away.
    ripples = torch.arange(inputs.numel(), dtype=inputs.dtype, device=inputs.device).cos()
    with torch.no_grad():
        for parameter in others or empty.parameters():
            parameter.zero_()
        try:
            result = empty(inputs)
        except TypeError:  # it needs further arguments
            return False
        if not isinstance(result, Tensor) or not bool(result.isfinite().all()):
            return False
        return not torch.allclose(result, empty(inputs + ripples.view_as(inputs)))


def _works_without(module: nn.Module, path: str, inputs: Tensors) -> bool:
    block = module.get_submodule(path)
    replace_layer(module, path, Skipped())
    try:
        forward(module, inputs)
    except Exception:  # whatever the model's own code raises, the block has to stay
        return False
    finally:
        replace_layer(module, path, block)
    return True
