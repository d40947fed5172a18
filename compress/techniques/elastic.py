"""A net with all of its subnets: the channels that pruning cuts, the blocks that carving takes out.

The channels of a group are ordered by their worth, so the narrower of two subnets has a part of the
wider one's, and every subnet is what pruning would cut out of the net.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from compress.context import StepContext
from compress.errors import StepFailed
from compress.int8.calibration import Calibration
from compress.lowrank.layer_inputs import LayerInputs
from compress.model import Model, copied
from compress.supernet.costs import Lengths
from compress.supernet.sandwich import Factors, Picks
from compress.supernet.space import Genes, Space
from compress.techniques.blocks import Stage, stages, without
from compress.techniques.channel_cut import Cut, cut, differs_from_zeroed
from compress.techniques.channel_groups import Channels, Group
from compress.techniques.channel_proof import sound_groups
from compress.techniques.channel_scores import Scores, grains_kept, removed, scores
from compress.techniques.channel_trace import Axis, Vector
from compress.techniques.criteria import Criterion
from compress.training.evaluate import some_of

GIVEN = 256
"""Training items by which a criterion learns what layers are given."""
MOST_WIDTHS = 8
"""Widths of a group that are tried, evenly spaced."""


class ElasticNet:
    """A model's subnets; `space` says which there are.

    The first genes are the groups' widths, in multiples of `round_to` and at least the share
    `narrowest` of them; the others say of each block that can be taken out whether it is there.
    """

    def __init__(
        self,
        model: Model,
        context: StepContext,
        criterion: Criterion,
        round_to: int,
        narrowest: float,
        depth: bool,
    ) -> None:
        self.model = model
        self.channels: Channels = sound_groups(model.module, model.items())
        self.groups: tuple[Group, ...] = self.channels.groups
        self.worth: Scores
        given = _given(model, context) if criterion.wants_inputs else None
        self.worth, silent = scores(model, self.channels, criterion, context, given)
        if silent:
            context.log.note(
                f"search: {criterion.name()} says nothing about {len(silent)} of "
                f"{len(self.groups)} groups, which are ranked by l2"
            )
        self.stages: list[Stage] = stages(model.copy().module, model.items()) if depth else []
        self.blocks = [p for s in self.stages for p in s.blocks if p in s.removable]
        shares = np.linspace(narrowest, 1, MOST_WIDTHS)
        self.grains = [
            sorted({*(grains_kept(one, x * one.width, round_to) for x in shares), one.grains})
            for one in self.groups
        ]
        """Of each group, how many grains its choices keep."""
        self.space = self._space()
        self._template = copied(model.module).to("meta")
        # What changes the inputs beforehand has done so when a subnet gets them.
        self._template._forward_pre_hooks.clear()

    def _space(self) -> Space:
        first = len(self.groups)
        gene = {path: first + number for number, path in enumerate(self.blocks)}
        # A stage of which some blocks cannot go keeps those.
        whole = [s for s in self.stages if s.removable == set(s.blocks)]
        homes = {}
        for number, group in enumerate(self.groups):
            blocks = {self._block_of(path) for path in self._layers(group)}
            if None not in blocks:
                homes[number] = tuple(sorted(gene[str(path)] for path in blocks))
        return Space(
            (*map(len, self.grains), *[2] * len(self.blocks)),
            tuple(tuple(gene[path] for path in stage.blocks) for stage in whole),
            homes,
        )

    def _layers(self, group: Group) -> set[str]:
        """Return the owners of the tensors that have some of a group's channels."""
        plan = self.channels.plan
        members = [axis for axis in plan.trace.axes if np.isin(plan.of(axis), group.classes).any()]
        return {name.rpartition(".")[0] for name, _ in members}

    def _block_of(self, path: str) -> str | None:
        """Return the removable block that a layer or tensor lies in."""
        return next((b for b in self.blocks if path == b or path.startswith(f"{b}.")), None)

    # --- one architecture -----------------------------------------------------------------

    def dropped(self, genes: Genes) -> list[str]:
        there = genes[len(self.groups) :]
        return [path for path, kept in zip(self.blocks, there, strict=True) if not kept]

    def gone(self, genes: Genes) -> Vector:
        """Return the classes of channels that an architecture does not have."""
        kept: dict[Axis, int] = {
            group.axis: choices[gene]
            for group, choices, gene in zip(
                self.groups, self.grains, genes[: len(self.groups)], strict=True
            )
        }
        return removed(self.groups, self.worth, kept)

    def subnet(self, genes: Genes) -> nn.Module:
        """Return the pruned net, with the model's weights, in eval mode."""
        return without(self._cut(genes).module, self.dropped(genes)).eval()

    def _cut(self, genes: Genes) -> Cut:
        return cut(self.model.module, self.channels.plan, self.gone(genes))

    def proven(self, genes: Genes) -> Cut:
        """Return the subnet, after the proof that pruning gives of what it cuts."""
        done = self._cut(genes)
        plan, items = self.channels.plan, self.model.items()
        if reason := differs_from_zeroed(self.model.module, done, plan, items):
            raise StepFailed(f"search would change more than the removed channels: {reason}")
        return replace(done, module=without(done.module, self.dropped(genes)).eval())

    def skeleton(self, genes: Genes) -> nn.Module:
        """Return the subnet without values: its tensors are on the device 'meta'."""
        result = cut(self._template, self.channels.plan, self.gone(genes))
        return without(result.module, self.dropped(genes))

    def picks(self, genes: Genes) -> Picks:
        """Return which indices along which axes of the model's tensors the subnet has."""
        plan = self.channels.plan
        alive = np.ones(int(plan.classes.max()) + 1, dtype=np.bool_)
        alive[self.gone(genes)] = False
        found: dict[str, list[tuple[int, Tensor]]] = {}
        for name, axis in plan.trace.axes:
            kept = alive[plan.of((name, axis))]
            if not kept.all():
                index = torch.from_numpy(np.flatnonzero(kept))
                found.setdefault(name, []).append((axis, index))
        return found

    def factors(self, genes: Genes) -> Factors:
        """Return by what the queries of narrower heads are multiplied (`channel_attention`)."""
        plan, found, picks = self.channels.plan, {}, self.picks(genes)
        for one in plan.attentions:
            rows = [len(index) for axis, index in picks.get(one.weight, ()) if axis == 0]
            if one.queries and one.path in plan.rescaled and rows:
                width = rows[0] // one.parts
                factor = (width / one.heads / (one.width // one.heads)) ** 0.5
                for name in filter(None, (one.weight, one.bias)):
                    found[name] = (width, factor)
        return found

    def widths(self, genes: Genes) -> dict[str, tuple[int, int]]:
        """Return by group's first layer its width in the model and in an architecture.

        Groups inside blocks that are not there are left out.
        """
        gone, idle = self.gone(genes), self.space.idle(genes)
        found = {}
        for gene, group in enumerate(self.groups):
            if gene not in idle:
                lost = np.isin(self.channels.plan.of(group.axis), gone).sum()
                found[group.path] = group.width, group.width - int(lost)
        return found

    # --- all architectures ----------------------------------------------------------------

    @cached_property
    def lengths(self) -> Lengths:
        """How long the axes of parameters are, for costs."""
        plan = self.channels.plan
        traced: dict[str, list[int]] = {}
        for name, axis in plan.trace.axes:
            traced.setdefault(name, []).append(axis)
        shapes = {name: one.shape for name, one in self.model.module.named_parameters()}
        axes = [(name, axis) for name in shapes for axis in traced.get(name, [-1])]
        whole = np.asarray([1 if axis < 0 else shapes[name][axis] for name, axis in axes], float)
        lost = {
            gene: np.stack([self._lost(group, grains, axes) for grains in choices])
            for gene, (group, choices) in enumerate(zip(self.groups, self.grains, strict=True))
        }
        owners = [self._block_of(name) for name, _ in axes]
        first = len(self.groups)
        gone = {
            first + number: np.asarray([owner == path for owner in owners])
            for number, path in enumerate(self.blocks)
        }
        return Lengths(axes, whole, lost, gone)

    def _lost(self, group: Group, grains: int, axes: Sequence[Axis]) -> np.ndarray:
        gone = removed([group], self.worth, {group.axis: grains})
        plan = self.channels.plan
        return np.asarray(
            [0 if axis[1] < 0 else np.isin(plan.of(axis), gone).sum() for axis in axes], float
        )

    def scaled(self, share: float, widths: bool, streams: bool, depth: bool) -> Genes:
        """Return the architecture that keeps a share of all widths, of streams too, or of blocks.

        Blocks that stay are evenly spread over their stage, as carving keeps them.
        """
        genes = list(self.space.largest)
        for gene, (group, choices) in enumerate(zip(self.groups, self.grains, strict=True)):
            if streams if group.stream else widths:
                wanted = share * group.grains
                nearest = min(range(len(choices)), key=lambda one: abs(choices[one] - wanted))
                genes[gene] = nearest
        for stage in self.stages if depth else ():
            kept = stage.evenly(round(share * len(stage.blocks)))
            for path in stage.removable - set(kept):
                genes[len(self.groups) + self.blocks.index(path)] = 0
        return self.space.settled(genes)


def _given(model: Model, context: StepContext) -> LayerInputs:
    """Return what layers are given on training items."""
    assert context.train is not None, "run() has checked needs"
    items = some_of(context.train, GIVEN)
    return LayerInputs(model, Calibration(context.task, items), len(items))
