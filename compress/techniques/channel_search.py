"""How many channels each group keeps for a target that is counted: MACs, parameters, channels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from compress import counts
from compress.context import StepContext
from compress.errors import StepFailed
from compress.model import Model
from compress.system.amounts import decimal
from compress.techniques.channel_cut import Cut, cut, unable
from compress.techniques.channel_groups import Channels, Group
from compress.techniques.channel_scores import LEAST, Scores, grains_kept, removed, step_of, widths
from compress.techniques.channel_steps import steps_of
from compress.techniques.channel_trace import Axis

GRID = 128
"""Steps of the search for the width that meets a target."""
NEAR = 0.02
"""By how much of a target what is reached may differ without a note."""
TRIES = 40
"""How many single steps are tried to come nearer to a target."""
WORDS = {"macs": "of the MACs", "params": "of the parameters", "channels": "of the channels"}


class CannotBeCut(Exception):
    """Some groups cannot be cut at once to what is to be kept of them: `kept` grains of each."""

    def __init__(self, reason: str, kept: Mapping[Axis, int]) -> None:
        super().__init__(reason)
        self.kept = dict(kept)


@dataclass(frozen=True)
class Aim:
    """What is asked for: the kept fraction `target` of `what`, and how to get there."""

    what: str
    target: float
    round_to: int
    scope: str = "local"
    streams: str = "last"
    measured: bool = False
    """Whether `round_to` is what kernels like, which narrow groups may have half of."""


class Search:
    """Finds how many grains each group keeps."""

    def __init__(
        self, aim: Aim, model: Model, context: StepContext, channels: Channels, worth: Scores
    ) -> None:
        self.aim, self.model, self.context = aim, model, context
        self.what, self.target = aim.what, aim.target
        self.channels, self.worth = channels, worth
        self.groups: tuple[Group, ...] = channels.groups
        self.steps = dict.fromkeys((group.axis for group in self.groups), aim.round_to)
        if aim.measured:
            self.steps = steps_of(self.groups, aim.round_to)
        self.origin = context.origin or model
        if self.what == "macs":
            counts.require_counted("prune_channels", self.origin.module, self.origin.example)
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
        found = widths(self.groups, self.worth, fraction, self.aim.scope, whole)
        found |= {axis: whole[axis] for axis in self._spared}
        return {g.axis: grains_kept(g, found[g.axis], self.steps[g.axis]) for g in self.groups}

    def _reached(self, kept: Mapping[Axis, int]) -> float:
        classes = removed(self.groups, self.worth, kept)
        try:
            return self.fraction(cut(self.model.module, self.channels.plan, classes))
        except Exception as error:  # whatever a foreign forward trips over
            raise CannotBeCut(unable(error), kept) from error

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
        if self.aim.streams == "last" and 0 < len(streams) < len(self.groups):
            return [streams, frozenset()]
        return [frozenset()]

    def _from(self, low: int) -> dict[Axis, int]:
        """Return the widest that meets the target; at `low` of the grid it is met."""
        high, least = GRID, self._at(low / GRID)
        while high - low > 1:
            middle = (low + high) // 2
            if self._reached(self._at(middle / GRID)) <= self.target:
                low = middle
            else:
                high = middle
        between = self._between(self._at(low / GRID), self._at(high / GRID))
        return self._filled(between, least)

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

    def _filled(self, kept: dict[Axis, int], least: Mapping[Axis, int]) -> dict[Axis, int]:
        """Come nearer to the target from below, by single steps, the widest groups first.

        Groups are widened as long as one can be; then one for another that is narrowed.
        """
        order = [group.axis for group in sorted(self.groups, key=lambda group: -group.width)]
        moves = [{axis: 1} for axis in order]
        moves += [{one: 1, other: -1} for one in order for other in order if one != other]
        left, now = TRIES, self._reached(kept)
        while moves and left and now < (1 - NEAR) * self.target:
            move = moves.pop(0)
            trial = {g.axis: self._moved(g, kept[g.axis], move.get(g.axis, 0)) for g in self.groups}
            if any(trial[axis] == kept[axis] or trial[axis] < least[axis] for axis in move):
                continue
            left -= 1
            if now < (reached := self._reached(trial)) <= self.target:
                kept, now = trial, reached
                # Once more, after all others of its kind.
                place = sum(len(one) == 1 for one in moves) if len(move) == 1 else len(moves)
                moves.insert(place, move)
        return kept

    def _moved(self, group: Group, grains: int, steps: int) -> int:
        """Return how many grains a group keeps some steps wider or, below zero, narrower."""
        if not steps:
            return grains
        step = self.steps[group.axis]
        lost = group.grains - grains - steps * step_of(group, step)
        return grains_kept(group, group.width - lost * group.unit, step)

    def _refuse(self, least: float, fraction: float, now: float) -> None:
        """Name the least target that is not refused: a higher one narrows groups less."""
        possible = least
        while (cost := self._reached(self._at(possible / now / 2))) > possible:
            possible = cost
        asked = math.ceil(possible * 100) / 100
        way = f"Ask for {self.what}={asked:.2f} or more, " if asked < 1 else "Ignore fewer layers, "
        fraction *= LEAST if self.aim.scope == "global" else 1
        raise StepFailed(
            f"prune_channels: {self.what}={decimal(self.target)} cannot be reached: with no "
            f"group of channels below {fraction:.2f} of its width, or one step of round_to="
            f"{self.aim.round_to}, at least {least:.2f} {WORDS[self.what]} stay. {way}give a "
            f"smaller round_to, or say with channels=... how narrow groups may become"
        )

    def judged(self, result: Model, done: Cut) -> Model:
        """Return the result; say what was reached where it is not what was asked for."""
        self.note_reached(self.fraction(done))
        return result

    def left_whole(self) -> None:
        """Say what the model has as it is, where that is more than what was asked for."""
        if (reached := self._reached({})) > self.target:
            self.note_reached(reached)

    def note_reached(self, reached: float) -> None:
        if self.target >= 1 or abs(reached - self.target) <= NEAR * self.target:
            return
        least = [g for g in self.groups if g.grains <= step_of(g, self.steps[g.axis])]
        why = f"widths are multiples of round_to={self.aim.round_to} and of coupled channels"
        if least:
            why += f", and {len(least)} of {len(self.groups)} groups are no wider than one step"
        self.context.log.note(
            f"prune_channels: asked for {self.target:.2f} {WORDS[self.what]}, reached "
            f"{reached:.2f}: {why}"
        )
