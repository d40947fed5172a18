"""What each class of channels is worth by a criterion, and which go."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from compress.context import StepContext
from compress.errors import UserError
from compress.heads import main_output
from compress.lowrank.forms import inputs_of
from compress.lowrank.layer_inputs import LayerInputs, regularised
from compress.model import Model, copied
from compress.surgery import thawed
from compress.tasks.base import spaced
from compress.techniques.channel_cut import Plan
from compress.techniques.channel_elimination import Reader
from compress.techniques.channel_groups import Channels, Group
from compress.techniques.channel_trace import Axis, Vector
from compress.techniques.criteria import GATE, L2, MAKES, READS, SCALE, Criterion, Slices

Worth = npt.NDArray[np.float64]
Scores = dict[Axis, list[Worth]]
"""By group's axis, what each class is worth, pool by pool."""
LEAST = 0.25
"""What every group keeps of its share where channels are ranked over all groups."""
NOTHING = 1e-30
"""Losses below it are none."""
CHUNK = 32
"""How many items a pass with gradients takes at once."""


def scores(
    model: Model,
    channels: Channels,
    criterion: Criterion,
    context: StepContext,
    given: LayerInputs | None = None,
) -> tuple[Scores, list[str]]:
    """Return what the classes of every group are worth, and the groups that the criterion has
    nothing to say about, which are ranked by `l2` instead.

    `given` is what a criterion with `wants_inputs` asks.
    """
    generator = torch.Generator().manual_seed(context.seed)
    members = list(members_of(model.module, channels.plan))
    gradients = _Gradients()
    if criterion.wants_gradients:
        gradients = _gradients(model, criterion, context, channels.plan)
    found: Scores = {}
    silent = []
    for group in channels.groups:
        found[group.axis] = []
        for pool in group.pools:
            if criterion.wants_inputs:
                assert given is not None, "it is wanted"
                worth = _by_readers(pool, criterion, channels.plan, given)
            else:
                worth = _worth(pool, members, criterion, gradients, channels.plan, generator)
            if worth is None:
                silent.append(group.path)
                worth = _worth(pool, members, L2(), _Gradients(), channels.plan, generator)
                assert worth is not None, "a group has weights that make its channels"
            found[group.axis].append(worth)
    return found, [*dict.fromkeys(silent)]


def members_of(module: nn.Module, plan: Plan) -> Iterator[tuple[Axis, str, Tensor]]:
    """Yield the axes of parameters that say what channels are worth, their kind and values."""
    parameters = dict(module.named_parameters())
    norms = plan.trace.norm_layers
    for name, axis in plan.trace.axes:
        owner, _, leaf = name.rpartition(".")
        if name not in parameters:
            continue
        if (name, axis) in plan.trace.made:
            kind = MAKES
        elif (name, axis) in plan.trace.read:
            kind = READS
        elif owner in norms and leaf == "weight":
            kind = SCALE
        else:
            continue
        yield (name, axis), kind, _by_index(parameters[name].detach(), axis)


def _by_index(tensor: Tensor, axis: int) -> Tensor:
    return tensor.movedim(axis, 0).reshape(tensor.shape[axis], -1)


def _worth(
    pool: Vector,
    members: Sequence[tuple[Axis, str, Tensor]],
    criterion: Criterion,
    gradients: _Gradients,
    plan: Plan,
    generator: torch.Generator,
) -> Worth | None:
    """Return the mean over tensors of the sums over the slices of each class."""
    total, count = np.zeros(len(pool)), np.zeros(len(pool))
    order = np.argsort(pool)
    if (effects := _gates(pool, gradients, plan)) is not None:
        none = torch.zeros(len(pool), 0)
        gate = Slices(GATE, none, none, effects)
        if (worth := _scored(criterion, gate, generator, "the gates of a group")) is not None:
            total, count = total + worth, count + 1
    for axis, kind, values in members:
        classes = plan.of(axis)
        inside = np.isin(classes, pool)
        if not inside.any():
            continue
        gradient = gradients.mean.get(axis[0])
        by_index = None if gradient is None else _by_index(gradient, axis[1])
        worth = _scored(criterion, Slices(kind, values, by_index), generator, axis[0])
        if worth is None:
            continue
        place = order[np.searchsorted(pool, classes[inside], sorter=order)]
        np.add.at(total, place, worth[inside])
        count[np.unique(place)] += 1
    return total / count if count.all() else None


def _scored(
    criterion: Criterion, slices: Slices, generator: torch.Generator, where: str
) -> Worth | None:
    """Return a criterion's scores. Raises UserError unless they are finite, one per channel."""
    worth = criterion.of(slices, generator)
    if worth is None:
        return None
    count = len(slices.values)
    if worth.shape != (count,) or not worth.isfinite().all():
        said = (
            "that are not finite" if worth.shape == (count,) else f"of shape {tuple(worth.shape)}"
        )
        raise UserError(
            f"prune_channels: criterion={criterion.name()!r} gives scores {said} for {where} "
            f"({count} channels), and they cannot be ranked: take another criterion, or see "
            f"whether the model's weights and its loss are finite"
        )
    return worth.double().numpy()


def _by_readers(pool: Vector, criterion: Criterion, plan: Plan, given: LayerInputs) -> Worth | None:
    """Return a criterion's scores by what reads the classes of a pool.

    None where a class has no reader whose inputs are known.
    """
    order = np.argsort(pool)
    places: dict[str, list[list[int]]] = {}
    for name, axis in plan.trace.axes:
        path, _, leaf = name.rpartition(".")
        classes = plan.of((name, axis))
        inside = np.isin(classes, pool)
        if (name, axis) not in plan.trace.read or leaf != "weight" or path not in given.layers:
            continue
        if axis != 1 or not inside.any():
            continue
        found = places.setdefault(path, [[] for _ in pool])
        times = inputs_of(given.layers[path]) // len(classes)
        for channel in np.flatnonzero(inside):
            place = order[np.searchsorted(pool, classes[channel], sorter=order)]
            found[place] += range(channel * times, (channel + 1) * times)
    if not all(any(some[one] for some in places.values()) for one in range(len(pool))):
        return None
    readers = []
    for path, known in given.of(places).items():
        layer = given.layers[path]
        moments, ridge = regularised(known, bias=layer.bias is not None)
        if ridge > 0:  # else it is given nothing, and loses nothing
            added = moments.clone()
            added.diagonal().add_(ridge)
            weight = layer.weight.detach().cpu().double().flatten(1)
            some = [torch.tensor(one, dtype=torch.int64) for one in places[path]]
            readers.append(Reader(weight, added, some))
    worth = criterion.of_readers(readers, len(pool)) if readers else None
    # Where readers lose nothing by any, they say nothing of which to keep.
    return None if worth is None or float(worth.max()) < NOTHING else worth.double().numpy()


# --- gradients ----------------------------------------------------------------------------------


@dataclass
class _Gradients:
    """What a criterion was given of the task's loss over training items."""

    mean: dict[str, Tensor] = field(default_factory=dict)
    """By parameter, the gradient of the mean over all items."""
    effects: dict[Axis, Tensor] = field(default_factory=dict)
    """By axis of a parameter, (items, indices): Σ w · ∂loss/∂w over the weights of an index, of
    each item or of the mean over all."""
    kinds: dict[Axis, str] = field(default_factory=dict)
    """By the same, READS, SCALE or MAKES."""


def _gradients(model: Model, criterion: Criterion, context: StepContext, plan: Plan) -> _Gradients:
    """Take the gradient of the task's loss in eval mode, over items or of each of them."""
    assert context.train is not None, "run() has checked needs"
    module = copied(model.module).eval()
    parameters = dict(module.named_parameters())
    number = min(criterion.items, len(context.train))
    found = _Gradients(kinds=_kinds(module, plan))
    rows: list[dict[Axis, Tensor]] = []
    with thawed(module), torch.enable_grad():
        for index in spaced(number, len(context.train)).split(CHUNK):
            for some in index.split(1) if criterion.of_each_item else (index,):
                raw, targets = context.train.fetch(some)
                outputs = main_output(
                    module, module(*context.task.prepare(raw, torch.device("cpu")))
                )
                loss = context.task.loss(outputs, targets) * len(some) / number
                if not loss.requires_grad:
                    raise UserError(
                        f"prune_channels: criterion={criterion.name()!r} needs gradients, and the "
                        f"model's forward pass is not differentiable: take a criterion without, "
                        f"such as 'l2'"
                    )
                loss.backward()  # type: ignore[no-untyped-call]
                gradients = {
                    name: one.grad for name, one in parameters.items() if one.grad is not None
                }
                if criterion.of_each_item:
                    rows.append(_effects(parameters, gradients, found.kinds, number))
                for name, gradient in gradients.items():
                    known = found.mean.get(name)
                    found.mean[name] = gradient if known is None else known + gradient
                module.zero_grad()
    rows = rows or [_effects(parameters, found.mean, found.kinds)]
    found.effects = {axis: torch.stack([row[axis] for row in rows]) for axis in rows[0]}
    return found


def _kinds(module: nn.Module, plan: Plan) -> dict[Axis, str]:
    """Return the axes of parameters by which the gates of channels are found, and as what.

    Where a weight is standardised, what it reads is not proportional to it.
    """
    parameters, trace = dict(module.named_parameters()), plan.trace
    makers = {name.rpartition(".")[0] for name, _ in trace.made}
    readers = {name.rpartition(".")[0] for name, _ in trace.read}
    standardised = {path for path, _ in trace.norms if path in readers}
    norms = trace.norm_layers - standardised
    found: dict[Axis, str] = {}
    for name, axis in trace.axes:
        owner = name.rpartition(".")[0]
        if name not in parameters:
            continue
        if (name, axis) in trace.read - trace.made.keys():
            if owner not in standardised:
                found[name, axis] = READS
        elif owner in norms:
            found[name, axis] = SCALE
        elif owner in makers:
            found[name, axis] = MAKES
    return found


def _effects(
    parameters: Mapping[str, nn.Parameter],
    gradients: Mapping[str, Tensor],
    axes: Iterable[Axis],
    times: int = 1,
) -> dict[Axis, Tensor]:
    """Return Σ w · ∂loss/∂w by axis and index, of a loss so many times as large."""
    return {
        (name, axis): times * _by_index(parameters[name].detach() * gradients[name], axis).sum(1)
        for name, axis in axes
        if name in gradients
    }


def _gates(pool: Vector, gradients: _Gradients, plan: Plan) -> Tensor | None:
    """Return ∂loss/∂gate, (items, classes), of a factor of one on each class of a pool.

    A layer is linear in each of its inputs, so a factor on one acts as the same factor on the
    weights that read it: the sum over all readers of Σ w · ∂loss/∂w is exact. What no weights
    read, as the products of attention do queries and keys, has a gate on the outputs of its norms,
    else on those of its layers, bias included; of several, the mean. None where there is neither.
    """
    if not gradients.effects:
        return None
    order = np.argsort(pool)
    items = len(next(iter(gradients.effects.values())))
    result, known = torch.zeros(items, len(pool)), np.zeros(len(pool), dtype=bool)
    for kind in (READS, SCALE, MAKES):
        total, layers = torch.zeros_like(result), dict[str, Vector]()
        for axis, effects in gradients.effects.items():
            classes = plan.of(axis)
            inside = np.isin(classes, pool)
            if gradients.kinds[axis] != kind or not inside.any():
                continue
            place = order[np.searchsorted(pool, classes[inside], sorter=order)]
            total.index_add_(1, torch.from_numpy(place), effects[:, torch.from_numpy(inside)])
            owner = "" if kind == READS else axis[0].rpartition(".")[0]
            touched = layers.setdefault(owner, np.zeros(len(pool), dtype=np.int64))
            touched[place] = 1
        count = sum(layers.values(), np.zeros(len(pool), dtype=np.int64))
        new = torch.from_numpy((count > 0) & ~known)
        result[:, new] = total[:, new] / torch.from_numpy(count)[new]
        known |= count > 0
    return result if known.all() else None


# --- how many stay, and which -----------------------------------------------------------------


def step_of(group: Group, round_to: int) -> int:
    """Return by how many grains a group may shrink, so that its width stays a multiple."""
    return math.lcm(round_to, group.unit) // group.unit


def grains_kept(group: Group, width: float, round_to: int) -> int:
    """Return how many grains a group keeps for a width: the nearest multiple, at least one step.

    `width` is the number of channels; those that cannot go are among them.
    """
    total, step = group.grains, step_of(group, round_to)
    if width >= group.width:
        return total
    fixed = _fixed(group)
    least = step if fixed <= 0 else 1
    wanted = round(width / (step * group.unit)) * step - fixed // group.unit
    return min(total, max(least, wanted))


def removed(groups: Sequence[Group], worth: Scores, kept: Mapping[Axis, int]) -> Vector:
    """Return the classes of least worth, as many grains of each group as it does not keep."""
    gone = [
        group.least(
            [np.argsort(one, kind="stable") for one in worth[group.axis]],
            group.grains - kept.get(group.axis, group.grains),
        )
        for group in groups
    ]
    return np.concatenate([*gone, np.zeros(0, dtype=np.int64)]).astype(np.int64)


def widths(
    groups: Sequence[Group],
    worth: Scores,
    fraction: float,
    scope: str,
    whole: Mapping[Axis, int],
) -> dict[Axis, float]:
    """Return the width that each group has at a fraction of the channels of all.

    The fraction is that of `whole`, the widths that groups had at first. `scope='local'` gives
    every group its share. 'global' ranks all grains by their worth over their group's mean, and
    leaves each group at least `LEAST` of its share.
    """
    if scope == "local" or fraction >= 1:
        return {group.axis: fraction * whole[group.axis] for group in groups}
    relative = {group.axis: _of_grains(group, worth[group.axis]) for group in groups}
    every = np.sort(np.concatenate([*relative.values()]))
    at_first = sum((whole[g.axis] - _fixed(g)) / g.unit for g in groups)
    kept = min(len(every), max(1, round(fraction * at_first)))
    bar = every[len(every) - kept]
    found = {}
    for group in groups:
        above = int((relative[group.axis] >= bar).sum()) * group.unit
        found[group.axis] = max(above + _fixed(group), LEAST * fraction * whole[group.axis])
    return found


def _fixed(group: Group) -> int:
    """Return how many channels of a group cannot go."""
    return group.width - group.grains * group.unit


def _of_grains(group: Group, worth: Sequence[Worth]) -> Worth:
    """Return what the grains of a group are worth, the least first, over their mean.

    A pool's classes are spread over the grains, in parts where it has not as many.
    """
    of_each: Worth = np.zeros(group.grains)
    for pool in worth:
        below = np.concatenate([[0.0], np.cumsum(np.sort(pool))])
        places = np.linspace(0, len(pool), group.grains + 1)
        of_each += np.diff(np.interp(places, np.arange(len(pool) + 1), below))
    return of_each / max(float(of_each.mean()), 1e-300)
