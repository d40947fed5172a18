"""Rounding a weight so that its products change least, not its numbers.

What one weight is rounded by, the weights that are still to be rounded take back as far as their
inputs go together (Frantar et al. 2023, GPTQ: the order of Hassibi & Stork's Optimal Brain Surgeon,
made quick). It needs the second moments of the inputs alone, which are summed chunk by chunk. No
two neighbours become so large that they saturate, if that is asked for.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from compress.deploy.observe import Runner
from compress.deploy.saturation import PAIR
from compress.int8.calibration import Batches, number_of
from compress.int8.units import Unit
from compress.int8.weights import BITS, Weight, most

TOGETHER = 1280
"""Inputs of an output that make up for each other. Of more, each part does so on its own: the work
grows with the cube of their number, and the memory with its square."""
HELD = 768e6
"""Bytes of moments that are summed in one pass over the items."""
PATCHES = 4096
"""Inputs of a product that are looked at, at least; and twice as many as each has numbers."""
WAITING = 256
"""Inputs of a product that are added up at once."""
DAMPING = 0.01
"""What is added to the diagonal, as a share of its mean (Frantar et al. 2023)."""
BLOCK = 64


def inputs_of(unit: Unit) -> int:
    """Return how many numbers each output is a product of."""
    return unit.weight.size // unit.weight.shape[unit.channel_axis]


def parts_of(unit: Unit) -> list[slice]:
    """Return parts of about equal size of a unit's inputs, whole channels each."""
    width = inputs_of(unit)
    count = -(-width // TOGETHER)
    kernel = int(np.prod(unit.weight.shape[2:])) if unit.kind == "Conv" else 1
    channels = width // kernel
    ends = [kernel * (channels * part // count) for part in range(count + 1)]
    return [slice(start, end) for start, end in itertools.pairwise(ends) if end > start]


def passes(found: Iterable[Unit]) -> Iterator[list[Unit]]:
    """Yield units whose moments fit into memory together."""
    together: list[Unit] = []
    held = 0.0
    for unit in found:
        if inputs_of(unit) < 2:
            continue
        size = 4.0 * unit.groups * sum((part.stop - part.start) ** 2 for part in parts_of(unit))
        if together and held + size > HELD:
            yield together
            together, held = [], 0.0
        together.append(unit)
        held += size
    if together:
        yield together


def moments(
    model: ir.Model, found: Sequence[Unit], batches: Batches, seed: int = 0
) -> dict[str, list[Tensor]]:
    """Return E[x xᵀ] of each part of the inputs of units, (groups, part, part), by their names."""
    items = number_of(batches)
    generator = np.random.default_rng(seed)
    sums = {unit.name: _Sums(unit) for unit in found}
    names = dict.fromkeys(str(unit.activations[0].name) for unit in found)
    for count, values in Runner(model, names).chunks(batches):
        for unit in found:
            wanted = -(-max(PATCHES, 2 * min(inputs_of(unit), TOGETHER)) // items) * count
            patches = _patches(unit, values[str(unit.activations[0].name)], wanted, generator)
            sums[unit.name].put(patches)
    return {name: one.means() for name, one in sums.items()}


class _Sums:
    """Sums of x xᵀ, for each part of a unit's inputs.

    Rows wait for others: one product of many costs less than many of few.
    """

    def __init__(self, unit: Unit) -> None:
        self.parts = parts_of(unit)
        self.sums: list[Tensor] = []
        self.count = 0
        self.waiting: list[np.ndarray] = []

    def put(self, rows: np.ndarray) -> None:
        """Add rows of shape (groups, number, width)."""
        self.count += rows.shape[1]
        self.waiting.append(rows)
        if sum(one.shape[1] for one in self.waiting) >= WAITING:
            self._add()

    def _add(self) -> None:
        rows = torch.from_numpy(np.concatenate(self.waiting, 1)).float()
        self.waiting = []
        products = [(part := rows[:, :, one]).transpose(1, 2) @ part for one in self.parts]
        if not self.sums:
            self.sums = products
            return
        for known, one in zip(self.sums, products, strict=True):
            known += one

    def means(self) -> list[Tensor]:
        if self.waiting:
            self._add()
        return [one.div_(self.count) for one in self.sums]


def _patches(
    unit: Unit, values: np.ndarray, wanted: int, generator: np.random.Generator
) -> np.ndarray:
    """Return some inputs of a unit's products, (groups, number, width)."""
    if unit.kind != "Conv":
        rows = values.reshape(-1, values.shape[-1])
        if len(rows) > wanted:
            rows = rows[generator.choice(len(rows), wanted, replace=False)]
        return rows[None]
    spatial = values.ndim - 2
    kernel = unit.weight.shape[2:]
    strides = _list(unit, "strides", [1] * spatial)
    dilations = _list(unit, "dilations", [1] * spatial)
    pads = _list(unit, "pads", [0] * 2 * spatial)
    padded = np.pad(values, [(0, 0), (0, 0), *zip(pads[:spatial], pads[spatial:], strict=True)])
    spans = [(size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(padded, spans, tuple(range(2, values.ndim)))
    every = tuple(slice(None, None, step) for step in strides)
    inside = tuple(slice(None, None, step) for step in dilations)
    everything = (slice(None), slice(None))
    windows = windows[(*everything, *every, *inside)]
    places = windows.shape[2 : 2 + spatial]
    number = min(int(np.prod(places)), -(-wanted // len(values)))
    chosen = generator.choice(int(np.prod(places)), number, replace=False)
    index = np.unravel_index(chosen, places)
    taken = windows[(*everything, *index)]  # type: ignore[arg-type]
    # (N, C, number, *kernel)
    taken = np.moveaxis(taken, 2, 1).reshape(len(values) * number, unit.groups, -1)
    return np.moveaxis(taken, 1, 0)


def _list(unit: Unit, name: str, default: list[int]) -> list[int]:
    found = unit.node.attributes.get(name)
    return default if found is None else list(found.value)


def rounded(
    unit: Unit,
    weight: np.ndarray,
    scale: np.ndarray,
    moments: Sequence[Tensor],
    portable: bool,
    bits: int = BITS,
) -> Weight:
    """Return the integers of a weight whose products differ least, given E[x xᵀ] of each part."""
    axis, groups = unit.channel_axis, unit.groups
    rows = np.moveaxis(weight, axis, 0)
    flat = rows.reshape(groups, len(rows) // groups, -1)
    steps = scale.astype(np.float64).reshape(groups, -1, 1)
    near = neighbours(rows.shape[1:]) if portable else [[] for _ in range(flat.shape[2])]
    integers = np.zeros(flat.shape, np.int8)
    ends = np.full(flat.shape[:2], float(most(bits)))
    for part, moment in zip(parts_of(unit), moments, strict=True):
        here = near[part]
        inside = [[o - part.start for o in ones if part.start <= o < part.stop] for ones in here]
        before = [[o for o in ones if o < part.start] for ones in here]
        beside = (np.moveaxis(integers[:, :, ones].astype(np.float64), 2, 0) for ones in before)
        room = [_allowed(ones, -ends, ends) for ones in beside]
        # Of large layers, only a part at a time is held in float64.
        values = flat[:, :, part] / steps
        integers[:, :, part] = _compensated(values, moment.double(), inside, room)
    whole = integers.reshape(rows.shape)
    return Weight(np.ascontiguousarray(np.moveaxis(whole, 0, axis)), scale, axis)


def _compensated(
    weight: np.ndarray,
    moment: Tensor,
    near: list[list[int]],
    room: Sequence[tuple[np.ndarray, np.ndarray]],
) -> np.ndarray:
    """Round (groups, outputs, width), in steps, given E[x xᵀ] (groups, width, width).

    `near` are the neighbours of each input, `room` its smallest and largest integer without them.
    """
    # Inputs of much weight first: the others can make up for them.
    order = moment.diagonal(dim1=1, dim2=2).mean(0).argsort(descending=True)
    place = order.argsort()
    places, inputs = place.tolist(), order.tolist()
    takes = _takes(moment, order)
    # By input, (width, groups, outputs). In numpy: its calls cost less, and there are many.
    left = np.ascontiguousarray(weight[:, :, order.numpy()].transpose(2, 0, 1))
    integers = np.zeros_like(left)
    for start in range(0, len(left), BLOCK):
        block = left[start : start + BLOCK]
        end = start + len(block)
        inside = np.ascontiguousarray(takes[:, start:end, start:end].transpose(1, 2, 0))[..., None]
        misses = np.empty_like(block)
        for row, index in enumerate(range(start, end)):
            others = (places[other] for other in near[inputs[index]])
            before = [other for other in others if other < index]
            low, high = _allowed(integers[before], *room[inputs[index]])
            integers[index] = np.rint(block[row]).clip(low, high)
            misses[row] = block[row] - integers[index]
            block[row + 1 :] -= inside[row, row + 1 :] * misses[row]
        share = takes[:, start:end, end:].transpose(0, 2, 1) @ misses.transpose(1, 0, 2)
        left[end:] -= share.transpose(1, 0, 2)
    return integers[place.numpy()].transpose(1, 2, 0)


def _takes(moment: Tensor, order: Tensor) -> np.ndarray:
    """Return which share of an input's miss each later one takes, (groups, width, width).

    The rows, over their diagonal, of the upper triangular U for which UᵀU is the inverse.
    """
    mean = moment.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-30)
    moment = moment[:, order][:, :, order] / mean[:, None, None]
    moment.diagonal(dim1=1, dim2=2).add_(DAMPING)
    # From both ends: M = W Wᵀ for an upper triangular W, whose inverse is U.
    factor = torch.linalg.cholesky(moment.flip(1, 2)).flip(1, 2)
    one = torch.eye(len(order), dtype=moment.dtype).expand_as(moment)
    upper = torch.linalg.solve_triangular(factor, one, upper=True)
    found: np.ndarray = (upper / upper.diagonal(dim1=1, dim2=2)[:, :, None]).numpy()
    return found


def _allowed(
    beside: np.ndarray, low: np.ndarray, high: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the smallest and the largest integer beside (number, groups, outputs) neighbours."""
    if not len(beside):
        return low, high
    low = np.maximum(low, -PAIR - np.minimum(beside.min(0), 0))
    high = np.minimum(high, PAIR - np.maximum(beside.max(0), 0))
    return low, high


def neighbours(shape: Sequence[int]) -> list[list[int]]:
    """Return, of each weight of an output channel, which others some kernel multiplies beside it.

    As in `deploy.saturation`: in the order as they lie, and with the input channels last.
    """
    index = np.arange(int(np.prod(shape))).reshape(shape)
    walks = [index.reshape(-1)]
    if index.ndim > 1:
        walks.append(np.moveaxis(index, 0, -1).reshape(-1))
    found: list[set[int]] = [set() for _ in range(index.size)]
    for walk in walks:
        for one, other in zip(walk[:-1].tolist(), walk[1:].tolist(), strict=True):
            found[one].add(other)
            found[other].add(one)
    return [sorted(one) for one in found]


def all_rounded(
    model: ir.Model,
    units: Mapping[str, Unit],
    weights: Mapping[str, Weight],
    batches: Batches,
    portable: bool,
    bits: Mapping[str, int] | None = None,
) -> dict[str, Weight]:
    """Return the weights of units, each rounded with the scales, and to the bits, that it has."""
    found = dict(weights)
    first: dict[str, Unit] = {}
    for unit in units.values():  # of those that share a weight, the first one's inputs count
        if unit.weighted:
            first.setdefault(str(unit.node.inputs[1].name), unit)  # type: ignore[union-attr]
    for together in passes(first.values()):
        for name, moment in moments(model, together, batches).items():
            unit = units[name]
            own = (bits or {}).get(name, BITS)
            made = rounded(unit, unit.weight, weights[name].scale, moment, portable, own)
            for other in units.values():
                if other.weighted and other.node.inputs[1].name == unit.node.inputs[1].name:  # type: ignore[union-attr]
                    found[other.name] = made
    return found
