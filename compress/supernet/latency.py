"""How long architectures take on this machine: measured whole, and estimated from that."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import numpy as np

from compress.context import StepContext
from compress.deploy.export import export
from compress.deploy.session import arrays
from compress.errors import UserError
from compress.model import Model
from compress.runtimes.onnxruntime_cpu import versions
from compress.supernet.costs import Lengths, Shares, Values
from compress.supernet.space import Genes
from compress.system.environment import cpu_info, cpu_threads
from compress.system.files import digest
from compress.timing.launch import WorkerFailed
from compress.timing.trial import seconds_of

ORIGIN = "origin"


class WholeTimes:
    """Times models whole, in onnxruntime on the CPU, one item at a time, beside their origin.

    Answers are kept in the context's cache, by the machine, versions and the layers of the models:
    weights have no part in how long a model takes. So what is known is not even exported.
    """

    def __init__(self, origin: Model, context: StepContext, seconds: float) -> None:
        """Take the origin, and the seconds that each file is timed for."""
        self.origin, self.context, self.seconds = origin, context, seconds

    def shares(self, models: Mapping[str, Model]) -> dict[str, float]:
        """Return by name the share of the origin's time that each model takes, timed in turns.

        Raises UserError where a file cannot be timed.
        """
        layers, own = {name: _layers(one) for name, one in models.items()}, _layers(self.origin)
        others = {name: one for name, one in models.items() if layers[name] != own}
        if not others:
            return dict.fromkeys(models, 1.0)
        question = {
            "shares": {name: layers[name] for name in others},
            "origin": own,
            "inputs": [list(one.shape[1:]) for one in self.origin.example],
            "seconds": self.seconds,
            "cpu": list(cpu_info()),
            "threads": cpu_threads(),
            **versions(),
        }
        answer = self.context.cached(question, lambda: self._timed(others))
        return {name: float(answer[name]) if name in others else 1.0 for name in models}

    def _timed(self, models: Mapping[str, Model]) -> dict[str, float]:
        files = {ORIGIN: self._origin_file, **{name: export(one) for name, one in models.items()}}
        try:
            found = seconds_of(files, arrays(self.origin.example), self.seconds * len(files))
        except WorkerFailed as error:
            raise UserError(f"search: nothing could be timed here: {error}") from error
        if missing := files.keys() - found.keys():
            raise UserError(
                f"search: onnxruntime cannot run the file of a model ({min(missing)}), so latency "
                f"cannot be measured here: give macs or params"
            )
        seconds = {name: float(np.median(values)) for name, values in found.items()}
        return {name: seconds[name] / seconds[ORIGIN] for name in models}

    @cached_property
    def _origin_file(self) -> bytes:
        return export(self.origin)


def _layers(model: Model) -> str:
    """Return a hash of what a model's time depends on: its layers and their shapes."""
    shapes = [[name, list(value.shape)] for name, value in model.module.state_dict().items()]
    return digest([repr(model.module), shapes])


class Fitted:
    """An estimate of shares: a sum with weights >= 0, fitted to those that were measured.

    Its parts are a constant, the MACs, the values that layers make, and the number of layers, each
    as a share of the whole net's. So more of anything is never faster.
    """

    def __init__(
        self, lengths: Lengths, macs: Mapping[str, float], sizes: Mapping[str, int]
    ) -> None:
        """Take the MACs of each layer's weight, and the size of each of its filters."""
        outputs = {name: value / sizes[name] for name, value in macs.items()}
        each = dict.fromkeys(macs, 1.0)
        self._parts = [
            (Shares(lengths, macs), sum(macs.values())),
            (Shares(lengths.firsts(), outputs), sum(outputs.values())),
            (Shares(lengths.presence(), each), float(len(each))),
        ]
        self.weights: Values = np.zeros(1 + len(self._parts))

    def fit(self, known: Mapping[Genes, float]) -> None:
        """Fit the weights to measured shares, by the least squares of relative errors."""
        from scipy.optimize import nnls  # takes a while to import

        rows = np.asarray([self._values(genes) for genes in known])
        values = np.asarray(list(known.values()))
        self.weights = nnls(rows / values[:, None], np.ones(len(values)))[0]

    def __call__(self, genes: Genes) -> float:
        return float(self.weights @ self._values(genes))

    def _values(self, genes: Genes) -> Values:
        parts = [part(genes) / max(whole, 1.0) for part, whole in self._parts]
        return np.asarray([1.0, *parts])
