"""The budget of a search: what an architecture may cost, estimated and measured."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
from torch import nn

from compress import counts
from compress.context import StepContext
from compress.errors import StepFailed
from compress.model import Model
from compress.supernet.costs import Shares, macs_by_tensor, params_by_tensor
from compress.supernet.evolution import Judged
from compress.supernet.latency import Fitted, WholeTimes
from compress.supernet.space import Cost, Genes, within
from compress.system.amounts import decimal
from compress.system.progress import stage
from compress.techniques.elastic import ElasticNet

WORDS = {"macs": "of the MACs", "params": "of the parameters", "latency": "of the latency"}
LOWERED = 5
"""How often the estimate's budget is lowered where it was too low."""
MEASURED = 10
"""Random architectures that are timed whole, for the estimate of others' latency."""
FINALISTS = 4
"""The best architectures that are timed whole together."""
ROUNDS = 3
"""How often finalists are timed, and changed where none of them is near the target."""
FULL = 0.9
"""The share of the target's latency that a finalist should have."""
NEAR = 0.02
"""By how much of itself a target of latency may be missed: timings repeat no better."""


class Budget(ABC):
    """How much of the origin's cost the architecture that is looked for may have."""

    what: str

    def __init__(self, target: float, model: Model, context: StepContext) -> None:
        self.target, self.model, self.context = target, model, context
        self.origin = context.origin or model
        self.limit = math.inf
        self.elastic: ElasticNet
        self.estimate: Cost

    @abstractmethod
    def share(self, module: nn.Module) -> float:
        """Return what a module costs, as a share of the origin."""

    @abstractmethod
    def prepare(self, elastic: ElasticNet) -> None:
        """Take the net whose subnets are searched, and see that the target can be reached."""

    @property
    def met(self) -> bool:
        """Whether the model meets the target as it is."""
        return self.share(self.model.module) <= self.target

    def fits(self, genes: Genes, rng: np.random.Generator) -> Genes:
        """Return an architecture like this one, within the budget and as large as that allows."""
        return within(self.elastic.space, genes, self.estimate, self.target, rng)

    def chosen(
        self, ranked: Sequence[Judged], judge: Callable[[Genes], Judged], rng: np.random.Generator
    ) -> tuple[Judged, float]:
        """Return the best of those that are within the budget, and its share of the cost."""
        best = ranked[0]
        return best, self.share(self.elastic.subnet(best.genes))

    def _refuse_beyond(self, least: float) -> None:
        """Raise StepFailed if `least`, what the smallest architecture costs, is over the target."""
        if least <= self.target:
            return
        asked = math.ceil(least * 100) / 100
        raise StepFailed(
            f"search: {self.what}={decimal(self.target)} cannot be reached: the smallest "
            f"architecture, with each group of channels at its narrowest and no block that can be "
            f"left out, keeps {least:.2f} {WORDS[self.what]}. Ask for {self.what}={asked:.2f} or "
            f"more, or give a smaller narrowest or round_to"
        )


class Counted(Budget):
    """A budget of MACs or parameters, which are counted exactly."""

    def __init__(self, what: str, target: float, model: Model, context: StepContext) -> None:
        super().__init__(target, model, context)
        self.what = what
        self.exact = False
        """Whether the estimate is exact."""

    def share(self, module: nn.Module) -> float:
        return self._count(module) / self._whole

    @cached_property
    def _whole(self) -> int:
        return self._count(self.origin.module)

    def _count(self, module: nn.Module) -> int:
        example = self.model.example
        if self.what == "macs":
            return counts.macs(module, example)
        return counts.count(module, example).params

    def prepare(self, elastic: ElasticNet) -> None:
        self.elastic = elastic
        self._refuse_beyond(self.share(elastic.subnet(elastic.space.smallest)))
        module, example = elastic.model.module, self.model.example
        if self.what == "macs":
            units, rest = macs_by_tensor(module, example)
        else:
            units, rest = params_by_tensor(module, example), 0.0
        shares = Shares(elastic.lengths, units, rest)
        self.exact = rest == 0
        self.estimate = lambda genes: shares(genes) / self._whole

    def fits(self, genes: Genes, rng: np.random.Generator) -> Genes:
        space, budget = self.elastic.space, self.target
        for _ in range(LOWERED):
            if self.estimate(space.smallest) > budget:
                break
            found = within(space, genes, self.estimate, budget, rng)
            if self.exact or (share := self.share(self.elastic.subnet(found))) <= self.target:
                return found
            budget *= 0.99 * self.target / share
        return space.smallest


class Measured(Budget):
    """A budget of seconds in onnxruntime, one item at a time: estimated, then measured whole."""

    what = "latency"

    def __init__(self, target: float, model: Model, context: StepContext, seconds: float) -> None:
        super().__init__(target, model, context)
        self.times = WholeTimes(self.origin, context, seconds)
        self.fitted: Fitted
        self.known: dict[Genes, float] = {}

    def share(self, module: nn.Module) -> float:
        return self.times.shares({"it": replace(self.model, module=module)})["it"]

    @property
    def met(self) -> bool:
        return self.target == 1 or super().met

    def prepare(self, elastic: ElasticNet) -> None:
        self.elastic, space = elastic, elastic.space
        least = self._measured([space.smallest])[space.smallest]
        self._refuse_beyond(least / (1 + NEAR))
        rng = np.random.default_rng(0)  # the same question for every seed: it is answered once
        some = dict.fromkeys([space.largest, *(space.drawn(rng) for _ in range(MEASURED))])
        with stage("timing architectures", len(some), "architectures") as progress:
            for genes in some:
                self._measured([genes])
                progress.advance()
        module = elastic.model.module
        units, _ = macs_by_tensor(module, self.model.example)
        sizes = {name: module.get_parameter(name)[0].numel() for name in units}
        self.fitted = Fitted(elastic.lengths, units, sizes)
        self._fit()

    def _fit(self) -> None:
        self.fitted.fit(self.known)
        space = self.elastic.space
        # What was measured of the smallest holds for it: it is always within the budget.
        least = min(self.target, self.fitted(space.smallest))
        self.estimate = lambda genes: least if genes == space.smallest else self.fitted(genes)

    def _measured(self, some: Sequence[Genes]) -> dict[Genes, float]:
        """Return the shares of the origin's seconds that architectures take, timed in turns."""
        models = {
            str(number): replace(self.model, module=self.elastic.subnet(genes))
            for number, genes in enumerate(some)
        }
        shares = self.times.shares(models)
        found = {genes: shares[str(number)] for number, genes in enumerate(some)}
        self.known |= found
        return found

    def chosen(
        self, ranked: Sequence[Judged], judge: Callable[[Genes], Judged], rng: np.random.Generator
    ) -> tuple[Judged, float]:
        finalists, limit = list(ranked[:FINALISTS]), (1 + NEAR) * self.target
        timed: dict[Genes, Judged] = {}
        for _ in range(ROUNDS):
            timed |= {one.genes: one for one in finalists}
            shares = self._measured([one.genes for one in finalists])
            if any(FULL * self.target <= share <= limit for share in shares.values()):
                break
            self._fit()
            others = dict.fromkeys(self._corrected(one.genes, rng) for one in finalists)
            finalists = [judge(genes) for genes in others if genes not in timed]
            if not finalists:
                break
        fast = [one for one in timed.values() if self.known[one.genes] <= limit]
        if not fast:
            # What was timed for the estimate is in time at the least where it is the smallest.
            inside = [genes for genes, share in self.known.items() if share <= limit]
            inside.sort(key=lambda genes: -self.known[genes])
            fast = [judge(genes) for genes in inside[:FINALISTS]]
        if fast:
            best = max(fast, key=lambda one: one.score)
        else:
            best = min(timed.values(), key=lambda one: self.known[one.genes])
        return best, self.known[best.genes]

    def _corrected(self, genes: Genes, rng: np.random.Generator) -> Genes:
        """Return an architecture whose estimate makes up for what this one's was off."""
        space, estimate = self.elastic.space, self.estimate
        budget = estimate(genes) * self.target / self.known[genes]
        return within(space, genes, estimate, max(budget, estimate(space.smallest)), rng)
