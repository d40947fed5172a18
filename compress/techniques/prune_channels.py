"""Structured pruning: whole channels go, and every layer that depends on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from compress import counts
from compress.compressor import Compressor, require_one_of
from compress.context import StepContext
from compress.errors import StepFailed, UserError, nearest
from compress.model import Model
from compress.parts import (
    Choices,
    Range,
    are_names,
    kept_fraction,
    one_of,
    rule,
    searched,
    takes,
    whole_number,
)
from compress.system.amounts import decimal
from compress.techniques.channel_cut import Cut, cut, differs_from_zeroed
from compress.techniques.channel_groups import Channels, Group, sound_groups
from compress.techniques.channel_scores import (
    Scores,
    grains_kept,
    removed,
    scores,
    step_of,
    widths,
)
from compress.techniques.channel_trace import OUTPUT, Axis
from compress.techniques.criteria import L2, Criterion, criteria

GRID = 128
"""Steps of the search for the width that meets a target."""
NEAR = 0.02
"""By how much of a target what is reached may differ without a note."""
TRIES = 40
"""How many groups are tried one by one to come nearer to a target."""
WORDS = {"macs": "of the MACs", "params": "of the parameters", "channels": "of the channels"}


@dataclass(frozen=True, repr=False)
class PruneChannels(Compressor):
    """Remove the channels that matter least, and all that depends on them.

    Give one of `macs` or `params` (the kept fraction of them, approached from below by narrowing
    all groups of channels alike) or `channels` (that fraction of every group). `criterion` says
    what a channel is worth. With `scope='local'` every group of coupled channels keeps the same
    share, with 'global' those of more worth in relation to their group's mean stay, wherever they
    are. Counts are multiples of `round_to`, so that kernels stay fast; `ignored` layers keep their
    outputs. With `streams='last'`, residual streams are narrowed only where a target of `macs` or
    `params` cannot be met closely without, since what they lose is lost to all blocks; with
    'alike', as all others are.

    What produces the output is protected, and so is every group in which the pruned net would not
    equal the original with those channels set to zero (`channel_cut`). A target that cannot be
    reached without narrowing groups to less than half of the target's own fraction is refused.
    """

    macs: float | None = field(
        default=None, metadata={**kept_fraction(), **searched(Range(0.2, 0.9, step=0.05))}
    )
    channels: float | None = field(default=None, metadata=kept_fraction())
    params: float | None = field(default=None, metadata=kept_fraction())
    round_to: int = field(default=8, metadata=whole_number())
    criterion: Criterion = field(
        default=L2(),
        metadata={**takes(Criterion, criteria), **searched(Choices(("l2", "taylor")))},
    )
    scope: str = field(
        default="local",
        metadata={**one_of("local", "global"), **searched(Choices(("local", "global")))},
    )
    ignored: tuple[str, ...] = field(default=(), metadata=rule("is a list of names", are_names))
    streams: str = field(default="last", metadata=one_of("last", "alike"))

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_of(self, "macs", "params", "channels")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"train", "labels"} if self.criterion.wants_gradients else ())

    def check(self, context: StepContext) -> None:
        if context.enters is not None:
            self._check_ignored(context.enters)

    def compress(self, model: Model, context: StepContext) -> Model:
        self._check_ignored(model)
        channels = sound_groups(model.module, model.items(), self.ignored)
        self._log_left(channels, context)
        if not channels.groups:
            context.log.note(f"prune_channels: left the model whole ({_why_whole(channels.left)})")
            return model
        worth, silent = scores(model, channels, self.criterion, context)
        if silent:
            context.log.note(
                f"prune_channels: {self.criterion.name()} says nothing about {len(silent)} of "
                f"{len(channels.groups)} groups, which are ranked by l2"
            )
        search = _Search(self, model, context, channels, worth)
        kept = search.kept()
        classes = removed(channels.groups, worth, kept)
        if not len(classes):
            search.note_reached(1.0)
            return model
        done = cut(model.module, channels.plan, classes)
        if reason := differs_from_zeroed(model.module, done, channels.plan, model.items()):
            raise StepFailed(f"pruning would change more than the removed channels: {reason}")
        for group in channels.groups:
            gone = np.isin(channels.plan.of(group.axis), done.classes)
            left = group.width - int(gone.sum())
            context.log.row("layer", layer=group.path, channels=group.width, kept=left)
        search.note_reached(search.fraction(done))
        return replace(model, module=done.module.eval(), hints={})

    def _check_ignored(self, model: Model) -> None:
        known = [path for path, _ in model.module.named_modules()]
        for path in self.ignored:
            if path not in known:
                raise UserError(
                    f"prune_channels: there is no layer {path!r} to ignore. {nearest(path, known)}"
                )

    def _log_left(self, channels: Channels, context: StepContext) -> None:
        for path, reason in channels.left.items():
            context.log.row("layer", layer=path, left_alone=reason)
        others = {path: why for path, why in channels.left.items() if why != OUTPUT}
        if others and channels.groups:
            context.log.note(
                f"prune_channels: left {len(others)} layers as wide as they are, such as "
                f"{_an_example(others)}"
            )


def _an_example(left: Mapping[str, str]) -> str:
    """Return the layer of the reason that most layers share, and the reason."""
    reasons = list(left.values())
    reason = max(reasons, key=reasons.count)
    return f"{next(path for path, why in left.items() if why == reason)!r}: {reason}"


def _why_whole(left: Mapping[str, str]) -> str:
    others = {path: why for path, why in left.items() if why != OUTPUT}
    if others:
        return _an_example(others)
    return "its only layers produce the output" if left else "it has no layer to prune"


class _Search:
    """Finds how many grains each group keeps."""

    def __init__(
        self,
        step: PruneChannels,
        model: Model,
        context: StepContext,
        channels: Channels,
        worth: Scores,
    ) -> None:
        self.step, self.model, self.context = step, model, context
        self.channels, self.worth = channels, worth
        self.groups: tuple[Group, ...] = channels.groups
        self.origin = context.origin or model
        [(self.what, self.target)] = [
            (name, value)
            for name in ("macs", "params", "channels")
            if (value := getattr(step, name)) is not None
        ]
        self._spared: frozenset[Axis] = frozenset()
        """Groups that stay whole so far."""
        self._whole = 0.0 if self.what == "channels" else self._cost(self.origin)

    def _cost(self, model: Model) -> float:
        measure: Callable[[Model], int] = {
            "macs": lambda one: counts.macs(one.module, one.example),
            "params": lambda one: counts.count(one.module, one.example).params,
        }[self.what]
        return measure(model)

    def fraction(self, done: Cut) -> float:
        """Return what is left of what the target is about."""
        if self.what == "channels":
            before, after = 0, 0
            for group in self.groups:
                lost = self._lost(group, done)
                before, after = before + self._origin_width(group), after + group.width - lost
            return after / before
        return self._cost(replace(self.model, module=done.module)) / self._whole

    def _lost(self, group: Group, done: Cut) -> int:
        """Return how many channels a group lost."""
        return int(np.isin(self.channels.plan.of(group.axis), done.classes).sum())

    def _origin_width(self, group: Group) -> int:
        """Return the number of channels that a group had in the origin."""
        name, axis = group.axis
        parameters = dict(self.origin.module.named_parameters())
        known = parameters.get(name)
        return group.width if known is None or known.ndim <= axis else known.shape[axis]

    def kept(self) -> dict[Axis, int]:
        """Return how many grains each group keeps; raise StepFailed if the target is too low."""
        if self.what == "channels":
            whole = {group.axis: self._origin_width(group) for group in self.groups}
            return self._at(self.target, whole)
        return self._to_target()

    def _at(self, fraction: float, whole: Mapping[Axis, int] | None = None) -> dict[Axis, int]:
        whole = whole or {group.axis: group.width for group in self.groups}
        found = widths(self.groups, self.worth, fraction, self.step.scope, whole)
        found |= {axis: whole[axis] for axis in self._spared}
        return {g.axis: grains_kept(g, found[g.axis], self.step.round_to) for g in self.groups}

    def _reached(self, kept: Mapping[Axis, int]) -> float:
        classes = removed(self.groups, self.worth, kept)
        return self.fraction(cut(self.model.module, self.channels.plan, classes))

    def _to_target(self) -> dict[Axis, int]:
        best = self._at(1.0)
        now = self._reached(best)
        if now <= self.target:
            return best
        low = math.ceil(GRID * self.target / now / 2)
        found: list[tuple[float, dict[Axis, int]]] = []
        for spared in self._orders():
            self._spared = spared
            if (least := self._reached(self._at(low / GRID))) > self.target:
                continue
            kept = self._from(low)
            found.append((self._reached(kept), kept))
            if found[-1][0] >= (1 - NEAR) * self.target:
                break
        if not found:
            self._refuse(least, low / GRID, now)
        return max(found, key=lambda one: one[0])[1]

    def _orders(self) -> list[frozenset[Axis]]:
        """Return which groups are spared, at first and in the end."""
        streams = frozenset(group.axis for group in self.groups if group.stream)
        if self.step.streams == "last" and 0 < len(streams) < len(self.groups):
            return [streams, frozenset()]
        return [frozenset()]

    def _from(self, low: int) -> dict[Axis, int]:
        """Return the widest that meets the target; at `low` of the grid it is met."""
        high = GRID
        while high - low > 1:
            middle = (low + high) // 2
            if self._reached(self._at(middle / GRID)) <= self.target:
                low = middle
            else:
                high = middle
        return self._filled(self._between(self._at(low / GRID), self._at(high / GRID)))

    def _between(self, narrow: dict[Axis, int], wide: dict[Axis, int]) -> dict[Axis, int]:
        """Widen group after group, from narrow to wide, as long as the target is met."""
        axes = [group.axis for group in self.groups if narrow[group.axis] != wide[group.axis]]

        def mixed(count: int) -> dict[Axis, int]:
            return {**narrow, **{axis: wide[axis] for axis in axes[:count]}}

        low, high = 0, len(axes)
        while high - low > 1:
            middle = (low + high) // 2
            if self._reached(mixed(middle)) <= self.target:
                low = middle
            else:
                high = middle
        return mixed(low)

    def _filled(self, kept: dict[Axis, int]) -> dict[Axis, int]:
        """Widen single groups by a step, the widest first, until the target is near."""
        left, now = TRIES, self._reached(kept)
        for group in sorted(self.groups, key=lambda group: -group.width):
            wider = kept[group.axis] + step_of(group, self.step.round_to)
            if now >= (1 - NEAR) * self.target or not left:
                break
            if wider > group.grains:
                continue
            left -= 1
            trial = {**kept, group.axis: wider}
            if (reached := self._reached(trial)) <= self.target:
                kept, now = trial, reached
        return kept

    def _refuse(self, least: float, fraction: float, now: float) -> None:
        """Name the least target that is not refused: a higher one narrows groups less."""
        possible = least
        while (cost := self._reached(self._at(possible / now / 2))) > possible:
            possible = cost
        asked = math.ceil(possible * 100) / 100
        raise StepFailed(
            f"prune_channels: {self.what}={decimal(self.target)} cannot be reached: with no "
            f"group of channels below {fraction:.2f} of its width, or one step of round_to="
            f"{self.step.round_to}, at least {least:.2f} {WORDS[self.what]} stay. Ask for "
            f"{self.what}={asked:.2f} or more, give a smaller round_to, or "
            f"say with channels=... how narrow groups may become"
        )

    def note_reached(self, reached: float) -> None:
        """Say what was reached where it is not what was asked for."""
        if self.target >= 1 or abs(reached - self.target) <= NEAR * self.target:
            return
        least = [g for g in self.groups if g.grains <= step_of(g, self.step.round_to)]
        why = f"widths are multiples of round_to={self.step.round_to} and of coupled channels"
        if least:
            why += f", and {len(least)} of {len(self.groups)} groups are no wider than one step"
        self.context.log.note(
            f"prune_channels: asked for {self.target:.2f} {WORDS[self.what]}, reached "
            f"{reached:.2f}: {why}"
        )
