"""Deciding where a module's heads are among what it returns; `compress.heads` says how."""

from __future__ import annotations

import contextlib
import copy
import math
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
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
    found = tensors_of(outputs)
    paths = candidates(found, (1, *shape))
    said = ""
    if len(paths) > 1 and judge is not None:
        paths, said = _judged(module, paths, judge)
    main = only_one(found, paths, outputs, said)
    set_heads(module, _in_training(module, inputs, shape, Heads(main, note=said)))
    return found[main]


def _judged(module: nn.Module, paths: list[Path], judge: Judge) -> tuple[list[Path], str]:
    """Return the output that is clearly the most accurate, else all; and what was found."""
    accuracies, count = judge(module, paths)
    order = sorted(range(len(paths)), key=lambda number: -accuracies[number])
    # With one more right and one more wrong each, it suits few items too: Agresti and Caffo 2000.
    best, other = ((accuracies[number] * count + 1) / (count + 2) for number in order[:2])
    error = math.sqrt((best * (1 - best) + other * (1 - other)) / (count + 2))
    figures = ", ".join(f"{path_name(paths[number])} {accuracies[number]:.1%}" for number in order)
    where = f"accurate on {count} validation items ({figures})"
    if best - other <= CLEARLY * error:
        return paths, f"no name tells which are the logits, and none is clearly the most {where}"
    chosen = paths[order[0]]
    return [chosen], (
        f"no name tells which of the model's outputs are the logits: {path_name(chosen)} was "
        f"taken, the most {where}"
    )


def _in_training(
    module: nn.Module, inputs: Tensors, shape: Sequence[int], heads: Heads
) -> Heads | None:
    """Complete what is known of eval mode; None where both modes return one tensor."""
    with warnings.catch_warnings(), _same_chance():
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
    """Return what a module gives in training mode, and for which inputs."""
    with torch.no_grad():
        try:
            return inputs, trained(*inputs)
        except Exception:  # the batch may be too small, for a norm over parts of it, say
            many = tuple(x.repeat(16, *[1] * (x.ndim - 1)) for x in inputs)
            return many, trained(*many)


@contextlib.contextmanager
def _same_chance() -> Iterator[None]:
    """Put the generators of random numbers back."""
    ours, arrays = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(ours)
        np.random.set_state(arrays)


def _matched(
    module: nn.Module, trained: nn.Module, inputs: Tensors, shape: Sequence[int], heads: Heads
) -> Heads:
    """Find the heads among what training mode returns."""
    outputs, flow = _followed(trained, inputs)
    found = tensors_of(outputs)
    paths = candidates(found, shape)
    if len(paths) > 1:
        whole, plain = _followed(module, inputs)
        logits = pick(whole, heads.main)
        used = plain.sources(logits)
        paths = [path for path in paths if flow.sources(found[path]) == used]
        paths = _equal(module, inputs, paths, logits) if len(paths) > 1 else paths
    try:
        main = only_one(found, paths, outputs, "none, or not one alone, is what eval mode returns")
    except UserError as error:
        return replace(heads, untrainable=f"in training mode {error}")
    own = flow.sources(found[main])
    auxiliary = tuple(
        path
        for path, tensor in found.items()
        if path != main and fits(tensor, shape) and flow.sources(tensor) & ~own
    )
    return replace(heads, training=main, auxiliary=auxiliary)


def _followed(module: nn.Module, inputs: Tensors) -> tuple[Any, DataFlow]:
    with torch.no_grad(), DataFlow(module.parameters()) as flow:
        return module(*inputs), flow


def _equal(module: nn.Module, inputs: Tensors, paths: Sequence[Path], logits: Tensor) -> list[Path]:
    """Return an output of training mode that has the values of the logits of eval mode.

    For outputs of the same parameters, such as logits and probabilities. Of two equals, as the two
    passes of R-Drop are, one will do.
    """
    trained = copy.deepcopy(module)
    with torch.no_grad(), as_in_training(trained):
        outputs = trained(*inputs)
    return [path for path in paths if torch.allclose(pick(outputs, path), logits, atol=1e-5)][:1]
