"""What the values inside a float graph are on calibration items, in memory that does not grow.

Every value keeps its extremes and a histogram, whatever the number of items: the histogram's bins
become twice as wide, and half of them are merged, when a larger value comes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir

from compress.deploy.graphs import opened
from compress.deploy.session import arrays
from compress.errors import UserError
from compress.system.memory import free_memory
from compress.tasks.base import Tensors

BINS = 4096
TINY = float(np.finfo(np.float32).tiny)
"""The least width of a bin: values are float32, and so is what they are divided by."""
SAMPLED = 1 << 15
"""Elements of a value that a chunk adds to its histogram; its extremes are those of all."""
HELD = 256e6
"""Bytes that the values of a chunk may take, those that are asked for and all others."""
MOST = 32
"""Items of the largest chunk."""


@dataclass
class Observed:
    """The extremes and the histogram of a value; bin i covers [(i - BINS/2) * width, + width)."""

    low: float = math.inf
    high: float = -math.inf
    width: float = 0.0
    counts: np.ndarray = field(default_factory=lambda: np.zeros(BINS, np.int64))
    channels: np.ndarray | None = None
    """The largest absolute value of each channel."""

    @property
    def largest(self) -> float:
        return max(abs(self.low), abs(self.high))

    @property
    def centers(self) -> np.ndarray:
        return (np.arange(BINS) - BINS // 2 + 0.5) * self.width

    def add(self, values: np.ndarray, channel_axis: int | None = None) -> None:
        """Take in an array. Raises UserError for what is not finite."""
        low, high = float(values.min()), float(values.max())
        if not math.isfinite(low) or not math.isfinite(high):
            raise UserError(
                "calibration gives values that are not finite: look for NaN, or for items that "
                "are not scaled as the model needs them"
            )
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._widen()
        flat = values.reshape(-1)
        flat = flat[:: _step(flat.size)]
        if self.width:
            index = np.floor(flat / self.width).astype(np.int64) + BINS // 2
            self.counts += np.bincount(index.clip(0, BINS - 1), minlength=BINS)
        if channel_axis is not None:
            axis = channel_axis % values.ndim
            others = tuple(i for i in range(values.ndim) if i != axis)
            found = np.maximum(values.max(others), -values.min(others))
            self.channels = found if self.channels is None else np.maximum(self.channels, found)

    def _widen(self) -> None:
        if not self.width:
            # With room, so that a value a little larger costs no precision.
            self.width = max(1.25 * self.largest / (BINS // 2), TINY) if self.largest else 0.0
            return
        while self.largest >= self.width * (BINS // 2):
            half = self.counts.reshape(-1, 2).sum(1)
            self.counts = np.zeros(BINS, np.int64)
            self.counts[BINS // 4 : BINS // 4 + BINS // 2] = half
            self.width *= 2


def _step(size: int) -> int:
    """Return a stride that takes about `SAMPLED` elements, in step with no dimension."""
    step = max(1, size // SAMPLED)
    while math.gcd(step, size) > 1:
        step += 1
    return step


def float_values(content: bytes) -> list[str]:
    """Return the names of all values of a file that are floats and depend on its input."""
    graph = onnx.shape_inference.infer_shapes(onnx.load_from_string(content)).graph
    known = {value.name: value.type for value in (*graph.value_info, *graph.output)}
    names = [name for node in graph.node if node.op_type != "Constant" for name in node.output]
    return [
        name
        for name in names
        if name in known and known[name].tensor_type.elem_type == onnx.TensorProto.FLOAT
    ]


def item_bytes(model: ir.Model) -> int:
    """Return the bytes of all values inside a graph for one item, open dimensions taken as 1.

    Of a dimension such as `64*batch` the number counts.
    """
    total = 0.0
    for node in model.graph:
        for value in node.outputs:
            if value.shape is not None and value.dtype is not None:
                numbers = re.findall(r"\d+", "*".join(map(str, value.shape)))
                total += math.prod(map(int, numbers)) * value.dtype.itemsize
    return int(total)


def together(bytes_of_item: float) -> int:
    """Return how many items may be run at once.

    Where little memory is left, fewer: their values may take a quarter of it.
    """
    held = min(HELD, free_memory() / 4)
    return max(1, min(MOST, int(held / max(bytes_of_item, 1))))


class Runner:
    """Runs a graph on calibration items, chunk by chunk, and gives the values that were named."""

    def __init__(self, model: ir.Model, names: Collection[str]) -> None:
        self.names = list(names)
        self.session = opened(model, names)
        self.item = item_bytes(model)
        self.shapes = [list(value.shape or ()) for value in model.graph.inputs]

    def values(self, chunk: list[np.ndarray]) -> dict[str, np.ndarray]:
        feed = dict(zip(self.session.names, chunk, strict=True))
        found = self.session.session.run(self.names, feed)
        return dict(zip(self.names, found, strict=True))

    def _check(self, batch: list[np.ndarray]) -> None:
        """Raise UserError for items that the graph does not take."""
        for part, shape in zip(batch, self.shapes, strict=True):
            if shape and (
                len(shape) != part.ndim
                or any(
                    isinstance(size, int) and size != has
                    for size, has in zip(shape[1:], part.shape[1:], strict=True)
                )
            ):
                wanted = " x ".join(map(str, shape[1:]))
                raise UserError(
                    f"calibration items are {' x '.join(map(str, part.shape[1:]))}, and the "
                    f"network takes {wanted}"
                )

    def chunks(self, batches: Iterable[Tensors]) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """Yield numbers of items and their values, as many items as `HELD` bytes allow."""
        size = 1
        for batch in batches:
            whole = arrays(batch)
            self._check(whole)
            start = 0
            while start < len(whole[0]):
                found = self.values([part[start : start + size] for part in whole])
                count = min(size, len(whole[0]) - start)
                start += count
                yield count, found
                asked = sum(value.nbytes for value in found.values()) / count
                size = together(max(asked, self.item))


def observe(
    model: ir.Model, batches: Iterable[Tensors], channel_axes: Mapping[str, int | None]
) -> dict[str, Observed]:
    """Return what the named values of a graph are on calibration items.

    `channel_axes` says of each along which axis its channels lie, where they are wanted. Raises
    UserError without items, and for values that are not finite.
    """
    found = {name: Observed() for name in channel_axes}
    items = 0
    for count, values in Runner(model, found).chunks(batches):
        items += count
        for name, value in values.items():
            found[name].add(value, channel_axes[name])
    if not items:
        raise UserError("quantization needs calibration data, and there is none")
    return found
