"""From a float file and calibration items to the int8 file."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

import numpy as np
import onnx_ir as ir

from compress.deploy.graphs import parsed, serialized
from compress.deploy.observe import Observed, item_bytes, observe
from compress.errors import UserError
from compress.int8 import ranges as range_choice
from compress.int8 import weights as weight_choice
from compress.int8.calibration import Batches, some_of
from compress.int8.correct import Error, corrected, errors
from compress.int8.equalize import equalized, links, same_function
from compress.int8.joined import joined
from compress.int8.placement import Clock, Placement, search
from compress.int8.ranges import FIXED_RANGES, Range
from compress.int8.rewrite import rewritten
from compress.int8.rounding import all_rounded
from compress.int8.settings import Bits, Settings
from compress.int8.units import (
    WEIGHT,
    Unit,
    described,
    quantizable,
    sole_reader,
    stored_as_integers,
    units,
)
from compress.int8.weights import Weight
from compress.int8.write import write

SETTLED, LEAST_ITEMS = 4e9, 64
"""Bytes of values that are computed for what settles early, and the least items: the largest value
of a channel, moments of inputs, mean errors. Ranges are of all items."""
LEFT, FASTER = "it was excluded", "it is faster as float on this CPU"
PROVED_ON = 8
"""Items on which an equalized graph must compute what it computed before."""


@dataclass
class Lowered:
    """The int8 file, and per node what was done with it."""

    content: bytes
    nodes: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def placed(found: Sequence[Unit], floats: Collection[str] = ()) -> dict[str, Unit]:
    """Return the units to quantize when nothing is measured: all products, and what lies between.

    An addition, a pooling and the like follow where what they read is stored as integers. `floats`
    are units that stay float.
    """
    return _useful(_reading_integers(found, floats))


def _reading_integers(found: Sequence[Unit], floats: Collection[str]) -> dict[str, Unit]:
    """Return the units that integers reach, whether or not an integer kernel reads theirs."""
    chosen: dict[str, Unit] = {}
    integers: set[str] = set()
    for unit in found:
        whole = [value for value in unit.activations if not _smaller(value, unit.output)]
        if unit.name in floats:
            continue
        if unit.weighted or all(value.name in integers for value in whole):
            chosen[unit.name] = unit
            if not unit.float_output or unit.kind == "Gemm":
                integers |= {value.name for value in unit.outputs if value.name}
    return chosen


def matching(
    found: Sequence[Unit], patterns: Sequence[str], option: str = "exclude="
) -> frozenset[str]:
    """Return the names of units that patterns match: of their node, operator, or torch module.

    A pattern is a name in which `*` and `?` stand for anything. Raises UserError for one that
    matches nothing.
    """
    names: set[str] = set()
    for pattern in patterns:
        matched = {
            unit.name for unit in found if any(fnmatchcase(one, pattern) for one in _names(unit))
        }
        if not matched:
            known = [" or ".join(dict.fromkeys(_names(unit))) for unit in found if unit.weighted]
            raise UserError(
                f"{option}{pattern!r} matches nothing that could be int8. The products are: "
                + ", ".join(known)
            )
        names |= matched
    return frozenset(names)


def layers_matching(float_model: ir.Model, patterns: Sequence[str]) -> frozenset[str]:
    """Return the layers whose products patterns match, as in `matching`."""
    found = list(units(rewritten(float_model).graph))
    left = matching(found, patterns)
    return frozenset(layer_of(unit) for unit in found if unit.weighted and unit.name in left)


def bits_of(found: Sequence[Unit], bits: Bits) -> dict[str, int]:
    """Return the bits of each product's weights, by node: of the first pattern that it matches.

    What matches none has 8. Raises UserError for a pattern that matches no product.
    """
    products = [unit for unit in found if unit.weighted]
    if isinstance(bits, int):
        return {unit.name: bits for unit in products}
    known: dict[str, int] = {}
    for pattern, count in reversed(bits):
        known |= dict.fromkeys(matching(products, (pattern,), "bits: "), count)
    return {unit.name: known.get(unit.name, weight_choice.BITS) for unit in products}


def layer_bits(float_model: ir.Model, bits: Bits) -> dict[str, int]:
    """Return the bits of each layer's weights, as in `bits_of`."""
    found = list(units(rewritten(float_model).graph))
    of = bits_of(found, bits)
    return {layer_of(unit): of[unit.name] for unit in found if unit.weighted}


def layer_of(unit: Unit) -> str:
    """Return the layer of the module that a product's weight belongs to."""
    weight = unit.node.inputs[1]
    assert weight is not None
    return str(weight.name).removesuffix(WEIGHT)


def _names(unit: Unit) -> Iterator[str]:
    if unit.weighted:
        yield layer_of(unit)
    yield unit.name
    yield unit.kind


def _smaller(value: ir.Value, than: ir.Value) -> bool:
    """Whether a value is broadcast along height and width."""
    if value.shape is None or than.shape is None or len(value.shape) != 4:
        return False
    return list(value.shape[2:]) == [1, 1] != list(than.shape[2:])


def _useful(chosen: dict[str, Unit]) -> dict[str, Unit]:
    """Leave out units that only move values which no integer kernel reads afterwards."""
    kept = dict(chosen)
    for unit in reversed(list(chosen.values())):
        readers = {use.node.name for value in unit.outputs for use in value.uses()}
        if unit.passing and not readers & set(kept):
            del kept[unit.name]
    return kept


@dataclass(frozen=True)
class Draft:
    """All that the int8 file of a float graph is written from, for any placement.

    `model` is the float graph, rewritten and with its channels equalized; `wrong` holds the error
    of each product.
    """

    model: ir.Model
    found: Sequence[Unit]
    ranges: Mapping[str, Range]
    weights: Mapping[str, Weight]
    wrong: Mapping[str, Error]
    settings: Settings
    notes: Sequence[str] = ()

    @cached_property
    def excluded(self) -> frozenset[str]:
        return matching(self.found, self.settings.exclude)

    def _floats(self, further: Collection[str]) -> frozenset[str]:
        return self.settings.floats | self.excluded | set(further)

    def placed(self, floats: Collection[str] = ()) -> dict[str, Unit]:
        return placed(self.found, self._floats(floats))

    def lowered(self, floats: Collection[str] = ()) -> Lowered:
        """Return the int8 file in which further units stay float."""
        chosen = self.placed(floats)
        model = self.model
        # What was trained under these errors has biases that allow for them; and a product that
        # stays float needs no correction.
        if self.settings.correct:
            trained = self.settings.trained
            untrained = {n for n, unit in chosen.items() if not _trained(unit, trained)}
            model = corrected(model, {n: e for n, e in self.wrong.items() if n in untrained})
        made = write(model, set(chosen), self.ranges, self.weights)
        return Lowered(made, list(self._table(chosen, set(floats))), list(self.notes))

    @property
    def worst_first(self) -> list[str]:
        """The products, those with the largest error first."""
        return sorted(self.wrong, key=lambda name: self.wrong[name].sqnr)

    def _table(self, chosen: Mapping[str, Unit], floats: set[str]) -> Iterator[dict[str, Any]]:
        stored = stored_as_integers(chosen)
        clipped = {unit.clipping.name for unit in chosen.values() if unit.clipping is not None}
        reached = set(_reading_integers(self.found, self._floats(floats)))
        for node in self.model.graph:
            name = str(node.name)
            if name in clipped:
                continue
            row = described(node, name in chosen)
            if (unit := chosen.get(name)) is None:
                row["why"] = self._why(node, reached, floats)
            elif unit.output.name in stored:
                one = self.ranges[str(unit.output.name)]
                row |= {"range": one.method, "range_sqnr": round(one.sqnr, 1)}
            if name in self.wrong and name in chosen:
                row["sqnr"] = round(self.wrong[name].sqnr, 1)
            yield row

    def _why(self, node: ir.Node, reached: set[str], floats: set[str]) -> str:
        """Return why a node is float; `reached` are the units that integers reach."""
        name = str(node.name)
        if any(unit.clipping is node for unit in self.found):
            return "it reads floats"
        if reason := quantizable(node):
            return reason
        if name in floats:
            return "as int8 it loses too much accuracy"
        if name in self.excluded:
            return LEFT
        if name in self.settings.floats:
            return FASTER
        if name in reached:
            return "no integer kernel reads what it moves"
        known = any(unit.node is node for unit in self.found)
        return "it reads floats" if known else "it reads constants alone"


def require_some(chosen: Mapping[str, Unit]) -> None:
    """Raise UserError where no product is among the units to quantize."""
    if not any(unit.weighted for unit in chosen.values()):
        raise UserError(
            "nothing is left to quantize: the network has no product with an integer kernel that "
            "is not excluded"
        )


def draft(float_model: ir.Model, calibration: Batches, settings: Settings | None = None) -> Draft:
    """Find ranges and weights for a float graph.

    Raises UserError for unusable calibration data, and where nothing can be int8.
    """
    settings = settings or Settings()
    model, notes = rewritten(float_model), []
    some = some_of(calibration, max(LEAST_ITEMS, int(SETTLED / max(1, item_bytes(model)))))
    if settings.equalize:
        # Scaled outputs keep their grids, each channel having its own; scaled inputs do not.
        axes = {
            link.name: link.axis
            for link in links(model.graph)
            if not any(_trained(unit, settings.trained) for unit in link.readers)
        }
        if axes:
            scaled, count = equalized(model, observe(model, some, axes))
            if same_function(model, scaled, some_of(calibration, PROVED_ON)):
                model = scaled
            else:
                notes.append(
                    f"channels were not equalized: with {count} of its values scaled, the float "
                    f"graph gave other answers"
                )
    found = list(units(model.graph))
    chosen = placed(found, settings.floats | matching(found, settings.exclude))
    require_some(chosen)
    names = dict.fromkeys(
        name
        for unit in chosen.values()
        for value in (*unit.activations, *unit.outputs)
        if (name := value.name) is not None
    )
    observed = observe(model, calibration, dict.fromkeys(names))
    ranges = ranges_of(chosen, observed, settings.method, settings.trained)
    bits = bits_of(found, settings.bits)
    weights = weights_of(chosen, ranges, settings.portable, bits, settings.trained)
    if settings.compensate:
        weights = all_rounded(model, chosen, weights, some, settings.portable, bits)
    wrong = errors(model, weights, ranges, weights, some)
    return Draft(model, found, ranges, weights, wrong, settings, notes)


def lower(float_onnx: bytes, calibration: Batches, settings: Settings | None = None) -> Lowered:
    """Return the QDQ file of a float file. Raises UserError for unusable calibration data."""
    return draft(parsed(float_onnx), calibration, settings).lowered()


def fastest(
    float_model: ir.Model,
    samples: Batches,
    seconds: float,
    clock: Clock,
    exclude: tuple[str, ...] = (),
    now: Callable[[], float] = time.monotonic,
) -> Placement:
    """Return which units are float in the fastest file, by measuring for some seconds.

    Ranges and weights are as good as any here: kernels take as long whatever the numbers. Raises
    UserError where nothing can be int8.
    """
    started = now()
    model = rewritten(float_model)
    found = list(units(model.graph))
    left = matching(found, exclude)
    chosen = placed(found, left)
    require_some(chosen)
    every = {unit.name: unit for unit in found}
    names = dict.fromkeys(
        str(value.name) for unit in found for value in (*unit.activations, *unit.outputs)
    )
    ranges = ranges_of(every, observe(model, samples, dict.fromkeys(names)), "minmax")
    weights = weights_of(every, ranges, portable=True)

    def write_with(floats: frozenset[str]) -> bytes:
        return write(model, set(placed(found, floats | left)), ranges, weights)

    whole = serialized(float_model)
    return search(chosen, write_with, whole, clock, seconds, ready=now() - started, now=now)


def ranges_of(
    chosen: Mapping[str, Unit],
    observed: Mapping[str, Observed],
    method: str,
    trained: Mapping[str, Range] | None = None,
) -> dict[str, Range]:
    """Return the range of every value that chosen units read or write."""
    found = {name: range_choice.best(one, method) for name, one in observed.items()}
    settled = _given(chosen, trained or {})
    for unit in chosen.values():
        if unit.kind == "HardSwish" and sole_reader(unit.activations[0]) is unit.node:
            swished = str(unit.activations[0].name)
            begins = range_choice.for_hard_swish(found[swished], observed[swished])
            settled.setdefault(swished, begins)
        elif unit.kind in FIXED_RANGES:
            settled[str(unit.output.name)] = FIXED_RANGES[unit.kind]
    found |= settled
    found |= joined(chosen, found, observed, settled)
    for unit in chosen.values():
        if unit.passing:
            source = found[str(unit.activations[0].name)]
            found |= {str(value.name): source for value in unit.outputs}
    return found


WHOLE = frozenset({"Flatten", "MaxPool", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
"""These move all values of what they read."""


def _trained(unit: Unit, trained: Collection[str]) -> bool:
    return unit.weighted and layer_of(unit) in trained


def _given(chosen: Mapping[str, Unit], trained: Mapping[str, Range]) -> dict[str, Range]:
    """Return the ranges of values that products read, as a training settled on them.

    Where such a value was only moved, so has the value that it was moved from this range. Where
    layers share a weight, its name does not tell whose input is meant.
    """
    users = Counter(layer_of(unit) for unit in chosen.values() if unit.weighted)
    found: dict[str, Range] = {}
    for unit in reversed(list(chosen.values())):
        source, output = str(unit.activations[0].name), str(unit.output.name)
        if _trained(unit, trained) and users[layer_of(unit)] == 1:
            found[source] = trained[layer_of(unit)]
        elif unit.kind in WHOLE and sole_reader(unit.activations[0]) is unit.node:
            found |= {source: found[output]} if output in found else {}
    return found


def weights_of(
    chosen: Mapping[str, Unit],
    ranges: Mapping[str, Range],
    portable: bool,
    bits: Mapping[str, int] | None = None,
    trained: Collection[str] = (),
) -> dict[str, Weight]:
    """Return the integers of every weight; units that share one share its integers.

    `bits` are those of each unit, 8 where they are left out.

    Weights of `trained` layers that lie on a grid which would do keep it.
    """
    sharing: dict[str, list[Unit]] = {}
    for unit in chosen.values():
        if unit.weighted:
            sharing.setdefault(str(unit.node.inputs[1].name), []).append(unit)  # type: ignore[union-attr]
    found: dict[str, Weight] = {}
    for group in sharing.values():
        axis, weight = group[0].channel_axis, group[0].weight
        least = np.zeros(weight.shape[axis])
        for unit in group:
            step = ranges[str(unit.activations[0].name)].scale
            least = np.maximum(
                least, weight_choice.least_scale(unit.bias, step, weight.shape[axis])
            )
        own = (bits or {}).get(group[0].name, weight_choice.BITS)
        scale = weight_choice.scales(weight, axis, portable, least, own)
        if _trained(group[0], trained):
            scale = weight_choice.kept_grids(weight, axis, portable, least, own, scale)
        made = weight_choice.rounded(weight, axis, scale, own)
        found |= {unit.name: made for unit in group}
    return found
