"""Calls of normalisations over channels: each by its number, and without some of its channels.

A layer may normalise several times in one pass, over channels of other widths: a module that does
so in its own forward, or one without weights that is called in several places.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from compress.techniques.channel_where import Where

LAST = (F.layer_norm, torch.layer_norm, F.rms_norm, torch.rms_norm)
SECOND = (F.group_norm, torch.group_norm)
MEANS = (torch.Tensor.mean, torch.mean)
KNOWN = (*LAST, *SECOND, *MEANS, F.batch_norm)

Call = tuple[str, int]
"""The path of a layer, and how many calls of its own came before."""


class NormCalls(TorchFunctionMode):
    """Numbers the functions that may be norms over channels, as they are called."""

    def __init__(self, where: Where) -> None:
        super().__init__()
        self.where, self.calls = where, Counter[str]()

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        if func not in KNOWN:
            return func(*args, **options)
        path = self.where.path
        call = (path, self.calls[path])
        self.calls[path] += 1
        return self.called(call, func, args, options)

    def called(self, call: Call, func: Any, args: Any, options: dict[str, Any]) -> Any:
        """Return what one of these functions gives."""
        raise NotImplementedError


class KeptNorms(NormCalls):
    """Takes the statistics of norms over the channels that are kept; the others become 0.

    `kept` are their indices, by call.
    """

    def __init__(self, where: Where, kept: Mapping[Call, Tensor]) -> None:
        super().__init__(where)
        self.kept = kept

    def called(self, call: Call, func: Any, args: Any, options: dict[str, Any]) -> Any:
        kept = self.kept.get(call)
        if kept is None:
            return func(*args, **options)
        if func in MEANS:  # of a response norm, over its channels
            axis = options.get("dim", args[1] if len(args) > 1 else None)
            return func(args[0].index_select(axis, kept), *args[1:], **options)
        if func is F.batch_norm:  # of a weight (1, O, I · kernel): inputs that are kept
            x = args[0] if args else options.pop("input")
            result = func(x.index_select(2, kept), *args[1:], **options)
            return torch.zeros_like(x).index_copy(2, kept, result)
        rms = "rms" in func.__name__
        names = ("input", "size", "weight", *(() if rms else ("bias",)), "eps")
        given = dict(zip(names, args, strict=False)) | options
        x, axis = given["input"], -1 if func in LAST else 1
        size = [len(kept)] if func in LAST else 1
        vectors = [given.get(name) for name in names[2:-1]]
        picked = [None if vector is None else vector[kept] for vector in vectors]
        eps = given.get("eps", None if rms else 1e-5)
        result = func(x.index_select(axis, kept), size, *picked, eps)
        return torch.zeros_like(x).index_copy(axis, kept, result)
