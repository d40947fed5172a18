"""Putting the chosen forms in the place of layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod

from torch import nn

from compress.lowrank.fit import Inputs, Problem, white
from compress.lowrank.forms import Layer, inputs_of, made_up
from compress.lowrank.in_turn import Wanted, first_items, items_with_room
from compress.lowrank.layers import TargetLayer
from compress.lowrank.moments import TOGETHER, in_groups, moments, size_of
from compress.lowrank.plan import Calibrated
from compress.lowrank.ranks import Candidate
from compress.model import Model, copied
from compress.surgery import replace_everywhere

WORK = 2e12
"""Multiply-accumulates that the two passes of fitting in turn may take: a minute or so."""

TIMES = 4
"""How many times as many rows as inputs a layer needs, where fewer items than all have room."""

Chosen = tuple[TargetLayer, Candidate]


def replaced(
    module: nn.Module,
    model: Model,
    macs: int,
    chosen: Sequence[Chosen],
    calibrated: Calibrated | None,
) -> Iterator[tuple[TargetLayer, Candidate, float]]:
    """Replace layers in `module`, a copy of the model's, and yield each with its relative error.

    One after another where the model's `macs` are few enough: inputs are those that the layers
    before give by then, and the outputs that are wanted those of the original on its own inputs.
    Else, and for layers that run several times, inputs are the original's. The error is of the
    outputs, without calibration items of the weight.
    """
    if calibrated is None:
        for one in chosen:
            problem = Problem(one[0].layer, white(one[0].layer))
            yield *one, _put(module, one, problem)
        return
    few = 2 * macs * calibrated.items <= WORK
    wanted = _wanted(model, chosen, calibrated) if few else None
    once = [one for one in chosen if wanted is not None and one[0].path in wanted.paths]
    # The others first: what comes in turn takes back what they lose.
    others = [one for one in chosen if one not in once]
    found = {one[0].path: _put(module, one, it) for one, it in _problems(model, others, calibrated)}
    in_turn = _in_turn(module, once, wanted) if wanted is not None else {}
    for one in once:
        path = one[0].path
        if path in in_turn:
            layer, found[path] = in_turn[path]
            replace_everywhere(module, module.get_submodule(path), layer)
    left = [one for one in once if one[0].path not in in_turn]
    found |= {one[0].path: _put(module, one, it) for one, it in _problems(model, left, calibrated)}
    for one in chosen:
        yield *one, found[one[0].path]


def _wanted(model: Model, chosen: Sequence[Chosen], calibrated: Calibrated) -> Wanted | None:
    """Return what is wanted of layers that can be fitted in turn; None where there is no room.

    Not of those that run several times, or that fewer items than all, if these alone have room,
    give too few rows.
    """
    items = first_items(calibrated.batches, calibrated.items)
    if items is None:
        return None
    count = items_with_room(model.module, items, calibrated.items)
    paths = [
        target.path
        for target, _ in chosen
        if len(target.calls) == 1
        and (count == calibrated.items or _rows(target, count) >= TIMES * inputs_of(target.layer))
    ]
    if not count or len(paths) < 2:
        return None
    return Wanted(model.module, dict.fromkeys(paths), tuple(tensor[:count] for tensor in items))


def _in_turn(
    module: nn.Module, chosen: Sequence[Chosen], wanted: Wanted
) -> dict[str, tuple[nn.Module, float]]:
    """Return what layers become, with their errors."""
    ways = {target.path: candidate for target, candidate in chosen}
    found: dict[str, tuple[nn.Module, float]] = {}

    def fit(path: str, layer: Layer, inputs: Inputs) -> nn.Module:
        one = ways[path]
        found[path] = Problem(layer, inputs).fitted(one.form, one.ranks)
        return found[path][0]

    wanted.fit(module, dict.fromkeys(ways), fit)
    return found


def _rows(target: TargetLayer, items: int) -> int:
    """Return how many rows of inputs a layer has on some items, each of which calls it once."""
    [call] = target.calls
    left = call.left[:-1] if isinstance(target.layer, nn.Linear) else (call.left[0], *call.left[2:])
    return items * prod(left)


def _problems(
    model: Model, chosen: Sequence[Chosen], calibrated: Calibrated
) -> Iterator[tuple[Chosen, Problem]]:
    """Yield the problem of each layer on what the original gives; as many as have room are held.

    They may be known, as all layers were judged by them.
    """
    judged = dict(calibrated.known)
    calibrated.known.clear()
    by_path = {one[0].path: one for one in chosen}
    missing = [target for target, _ in chosen if target.path not in judged]
    for path in by_path.keys() & judged.keys():
        yield by_path[path], judged.pop(path)
    sizes = [size_of(target.layer) for target in missing]
    calls = {target.path: len(target.calls) for target in missing}
    for group in in_groups(list(calls), sizes, TOGETHER):
        some = {path: calls[path] for path in group}
        known = moments(model.module, some, calibrated.batches, calibrated.items)
        for path in group:
            yield by_path[path], Problem(by_path[path][0].layer, known.pop(path))


def _put(module: nn.Module, one: Chosen, problem: Problem) -> float:
    target, candidate = one
    layer, error = problem.fitted(candidate.form, candidate.ranks)
    replace_everywhere(module, module.get_submodule(target.path), layer)
    return error


def like(
    module: nn.Module, chosen: Mapping[str, Candidate], found: Sequence[TargetLayer]
) -> nn.Module:
    """Return a copy with layers in their forms and random weights: to be timed, not used."""
    result = copied(module)
    for target in found:
        if target.path in chosen:
            one = chosen[target.path]
            layer = made_up(target.layer, one.form, one.ranks)
            replace_everywhere(result, result.get_submodule(target.path), layer)
    return result
