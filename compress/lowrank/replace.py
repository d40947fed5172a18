"""Putting the chosen forms in the place of layers, one stage after another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import ceil

from torch import nn

from compress.lowrank.fit import Problem, white
from compress.lowrank.forms import made_up
from compress.lowrank.layers import TargetLayer
from compress.lowrank.moments import TOGETHER, in_groups, moments, size_of
from compress.lowrank.plan import Calibrated
from compress.lowrank.ranks import Candidate
from compress.model import copied
from compress.surgery import replace_everywhere

WORK = 2e12
"""Multiply-accumulates of forward passes that fitting the stages may take: a minute or so."""


def stages(macs: int, items: int, layers: int) -> int:
    """Return in how many stages layers are fitted: one each, where the passes are few enough.

    A stage takes two passes over the items, of the original and of what it has become, each on
    average half way through; the first takes none where moments of all layers have room.
    """
    return max(1, min(layers, int(WORK / max(macs * items, 1))))


def replaced(
    module: nn.Module,
    chosen: Sequence[tuple[TargetLayer, Candidate]],
    calibrated: Calibrated | None,
    count: int,
) -> Iterator[tuple[TargetLayer, Candidate, float]]:
    """Replace layers in place, in `count` stages; yield each with its relative error.

    Of each stage, the inputs are those that the stages before it give, and the outputs that are
    wanted those of the original on its own inputs: later layers take back what earlier ones lose.
    The error is of the outputs, without calibration items of the weight.
    """
    ways = {target.path: (target, candidate) for target, candidate in chosen}
    if calibrated is None:
        for target, candidate in chosen:
            problem = Problem(target.layer, white(target.layer))
            yield target, candidate, _put(module, target, candidate, problem)
        return
    original = copied(module)
    paths, size = list(ways), max(ceil(len(chosen) / max(count, 1)), 1)
    for start in range(0, len(paths), size):
        some = [ways[path][0] for path in paths[start : start + size]]
        for path, problem in _problems(module, original, some, calibrated):
            target, candidate = ways[path]
            yield target, candidate, _put(module, target, candidate, problem)


def _problems(
    module: nn.Module, original: nn.Module, stage: Sequence[TargetLayer], calibrated: Calibrated
) -> Iterator[tuple[str, Problem]]:
    """Yield the problem of each layer of a stage, with its path; as many are held as have room.

    Of the first stage that is what they were judged by: nothing has been replaced yet.
    """
    paths = [target.path for target in stage]
    judged = {path: one for path in paths if (one := calibrated.known.get(path)) is not None}
    calibrated.known.clear()
    if len(judged) == len(paths):
        for path in paths:
            yield path, judged.pop(path)
        return
    layers = {target.path: target.layer for target in stage}
    for group in in_groups(paths, [size_of(target.layer) for target in stage], TOGETHER):
        calls = {target.path: len(target.calls) for target in stage if target.path in group}
        known = moments(module, calls, calibrated.batches, calibrated.items, original)
        for path in group:
            yield path, Problem(layers[path], known.pop(path))


def _put(module: nn.Module, target: TargetLayer, candidate: Candidate, problem: Problem) -> float:
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
