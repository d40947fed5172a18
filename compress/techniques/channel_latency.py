"""How many channels each group keeps for a target of latency, measured on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

from compress.context import StepContext
from compress.deploy.export import export
from compress.errors import StepFailed
from compress.lowrank.latency import Clock
from compress.model import Model, weights_hash
from compress.system.amounts import decimal
from compress.system.progress import stage
from compress.techniques.channel_budget import Options, options_of, within
from compress.techniques.channel_cut import Cut, cut
from compress.techniques.channel_groups import Channels
from compress.techniques.channel_scores import Scores, removed
from compress.techniques.channel_search import NEAR, Aim
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
        now = seconds[BEFORE]
        limit = self.aim.target * seconds.get(ORIGIN, now)
        if now <= limit:
            return self._whole
        with stage("timing layers at several widths"):
            known = measured(self.layers, self.groups, self.steps, self.clock, self.seconds)
        times = Times(self.layers, self._whole, known, now)
        spared = frozenset(group.axis for group in self.groups if group.stream)
        orders = [frozenset[Axis]()]
        if self.aim.streams == "last" and 0 < len(spared) < len(self.groups):
            orders.insert(0, spared)
        least = self.least
        for order in orders:
            least = {**self.least, **{axis: self._whole[axis] for axis in order}}
            if self._share(least) * now <= (1 + NEAR) * limit:
                return self._nearest(least, times, now, limit)
        raise self._refusal(self._share(least) * now / (limit / self.aim.target))

    def _nearest(self, least: Kept, times: Times, now: float, limit: float) -> dict[Axis, int]:
        """Return what comes nearest to the limit from below, of a few that are timed whole."""
        options: Options = options_of(self.groups, self.worth, self.steps, least, self.aim.scope)
        best, best_seconds = dict(least), self._share(least) * now
        budget = limit
        for _ in range(TRIES):
            kept = within(options, times, max(budget, times.total(least)))
            assert kept is not None, "the narrowest is within"
            seconds = self._share(kept) * now
            met, best_met = (one <= (1 + NEAR) * limit for one in (seconds, best_seconds))
            if (not met, abs(seconds - limit)) < (not best_met, abs(best_seconds - limit)):
                best, best_seconds = kept, seconds
            if abs(seconds - limit) <= NEAR / 2 * limit:
                break
            budget -= seconds - limit
        return best

    def _share(self, kept: Kept) -> float:
        """Return the share of its seconds that the model takes with some widths, measured."""
        classes = removed(self.groups, self.worth, kept)
        done = cut(self.model.module, self.channels.plan, classes)
        return self._timed(replace(self.model, module=done.module.eval()))

    def _timed(self, result: Model) -> float:
        files = {BEFORE: self._files[BEFORE], AFTER: export(result)}
        seconds = whole_seconds(files, self.model, self.clock, WHO)
        return seconds[AFTER] / seconds[BEFORE]

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
        seconds = whole_seconds(files, self.model, self.clock, WHO)
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

    def note_reached(self, reached: float) -> None:
        if self.aim.target < 1 and abs(reached - self.aim.target) > NEAR * self.aim.target:
            self.context.log.note(
                f"prune_channels: asked for {self.aim.target:.2f} of the latency, reached "
                f"{reached:.2f}: of what widths in steps of {self.aim.round_to} give, that is "
                f"nearest"
            )
