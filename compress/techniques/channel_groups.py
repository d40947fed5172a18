"""Groups of coupled channels, and the proof of which of them can be cut.

`channel_trace` says which channels go together. It assumes that a module's code takes sizes from
shapes. Whether it does is tried by arithmetic, on a copy with random weights: half of the channels
of every group are cut, and the outputs compared in float64 with those of the copy in which these
channels are zero. Random, because trained or freshly initialised weights may hide an error behind
zeros. Groups that fail are found by halving, and stay whole.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from compress.model import copied
from compress.tasks.base import Tensors
from compress.techniques.channel_attention import PackedAttention, packed_attentions
from compress.techniques.channel_cut import Plan, cut, differs_from_zeroed, unable
from compress.techniques.channel_trace import FIXED, Axis, Trace, Vector, trace

TRIALS = 400
"""How many cuts of a copy are tried at most; groups that come later are left whole."""


@dataclass(frozen=True)
class Group:
    """Channels of one or more layers that are cut together, by class.

    A class is what goes at once: a channel of each layer, or several where they are coupled. Most
    groups are one pool of classes. Where several pools must keep the same share, as a transformer's
    channels and those inside its heads, a grain is the least that can go from all of them.
    """

    path: str
    """The first layer whose outputs these are."""
    axis: Axis
    """The axis of its weight that they are."""
    width: int
    """The number of its channels."""
    pools: tuple[Vector, ...]
    unit: int
    """How many of its channels a grain holds."""
    attentions: tuple[str, ...] = ()
    """Attention layers whose heads are pools."""
    stream: bool = False
    """Whether activations with these channels are added to one another, as in a residual stream."""

    @property
    def grains(self) -> int:
        sizes = [len(pool) for pool in self.pools]
        common = math.gcd(*sizes)
        # Only attention has to have exactly the same share of each.
        return common if self.attentions or 4 * common >= min(sizes) else min(sizes)

    @property
    def classes(self) -> Vector:
        return np.concatenate(self.pools)

    def least(self, order: Sequence[Vector], grains: int) -> Vector:
        """Return the classes of `grains` grains, the first of each pool in an order of it."""
        taken = [
            pool[first[: grains * len(pool) // self.grains]]
            for pool, first in zip(self.pools, order, strict=True)
        ]
        return np.concatenate(taken)


@dataclass(frozen=True)
class Channels:
    """Which groups of a module can be cut, and why the others cannot."""

    plan: Plan
    groups: tuple[Group, ...] = ()
    left: Mapping[str, str] = field(default_factory=dict)
    """Layers that stay whole -> why."""


def classes_of(found: Trace) -> Vector:
    """Return the class of every label: those that edges unite have the same."""
    first = np.concatenate([[FIXED], *(a.ravel() for a, _ in found.edges)])
    second = np.concatenate([[FIXED], *(b.ravel() for _, b in found.edges)])
    return _components(first, second, found.labels).astype(np.int64)


def _components(first: Vector, second: Vector, count: int) -> Vector:
    """Return the number of the connected component of each of `count` nodes, from their edges."""
    # Imported here, a tenth of a second that every command would spend.
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    edges = (np.ones(len(first), dtype=np.int8), (first, second))
    graph = coo_array(edges, shape=(count, count))
    numbers: Vector = connected_components(graph, directed=False)[1]
    return numbers


def find_groups(module: nn.Module, inputs: Tensors, ignored: Iterable[str] = ()) -> Channels:
    """Return the groups of channels of a module, by its operators alone; nothing is proven yet.

    `ignored` layers keep their outputs.
    """
    try:
        found = trace(copied(module), inputs)
    except Exception as error:  # whatever a foreign forward trips over, it stays whole
        return Channels(
            Plan(Trace(), np.zeros(1, np.int64)), left={"the whole model": unable(error)}
        )
    for (name, axis), path in found.made.items():
        if path in set(ignored):
            found.lock(found.axes[name, axis], "it is to be ignored")
    classes = classes_of(found)
    reasons: dict[int, str] = {}
    for vector, reason in found.locks:
        for one in np.unique(classes[vector]).tolist():
            reasons.setdefault(one, reason)
    reasons.setdefault(int(classes[FIXED]), "it is coupled with channels that stay as they are")
    attentions = tuple(packed_attentions(module))
    sets_scale = {one.path for one in attentions if one.sets_scale}
    plan = Plan(found, classes, attentions, frozenset(found.scaled | sets_scale))
    groups: list[Group] = []
    left: dict[str, str] = {}
    order = {path: number for number, (path, _) in enumerate(module.named_modules())}
    for members in _sharing(found, classes):
        members.sort(key=lambda axis: (order.get(found.made[axis], -1), axis))
        group = _group(members, found, classes, reasons)
        if group.pools and group.grains > 1:
            groups.append(group)
            continue
        reason = _reason(members, found, classes, reasons)
        left.update({found.made[axis]: reason for axis in members})
    left.update(dict.fromkeys(found.computed, "its weight is computed anew in every call"))
    groups.sort(key=lambda group: order.get(group.path, -1))
    return Channels(plan, tuple(_linked(groups, plan)), left)


def _sharing(found: Trace, classes: Vector) -> list[list[Axis]]:
    """Return the axes of outputs in sets that share classes."""
    axes = [axis for axis in found.made if axis in found.axes]
    if not axes:
        return []
    nodes = np.concatenate([np.full(len(found.axes[axis]), n) for n, axis in enumerate(axes)])
    members = len(axes) + np.concatenate([classes[found.axes[axis]] for axis in axes])
    size = len(axes) + int(classes.max()) + 1
    sets = _components(nodes, members, size)[: len(axes)]
    return [[axes[n] for n in np.flatnonzero(sets == one)] for one in dict.fromkeys(sets.tolist())]


def _group(members: list[Axis], found: Trace, classes: Vector, reasons: Mapping[int, str]) -> Group:
    root = members[0]
    sets = [set(classes[found.axes[axis]].tolist()) for axis in members]
    pools: dict[tuple[bool, ...], list[int]] = {}
    for one in sorted(set().union(*sets) - reasons.keys()):
        pools.setdefault(tuple(one in among for among in sets), []).append(one)
    # The root's own first; what only later layers have (padding with zeros) keeps the same share.
    order = sorted(pools, reverse=True)
    group = Group(
        found.made[root],
        root,
        len(found.axes[root]),
        tuple(np.asarray(pools[key], dtype=np.int64) for key in order),
        1,
    )
    if not pools:
        return group
    free = int(np.isin(classes[found.axes[root]], group.classes).sum())
    stream = any(np.isin(classes[vector], group.classes).any() for vector in found.added)
    return replace(group, unit=max(1, free // group.grains), stream=stream)


def _linked(groups: Sequence[Group], plan: Plan) -> list[Group]:
    """Return groups in which a transformer's channels and those inside its heads are together."""
    alone = {group.path: group for group in groups}
    owner = {int(one): group.path for group in groups for one in group.classes}
    streams: dict[str, list[tuple[Group, PackedAttention]]] = {}
    for one in plan.attentions:
        read, made = (plan.trace.axes.get((one.weight, axis)) for axis in (1, 0))
        if read is None or made is None:
            continue
        ends = [{owner.get(int(c)) for c in plan.classes[labels]} for labels in (read, made)]
        if any(len(paths) != 1 or None in paths for paths in ends):
            continue
        stream, inside = (alone[str(paths.pop())] for paths in ends)
        all_free = stream.grains * stream.unit == stream.width == one.width
        if all_free and stream is not inside and len(inside.classes) * one.heads == one.width:
            streams.setdefault(stream.path, []).append((inside, one))
    members = {inside.path for links in streams.values() for inside, _ in links}
    joined = []
    for group in groups:
        if group.path in members:
            continue
        if links := streams.get(group.path):
            pools = (*group.pools, *(inside.classes for inside, _ in links))
            paths = tuple(one.path for _, one in links)
            linked = replace(group, pools=pools, attentions=paths)
            joined.append(replace(linked, unit=group.width // linked.grains))
        else:
            joined.append(group)
    return joined


def _reason(members: list[Axis], found: Trace, classes: Vector, reasons: Mapping[int, str]) -> str:
    ids = np.unique(np.concatenate([classes[found.axes[axis]] for axis in members])).tolist()
    given = [reasons[one] for one in ids if one in reasons]
    return given[0] if given else "all of its channels go together"


def sound_groups(module: nn.Module, inputs: Tensors, ignored: Iterable[str] = ()) -> Channels:
    """Return the groups that can be cut, as tried on a copy with random weights, and what not."""
    channels = find_groups(module, inputs, ignored)
    proof = _Proof(randomized(module), tuple(x[:1] for x in inputs), channels.plan)
    sound, failed = proof.sound(list(channels.groups))
    proof.double = True  # what failed in float32 was found faster
    if proof.reason(sound):
        sound, more = proof.one_by_one(sound)
        failed |= more
    left = {**channels.left, **failed}
    return replace(channels, plan=proof.plan, groups=tuple(sound), left=left)


class _Proof:
    """Tries groups on a copy with random weights."""

    def __init__(self, trial: nn.Module, inputs: Tensors, plan: Plan) -> None:
        self.trial, self.inputs, self.plan, self.left = trial, inputs, plan, TRIALS
        self.double = False

    def sound(self, groups: list[Group]) -> tuple[list[Group], dict[str, str]]:
        """Return the groups that pass, and the others' reasons, trying halves of what fails."""
        reason = self.reason(groups)
        if not reason:
            return groups, {}
        if len(groups) == 1:
            if groups[0].attentions and self._other_scale(groups[0]):
                return groups, {}
            return [], {groups[0].path: reason}
        middle = len(groups) // 2
        first, failed = self.sound(groups[:middle])
        second, more = self.sound(groups[middle:])
        return first + second, failed | more

    def _other_scale(self, group: Group) -> bool:
        """Whether a group passes if its attention keeps its scale in the other of two ways."""
        before = self.plan
        rescaled = before.rescaled ^ frozenset(group.attentions)
        self.plan = replace(before, rescaled=rescaled)
        if not self.reason([group]):
            return True
        self.plan = before
        return False

    def one_by_one(self, groups: list[Group]) -> tuple[list[Group], dict[str, str]]:
        """Return groups that pass together, for those that pass alone but not all at once."""
        kept: list[Group] = []
        failed: dict[str, str] = {}
        for group in groups:
            if reason := self.reason([*kept, group]):
                failed[group.path] = reason
            else:
                kept.append(group)
        return kept, failed

    def reason(self, groups: Collection[Group]) -> str:
        """Return why half of the channels of some groups cannot be cut; '' if they can."""
        if not groups:
            return ""
        if not self.left:
            return f"it was not tried, after {TRIALS} cuts of a copy"
        self.left -= 1
        generator = np.random.default_rng(0)
        removed = np.concatenate(
            [
                g.least(
                    [generator.permutation(len(pool)) for pool in g.pools], max(1, g.grains // 2)
                )
                for g in groups
            ]
        )
        try:
            pruned = cut(self.trial, self.plan, removed)
        except Exception as error:
            return unable(error)
        return differs_from_zeroed(self.trial, pruned, self.plan, self.inputs, self.double)


def randomized(module: nn.Module) -> nn.Module:
    """Return a copy in eval mode whose every tensor is random, of a size that keeps activations."""
    result = copied(module).eval()
    generator = torch.Generator().manual_seed(0)

    def noise(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)

    with torch.no_grad():
        for parameter in result.parameters():
            if not parameter.is_floating_point():
                continue
            if parameter.ndim > 1:
                parameter.copy_(noise(parameter) * (2 / parameter[0].numel()) ** 0.5)
            else:
                parameter.copy_(1 + 0.2 * noise(parameter))
        for name, buffer in result.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.1 * noise(buffer))
            elif name.endswith("running_var"):
                buffer.copy_(1 + 0.2 * noise(buffer).abs())
    return result
