"""Structured pruning: whole channels go, and every layer that depends on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from compress.compressor import Compressor, require, require_one_of
from compress.context import StepContext
from compress.errors import StepFailed, UserError, nearest
from compress.int8.calibration import Calibration
from compress.lowrank.layer_inputs import LayerInputs
from compress.model import Model
from compress.parts import (
    Choices,
    Range,
    are_names,
    kept_fraction,
    one_of,
    positive,
    rule,
    searched,
    takes,
    whole_number,
)
from compress.system.amounts import plural
from compress.system.progress import stage
from compress.tasks.base import Subset
from compress.techniques.channel_attention import packed_where_whole, with_plain_attention
from compress.techniques.channel_cut import Cut, Plan, cut, differs_from_zeroed
from compress.techniques.channel_groups import Channels, protects
from compress.techniques.channel_latency import LatencySearch
from compress.techniques.channel_proof import FEWER, NARROWER, sound_at, sound_groups
from compress.techniques.channel_refit import refitted
from compress.techniques.channel_scores import Scores, removed, scores
from compress.techniques.channel_search import Aim, CannotBeCut, Search
from compress.techniques.channel_steps import STEPS, liked_step
from compress.techniques.channel_times import timed_layers
from compress.techniques.channel_trace import OUTPUT
from compress.techniques.criteria import L2, Criterion, criteria
from compress.techniques.prune_weights import follows, pattern_of
from compress.techniques.timed_files import clock_of

AUTO, STEP = "auto", 8
ITEMS, FEW, JUDGED = 256, 32, 8
"""Calibration items, at most unless asked for; the least that a fit can rest on; one in so many is
kept back to judge it by."""
SECONDS = 60.0
"""What timing layers may take where nothing else is said."""


@dataclass(frozen=True, repr=False)
class PruneChannels(Compressor):
    """Remove the channels that matter least, and all that depends on them.

    Give one of `macs` or `params` (the kept fraction of them, approached from below by narrowing
    all groups of channels alike), `channels` (that fraction of every group), or `latency` (that
    fraction of the seconds that one item takes in onnxruntime on this machine: layers are timed
    here, for about `seconds` in all, and groups get the widths that lose least in that time; whole
    candidates are then exported and timed, which `seconds` does not bound).
    `criterion` says what a channel is worth. With `scope='local'` every group of coupled channels
    keeps the same share, with 'global' those of more worth in relation to their group's mean stay,
    wherever they are. Counts are multiples of `round_to`, so that kernels stay fast: of 8, or with
    'auto', and for `latency`, of what kernels are found to like here. `ignored` layers, and those
    inside them, keep their outputs. With `streams='last'`, residual streams are narrowed only where
    a target cannot be met closely without, since what they lose is lost to all blocks; with
    'alike', as all others are.
    With `heads='narrower'` those of attention lose channels, with 'fewer' whole ones go; where the
    code allows the other alone, that.
    On `calibration` items, without their labels, the layers that are left are refitted, so that
    they reproduce the outputs that are left of them (`channel_refit`; 0: they keep their weights).

    What produces the output is protected, and so is every group in which the pruned net would not
    equal the original with those channels set to zero (`channel_cut`). A target that cannot be
    reached without narrowing groups to less than half of the target's own fraction (for `latency`,
    a quarter; with scope='global', single ones to a quarter of that half) is refused. For
    `latency`, a model that would be no faster stays whole.
    """

    imports = ("scipy.sparse.csgraph",)

    macs: float | None = field(
        default=None, metadata={**kept_fraction(), **searched(Range(0.2, 0.9, step=0.05))}
    )
    channels: float | None = field(default=None, metadata=kept_fraction())
    params: float | None = field(default=None, metadata=kept_fraction())
    latency: float | None = field(default=None, metadata=kept_fraction())
    round_to: int | str | None = field(
        default=None,
        metadata=rule(
            f"must be a whole number of at least 1, or {AUTO!r}",
            lambda value: value == AUTO or (type(value) is int and value >= 1),
        ),
    )
    criterion: Criterion = field(
        default=L2(),
        metadata={
            **takes(Criterion, criteria),
            **searched(Choices(("l2", "taylor", "reconstruction"))),
        },
    )
    scope: str = field(
        default="local",
        metadata={**one_of("local", "global"), **searched(Choices(("local", "global")))},
    )
    ignored: tuple[str, ...] = field(default=(), metadata=rule("is a list of names", are_names))
    streams: str = field(default="last", metadata=one_of("last", "alike"))
    heads: str = field(default=NARROWER, metadata=one_of(NARROWER, FEWER))
    seconds: float | None = field(default=None, metadata=positive())
    calibration: int = field(default=ITEMS, metadata=whole_number(least=0))

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_of(self, "macs", "params", "channels", "latency")
        require(
            self.seconds is None or self.latency is not None or self.round_to == AUTO,
            self,
            "seconds is for timing layers, which latency=... and round_to='auto' do: leave it out",
        )
        require(
            self.calibration > 0 or not self.criterion.wants_inputs,
            self,
            f"criterion={self.criterion.name()!r} looks at calibration items: leave calibration=0 "
            f"out",
        )

    @property
    def needs(self) -> frozenset[str]:
        needs = {"train", "labels"} if self.criterion.wants_gradients else set()
        return frozenset(needs | ({"calibration"} if self.calibration else set()))

    def check(self, context: StepContext) -> None:
        if context.enters is not None:
            self._check_ignored(context.enters)

    def compress(self, model: Model, context: StepContext) -> Model:
        self._check_ignored(model)
        plain, packed = with_plain_attention(model)
        if not packed:
            return self._pruned(model, context)
        if context.origin is not None:
            context = replace(context, origin=with_plain_attention(context.origin)[0])
        result = self._pruned(plain, context)
        if result is plain:
            return model
        return packed_where_whole(result, plain, packed, model.sparse)

    def _pruned(self, model: Model, context: StepContext) -> Model:
        channels = sound_groups(model.module, model.items(), self.ignored, self.heads)
        self._check_protection(channels)
        self._log_left(channels.left, channels, context)
        items = self._items(model, context) if channels.groups else _Items()
        worth = self._worth(model, channels, context, items.given) if channels.groups else {}
        while channels.groups:
            search = self._search(model, context, channels, worth)
            try:
                return self._cut(model, context, search, items)
            except CannotBeCut as error:
                channels = self._without_those_at_fault(model, context, search, error)
        context.log.note(f"prune_channels: left the model whole ({_why_whole(channels.left)})")
        return model

    def _items(self, model: Model, context: StepContext) -> _Items:
        """Return what layers are given, on most calibration items, and the others."""
        if not self.calibration:
            return _Items()
        asked = self.calibration
        if asked == ITEMS and context.calibration is not None:  # nobody's wish: what there is
            asked = min(asked, len(context.calibration))
        items = context.calibration_items(asked)
        judged = max(1, len(items) // JUDGED)
        fit, others = (
            Calibration(context.task, Subset(items, index))
            for index in (torch.arange(judged, len(items)), torch.arange(judged))
        )
        if len(items) >= FEW:
            return _Items(LayerInputs(model, fit, len(items) - judged), others, judged)
        return _Items(LayerInputs(model, Calibration(context.task, items), len(items)))

    def _worth(
        self, model: Model, channels: Channels, context: StepContext, given: LayerInputs | None
    ) -> Scores:
        worth, silent = scores(model, channels, self.criterion, context, given)
        if silent:
            context.log.note(
                f"prune_channels: {self.criterion.name()} says nothing about {len(silent)} of "
                f"{len(channels.groups)} groups, which are ranked by l2"
            )
        return worth

    def _cut(
        self, model: Model, context: StepContext, search: Search | LatencySearch, items: _Items
    ) -> Model:
        """Return the model with what a search keeps; raise CannotBeCut where it is not proven."""
        channels, kept = search.channels, search.kept()
        classes = removed(channels.groups, search.worth, kept)
        if not len(classes):
            search.left_whole()
            return model
        done = cut(model.module, channels.plan, classes)
        if reason := differs_from_zeroed(model.module, done, channels.plan, model.items()):
            raise CannotBeCut(reason, kept)
        result = search.judged(replace(model, module=done.module.eval()), done)
        if result is model:
            return model
        self._note_lost_patterns(model, result, context)
        for group in channels.groups:
            gone = np.isin(channels.plan.of(group.axis), done.classes)
            left = group.width - int(gone.sum())
            context.log.row("layer", layer=group.path, channels=group.width, kept=left)
        for path, name in channels.plan.numbers:
            before, now = (vars(m.module.get_submodule(path))[name] for m in (model, result))
            if before != now:
                context.log.row("number", layer=path, name=name, before=before, after=now)
        done = Cut(result.module, done.classes)
        return _refitted(model, result, done, channels.plan, context, items)

    def _without_those_at_fault(
        self,
        model: Model,
        context: StepContext,
        search: Search | LatencySearch,
        error: CannotBeCut,
    ) -> Channels:
        """Return the groups that can be cut to the counts at which all of them could not."""
        channels = search.channels
        lost = {g.axis: removed([g], search.worth, error.kept) for g in channels.groups}
        sound = sound_at(model.module, model.items(), channels, lost)
        if len(sound.groups) == len(channels.groups):
            raise StepFailed(f"prune_channels: {error}") from error
        left = {path: why for path, why in sound.left.items() if path not in channels.left}
        self._log_left(left, sound, context)
        return sound

    def _search(
        self, model: Model, context: StepContext, channels: Channels, worth: Scores
    ) -> Search | LatencySearch:
        [(what, target)] = [
            (name, value)
            for name in ("macs", "params", "channels", "latency")
            if (value := getattr(self, name)) is not None
        ]
        step = self.round_to or (AUTO if what == "latency" else STEP)
        if isinstance(step, int) and what != "latency":
            aim = Aim(what, target, step, self.scope, self.streams)
            return Search(aim, model, context, channels, worth)
        measured = not isinstance(step, int)
        layers, clock = timed_layers(model, channels), clock_of(context, self.name())
        seconds = self.seconds or SECONDS
        if not isinstance(step, int):
            with stage("finding the widths that kernels like"):
                liked = liked_step(layers, clock, seconds / 4)
            if liked is None and what != "latency":
                raise StepFailed(
                    "prune_channels: round_to='auto' needs layers to be timed, and none of those "
                    "whose channels can be cut can be: give round_to as a number"
                )
            step = liked or STEPS[0]  # what a latency can't be aimed at, its search says
            context.log.row("widths", step=step)
        aim = Aim(what, target, step, self.scope, self.streams, measured)
        if what != "latency":
            return Search(aim, model, context, channels, worth)
        return LatencySearch(aim, model, context, channels, worth, layers, clock, seconds)

    def _check_ignored(self, model: Model) -> None:
        known = [path for path, _ in model.module.named_modules()]
        for path in self.ignored:
            if path not in known:
                outermost = [name for name, _ in model.module.named_children()]
                raise UserError(
                    f"prune_channels: there is no layer {path!r} to ignore. {nearest(path, known)}"
                    f"The outermost layers: {', '.join(outermost) or 'none'}"
                )

    def _check_protection(self, channels: Channels) -> None:
        found = channels.plan.trace
        for path in self.ignored if found.made else ():
            if not any(protects(path, axis, found) for axis in found.made):
                raise UserError(
                    f"prune_channels: to ignore {path!r} protects nothing, since it makes no "
                    f"channels of its own: name the layer whose outputs enter it, or the one that "
                    f"holds both"
                )

    def _note_lost_patterns(self, before: Model, after: Model, context: StepContext) -> None:
        """Say where the zeros of a pattern N:M are in none any more: other inputs are neighbours"""
        patterns = {
            name: found
            for name in sorted(before.sparse)
            if (found := pattern_of(before.module.get_parameter(name).detach()))
        }
        lost = [
            name
            for name, (kept, among) in patterns.items()
            if not follows(after.module.get_parameter(name).detach(), kept, among)
        ]
        if lost:
            kept, among = patterns[lost[0]]
            context.log.note(
                f"prune_channels: {len(lost)} of {len(patterns)} weights with zeros in a pattern "
                f"have lost it, such as {lost[0]!r} ({kept}:{among}): prune channels before "
                f"prune_weights(pattern=...)"
            )

    def _log_left(self, left: Mapping[str, str], channels: Channels, context: StepContext) -> None:
        for path, reason in left.items():
            context.log.row("layer", layer=path, left_alone=reason)
        others = {path: why for path, why in left.items() if why != OUTPUT}
        if others and channels.groups:
            context.log.note(
                f"prune_channels: left {plural(len(others), 'layer')} as wide as before, such as "
                f"{_an_example(others)}"
            )


@dataclass(frozen=True)
class _Items:
    """Calibration items: what layers are given on most of them, and the others, which judge."""

    given: LayerInputs | None = None
    others: Calibration | None = None
    judged: int = 0
    """How many the others are."""


def _refitted(
    model: Model, pruned: Model, done: Cut, plan: Plan, context: StepContext, items: _Items
) -> Model:
    """Return a pruned model with its layers refitted, where that brings its outputs nearer."""
    if items.given is None:
        return pruned
    if items.others is None:
        context.log.note(
            f"prune_channels: {plural(items.given.items, 'calibration item')}, and {FEW} are the "
            f"least that the layers that are left can be refitted on: they keep their weights"
        )
        return pruned
    with stage("refitting the layers that are left"):
        found = refitted(model, done, plan, items.given, items.others)
    for path, reason in found.left_alone.items():
        context.log.row("refit", layer=path, left_alone=reason)
    if not found.errors:
        return pruned
    context.log.row("refit", error_before=found.before, error=found.after)
    if not found.better:
        context.log.note(
            f"prune_channels: the layers that are left keep their weights, since refitted they "
            f"bring the outputs no nearer on {plural(items.judged, 'item')} that the fit did not "
            f"see"
        )
        return pruned
    for path, (before, after) in found.errors.items():
        context.log.row("refit", layer=path, error_before=before, error=after)
    return replace(pruned, module=found.module)


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
