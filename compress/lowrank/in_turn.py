"""Fitting the layers of a net one after another, in one pass over all items.

The items go through the net as one batch. Each layer that is to be fitted is, when it is reached,
fitted to what the layers before it give by then, and its outputs are computed anew: so later layers
take back what earlier ones lose (He et al. 2017, arXiv 1707.06168, section 3.2), and fitting all
layers takes one pass of the net, and before it one of the original, whose outputs are what is
wanted.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from compress.lowrank.fit import Inputs
from compress.lowrank.forms import Layer, outputs_of
from compress.lowrank.moments import (
    PASS,
    Batches,
    Sums,
    chosen,
    not_finite,
    patches,
    rows_of,
)
from compress.model import forward, on_device_of
from compress.tasks.base import Tensors

ROOM = 3 << 29
"""Bytes that the values between layers may take."""
LEAST = 64
"""Items that a fit is not done with fewer of, for want of room."""
RECORDED = 1 << 30
"""Bytes of the original's outputs that may be recorded."""
SAME = 1e-3
"""Of the largest, by which outputs for two items may differ from those for each."""
FEWEST = 0.25
"""The share of the usual rows that a fit is not done with fewer of, for want of room."""
Stay = Mapping[str, Tensor | None]
"""By the path of a layer, which outputs are meant (None: all)."""
Fit = Callable[[str, Layer, Inputs], nn.Module]
"""Given the path of a layer, itself and what it is given, returns what it becomes."""


def items_with_room(module: nn.Module, inputs: Tensors, items: int) -> int:
    """Return how many of so many items a net's values have room for; 0 if they are too few."""
    one = on_device_of(module, tuple(tensor[:1].clone() for tensor in inputs))
    with _Held(module, one) as held:
        forward(module, one)
    found = min(items, ROOM // max(held.most, 1))
    return found if found >= min(items, LEAST) else 0


class _Held(TorchDispatchMode):
    """Sees how many bytes the inputs, and values that are computed, take at most at once.

    A value is there as long as any tensor looks at it. Not counted are the module's own, and what
    an operator uses while it runs.
    """

    def __init__(self, module: nn.Module, inputs: Tensors) -> None:
        super().__init__()
        known = [one.untyped_storage() for one in (*module.state_dict().values(), *inputs)]
        self._own = {storage.data_ptr() for storage in known}
        self.most = self.now = sum(one.untyped_storage().nbytes() for one in inputs)
        self._looking = Counter[int]()
        """How many tensors look at a storage, by its address."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for one in result if isinstance(result, tuple | list) else [result]:
            if isinstance(one, Tensor):
                self._see(one)
        self.most = max(self.most, self.now)
        return result

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        place, size = storage.data_ptr(), storage.nbytes()
        if place in self._own or not size:
            return
        self.now += 0 if self._looking[place] else size
        self._looking[place] += 1
        weakref.finalize(tensor, self._gone, place, size).atexit = False

    def _gone(self, place: int, size: int) -> None:
        self._looking[place] -= 1
        self.now -= 0 if self._looking[place] else size


def first_items(batches: Batches, count: int) -> Tensors | None:
    """Return the first `count` items of some batches, as one batch; None if lengths differ."""
    found: list[Tensors] = []
    for batch in batches:
        found.append(batch)
        if sum(len(one[0]) for one in found) >= count:
            break
    parts = list(zip(*found, strict=True))
    if any(len({tensor.shape[1:] for tensor in tensors}) > 1 for tensors in parts):
        return None
    return tuple(torch.cat(tensors)[:count] for tensors in parts)


class Wanted:
    """What an original gives in some rows of its layers' outputs, which is what others should."""

    def __init__(
        self,
        original: nn.Module,
        stay: Stay,
        inputs: Tensors,
        rows: Callable[[Layer], int] = rows_of,
    ) -> None:
        """Record layers, each of which runs once in a pass; `stay` says which of their outputs.

        Raises UserError for values that are not finite.
        """
        self.inputs, self.paths = inputs, list[str]()
        """The layers that can be fitted: all those where the rows of items follow one another, as
        far as there is room."""
        self._stay, self._parts = stay, dict[str, list[_Part]]()
        self._of_item = _rows_of_an_item(original, list(stay), inputs)
        layers: dict[str, Layer] = {p: original.get_submodule(p) for p in self._of_item}  # type: ignore[misc]
        wide = {path: rows(layer) * outputs_of(layer) for path, layer in layers.items()}
        share = min(1.0, RECORDED / (4 * max(sum(wide.values()), 1)))
        if share < FEWEST:
            return
        taken = share / max(len(inputs[0]), 1)
        self._taken = {path: taken * rows(layer) for path, layer in layers.items()}
        """How many rows are taken of an item."""
        self._parts = {path: [] for path in layers}
        # A few items at a time, so that what layers leave stays in caches.
        for some in zip(*(tensor.split(PASS) for tensor in inputs), strict=True):
            with _forwards(original, layers, self._record(len(some[0]))):
                forward(original, on_device_of(original, some))
        every = -(-len(inputs[0]) // PASS)
        self.paths = [p for p in layers if len(self._parts[p]) == every]

    def _record(self, items: int) -> _Instead:
        numbers = {path: number for number, path in enumerate(self._parts)}

        def record(path: str, layer: Layer, x: Tensor, run: Run) -> Tensor:
            y, parts = run(x), self._parts[path]
            if len(x) != items * self._of_item[path]:
                return y  # and the path is left out
            shape = _positions(layer, y)
            seed = numbers[path] * 1009 + len(parts)
            chosen = _chosen(seed, layer, shape, ceil(items * self._taken[path]))
            outputs = _taken(layer, y, chosen)
            if not outputs.isfinite().all():
                raise not_finite(path)
            outputs = _columns(outputs, self._stay[path])
            parts.append(_Part(len(x), shape, chosen, outputs))
            return y

        return record

    def fit(self, module: nn.Module, stay: Stay, fit: Fit) -> None:
        """Fit layers of a module one after another, all in one pass: of `paths` those in `stay`.

        `stay` says which of the outputs that are recorded they have. What `fit` returns gives a
        layer's outputs from then on; to put it in the layer's place is its own matter. Layers that
        are called for other rows than in the original are left alone. Raises NotFinite for values
        that are not finite.
        """

        def renew(path: str, layer: Layer, x: Tensor, run: Run) -> Tensor:
            parts = self._parts[path]
            sizes = [one.entered for one in parts]
            if len(x) != sum(sizes) or _positions(layer, run(x[: sizes[0]])) != parts[0].shape:
                return run(x)
            sums = Sums(layer, asymmetric=True)
            for part, some in zip(parts, x.split(sizes), strict=True):
                sums.put(_unfolded(layer, some, part), _columns(part.outputs, stay[path]))
            new = fit(path, layer, sums.result(path))
            return run(x) if new is layer else new(x)  # type: ignore[no-any-return]

        with _forwards(module, [path for path in self.paths if path in stay], renew):
            forward(module, on_device_of(module, self.inputs))


def _rows_of_an_item(original: nn.Module, paths: Sequence[str], inputs: Tensors) -> dict[str, int]:
    """Return how long the first axis of a layer's inputs is for an item.

    Of the layers whose outputs for two items are those for each of them, one after the other: not
    where sequences come first, where parts of all items are put together, or where items have an
    effect on one another.
    """
    if len(inputs[0]) < 2:
        return {}
    seen: list[dict[str, tuple[int, Tensor]]] = []

    def note(path: str, layer: Layer, x: Tensor, run: Run) -> Tensor:
        y = run(x)
        seen[-1][path] = len(x), y
        return y

    for index in (slice(0, 1), slice(1, 2), slice(0, 2)):
        seen.append({})
        with _forwards(original, paths, note):
            forward(original, on_device_of(original, tuple(tensor[index] for tensor in inputs)))
    one, other, both = seen
    return {path: one[path][0] for path in paths if _follow(path, one, other, both)}


def _follow(path: str, *seen: Mapping[str, tuple[int, Tensor]]) -> bool:
    """Whether a layer's outputs for two items are those for each, one after the other."""
    if not all(path in some for some in seen):
        return False
    (first, y), (second, z), (_, both) = (some[path] for some in seen)
    if not first or first != second or y.shape[1:] != z.shape[1:]:
        return False
    joint = torch.cat([y, z])
    if joint.shape != both.shape:
        return False
    off = (joint - both).abs().max()
    return bool(off <= SAME * joint.abs().max()) or not bool(joint.isfinite().all())


@dataclass(frozen=True)
class _Part:
    """What is recorded of a layer for a few items."""

    entered: int
    """The length of what entered, along its first axis."""
    shape: torch.Size
    """The shape of the outputs but for channels."""
    chosen: Tensor
    """Which rows are taken, of a convolution which positions of every image."""
    outputs: Tensor
    """(n, O)."""


Run = Callable[[Tensor], Tensor]
"""Runs a layer as it is."""
_Instead = Callable[[str, Layer, Tensor, Run], Tensor]
"""Given the path of a layer, itself, its input and how to run it, returns its output."""


@contextmanager
def _forwards(module: nn.Module, paths: Iterable[str], instead: _Instead) -> Iterator[None]:
    """Have layers run something else in their place."""
    layers = {path: module.get_submodule(path) for path in paths}

    def called(path: str, layer: Any) -> Any:
        run = layer.forward  # as it is by now: bound to the layer

        def forward(input: Tensor) -> Tensor:
            return instead(path, layer, input, run)

        return forward

    try:
        for path, layer in layers.items():
            layer.forward = called(path, layer)
        yield
    finally:
        for layer in layers.values():
            vars(layer).pop("forward", None)


def _columns(rows: Tensor, index: Tensor | None) -> Tensor:
    return rows if index is None else rows[:, index.to(rows.device)]


def _positions(layer: Layer, y: Tensor) -> torch.Size:
    """Return the shape of a layer's outputs but for channels."""
    return y.shape[:-1] if isinstance(layer, nn.Linear) else y.shape[:1] + y.shape[2:]


def _chosen(seed: int, layer: Layer, shape: torch.Size, count: int) -> Tensor:
    """Return about as many rows as wanted, of a convolution the same places of all images."""
    if isinstance(layer, nn.Linear):
        return chosen(seed, shape.numel(), count)
    return chosen(seed, shape[1:].numel(), ceil(count / max(shape[0], 1)))


def _taken(layer: Layer, y: Tensor, chosen: Tensor) -> Tensor:
    """Return rows (n, O) of outputs."""
    if isinstance(layer, nn.Linear):
        return y.reshape(-1, y.shape[-1])[chosen.to(y.device)]
    some = y.flatten(2)[:, :, chosen.to(y.device)]
    return some.transpose(1, 2).reshape(-1, y.shape[1])


def _unfolded(layer: Layer, x: Tensor, part: _Part) -> Tensor:
    """Return the rows (n, D) of unfolded inputs that belong to what is recorded."""
    if isinstance(layer, nn.Linear):
        return x.reshape(-1, x.shape[-1])[part.chosen.to(x.device)]
    width = part.shape[2]
    return patches(layer, x, part.chosen // width, part.chosen % width)
