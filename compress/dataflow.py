"""What a tensor was computed from: which parameters, and which calls of operators.

Followed at the dispatcher, so that `torch.no_grad`, `detach` and operators without a gradient
hide nothing, and by memory, so that views and operators in place need no care.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class DataFlow(TorchDispatchMode):
    """Follows some tensors, and the calls that a subclass marks, through a computation.

    Sets of sources are ints, one bit for each: those of the tensors come first, in their order.
    """

    supports_higher_order_operators = True

    def __init__(self, tensors: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self._sources: dict[int, int] = {}
        self._marks = 0
        for tensor in tensors:
            place = _place(tensor)
            self._sources[place] = self._sources.get(place, 0) | self.mark()

    def mark(self) -> int:
        """Return the bit of a new source."""
        self._marks += 1
        return 1 << (self._marks - 1)

    def sources(self, tensor: Tensor) -> int:
        """Return what a tensor was computed from."""
        return self._sources.get(_place(tensor), 0)

    def call(self, func: Any, args: Any, options: dict[str, Any]) -> tuple[Any, int]:
        """Call an operator; return its result, and what that depends on besides the arguments."""
        return func(*args, **options), 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        read = {_place(value) for value in tensors_in((args, options))}
        result, sources = self.call(func, args, options)
        for place in read:
            sources |= self._sources.get(place, 0)
        for place in map(_place, tensors_in(result)):
            # A new tensor may lie where another one was, whose sources are forgotten.
            before = self._sources.get(place, 0) if place in read else 0
            self._sources[place] = before | sources
        for number, name in _written(func):
            written = args[number] if number < len(args) else options.get(name)
            for place in map(_place, tensors_in(written)):
                self._sources[place] = self._sources.get(place, 0) | sources
        return result


def tensors_in(values: Any) -> Iterator[Tensor]:
    """Yield the tensors of what an operator takes or returns."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, list | tuple):
        for value in values:
            yield from tensors_in(value)
    elif isinstance(values, dict):
        yield from tensors_in(list(values.values()))


def _place(tensor: Tensor) -> int:
    """Return what identifies a tensor's memory, which its views share."""
    try:
        return tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):  # a sparse tensor has no storage
        return id(tensor)


@functools.cache
def _written(func: Any) -> tuple[tuple[int, str], ...]:
    """Return number and name of what an operator writes to: it need not be among its results."""
    schema = getattr(func, "_schema", None)
    return tuple(
        (number, argument.name)
        for number, argument in enumerate(() if schema is None else schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )
