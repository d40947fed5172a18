"""How many channels each group keeps for a target of latency, measured on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np

from compress.context import StepContext
from compress.deploy.export import export
from compress.errors import StepFailed
from compress.lowrank.latency import Clock
from compress.model import Model, weights_hash
from compress.system.amounts import decimal
from compress.system.progress import stage
from compress.techniques.channel_budget import options_of, within
from compress.techniques.channel_cut import Cut, cut, unable
from compress.techniques.channel_groups import Channels
from compress.techniques.channel_scores import Scores, removed
from compress.techniques.channel_search import NEAR, Aim, CannotBeCut
from compress.techniques.channel_steps import at_share, steps_of
from compress.techniques.channel_times import Kept, Timed, Times, measured
from compress.techniques.channel_trace import Axis
from compress.techniques.timed_files import whole_seconds

WHO = "prune_channels"
BEFORE, AFTER, ORIGIN = "before", "after", "origin"
TRIES = 5
"""How many whole candidates are timed."""
LEAST = 0.25
"""What a group keeps at least, as a share of the target's own fraction, or one step."""


class LatencySearch:
    """Finds what groups keep, from layer times first, then by timing whole candidates."""

    def __init__(
        self,
        aim: Aim,
        model: Model,
        context: StepContext,
        channels: Channels,
        worth: Scores,
        layers: Sequence[Timed],
        clock: Clock,
        seconds: float,
    ) -> None:
        self.aim, self.model, self.context = aim, model, context
        self.channels, self.worth, self.groups = channels, worth, channels.groups
        self.layers, self.clock, self.seconds = layers, clock, seconds
        self.origin = context.origin or model
        self.steps = steps_of(self.groups, aim.round_to)
        self.least = at_share(self.groups, self.steps, LEAST * aim.target)
        self._of_origin = 1.0
        """The model's seconds as it is, over those of its origin."""
        self._shares: dict[tuple[tuple[Axis, int], ...], float] = {}

    @property
    def _whole(self) -> dict[Axis, int]:
        return {group.axis: group.grains for group in self.groups}

    @cached_property
    def _files(self) -> dict[str, bytes]:
        """The file of the model that entered, and that of its origin where it is another."""
        files = {BEFORE: export(self.model)}
        if weights_hash(self.origin.module) != weights_hash(self.model.module):
            files[ORIGIN] = export(self.origin)
        return files

    def kept(self) -> dict[Axis, int]:
        """Return how many grains each group keeps; raise StepFailed if the target is too low."""
        if self.aim.target == 1:
            return self._whole
        seconds = whole_seconds(self._files, self.model, self.clock, WHO)
        self._of_origin = seconds[BEFORE] / seconds.get(ORIGIN, seconds[BEFORE])
        goal = self.aim.target / self._of_origin
        if goal >= 1:
            return self._whole
        with stage("timing layers at several widths"):
            known = measured(self.layers, self.groups, self.steps, self.clock, self.seconds)
        times = Times(self.layers, self._whole, known)
        untimed = self._untimed(times)
        for spared in self._orders():
            whole = spared | untimed
            least = {**self.least, **{axis: self._whole[axis] for axis in whole}}
            if self._share(least) <= (1 + NEAR) * goal:
                with stage("timing whole candidates"):
                    return self._nearest(least, times, goal)
        raise self._refusal(self._share(least) * self._of_origin)

    def _untimed(self, times: Times) -> frozenset[Axis]:
        """Return the groups that stay whole, as no layer that they have a part in could be timed.

        Raises StepFailed where those are all of them.
        """
        paths = [g.path for g in self.groups if not times.beside(g.axis, self._whole)]
        if paths:
            kinds = dict(self.model.module.named_modules())
            names = ", ".join(f"{path!r} ({type(kinds[path]).__name__})" for path in paths[:3])
            words = (
                f"{len(paths)} of {len(self.groups)} groups of channels have no layer that can be "
                f"timed by itself, such as {names}"
            )
            if len(paths) == len(self.groups):
                raise StepFailed(
                    f"{WHO}: latency={decimal(self.aim.target)} cannot be aimed at: {words}. "
                    f"Give macs=... instead"
                )
            self.context.log.note(f"{WHO}: {words}; they stay as wide as they are")
        return frozenset(g.axis for g in self.groups if g.path in paths)

    def _orders(self) -> list[frozenset[Axis]]:
        """Return which groups are spared, at first and in the end."""
        streams = frozenset(group.axis for group in self.groups if group.stream)
        if self.aim.streams == "last" and 0 < len(streams) < len(self.groups):
            return [streams, frozenset()]
        return [frozenset()]

    def _nearest(self, least: Kept, times: Times, goal: float) -> dict[Axis, int]:
        """Return what comes nearest to a share of the model's seconds, of a few candidates.

        Layer times say what to try: the sum that, by those of the candidates so far and their own
        seconds, gives the goal. The whole model and the narrowest are the first two.
        """
        options = options_of(self.groups, self.worth, self.steps, least, self.aim.scope)
        found = [(times.total(self._whole), 1.0), (times.total(least), self._share(least))]
        best, reached = dict(least), found[-1][1]
        for _ in range(TRIES):
            sums, shares = zip(*sorted(found), strict=True)
            budget = float(np.interp(goal, np.maximum.accumulate(shares), sums))
            kept = within(options, times, max(budget, times.total(least)))
            assert kept is not None, "the narrowest is within"
            share = self._share(kept)
            found.append((times.total(kept), share))
            met, best_met = (one <= (1 + NEAR) * goal for one in (share, reached))
            if (not met, abs(share - goal)) < (not best_met, abs(reached - goal)):
                best, reached = kept, share
            if abs(share - goal) <= NEAR / 2 * goal or found.count(found[-1]) > 1:
                break
        return best

    def _share(self, kept: Kept) -> float:
        """Return the share of its seconds that the model takes with some widths, measured."""
        widths = tuple(sorted(kept.items()))
        if widths not in self._shares:
            files = {BEFORE: self._files[BEFORE], AFTER: self._file_of(kept)}
            seconds = whole_seconds(files, self.model, self.clock, WHO)
            self._shares[widths] = seconds[AFTER] / seconds[BEFORE]
        return self._shares[widths]

    def _file_of(self, kept: Kept) -> bytes:
        """Return the file of the model with some widths; raise CannotBeCut if it has none."""
        classes = removed(self.groups, self.worth, kept)
        try:
            module = cut(self.model.module, self.channels.plan, classes).module.eval()
            return export(replace(self.model, module=module))
        except Exception as error:  # whatever a foreign forward trips over
            raise CannotBeCut(unable(error), kept) from error

    def _refusal(self, share: float) -> StepFailed:
        return StepFailed(
            f"prune_channels: latency={decimal(self.aim.target)} cannot be reached here: with no "
            f"group of channels below {LEAST * self.aim.target:.2f} of its width, or one step of "
            f"{self.aim.round_to}, {share:.2f} of the latency stays. Ask for "
            f"latency={share + 0.01:.2f} or more, or say with channels=... how narrow groups may "
            f"become"
        )

    def judged(self, result: Model, done: Cut) -> Model:
        """Return the result, or the model as it was where the result takes as long."""
        files = {**self._files, AFTER: export(result)}
        # Anew, and longer: what was chosen is what seemed nearest, by luck as well.
        seconds = whole_seconds(files, self.model, self.clock, WHO, times=2)
        if seconds[AFTER] >= seconds[BEFORE]:
            self.context.log.note(
                f"prune_channels: the model stays whole, as it would take "
                f"{seconds[AFTER] / seconds[BEFORE]:.2f} times as long"
            )
            return self.model
        reached = seconds[AFTER] / seconds.get(ORIGIN, seconds[BEFORE])
        self.context.log.row("latency", target=self.aim.target, reached=reached, seconds=seconds)
        self.note_reached(reached)
        return result

    def left_whole(self) -> None:
        """Say what the model takes as it is, where that is more than what was asked for."""
        if self._of_origin > self.aim.target:
            self.note_reached(self._of_origin)

    def note_reached(self, reached: float) -> None:
        if self.aim.target < 1 and abs(reached - self.aim.target) > NEAR * self.aim.target:
            self.context.log.note(
                f"prune_channels: asked for {self.aim.target:.2f} of the latency, reached "
                f"{reached:.2f}: no widths in steps of {self.aim.round_to} that were tried "
                f"come nearer"
            )
