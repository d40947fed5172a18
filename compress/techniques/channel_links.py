"""Which groups of channels are inside the heads of attention, and which depend on one another.

Where the code of attention takes the width of all heads for that of the model, the model's channels
and those inside the heads are one group of several pools: both are cut in the same proportion.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from compress.techniques.channel_attention import AttentionLayer
from compress.techniques.channel_cut import Plan
from compress.techniques.channel_groups import Group
from compress.techniques.channel_trace import Axis


def with_attentions(groups: Sequence[Group], plan: Plan) -> list[Group]:
    """Return groups that know which attention layers they are inside.

    These are the layers that make their channels, and no others read them.
    """
    owner, found = _owners(groups), plan.trace
    layers = {axis: layer for axis, layer in found.made.items() if axis in found.axes}
    makes = _homes(layers, owner, plan)
    reads = _homes({axis: axis[0].rpartition(".")[0] for axis in found.read}, owner, plan)
    result = []
    for group in groups:
        homes = makes.get(group.path, set())
        inside = None not in homes and reads.get(group.path, set()) <= homes
        one = replace(group, attentions=tuple(sorted(map(str, homes))) if inside else ())
        result.append(replace(one, unit=max(1, group.grains * group.unit // one.grains)))
    return _of_one_width(result, plan)


def _of_one_width(groups: Sequence[Group], plan: Plan) -> list[Group]:
    """Return groups in which those inside the same attention are one whose widths one number says.

    As the width of a head may say how wide queries and keys are, and values.
    """
    owner = _owners(groups)
    together: dict[tuple[str, ...], set[str]] = {}
    for vectors in plan.trace.numbers.values():
        counted = {owner.get(int(one)) for vector in vectors for one in plan.classes[vector]}
        some = [one for one in groups if one.path in counted and one.attentions and even(one)]
        for group in some:
            same = {one.path for one in some if one.attentions == group.attentions}
            together.setdefault(group.attentions, set()).update(same if len(same) > 1 else ())
    result = []
    for group in groups:
        paths = together.get(group.attentions, set())
        pools = [one for one in groups if one.path in paths] if group.path in paths else [group]
        if group is pools[0]:
            result.append(_joined(group, pools[1:]))
    return result


def _joined(group: Group, others: Sequence[Group], attentions: Sequence[str] = ()) -> Group:
    """Return a group that loses the same share of its own channels and of those of others."""
    pools = tuple(pool for one in (group, *others) for pool in one.pools)
    attentions = tuple(attentions) or group.attentions
    one = replace(group, pools=pools, attentions=attentions)
    return replace(one, unit=group.width // one.grains) if others else group


def _homes(
    layers: Mapping[Axis, str], owner: Mapping[int, str], plan: Plan
) -> dict[str, set[str | None]]:
    """Return by group which attention layers the layers are part of whose axes have its classes."""
    found: dict[str, set[str | None]] = {}
    for axis, layer in layers.items():
        if axis not in plan.trace.axes:
            continue
        for path in {owner.get(int(one)) for one in np.unique(plan.of(axis))} - {None}:
            found.setdefault(str(path), set()).add(_home(layer, plan.attentions))
    return found


def _owners(groups: Iterable[Group]) -> dict[int, str]:
    """Return by class the path of the group that it is of."""
    return {int(one): group.path for group in groups for one in group.classes}


def _home(layer: str, attentions: Iterable[AttentionLayer]) -> str | None:
    """Return the attention layer that a layer is part of."""
    inner = [
        one.path
        for one in attentions
        if layer == one.path or not one.path or layer.startswith(f"{one.path}.")
    ]
    return max(inner, key=len, default=None)


def inside_of(groups: Sequence[Group]) -> dict[str, list[Group]]:
    """Return by attention layer the groups that are inside it alone, or it and others."""
    found: dict[str, list[Group]] = {}
    for group in groups:
        for path in group.attentions:
            found.setdefault(path, []).append(group)
    return found


def linked(groups: Sequence[Group], plan: Plan, paths: Iterable[str]) -> list[Group]:
    """Return groups in which, of some attention layers, what is inside is one with the model's
    channels that they read; layers of which that cannot be said are left as they are.
    """
    alone = {group.path: group for group in groups}
    inside = inside_of(groups)
    streams: dict[str, dict[str, Group]] = {}
    layers: dict[str, list[str]] = {}
    for path in paths:
        pools, stream = _with_stream(inside.get(path, []), alone, plan, path)
        if stream and pools and all(map(even, [alone[stream], *pools])):
            streams.setdefault(stream, {}).update({group.path: group for group in pools})
            layers.setdefault(stream, []).append(path)
    members = {path for pools in streams.values() for path in pools}
    joined = []
    for group in groups:
        if group.path in members:
            continue
        pools = list(streams.get(group.path, {}).values())
        joined.append(_joined(group, pools, layers.get(group.path, ())))
    return joined


def even(group: Group) -> bool:
    """Whether all channels of a group can go, and a grain is as many of them as any other."""
    return group.grains * group.unit == group.width


def _with_stream(
    pools: Sequence[Group], alone: Mapping[str, Group], plan: Plan, path: str
) -> tuple[list[Group], str | None]:
    """Return which pools are computed from channels that can go, and the one group of these.

    Others, as those that are made of coordinates, depend on no group.
    """
    owner = _owners(alone.values())
    reads: dict[str, set[str]] = {group.path: set() for group in pools}
    for (name, axis), layer in plan.trace.made.items():
        read = (name, 1 - axis)
        mine = layer == path or layer.startswith(f"{path}.")
        known = {(name, axis), read} <= plan.trace.axes.keys()
        if not mine or axis > 1 or read not in plan.trace.read or not known:
            continue
        for one in _groups_of((name, axis), plan, owner) & reads.keys():
            reads[one] |= _groups_of(read, plan, owner)
    streams = {one for some in reads.values() for one in some} - reads.keys()
    stream = streams.pop() if len(streams) == 1 else None
    return [group for group in pools if reads[group.path]], stream


def _groups_of(axis: Axis, plan: Plan, owner: Mapping[int, str]) -> set[str]:
    """Return the groups that an axis has channels of."""
    found = {owner.get(int(one)) for one in np.unique(plan.of(axis))}
    return {path for path in found if path is not None}
