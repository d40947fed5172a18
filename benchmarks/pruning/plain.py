"""Plain Torch-Pruning on the same models, within a limit of CPU time."""

from __future__ import annotations

import copy
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from compress import counts
from compress.model import Model, forward
from compress.surgery import output_layers

LIMIT = 900
"""Seconds of CPU time that a technique may take for a model, this one as ours."""
TOO_LONG = "not done within"
MOST_MEMORY = 8 << 30
"""Bytes of memory that a process may hold while it prunes; then allocations fail."""
ROUND_TO = 8
SWEPT = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
"""Shares of channels at which the least is looked for: where a step is too large for a layer, this
pruner cuts nothing of it, so the smallest share need not leave least."""


class Expired(BaseException):
    """The time is up. No `Exception`: a technique takes these for a layer's, and goes on."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise TimeoutError after some seconds of CPU time, MemoryError beyond `MOST_MEMORY`."""

    def stop(*_: Any) -> None:
        raise Expired

    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (MOST_MEMORY, before[1]))
    try:
        yield
    except Expired:
        raise TimeoutError(f"{TOO_LONG} {seconds} s") from None
    except MemoryError:
        raise MemoryError(f"it takes more than {MOST_MEMORY >> 30} GiB") from None
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_DATA, before)


def plain(model: Model, keeps: float) -> dict[str, Any]:
    """Return what Torch-Pruning's `MagnitudePruner` makes of a copy; the output layer is ignored.

    Attention gets its heads as in its example for timm (`examples/transformers/prune_timm_vit.py`),
    whose sizes are set afterwards as there. `runs`: 'runs', or what it says; `macs`: the share that
    is left; `s`: seconds.
    """
    import torch_pruning

    module, started = copy.deepcopy(model.module), time.perf_counter()
    ignored = [module.get_submodule(path) for path in output_layers(module, model.example)]
    attention: list[Any] = [part for part in module.modules() if _packs_heads(part)]
    try:
        with limited(LIMIT):
            pruner = torch_pruning.pruner.MagnitudePruner(
                module,
                model.example if len(model.example) > 1 else model.example[0],
                importance=torch_pruning.importance.MagnitudeImportance(p=2),
                pruning_ratio=1 - keeps,
                ignored_layers=ignored,
                round_to=ROUND_TO,
                in_channel_groups={},
                out_channel_groups={},
                num_heads={part.qkv: part.num_heads for part in attention},
            )
            pruner.step()
        for part in attention:
            part.num_heads = pruner.num_heads[part.qkv]
            width = part.qkv.out_features // 3
            part.head_dim = width // part.num_heads
            if hasattr(part, "attn_dim"):
                part.attn_dim = width
        shape = forward(module.eval(), model.example).shape
        if shape != forward(model.module, model.example).shape:
            return {"runs": f"outputs of shape {tuple(shape)}"}
        share = counts.macs(module, model.example) / counts.macs(model.module, model.example)
    except Exception as error:  # whatever it trips over
        return {"runs": f"{type(error).__name__}: {str(error)[:90]}"}
    seconds = round(time.perf_counter() - started, 1)
    return {"runs": "runs", "macs": round(share, 3), "s": seconds}


def _packs_heads(part: Any) -> bool:
    """Whether a layer keeps queries, keys and values in one linear layer, as timm's attention."""
    packed = isinstance(getattr(part, "qkv", None), nn.Linear) and hasattr(part, "head_dim")
    return packed and isinstance(getattr(part, "num_heads", None), int)


def least(model: Model) -> float | None:
    """Return the least share of MACs that it leaves at any share of channels; None if it fails."""
    found = []
    for keeps in SWEPT:
        one = plain(model, keeps)
        if TOO_LONG in one["runs"]:
            break  # at other shares it takes as long, and the row has a limit of its own
        found += [one["macs"]] if "macs" in one else []
    return min(found, default=None)
