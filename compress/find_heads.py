"""Deciding where a module's heads are among what it returns; `compress.heads` says how."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from compress.dataflow import DataFlow
from compress.errors import UserError
from compress.heads import (
    Heads,
    Path,
    as_in_training,
    candidates,
    fits,
    only_one,
    path_name,
    pick,
    set_heads,
    tensors_of,
)
from compress.stateless_rng import preserve_rng_state
from compress.tasks.base import Tensors

CLEARLY = 4.0
"""Standard errors of their difference by which an output must be more accurate than any other."""

Judge = Callable[[nn.Module, Sequence[Path]], tuple[Sequence[float], int]]
"""Returns the accuracy of every one of some outputs of a trained module, and of how many items."""


def settle_heads(
    module: nn.Module, inputs: Tensors, shape: Sequence[int], judge: Judge | None = None
) -> Tensor:
    """Decide once and for all where a module's heads are; return its logits for the first item.

    `shape` is that of one item's logits; `inputs` hold two items at least. With a `judge`, for
    weights that were given, accuracy may decide. The module, which is in eval mode, and the
    generators of random numbers are left as they are. Raises UserError where nothing decides.
    """
    with torch.no_grad():
        outputs = module(*(tensor[:1] for tensor in inputs))
    tensors = tensors_of(outputs)
    paths = candidates(tensors, (1, *shape))
    note = ""
    if len(paths) > 1 and judge is not None:
        paths, note = _most_accurate(module, paths, judge)
    main = only_one(tensors, paths, outputs, note)
    set_heads(module, _with_training(module, inputs, shape, Heads(main, note=note)))
    return tensors[main]


def _most_accurate(module: nn.Module, paths: list[Path], judge: Judge) -> tuple[list[Path], str]:
    """Return the output that is clearly the most accurate, else all of them; and a note."""
    accuracies, count = judge(module, paths)
    order = sorted(range(len(paths)), key=lambda number: -accuracies[number])
    # With one more right and one more wrong each, it suits few items too: Agresti and Caffo 2000.
    best, other = ((accuracies[number] * count + 1) / (count + 2) for number in order[:2])
    error = math.sqrt((best * (1 - best) + other * (1 - other)) / (count + 2))
    figures = ", ".join(f"{path_name(paths[number])} {accuracies[number]:.1%}" for number in order)
    where = f"accurate on {count} validation items ({figures})"
    if best - other <= CLEARLY * error:
        return paths, f"no name tells which are the logits, and none is clearly the most {where}"
    best_path = paths[order[0]]
    return [best_path], (
        f"no name tells which of the model's outputs are the logits: {path_name(best_path)} was "
        f"taken, the most {where}"
    )


def _with_training(
    module: nn.Module, inputs: Tensors, shape: Sequence[int], heads: Heads
) -> Heads | None:
    """Add the heads of training mode to that of eval mode; None where both return one tensor."""
    with warnings.catch_warnings(), preserve_rng_state():
        warnings.simplefilter("ignore")
        try:
            trained = copy.deepcopy(module).train()
            inputs, outputs = _run_in_training(trained, inputs)
        except Exception as error:  # somebody's code: it may raise anything
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            why = f"the model does not run in training mode on such inputs ({reason})"
            remedy = "switch off what only training uses, or leave out the steps that train"
            return replace(heads, untrainable=f"{why}: {remedy}")
        if isinstance(outputs, Tensor):
            return heads if heads.main else None
        return _matched(module, trained, inputs, (len(inputs[0]), *shape), heads)


def _run_in_training(trained: nn.Module, inputs: Tensors) -> tuple[Tensors, Any]:
    """Return the inputs that a module takes in training mode, and its outputs."""
    with torch.no_grad():
        try:
            return inputs, trained(*inputs)
        except Exception:  # the batch may be too small, for a norm over parts of it, say
            many = tuple(x.repeat(16, *[1] * (x.ndim - 1)) for x in inputs)
            return many, trained(*many)


def _matched(
    module: nn.Module, trained: nn.Module, inputs: Tensors, shape: Sequence[int], heads: Heads
) -> Heads:
    """Find the heads among the outputs of training mode."""
    outputs, flow = _traced(trained, inputs)
    tensors = tensors_of(outputs)
    paths = candidates(tensors, shape)
    if len(paths) > 1:
        eval_outputs, eval_flow = _traced(module, inputs)
        logits = pick(eval_outputs, heads.main)
        used = eval_flow.sources(logits)
        paths = [path for path in paths if flow.sources(tensors[path]) == used]
        paths = _equal(module, inputs, paths, logits) if len(paths) > 1 else paths
    try:
        main = only_one(tensors, paths, outputs, "none, or several, equal what eval mode returns")
    except UserError as error:
        return replace(heads, untrainable=f"in training mode {error}")
    own = flow.sources(tensors[main])
    auxiliary = tuple(
        path
        for path, tensor in tensors.items()
        if path != main and fits(tensor, shape) and flow.sources(tensor) & ~own
    )
    return replace(heads, training=main, auxiliary=auxiliary)


def _traced(module: nn.Module, inputs: Tensors) -> tuple[Any, DataFlow]:
    """Return a module's outputs, and from which parameters each was computed."""
    with torch.no_grad(), DataFlow(module.parameters()) as flow:
        return module(*inputs), flow


def _equal(module: nn.Module, inputs: Tensors, paths: Sequence[Path], logits: Tensor) -> list[Path]:
    """Return an output of training mode whose values equal the logits of eval mode, or nothing.

    For outputs of the same parameters, such as logits and probabilities. Of two equal ones, such as
    the two passes of R-Drop, the first is taken.
    """
    trained = copy.deepcopy(module)
    with torch.no_grad(), as_in_training(trained):
        outputs = trained(*inputs)
    return [path for path in paths if torch.allclose(pick(outputs, path), logits, atol=1e-5)][:1]
