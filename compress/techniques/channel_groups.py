"""Groups of coupled channels, as `channel_trace` finds them; `channel_proof` tries them."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from torch import nn

from compress.model import copied
from compress.tasks.base import Tensors
from compress.techniques.channel_attention import attention_layers
from compress.techniques.channel_cut import Plan, unable
from compress.techniques.channel_trace import FIXED, Axis, Trace, Vector, trace


@dataclass(frozen=True)
class Group:
    """Channels of one or more layers that are cut together, by class.

    A class is what goes at once: a channel of each layer, or several where they are coupled. Most
    groups are one pool of classes. Where several pools must keep the same share, as a transformer's
    channels and those inside its heads, a grain is the least that can go from all of them; where
    their sizes have too few common parts, it is one class of the first layer's, and the others
    keep nearly the same share.
    """

    path: str
    """The first layer whose outputs these are, of those that can lose some."""
    axis: Axis
    """The axis of its weight that they are."""
    width: int
    """The number of its channels."""
    pools: tuple[Vector, ...]
    unit: int
    """How many of its channels a grain holds."""
    own: int = 1
    """How many of the pools, the first ones, are the first layer's."""
    attentions: tuple[str, ...] = ()
    """Attention layers of which some of its channels are inside the heads."""
    stream: bool = False
    """Whether activations with these channels are added to one another, as in a residual stream."""

    @property
    def grains(self) -> int:
        sizes = [len(pool) for pool in self.pools]
        common = math.gcd(*sizes)
        # Only attention has to have exactly the same share of each.
        even = self.attentions or 4 * common >= min(sizes)
        return common if even else sum(sizes[: self.own])

    @property
    def classes(self) -> Vector:
        return np.concatenate(self.pools)

    def least(self, order: Sequence[Vector], grains: int) -> Vector:
        """Return the classes of `grains` grains, the first of each pool in an order of it."""
        counts = self.taken(grains)
        taken = [
            pool[first[:count]]
            for pool, first, count in zip(self.pools, order, counts, strict=True)
        ]
        return np.concatenate(taken)

    def taken(self, grains: int) -> list[int]:
        """Return of how many classes of each pool some grains consist.

        Unless they are all grains, every pool keeps a class.
        """
        sizes = [len(pool) for pool in self.pools]
        exact = [grains * size / self.grains for size in sizes]
        counts = [grains * size // self.grains for size in sizes]
        # What rounding leaves of the first layer's goes where most was rounded off.
        rest = grains * sum(sizes[: self.own]) // self.grains - sum(counts[: self.own])
        by_rest = sorted(range(self.own), key=lambda one: counts[one] - exact[one])
        for one in [n for n in by_rest if counts[n] + 1 < sizes[n]][:rest]:
            counts[one] += 1
        return counts


@dataclass(frozen=True)
class Channels:
    """Which groups of a module can be cut, and why the others cannot."""

    plan: Plan
    groups: tuple[Group, ...] = ()
    left: Mapping[str, str] = field(default_factory=dict)
    """Layers that stay whole -> why."""


def protects(path: str, axis: Axis, found: Trace) -> bool:
    """Whether to ignore a layer keeps an axis of outputs: its own, or that of a layer inside."""
    inside = f"{path}." if path else ""
    return axis[0].startswith(inside) or f"{found.made[axis]}.".startswith(inside)


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


def find_groups(
    module: nn.Module,
    inputs: Tensors,
    ignored: Iterable[str] = (),
    whole_heads: Collection[str] = (),
) -> Channels:
    """Return the groups of channels of a module, by its operators alone; nothing is proven yet.

    `ignored` layers, and all that are inside them, keep their outputs; attention layers in
    `whole_heads` lose heads, others channels of each.
    """
    try:
        found = trace(copied(module), inputs, whole_heads)
    except Exception as error:  # whatever a foreign forward trips over, it stays whole
        return Channels(
            Plan(Trace(), np.zeros(1, np.int64)), left={"the whole model": unable(error)}
        )
    for name, axis in found.made:
        if any(protects(path, (name, axis), found) for path in ignored):
            found.lock(found.axes.get((name, axis)), "it is to be ignored")
    classes = classes_of(found)
    reasons: dict[int, str] = {}
    for vector, reason in found.locks:
        for one in np.unique(classes[vector]).tolist():
            reasons.setdefault(one, reason)
    reasons.setdefault(int(classes[FIXED]), "it is coupled with channels that stay as they are")
    attentions = tuple(attention_layers(module))
    scaled = found.scaled | {one.path for one in attentions if one.sets_scale}
    known = {one.path for one in attentions if one.queries}
    plan = Plan(found, classes, attentions, frozenset((scaled & known) - set(whole_heads)))
    groups: list[Group] = []
    left: dict[str, str] = {}
    parts = {frozenset(classes[one].tolist()) for some in found.numbers.values() for one in some}
    order = {path: number for number, (path, _) in enumerate(module.named_modules())}
    for members in _sharing(found, classes):
        members.sort(key=lambda axis: (order.get(found.made[axis], -1), axis))
        group = _group(members, found, classes, reasons, parts)
        if group.pools and group.grains > 1:
            groups.append(group)
            continue
        reason = _reason(members, found, classes, reasons)
        left.update({found.made[axis]: reason for axis in members})
    left.update(dict.fromkeys(found.computed, "its weight is computed anew in every call"))
    groups.sort(key=lambda group: order.get(group.path, -1))
    return Channels(plan, tuple(groups), left)


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


def _group(
    members: list[Axis],
    found: Trace,
    classes: Vector,
    reasons: Mapping[int, str],
    parts: Iterable[frozenset[int]],
) -> Group:
    by_axis = {axis: frozenset(classes[found.axes[axis]].tolist()) for axis in members}
    # A layer that keeps all of its channels tells neither the width nor the grains of the others.
    root = next((axis for axis in members if by_axis[axis] - reasons.keys()), members[0])
    sets = [by_axis.pop(root), *by_axis.values()]
    every = frozenset().union(*sets)
    # Of the parts into which a layer splits channels, each keeps its share.
    sets += [part for part in parts if part & every and not every <= part]
    pools: dict[tuple[bool, ...], list[int]] = {}
    for one in sorted(every - reasons.keys()):
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
    group = replace(group, own=sum(key[0] for key in order))
    return replace(group, unit=max(1, free // group.grains), stream=stream)


def _reason(members: list[Axis], found: Trace, classes: Vector, reasons: Mapping[int, str]) -> str:
    ids = np.unique(np.concatenate([classes[found.axes[axis]] for axis in members])).tolist()
    given = [reasons[one] for one in ids if one in reasons]
    return given[0] if given else "all of its channels go together"
