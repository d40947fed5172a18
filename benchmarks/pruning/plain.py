"""Plain Torch-Pruning on the same models, within a limit of CPU time."""

from __future__ import annotations

import copy
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from compress import counts
from compress.model import Model, forward
from compress.surgery import output_layers

LIMIT = 20
"""Seconds of CPU time."""
ROUND_TO = 8


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TimeoutError(f"not done within {seconds} s")

    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def plain(model: Model, keeps: float, round_to: int | None = ROUND_TO) -> dict[str, Any]:
    """Return what Torch-Pruning's `MagnitudePruner` makes of a copy; the output layer is ignored.

    `runs`: 'runs', or what it says; `macs`: the share that is left; `s`: seconds.
    """
    import torch_pruning

    module, started = copy.deepcopy(model.module), time.perf_counter()
    ignored = [module.get_submodule(path) for path in output_layers(module, model.example)]
    try:
        with limited(LIMIT):
            pruner = torch_pruning.pruner.MagnitudePruner(
                module,
                model.example if len(model.example) > 1 else model.example[0],
                importance=torch_pruning.importance.MagnitudeImportance(p=2),
                pruning_ratio=1 - keeps,
                ignored_layers=ignored,
                round_to=round_to,
                in_channel_groups={},
                out_channel_groups={},
                num_heads={},
            )
            pruner.step()
        shape = forward(module.eval(), model.example).shape
        if shape != forward(model.module, model.example).shape:
            return {"runs": f"outputs of shape {tuple(shape)}"}
        share = counts.macs(module, model.example) / counts.macs(model.module, model.example)
    except Exception as error:  # whatever it trips over
        return {"runs": f"{type(error).__name__}: {str(error)[:90]}"}
    seconds = round(time.perf_counter() - started, 1)
    return {"runs": "runs", "macs": round(share, 3), "s": seconds}
