"""Low-rank factorization: a layer becomes two or three thinner ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from torch import nn

from compress import counts
from compress.compressor import Compressor, require, require_one_of
from compress.context import StepContext
from compress.deploy.export import export
from compress.errors import StepFailed, UserError
from compress.int8.calibration import Calibration
from compress.lowrank.forms import FORMS, macs_of
from compress.lowrank.latency import Clock, Files, by_latency, thinned, timed
from compress.lowrank.layers import TargetLayer, target_layers
from compress.lowrank.plan import (
    MOST_LOST,
    PAYS,
    Calibrated,
    Choices,
    Ways,
    by_energy,
    by_rank,
    judged,
    ways,
    within_budget,
)
from compress.lowrank.ranks import Candidate
from compress.lowrank.replace import like, replaced
from compress.lowrank.unpack import INNER, packed_again, renamed, unpacked
from compress.model import Model, weights_hash
from compress.parts import Range, kept_fraction, one_of, positive, searched, whole_number
from compress.system.amounts import plural
from compress.system.progress import stage
from compress.techniques.timed_files import (
    Slowdown,
    clock_of,
    is_large,
    slowdown,
    whole_rounds,
    whole_seconds,
)

BEST = "best"
NEAR = 0.02
"""How far from the target, as a share of it, the log says nothing of it."""
MOST_REASONS = 2
"""Kinds of layers left alone that a note names."""
LAYER_SECONDS = 20.0
"""What layers are timed for, together, where the whole is slower."""
SLOWER = "its factors take longer here than the layer"
MET = "the target is met"
ALL_SLOWER = "with the factors of all layers the model takes longer here"
BEFORE, AFTER, ORIGIN = "before", "after", "origin"


@dataclass(frozen=True, repr=False)
class Factorize(Compressor):
    """Replace `Linear`, `Conv1d` and `Conv2d` layers by two or three thinner ones of low rank.

    A convolution takes one of four forms: channel SVD (Zhang et al. 2015), a 1 × 1 convolution
    first, spatial SVD (Jaderberg et al. 2014), Tucker-2 (Kim et al. 2016); with `form='best'`
    whichever loses least at equal MACs. What is lost is the error of a layer's outputs on
    `calibration` items (arXiv 2511.04494), and each layer is fitted to take back what those before
    it lose; 0 items: the error of the weights alone.

    Give one of `rank` (each layer gets the MACs of the channel form at this fraction of its full
    rank), `energy` (of each layer's outputs' variance), `macs` (of the whole model's; what loses
    least over all layers is found) or `latency` (of the whole model's, by layer times measured here
    within `seconds`, to which exports and timings of the whole model come; a layer's time must fall
    by a tenth). Ranks are multiples of `round_to`. What would not get cheaper is left alone, and so
    is what is shown here to get slower.
    """

    rank: float | None = field(default=None, metadata=kept_fraction())
    energy: float | None = field(default=None, metadata=kept_fraction())
    macs: float | None = field(
        default=None, metadata={**kept_fraction(), **searched(Range(0.3, 0.9, step=0.05))}
    )
    latency: float | None = field(default=None, metadata=kept_fraction())
    calibration: int = field(default=256, metadata=whole_number(least=0))
    form: str = field(default=BEST, metadata=one_of(BEST, *FORMS))
    round_to: int = field(default=8, metadata=whole_number())
    seconds: float | None = field(default=None, metadata=positive())

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_of(self, "rank", "energy", "macs", "latency")
        require(
            self.seconds is None or self.latency is not None,
            self,
            "seconds is for measuring layers, which only latency=... does: leave it out",
        )

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"calibration"}) if self.calibration else frozenset()

    def compress(self, model: Model, context: StepContext) -> Model:
        return _Factorization(self, model, context).result()


class _Factorization:
    """One run of the technique."""

    def __init__(self, step: Factorize, model: Model, context: StepContext) -> None:
        self.step, self.whole, self.context, self.log = step, model, context, context.log
        module, self.packed = unpacked(model.module, model.items(), flat=True)
        self.model = replace(model, module=module, sparse=renamed(model.sparse, self.packed))
        """The model that entered, `whole`, with attention and `Conv1d` as plain layers."""
        self.origin = context.origin or model
        self.counted = counts.count(model.module, model.example)
        self.found: list[TargetLayer] = []
        self.left: dict[str, str] = {}
        """What cannot be factorized, with the reason."""
        self.options: Ways = {}
        self.calibrated: Calibrated | None = None

    def result(self) -> Model:
        if self._met():
            return self.whole
        self.found, self.left = target_layers(self.model.module, self.model.items())
        forms = FORMS if self.step.form == BEST else (self.step.form,)
        bias = self.step.calibration > 0
        self.options = ways(self.found, forms, self.step.round_to, bias)
        if self.step.calibration:
            items = self.context.calibration_items(self.step.calibration)
            self.calibrated = Calibrated(Calibration(self.context.task, items), len(items))
        choices = self._choices()
        if not choices.taken:
            met = MET in choices.left.values()
            why = "the model is as fast already" if met else "no layer would get cheaper"
            self.log.note(f"factorize: {why}, all left alone")
        choices = self._none_slower(choices)
        for path, reason in {**self.left, **choices.left}.items():
            self.log.row("layer", layer=self._path(path), left_alone=reason)
        if not choices.taken:
            return self.whole
        return self._checked(self._replaced(choices))

    def _path(self, path: str) -> str:
        """Return the path of a layer in the model that entered."""
        outer = path.removesuffix(f".{INNER}")
        return outer if isinstance(self.packed.get(outer), nn.Conv1d) else path

    def _met(self) -> bool:
        """Whether the model meets the target as it is."""
        if self.step.macs is None:
            return self.step.latency == 1
        for counted in (self.counted, self._origin):
            if missing := counts.left_out(counted.uncounted):
                raise UserError(
                    f"factorize: {missing}, so macs={self.step.macs} cannot be aimed at: give "
                    f"rank, energy or latency"
                )
        return self.counted.macs <= self.step.macs * self._origin.macs

    @cached_property
    def _origin(self) -> counts.Counts:
        return counts.count(self.origin.module, self.origin.example)

    # --- choosing -------------------------------------------------------------------------

    def _choices(self) -> Choices:
        step = self.step
        if step.latency is not None:
            return self._for_latency(step.latency)
        with stage("finding what each layer can lose"):
            options = self._judged(self.options)
        if step.rank is not None:
            return by_rank(self.found, options, step.rank, step.round_to)
        if step.energy is not None:
            return by_energy(self.found, options, step.energy)
        assert step.macs is not None
        whole = {target.path: float(macs_of(target.layer, target.calls)) for target in self.found}
        rest = self.counted.macs - sum(whole.values())
        origin = self._origin.macs
        choices = within_budget(whole, options, lambda one: one.macs, step.macs * origin - rest)
        saved = sum(whole[path] - one.macs for path, one in choices.taken.items())
        self._say_reached(step.macs, (self.counted.macs - saved) / origin, choices)
        return choices

    def _judged(self, options: Ways) -> Ways:
        return judged(self.model.module, self.found, options, self.calibrated)

    def _say_reached(self, target: float, reached: float, choices: Choices) -> None:
        asked = f"factorize: the target was {target:.2f} of the MACs, and"
        cheapest = {
            path: min(one.macs for one in some) for path, some in self.options.items() if some
        }
        saved = sum(
            macs_of(one.layer, one.calls) - cheapest[one.path]
            for one in self.found
            if one.path in cheapest
        )
        least = (self.counted.macs - saved) / self._origin.macs
        if not cheapest:
            self.log.note(f"{asked} it cannot be reached: no layer has a cheaper form{self._rest}")
        elif least > target:
            self.log.note(
                f"{asked} it cannot be reached: with every layer that has cheaper forms in its "
                f"cheapest, {least:.2f} would be left{self._rest}. {reached:.2f} is what layers "
                f"give that lose at most {PAYS:.0%} of their outputs' energy"
            )
        elif not choices.complete:
            self.log.note(
                f"{asked} it cannot be reached without taking over {MOST_LOST:.0%} of its outputs' "
                f"energy from a layer: {reached:.2f} is what layers give that lose at most "
                f"{PAYS:.0%}"
            )
        elif abs(reached - target) > NEAR * target:
            self.log.note(
                f"{asked} {reached:.2f} was reached, by the setting within it that loses least, "
                f"with ranks in multiples of {self.step.round_to}"
            )

    @property
    def _rest(self) -> str:
        """Say which kinds of layers are left alone; '' if none."""
        kinds = Counter(self.left.values()).most_common(MOST_REASONS)
        said = "; ".join(f"{plural(count, 'layer')}: {reason}" for reason, count in kinds)
        return f" (left alone are {said})" if said else ""

    def _for_latency(self, target: float) -> Choices:
        files = self._files
        seconds = self._whole_seconds(files)
        now = seconds[BEFORE]
        limit = target * seconds.get(ORIGIN, now)
        if now <= limit:
            return Choices(left={one.path: MET for one in self.found})
        with stage("timing layers and their forms"):
            whole, faster = timed(
                self.found, thinned(self.options), self._clock, self.step.seconds or 60
            )
        with stage("finding what each layer can lose"):
            options = self._judged(faster)

        def share(taken: Mapping[str, Candidate]) -> float:
            return self._slowdown(self._like(taken)).value

        choices = by_latency(whole, options, now, limit, share)
        for path in choices.left:
            if self.options[path] and not faster[path]:
                choices.left[path] = "no form is a tenth faster here than the layer itself"
        return choices

    def _none_slower(self, choices: Choices) -> Choices:
        """Leave layers whole, or all, with whose factors the model takes longer here.

        Only where it can be timed; the log says where it cannot. Small models are not: a call takes
        some microseconds. With a target of latency layers were timed before they were chosen.
        """
        if self.step.latency is not None or not choices.taken or not is_large(self.whole):
            return choices
        try:
            with stage("timing the model"):
                return self._timed_choices(choices)
        except (UserError, StepFailed) as error:
            why = str(error).removeprefix("factorize: ")
            self.log.note(f"factorize: whether the model is faster is not known: {why}")
            return choices

    def _timed_choices(self, choices: Choices) -> Choices:
        slow = self._slowdown(self._like(choices.taken))
        if not slow.slower:
            return choices
        some = [target for target in self.found if target.path in choices.taken]
        ways = {path: [one] for path, one in choices.taken.items()}
        _, faster = timed(some, ways, self._clock, LAYER_SECONDS, gain=0.0)
        taken = {path: one for path, one in choices.taken.items() if faster[path]}
        slower = choices.taken.keys() - taken.keys()
        left = choices.left | dict.fromkeys(sorted(slower), SLOWER)
        if not slower or (taken and self._slowdown(self._like(taken)).slower):
            taken, left = {}, choices.left | dict.fromkeys(choices.taken, ALL_SLOWER)
        if not taken:
            self.log.note(
                f"factorize: the model stays whole, as it would take {slow.value:.2f} times as long"
            )
            return replace(choices, taken=taken, left=left)
        saved = sum(
            macs_of(one.layer, one.calls) - taken[one.path].macs
            for one in some
            if one.path in taken
        )
        self.log.note(
            f"factorize: {len(slower)} of {len(some)} layers stay whole after all, as their "
            f"factors take longer here, and the model would take {slow.value:.2f} times as long: "
            f"{(self.counted.macs - saved) / self._origin.macs:.2f} of the MACs are left"
        )
        return replace(choices, taken=taken, left=left)

    def _like(self, taken: Mapping[str, Candidate]) -> bytes:
        """Return a file with layers in their forms, which takes as long as the result will."""
        module = like(self.model.module, taken, self.found)
        return export(replace(self.model, module=module))

    def _slowdown(self, after: bytes) -> Slowdown:
        """Compare a file with the one that entered."""
        trial = {BEFORE: self._before, AFTER: after}
        found = whole_rounds(trial, self.model, self._clock, "factorize")
        return slowdown(found[AFTER], found[BEFORE])

    @cached_property
    def _before(self) -> bytes:
        return export(self.whole)

    @cached_property
    def _files(self) -> dict[str, bytes]:
        """The file of the model that entered, and that of its origin where it is another."""
        files = {BEFORE: self._before}
        if weights_hash(self.origin.module) != weights_hash(self.whole.module):
            files[ORIGIN] = export(self.origin)
        return files

    def _whole_seconds(self, files: Files) -> dict[str, float]:
        return whole_seconds(files, self.model, self._clock, "factorize")

    @cached_property
    def _clock(self) -> Clock:
        return clock_of(self.context, "factorize")

    # --- replacing ------------------------------------------------------------------------

    def _replaced(self, choices: Choices) -> Model:
        module = self.model.copy().module
        chosen = [
            (target, choices.taken[target.path])
            for target in self.found
            if target.path in choices.taken
        ]
        masked = set()
        self._say_dense(choices.taken)
        with stage("fitting factors"):
            fitted = replaced(module, self.model, self.counted.macs, chosen, self.calibrated)
            for target, one, error in fitted:
                masked.add(f"{target.path}.weight")
                self.log.row(
                    "layer",
                    layer=self._path(target.path),
                    form=one.form,
                    ranks=list(one.ranks),
                    macs=one.macs / macs_of(target.layer, target.calls),
                    relative_error=error,
                )
        stays = packed_again(module, self.packed, choices.taken)
        sparse = renamed(self.whole.sparse, stays) - masked
        return replace(self.whole, module=module, sparse=sparse, hints={})

    def _say_dense(self, taken: Collection[str]) -> None:
        """Say which zeros a pruning step made are lost: factors of a sparse weight are dense."""
        lost = [path for path in taken if f"{path}.weight" in self.model.sparse]
        zeros = sum(
            int((self.model.module.get_parameter(f"{path}.weight") == 0).sum()) for path in lost
        )
        if zeros:
            self.log.note(
                f"factorize: {plural(len(lost), 'layer')} with pruned weights became factors, "
                f"which are dense: {zeros:,} zeros are lost. Give prune_weights after factorize"
            )

    def _checked(self, result: Model) -> Model:
        """Return the result, or the model as it was where the result is not cheaper."""
        after = counts.count(result.module, result.example)
        if after.macs >= self.counted.macs or after.params > self.counted.params:
            self.log.note(
                f"factorize: the model stays whole, as it would have {after.macs:,} MACs and "
                f"{after.params:,} parameters for {self.counted.macs:,} and "
                f"{self.counted.params:,}"
            )
            return self.whole
        if self.step.latency is None:
            return result
        files = {**self._files, AFTER: export(result)}
        rounds = whole_rounds(files, self.model, self._clock, "factorize")
        slow = slowdown(rounds[AFTER], rounds[BEFORE])
        if not slow.faster:
            self.log.note(
                f"factorize: the model stays whole, as it is not shown to be faster: it would take "
                f"{slow.value:.2f} times as long ({slow.low:.2f} to {slow.high:.2f})"
            )
            return self.whole
        seconds = {name: float(np.median(values)) for name, values in rounds.items()}
        reached = seconds[AFTER] / seconds.get(ORIGIN, seconds[BEFORE])
        self.log.row("latency", target=self.step.latency, reached=reached, seconds=seconds)
        if abs(reached - self.step.latency) > NEAR * self.step.latency:
            self.log.note(
                f"factorize: the target was {self.step.latency:.2f} of the latency, and "
                f"{reached:.2f} was reached"
            )
        return result
