"""Second moments of what layers are given on calibration items, batch by batch.

Memory does not grow with the number of items: of every batch some rows of each layer's unfolded
inputs are taken (patches of a convolution at random positions, tokens of a linear layer), and their
sums and products added up in float64. A layer of more than `WIDEST` unfolded inputs, whose moments
would not fit, has those of its outputs collected instead, which is all that the `channel` form
needs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from math import ceil
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.errors import UserError
from compress.lowrank.fit import Inputs
from compress.lowrank.forms import Layer, inputs_of, outputs_of
from compress.model import forward, on_device_of
from compress.tasks.base import Tensors

WIDEST = 4608
"""Unfolded inputs up to which their moments are kept: 3 x 3 x 512, of 170 MB."""
ROWS = 16384
"""Rows of unfolded inputs that are taken of a layer, over all batches."""
NARROW = 1152
"""Unfolded inputs up to which all of these are taken: 3 x 3 x 128. Of wider layers, whose products
take most of the time, half of them, or twice as many rows as there are inputs."""
ENOUGH = 2048
"""Rows that are added at once: more would take memory, fewer time."""
TOGETHER = 1 << 30
"""Bytes of moments that are held at once."""
PASS = 8
"""Items of a batch that are run through the model at once: what they leave stays in caches, and a
ResNet-50 takes a fifth less time for it."""
BLOCK = 512
"""Rows of a matrix of products that are computed at once, from the diagonal on: half of a symmetric
matrix is enough."""

Batches = Iterable[Tensors]


class NotFinite(UserError):
    """A layer is given, or gives, values that are not finite."""

    path: str


def not_finite(path: str) -> NotFinite:
    """Return the error for the layer at a path."""
    error = NotFinite(
        f"on the calibration items, layer {path} is given values that are not finite, or gives "
        f"such: remove these items, or give calibration=0"
    )
    error.path = path
    return error


class _Enough(Exception):
    """All layers that matter have been called."""


@dataclass
class Sums:
    """Running sums over rows of a layer's unfolded inputs x and wanted outputs y, in float64.

    Both are taken from a point near their mean, that of the first batch. So the products of a batch
    can be computed in float32, which takes half the time: nothing cancels when the mean is taken
    out.
    """

    layer: Layer
    asymmetric: bool = False
    """Whether outputs are wanted that are not the layer's own."""
    count: int = 0
    inputs: Tensor = field(init=False)
    products: Tensor = field(init=False)
    """Of which what lies left of the blocks along the diagonal is not computed."""
    waiting: list[tuple[Tensor, Tensor | None]] = field(default_factory=list)
    """Rows that are not added yet, with the outputs that are wanted of them."""

    def __post_init__(self) -> None:
        size, outputs = inputs_of(self.layer), outputs_of(self.layer)
        self.wide = size > WIDEST
        self.weight = self.layer.weight.detach().cpu().flatten(1)
        side = outputs if self.wide else size
        self.inputs = torch.zeros(size, dtype=torch.float64)
        self.products = torch.zeros(side, side, dtype=torch.float64)
        self.outputs = torch.zeros(outputs, dtype=torch.float64)
        self.squares = 0.0
        self.origin = torch.zeros(size)
        self.wanted_origin = torch.zeros(outputs)
        if self.asymmetric and not self.wide:
            self.crossed = torch.zeros(outputs, size, dtype=torch.float64)

    def put(self, rows: Tensor, wanted: Tensor | None = None) -> None:
        """Have rows wait for others: one product of many takes less time than many of few."""
        assert wanted is None or len(wanted) == len(rows), "rows of both nets belong together"
        self.waiting.append((rows.cpu(), None if wanted is None else wanted.cpu()))
        if sum(len(some) for some, _ in self.waiting) >= ENOUGH:
            self.add()

    def add(self) -> None:
        """Add what waits."""
        if not self.waiting:
            return
        rows = torch.cat([some for some, _ in self.waiting])
        known = [some for _, some in self.waiting if some is not None]
        wanted = torch.cat(known) if known else None
        self.waiting.clear()
        if not self.count and len(rows):
            self.origin = rows.mean(0)
            if wanted is not None:
                self.wanted_origin = wanted.mean(0)
        rows = rows - self.origin
        self.count += len(rows)
        self.inputs += rows.sum(0, dtype=torch.float64)
        part = rows @ self.weight.T if self.wide else rows
        for start in range(0, len(self.products), BLOCK):
            block = part[:, start : start + BLOCK]
            self.products[start : start + BLOCK, start:] += block.T @ part[:, start:]
        if wanted is not None:
            wanted = wanted - self.wanted_origin
            self.outputs += wanted.sum(0, dtype=torch.float64)
            self.squares += float(wanted.double().square().sum())
            if not self.wide:
                self.crossed += wanted.T @ rows

    def result(self, path: str) -> Inputs:
        """Return what the sums say of a layer. Raises NotFinite where they are not finite."""
        self.add()
        if not all(one.isfinite().all() for one in (self.products, self.inputs, self.outputs)):
            raise not_finite(path)
        count = max(self.count, 1)
        for start in range(BLOCK, len(self.products), BLOCK):
            before = slice(start - BLOCK, start)
            self.products[start:, before] = self.products[before, start:].T
        off, mean = self.inputs / count, self.origin + self.inputs / count
        wanted_off = self.outputs / count
        wanted_mean = self.wanted_origin + wanted_off if self.asymmetric else None
        if self.wide:
            center = self.weight.double() @ off
            moments = self.products / count - torch.outer(center, center)
            return Inputs(mean, outputs=moments, wanted_mean=wanted_mean, rows=self.count)
        moments = self.products / count - torch.outer(off, off)
        if wanted_mean is None:
            return Inputs(mean, moments, rows=self.count)
        energy = self.squares / count - float(wanted_off.square().sum())
        crossed = self.crossed / count - torch.outer(wanted_off, off)
        return Inputs(mean, moments, None, crossed, wanted_mean, energy, self.count)


def size_of(layer: Layer) -> int:
    """Return the bytes that a layer's moments take, less those with wanted outputs."""
    size = inputs_of(layer)
    return 8 * (size * size if size <= WIDEST else outputs_of(layer) ** 2)


def moments(
    module: nn.Module, calls: Mapping[str, int], batches: Batches, items: int
) -> dict[str, Inputs]:
    """Return what layers of a module are given, by their paths; `calls` says how often they run.

    Raises UserError for values that are not finite.
    """
    layers: dict[str, Layer] = {path: module.get_submodule(path) for path in calls}  # type: ignore[misc]
    sums = {path: Sums(layer) for path, layer in layers.items()}
    for number, batch in enumerate(batches):
        for some in zip(*(tensor.split(PASS) for tensor in batch), strict=True):
            part = len(some[0]) / max(items, 1)
            shares = {path: part * rows_of(layer) for path, layer in layers.items()}
            _put(sums, module, calls, some, _Picker(number, shares, calls))
    return {path: one.result(path) for path, one in sums.items()}


def rows_of(layer: Layer) -> int:
    """Return how many rows of a layer's inputs are taken."""
    size = inputs_of(layer)
    return ROWS if size <= NARROW else min(ROWS, max(ROWS // 2, 2 * size))


def _put(
    sums: Mapping[str, Sums],
    module: nn.Module,
    calls: Mapping[str, int],
    batch: Tensors,
    pick: _Picker,
) -> None:
    """Give a part of a batch to the sums."""

    def collect(path: str, call: int, layer: Layer, x: Tensor, y: Tensor) -> None:
        sums[path].put(pick.inputs(path, call, layer, x, y))

    _watched(module, calls, batch, collect)


Seen = Callable[[str, int, Layer, Tensor, Tensor], None]


def _watched(module: nn.Module, calls: Mapping[str, int], batch: Tensors, seen: Seen) -> None:
    """Run a module on a batch up to the last of some layers, and show every call of these."""
    left = dict(calls)

    def hook(path: str) -> Any:
        def call(layer: Any, inputs: Any, options: Any, output: Tensor) -> None:
            x = inputs[0] if inputs else options["input"]
            seen(path, calls[path] - left[path], layer, x, output)
            left[path] -= 1
            if not any(left.values()):
                raise _Enough

        return call

    with ExitStack() as stack:
        for path in calls:
            handle = module.get_submodule(path).register_forward_hook(hook(path), with_kwargs=True)
            stack.callback(handle.remove)
        try:
            forward(module, on_device_of(module, batch))
        except _Enough:
            return


class _Picker:
    """Which rows of a layer's inputs are taken of a batch."""

    def __init__(self, batch: int, shares: Mapping[str, float], calls: Mapping[str, int]) -> None:
        self.batch, self.shares, self.calls = batch, shares, calls
        self.numbers = {path: number for number, path in enumerate(calls)}

    def inputs(self, path: str, call: int, layer: Layer, x: Tensor, y: Tensor) -> Tensor:
        """Return rows (n, D) of unfolded inputs."""
        wanted = self.shares[path] / max(self.calls[path], 1)
        which = (self.batch * 100_003 + self.numbers[path]) * 1009 + call
        if isinstance(layer, nn.Linear):
            rows = x.reshape(-1, x.shape[-1])
            return rows[chosen(which, len(rows), ceil(wanted))]
        places = chosen(which, y.shape[2] * y.shape[3], ceil(wanted / max(len(x), 1)))
        return patches(layer, x, places // y.shape[3], places % y.shape[3])


def chosen(seed: int, size: int, count: int) -> Tensor:
    """Return `count` of so many places at random, in order; all where there are no more."""
    if count >= size:
        return torch.arange(size)
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(size, generator=generator)[:count].sort().values


def patches(layer: nn.Conv2d, x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return the patches of x (N, I, H, W) at some output positions, shape (N * n, I * kh * kw)."""
    beside = padding(layer)
    x = F.pad(x, beside) if any(beside) else x
    (height, width), (down, right) = layer.kernel_size, layer.dilation
    above = rows[:, None, None] * layer.stride[0] + torch.arange(height)[:, None] * down
    left = columns[:, None, None] * layer.stride[1] + torch.arange(width) * right
    places = (above * x.shape[3] + left).flatten().to(x.device)
    # (N, I, n * kh * kw) to (N, n, I, kh * kw)
    taken = x.flatten(2).index_select(2, places).view(*x.shape[:2], len(rows), height * width)
    return taken.transpose(1, 2).reshape(len(x) * len(rows), x.shape[1] * height * width)


def padding(layer: nn.Conv2d) -> list[int]:
    """Return the zeros left, right, above and below the inputs of a convolution."""
    if layer.padding == "valid":
        return [0] * 4
    if isinstance(layer.padding, str):
        both = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        return [both[1] // 2, both[1] - both[1] // 2, both[0] // 2, both[0] - both[0] // 2]
    return [layer.padding[1]] * 2 + [layer.padding[0]] * 2


def in_groups(paths: Collection[str], sizes: Sequence[int], most: int) -> list[list[str]]:
    """Split paths, in order, so that the sizes of each group add up to at most `most`."""
    groups: list[list[str]] = []
    room = 0
    for path, size in zip(paths, sizes, strict=True):
        if not groups or size > room:
            groups.append([])
            room = most
        groups[-1].append(path)
        room -= size
    return groups
