"""Post-training int8 quantization: writes the ONNX file that is deployed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
import torch

from compress.compressor import Compressor, require
from compress.context import StepContext
from compress.deploy.export import export
from compress.deploy.graphs import opened
from compress.deploy.observe import item_bytes, together
from compress.deploy.session import predict, session
from compress.int8.bound import Bounded, by_harm, differing, within
from compress.int8.calibration import FAR, Calibration, identities, outliers, suspicions
from compress.int8.lower import Draft, Lowered, draft, layer_bits, layers_matching
from compress.int8.ranges import METHODS
from compress.int8.rewrite import named
from compress.int8.settings import HINT, Bits, Settings
from compress.int8.uncalibrated import dynamic, weight_only
from compress.int8.weights import BITS
from compress.model import Model
from compress.parts import (
    Choices,
    are_names,
    flag,
    is_number,
    one_of,
    positive_or_zero,
    rule,
    searched,
    whole_number,
)
from compress.runtimes.base import Session
from compress.stats.pairs import Difference, difference
from compress.system.amounts import decimal
from compress.system.environment import cpu_info, saturates
from compress.system.progress import counted, stage
from compress.tasks.base import Subset, prepared_batches
from compress.techniques.int8_placement import (
    FOUND,
    as_float,
    placement,
    say_if_hardly_smaller,
    say_if_mostly_float,
    unless_slower,
)
from compress.techniques.timed_files import is_large
from compress.training.evaluate import some_of

TARGETS = ("portable", "vnni")
LEAST_BITS = 2
VALIDATED = 2000
"""Validation items that `max_drop` is judged on, at most."""
ROUGHLY = 15
"""Seconds for the placement of what a search only wants to know the cost of."""
SAMPLES = 8
"""Items that placements are timed on, in turn."""


@dataclass(frozen=True, repr=False)
class Quantize(Compressor):
    """Write int8 QDQ: unsigned activations, signed weights with a scale per output channel.

    `target` 'portable' gives the same answers on every CPU: weights whose neighbours would saturate
    on x86 processors without VNNI get a coarser scale, channel by channel. 'vnni' is for those
    with VNNI, and for ARM: the finest scales. Channels are equalized first (Nagel et al. 2019; Xiao
    et al. 2023), activation ranges come from `calibration` training items by `method`: 'best' is,
    for each value, whichever of extremes, percentiles, entropy and least squares fits it best; and
    biases take back the mean error of each product. Within `seconds` the parts are found that are
    faster as float on this CPU (0: nothing is tried). Where int8 loses more than `max_drop` points
    on validation items, the products that move answers most stay float (None: none do).

    `exclude` names what stays float: operators, nodes of the file, or layers of the module, `*` and
    `?` standing for anything. `bits` below 8 make weights coarser, not the file smaller unless it
    is compressed; by such names, as `bits={'layer4.*': 4}`, those of some layers (the first name
    that matches counts, and 8 where none does). `weight_only` stores weights as integers and
    computes with floats: for size alone. There, weights of 4 bits or fewer are stored in 4, and
    weights below 8 bits rounded so that products change least on calibration items (Frantar et al.
    2023). `dynamic` is for linear layers whose activations have no settled range: that is found in
    every call. It needs no calibration, nor do weights of 8 bits alone, and neither `seconds` nor
    `max_drop` applies to either. The float module travels on unchanged, for counting. Jacob et al.
    2018, section 2.1, for the arithmetic.
    """

    lowers = True
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {"size": {"weight_only": True, "bits": 4}}
    imports = ("onnx_ir.passes.common",)

    calibration: int = field(default=256, metadata=whole_number())
    method: str = field(default="best", metadata=one_of(*METHODS))
    target: str = field(default="portable", metadata=one_of(*TARGETS))
    seconds: float = field(default=60, metadata=positive_or_zero())
    max_drop: float | None = field(
        default=0.5,
        metadata={
            **rule(
                "must be positive, or None",
                lambda value: value is None or (is_number(value) and value > 0),
            ),
            **searched(Choices((0.5, None))),
        },
    )

    exclude: tuple[str, ...] = field(default=(), metadata=rule("is a list of names", are_names))
    bits: Bits = field(
        default=BITS,
        metadata=rule(
            f"must be a whole number from {LEAST_BITS} to {BITS}, or such numbers by names of "
            f"layers, as {{'layer4.*': 4}}",
            lambda value: _are_bits(value) or (isinstance(value, tuple) and _by_name(value)),
        ),
    )
    dynamic: bool = field(default=False, metadata=flag())
    weight_only: bool = field(default=False, metadata=flag())

    @classmethod
    def modernized(cls, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """`reduce_range` gave all weights 7 bits, which `target` now does better."""
        return {key: value for key, value in options.items() if key != "reduce_range"}

    @property
    def settings(self) -> Settings:
        """How a file is lowered, as far as that is known beforehand."""
        return Settings(
            method=self.method,
            portable=self.target == "portable",
            bits=self.bits,
            exclude=self.exclude,
        )

    @property
    def needs(self) -> frozenset[str]:
        nearest = self.weight_only and self.bits == BITS
        return frozenset() if self.dynamic or nearest else frozenset({"calibration"})

    @property
    def untrained(self) -> tuple[Compressor, ...] | None:
        # What an untrained model loses says nothing: all that can be int8 is. And a rough idea of
        # its speed will do: the file of the trained one is placed anew.
        return (replace(self, max_drop=None, seconds=min(self.seconds, ROUGHLY)),)

    def __post_init__(self) -> None:
        if isinstance(self.bits, dict):
            object.__setattr__(self, "bits", tuple(self.bits.items()))
        elif isinstance(self.bits, (list, tuple)):
            pairs = (tuple(pair) if isinstance(pair, list) else pair for pair in self.bits)
            object.__setattr__(self, "bits", tuple(pairs))
        super().__post_init__()
        require(
            not (self.dynamic and self.weight_only),
            self,
            "dynamic=True quantizes activations, and weight_only=True does not: give one of them",
        )
        require(
            not (self.dynamic and self.bits != BITS),
            self,
            "dynamic=True has weights of 8 bits, or of 7 where target='portable' needs them: "
            "leave bits out",
        )

    def check(self, context: StepContext) -> None:
        """Refuse names that match nothing before hours of training, where the layers are known."""
        super().check(context)
        if context.enters is not None:
            self.layers_left(context.enters)
            self.layer_bits(context.enters)

    def compress(self, model: Model, context: StepContext) -> Model:
        self._say_if_saturating(context)
        if self.dynamic or self.weight_only:
            lowered = self._uncalibrated(model, context)
        else:
            lowered = self._calibrated(model, context)
        for row in lowered.nodes:
            context.log.row("layer", **row)
        return replace(model, onnx=lowered.content)

    def _say_if_saturating(self, context: StepContext) -> None:
        if self.target == "vnni" and not self.weight_only and saturates(cpu_info()[1]):
            context.log.note(
                "quantize: this CPU has no VNNI, so sums of int8 products can saturate here, and "
                "target='vnni' does nothing against it; leave it out"
            )

    def _uncalibrated(self, model: Model, context: StepContext) -> Lowered:
        exported = _exported(model)
        if self.dynamic:
            lowered = dynamic(exported, self.target == "portable", self.exclude)
        else:
            batches = self._batches(context) if self.needs else None
            lowered = weight_only(exported, self.bits, self.exclude, batches)
        say_if_hardly_smaller(lowered, exported, context)
        return lowered

    def layers_left(self, model: Model) -> frozenset[str]:
        """Return the layers of a model that `exclude` leaves in float.

        Raises UserError for what matches nothing.
        """
        return layers_matching(_exported(model), self.exclude) if self.exclude else frozenset()

    def layer_bits(self, model: Model) -> Mapping[str, int]:
        """Return the bits of the weights of a model's layers, where `bits` names layers.

        Raises UserError for what matches nothing.
        """
        if isinstance(self.bits, int):
            return {}
        return layer_bits(_exported(model), self.bits)

    def _batches(self, context: StepContext) -> Calibration:
        """Return what the model is calibrated on, without items that are far from all others."""
        items = context.calibration_items(self.calibration)
        batches = Calibration(context.task, items)
        for suspicion in suspicions(batches):
            context.log.note(f"quantize: {suspicion}")
        if odd := outliers(batches):
            context.log.note(
                f"quantize: {len(odd)} of {len(items)} calibration items hold values over "
                f"{decimal(FAR)} times as large as the others' and were left out: numbers "
                f"{', '.join(map(str, odd[:5]))}{', ...' if len(odd) > 5 else ''}"
            )
            rest = torch.tensor(sorted({*range(len(items))} - {*odd}))
            batches = Calibration(context.task, Subset(items, rest))
        return batches

    def _calibrated(self, model: Model, context: StepContext) -> Lowered:
        batches, exported = self._batches(context), _exported(model)
        samples = tuple(tensor[:SAMPLES] for tensor in next(iter(batches)))
        found = None
        if self.seconds and is_large(model):
            found = placement(exported, samples, self.seconds, self.exclude, context)
        if found is not None and found.all_float:
            times = 1 / found.best if found.best else found.gain
            return as_float(exported, FOUND, times, self.exclude, context)
        settings = replace(
            self.settings,
            trained=self.settings.trained_by(model.hints),
            floats=frozenset() if found is None else found.floats,
        )
        if HINT in model.hints and not settings.trained:
            context.log.note(
                "quantize: the model was trained for rounding with other bits or another target, "
                "so its ranges are chosen anew"
            )
        made = draft(exported, batches, settings)
        for note in made.notes:
            context.log.note(f"quantize: {note}")
        bounded = self._accurate(made, exported, batches, context)
        lowered = bounded.lowered
        if bounded.floats and found is not None:
            lowered = unless_slower(lowered, exported, samples, self.seconds, self.exclude, context)
        if lowered is bounded.lowered:
            say_if_mostly_float(lowered, exported, model, context)
            if not is_large(model):
                say_if_hardly_smaller(lowered, exported, context)
        return lowered

    def _accurate(
        self, made: Draft, exported: ir.Model, batches: Calibration, context: StepContext
    ) -> Bounded:
        """Return the file in which as few products as possible are float for `max_drop` to hold.

        Of less than 100 / max_drop items, one may be lost: that is no sign of more than chance.
        """
        whole, validation = made.lowered(), context.validation
        if self.max_drop is None or validation is None or not len(validation):
            if self.max_drop is not None:
                context.log.note(
                    f"quantize: there are no validation items, so whether int8 loses more than "
                    f"max_drop={decimal(self.max_drop)} was not checked"
                )
            return Bounded(whole, frozenset(), 0.0, 0.0)
        some = some_of(validation, VALIDATED)
        count, unit = f"{len(some):,}", f"validation {context.task.unit}"
        size = together(item_bytes(exported))
        calibrated = {item for batch in batches for item in identities(batch)}
        seen: list[bool] = []

        answers: list[np.ndarray] = []

        def right(runner: Session) -> np.ndarray:
            # Prepared anew for each file: together they would take more memory than all else.
            pairs = []
            for one, targets in prepared_batches(context.task, some, size):
                if len(seen) < len(some):
                    seen.extend(item in calibrated for item in identities(one))
                pairs.append((predict(runner, counted([one])), targets))
            logits = np.concatenate([logits for logits, _ in pairs])
            answers.append(logits)
            targets = torch.cat([targets for _, targets in pairs])
            return context.task.correct(torch.from_numpy(logits), targets).numpy()

        def worst_first() -> list[str]:
            before, after = answers[:2]
            numbers = differing(before, after)
            items = Subset(some, torch.from_numpy(numbers))
            inputs = [one for one, _ in prepared_batches(context.task, items, size)]
            return by_harm(made, inputs, before[numbers])

        compared: dict[bytes, Difference] = {}

        def drop(lowered: Lowered) -> float:
            found = compared[lowered.content] = difference(before, right(session(lowered.content)))
            return 100 * (found.lost - found.gained) / found.items

        with stage(f"comparing int8 with float on {count} {unit}"):
            before = right(opened(exported))
            allowed = max(self.max_drop, 100 / len(some))
            best = within(worst_first, made.lowered, drop, allowed)
        most = -100 * compared[best.lowered.content].bound
        if both := sum(seen):
            context.log.note(
                f"quantize: {both:,} of the {count} {unit} that max_drop was judged on also "
                f"calibrated int8, so it may lose more on others"
            )
        if best.floats:
            context.log.note(
                f"quantize: {len(best.floats)} of {len(made.wrong)} products stay float, so that "
                f"int8 changes accuracy by {0 - best.drop:+.1f} points on {count} {unit}, where "
                f"with all of them it changed it by {0 - best.first:+.1f}"
            )
        if best.drop > allowed:
            context.log.note(
                f"quantize: int8 loses {best.drop:.1f} points on {count} {unit}, "
                f"and max_drop={decimal(self.max_drop)} was not reached"
            )
        elif most > self.max_drop:
            context.log.note(
                f"quantize: {count} {unit} are too few to be sure of "
                f"max_drop={decimal(self.max_drop)}: int8 changed accuracy by {0 - best.drop:+.1f} "
                f"points on them, and a loss of {most:.1f} in general can't be ruled out"
            )
        context.log.row(
            "max_drop", items=len(some), drop=best.drop, most=most, floats=sorted(best.floats)
        )
        return best


def _are_bits(value: object) -> bool:
    return type(value) is int and LEAST_BITS <= value <= BITS


def _by_name(value: tuple[object, ...]) -> bool:
    """Whether a value is pairs of a pattern of names and bits."""
    pairs = [one for one in value if isinstance(one, tuple) and len(one) == 2]
    right = all(isinstance(name, str) and _are_bits(count) for name, count in pairs)
    return 0 < len(value) == len(pairs) and right


def _exported(model: Model) -> ir.Model:
    """Return the graph of the float file, whose weights have the names of the module's."""
    values = {n: p.detach().cpu().numpy() for n, p in model.module.named_parameters()}
    return named(export(model), values)
