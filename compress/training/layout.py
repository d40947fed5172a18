"""In which memory layout a module runs: channels_last suits convolutions, and not every module.

`x.view(x.size(0), -1)`, with which most tutorials flatten, fails on what a convolution gives in
channels_last. Whether a module can run there is decided by trying it on a few items.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from compress.context import StepLog
from compress.stateless_rng import preserve_rng_state
from compress.tasks.base import Tensors

ITEMS = 2
"""Items that a layout is tried on: batch norm has no variance over one."""
NEAR = {"outputs": 0.005, "gradients": 0.25}
"""How far results may always be from the plain layout's, as a `_distance`.

Rounding moves outputs by a millionth, and gradients, where a ReLU changes sides, by hundredths.
Values read in a wrong order have a distance of 0.7.
"""
NUDGE = 1e-6
"""The share of itself by which every weight is moved to see how much a module magnifies rounding:
a batch norm over two items can magnify it to any extent."""
NOISE = 10.0
"""Results may also be so many times as far away as such a nudge moves them."""


def memory_format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


def place_inputs(inputs: Tensors, channels_last: bool) -> Tensors:
    """Give image batches the memory format that the module runs in."""
    layout = memory_format(channels_last)
    return tuple(
        tensor.contiguous(memory_format=layout) if tensor.ndim == 4 else tensor for tensor in inputs
    )


def suits_channels_last(
    module: nn.Module, inputs: Tensors, step_log: StepLog, trains: bool = True
) -> bool:
    """Whether a module has convolutions and gives the same results in channels_last.

    `inputs` are a few items on the device that it will run on. Where it `trains`, it is tried in
    train mode, forwards and backwards; in eval mode in any case. Copies run, and random numbers
    are drawn as if none had. A module that fails is not suited; the log says why.
    """
    if not any(isinstance(layer, nn.Conv2d) for layer in module.modules()):
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reason = _difference(module, inputs, trains)
    except Exception as error:  # the model's own code may raise anything
        reason = f"{type(error).__name__}: {error}"[:300]
    if reason:
        step_log.row("layout", channels_last=False, reason=reason)
    return not reason


Results = list[tuple[str, list[Tensor]]]
"""Outputs in eval mode on inputs in the plain layout; outputs in training; gradients."""


def _difference(module: nn.Module, inputs: Tensors, trains: bool) -> str:
    """Return what differs in channels_last by more than rounding ('' if nothing does)."""
    plain = _results(module, inputs, False, trains)
    last = _results(module, inputs, True, trains)
    noise: list[float] = []
    for number, (what, expected) in enumerate(plain):
        distance = _distance(expected, last[number][1])
        if distance <= NEAR[what]:
            continue
        if not noise:
            nudged = _results(module, inputs, False, trains, NUDGE)
            noise = [_distance(a, b) for (_, a), (_, b) in zip(plain, nudged, strict=True)]
        if not distance <= NOISE * noise[number]:
            return f"{what} in channels_last differ by {distance:.0%}"
    return ""


def _results(
    module: nn.Module, inputs: Tensors, channels_last: bool, trains: bool, nudge: float = 0.0
) -> Results:
    """Return the results of a copy of a module in a memory layout, its weights moved a little."""
    device = inputs[0].device
    module = copy.deepcopy(module).to(device).to(memory_format=memory_format(channels_last))
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if nudge:
        with torch.no_grad():
            for weight in filter(Tensor.is_floating_point, module.parameters()):
                ripples = torch.arange(weight.numel(), device=device).cos().view(weight.shape)
                weight.mul_(1 + nudge * ripples)
    # Copies of the inputs, too: a first layer may work in place. Between epochs models are judged
    # on inputs in the plain layout, whatever their own is.
    plain, placed = (
        place_inputs(tuple(tensor.clone() for tensor in inputs), layout)
        for layout in (False, channels_last)
    )
    with preserve_rng_state(device), _EqualDraws(device):
        with torch.no_grad():
            results: Results = [("outputs", _tensors(module.eval()(*plain)))]
            if not trains:
                return [*results, ("outputs", _tensors(module(*placed)))]
        with torch.enable_grad():
            outputs = _tensors(module.train()(*placed))
            value = sum((_weighed(output) for output in outputs), torch.zeros((), device=device))
        gradients = torch.autograd.grad(value, parameters, allow_unused=True)
    used = [gradient for gradient in gradients if gradient is not None]
    return [*results, ("outputs", [output.detach() for output in outputs]), ("gradients", used)]


def _tensors(outputs: Any) -> list[Tensor]:
    """Return all tensors that a forward pass gave, those of auxiliary heads included."""
    leaves = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
    return [leaf.float() for leaf in leaves if leaf.is_floating_point()]


def _weighed(output: Tensor) -> Tensor:
    """Return a sum in which every value has its own weight, so that their order matters."""
    weights = torch.linspace(-1, 1, output.numel(), device=output.device)
    return (output.flatten() * weights).sum()


def _distance(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """Return the length of the difference, as a share of both lengths: from 0 to 1."""
    if not first or [tensor.shape for tensor in first] != [tensor.shape for tensor in second]:
        return math.inf
    squares = [0.0, 0.0, 0.0]
    for one, other in zip(first, second, strict=True):
        # A mask of infinities is equal to itself, and so is what is no number.
        pair = [torch.nan_to_num(tensor, 0.0, 1.0, -1.0) for tensor in (one, other)]
        for place, tensor in enumerate((*pair, pair[0] - pair[1])):
            squares[place] += float(torch.linalg.vector_norm(tensor, dtype=torch.float64)) ** 2
    one_length, other_length, difference = map(math.sqrt, squares)
    both = one_length + other_length
    return difference / both if both else 0.0


class _EqualDraws(TorchDispatchMode):
    """Makes dropout and similar layers draw the same numbers in every layout.

    They draw in the order of values in memory: within this context, in that of the plain layout.
    """

    supports_higher_order_operators = True

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in getattr(func, "tags", ()):
            return func(*args, **kwargs)
        plain_args, plain_kwargs = tree_map_only(Tensor, _plain, (args, kwargs))
        with preserve_rng_state(self.device):
            results = func(*args, **kwargs)
        expected = func(*plain_args, **plain_kwargs)
        for result, plain in zip(tree_leaves(results), tree_leaves(expected), strict=True):
            if isinstance(result, Tensor):
                result.copy_(plain)
        return results


def _plain(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.contiguous_format)
