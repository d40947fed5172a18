"""Biases corrected in sequence, on the inputs that each product has in the int8 net.

An alternative to `compress.int8.correct`, which corrects each product beside its float twin on
float inputs; `accuracy.py` has both as candidates.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from compress.deploy.graphs import parsed
from compress.deploy.observe import Runner
from compress.int8.correct import Error
from compress.int8.lower import Draft, Lowered
from compress.tasks.base import Tensors


def in_sequence(draft: Draft, batches: Iterable[Tensors]) -> Lowered:
    """Return the int8 file whose products have their float means, corrected from first to last.

    Each product's mean output, per channel, is that of the int8 file with all products before it
    corrected already, over the items of `batches`, less the float graph's.
    """
    batches, chosen = list(batches), draft.placed()
    weighted = [unit for unit in draft.found if unit.weighted and unit.name in chosen]
    place = {str(node.name): number for number, node in enumerate(draft.model.graph)}
    order = sorted((unit.name for unit in weighted), key=place.__getitem__)
    convolutions = {unit.name for unit in weighted if unit.kind == "Conv"}
    wanted, wrong = _means(draft.model, order, convolutions, batches), dict(draft.wrong)
    for name in order:
        now = parsed(replace(draft, wrong=wrong).lowered().content)
        [found] = _means(now, [name], convolutions, batches).values()
        error = wrong[name]
        wrong[name] = Error(error.mean + found - wanted[name], error.noise, error.signal)
    return replace(draft, wrong=wrong).lowered()


def _means(
    model: ir.Model,
    names: Collection[str],
    convolutions: Collection[str],
    batches: Iterable[Tensors],
) -> Mapping[str, np.ndarray]:
    """Return the mean output of each product, per channel."""
    outputs = {
        str(node.name): str(node.outputs[0].name) for node in model.graph if node.name in names
    }
    sums = dict.fromkeys(outputs, np.array(0.0))
    items = 0
    for count, values in Runner(model, set(outputs.values())).chunks(batches):
        items += count
        for name, output in outputs.items():
            value = values[output].astype(np.float64)
            axis = 1 if name in convolutions else value.ndim - 1
            others = tuple(one for one in range(value.ndim) if one != axis)
            sums[name] = sums[name] + count * value.mean(others)
    return {name: total / items for name, total in sums.items()}
