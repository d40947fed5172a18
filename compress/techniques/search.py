"""Architecture search: the best of the subnets that are within a budget."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property

import numpy as np
from torch import nn

from compress.compressor import Compressor, require, require_one_of
from compress.context import StepContext
from compress.lowrank.layer_inputs import LayerInputs
from compress.lowrank.moments import NotFinite
from compress.model import Model, copied, weights_hash
from compress.parts import (
    a_name,
    flag,
    is_number,
    kept_fraction,
    one_of,
    positive,
    positive_or_zero,
    rule,
    takes,
    whole_number,
)
from compress.stateless_rng import seed_of
from compress.supernet.evolution import Judged, Score, evolved, sampled
from compress.supernet.sandwich import Sandwich
from compress.supernet.space import Genes
from compress.system.amounts import decimal
from compress.system.progress import Stage, showing, stage
from compress.tasks.base import Split, Tensors, arrangement, prepared_batches
from compress.techniques.channel_cut import Cut
from compress.techniques.channel_refit import output_errors, refitted
from compress.techniques.criteria import L2, Criterion, criteria
from compress.techniques.distill import Distill
from compress.techniques.elastic import ElasticNet
from compress.techniques.finetune import Finetune
from compress.techniques.search_budget import NEAR, WORDS, Budget, Counted, Measured
from compress.techniques.search_family import FamilySearch
from compress.techniques.subnet_refit import SubnetRefit
from compress.training import Training, TrainingHooks, evaluate, fit
from compress.training.batch_norms import BATCH, batch_norms, reestimate
from compress.training.evaluate import some_of
from compress.zoo.families import members

STATISTICS = 1024
"""Training items over which batch norms are estimated anew for each architecture."""
SUBNETS, STUDENTS = 128, 8
"""How many architectures are looked at where `candidates` does not say."""
OF_SUBNETS = (*("population", "judged", "subnets", "round_to", "narrowest", "depth", "criterion"),)
"""Options that are about the model's own subnets."""
FINAL_STATISTICS = 8192
"""The same for the one that comes out."""
REFITTED_ON, FINALLY, HELD_BACK = 128, 256, 32
"""Training items on which architectures are refitted; the one that comes out, in all; and those of
them by which it is seen whether that brings the outputs nearer."""


@dataclass(frozen=True, repr=False)
class Search(Compressor):
    """Search the subnets of the model for the most accurate within a budget.

    Give one of `latency` (measured in onnxruntime on the CPU, one item at a time), `macs` or
    `params`: the fraction that is kept. A subnet has the widths that pruning can cut, in multiples
    of `round_to` and at least the share `narrowest` of a group's channels, and with `depth` only
    some of the blocks that carving can take out. All share the model's weights, the channels
    ordered by `criterion`; batch norms are estimated anew for each.

    With `epochs`, the shared weights are trained first: in each step the whole net on the labels,
    its smallest subnet and `subnets` random ones on its answers (the sandwich rule with in-place
    distillation, Yu and Huang 2019, Yu et al. 2020).

    `strategy='evolution'` then judges `candidates` architectures, in generations of `population`,
    on at most `judged` items of the validation split; 'sampling' judges as many random ones, and
    'random' takes a random one that nobody has judged: the control.

    With a `family` of models by name the students are its members, with fresh weights: of those
    within the budget, the `candidates` that cost most learn from the model for a short while, and
    the better ones go on (successive halving), the best for `epochs` in all.
    """

    latency: float | None = field(default=None, metadata=kept_fraction())
    macs: float | None = field(default=None, metadata=kept_fraction())
    params: float | None = field(default=None, metadata=kept_fraction())
    epochs: int = field(default=0, metadata=whole_number(least=0))
    strategy: str = field(default="evolution", metadata=one_of("evolution", "sampling", "random"))
    candidates: int | None = field(default=None, metadata=whole_number())
    population: int = field(default=32, metadata=whole_number(least=2))
    judged: int = field(default=2000, metadata=whole_number())
    subnets: int = field(default=2, metadata=whole_number(least=0))
    round_to: int = field(default=8, metadata=whole_number())
    narrowest: float = field(
        default=0.25,
        metadata=rule(
            "is a share of the channels, above 0 and at most 1",
            lambda value: is_number(value) and 0 < value <= 1,
        ),
    )
    depth: bool = field(default=True, metadata=flag())
    criterion: Criterion = field(default=L2(), metadata=takes(Criterion, criteria))
    optimizer: str = field(default="adamw", metadata=one_of("adamw", "sgd"))
    learning_rate: float | None = field(default=None, metadata=positive())
    weight_decay: float = field(default=0.01, metadata=positive_or_zero())
    batch_size: int = field(default=128, metadata=whole_number(least=2))
    seconds: float = field(default=1.0, metadata=positive())
    family: str | None = field(default=None, metadata=a_name())

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_of(self, "latency", "macs", "params")
        used = self.latency is not None or self.seconds == type(self).seconds
        require(used, self, "seconds is how long each file is timed, which only latency=... does")
        if self.family is not None:
            self._check_family()

    def _check_family(self) -> None:
        require(self.epochs > 0, self, "the students of a family have to learn: give epochs")
        halves = self.strategy != "sampling"
        require(halves, self, "a family is screened by successive halving, or strategy='random'")
        for name in OF_SUBNETS:
            same = getattr(self, name) == type(self).__dataclass_fields__[name].default
            require(same, self, f"{name} is about the model's own subnets: leave it out, or family")

    @property
    def untrained(self) -> tuple[Compressor, ...] | None:
        return None if self.epochs else super().untrained

    @property
    def builds(self) -> bool:
        return self.family is not None

    @property
    def needs(self) -> frozenset[str]:
        labels = self.epochs > 0 or self.judges or self.criterion.wants_gradients
        return (
            frozenset({"train"})
            | frozenset({"labels"} if labels else ())
            | frozenset({"validation"} if self.judges else ())
        )

    @property
    def judges(self) -> bool:
        """Whether architectures are judged at all."""
        return self.strategy != "random" or self.family is not None

    @property
    def count(self) -> int:
        """How many architectures are looked at."""
        return self.candidates or (STUDENTS if self.family is not None else SUBNETS)

    @property
    def training(self) -> Training:
        """The settings by which shared weights, or students, are trained."""
        own = self.family is None
        return Finetune(
            epochs=self.epochs,
            optimizer=self.optimizer,
            learning_rate=self.learning_rate or (Finetune if own else Distill).learning_rate,
            weight_decay=self.weight_decay,
            batch_size=self.batch_size,
        )

    def check(self, context: StepContext) -> None:
        if self.family is not None:
            members(self.family, context.task)
            return
        if self.epochs:
            self.training.check(context)

    def compress(self, model: Model, context: StepContext) -> Model:
        with showing(context.progress):
            if self.family is None:
                return _Search(self, model, context).result()
            return self._of_family(self.family, model, context)

    def _of_family(self, family: str, model: Model, context: StepContext) -> Model:
        budget = self.budget(model, context)
        settings = {item.name: getattr(self.training, item.name) for item in fields(Training)}
        search = FamilySearch(family, budget, Distill(**settings), model, context)
        if self.strategy == "random":
            rng = np.random.default_rng(seed_of("search", context.seed))
            return search.random(rng, self.count)
        return search.best(self.count)

    def budget(self, model: Model, context: StepContext) -> Budget:
        """Return the budget that the step sets."""
        if self.latency is not None:
            return Measured(self.latency, model, context, self.seconds)
        what, target = ("macs", self.macs) if self.macs is not None else ("params", self.params)
        assert target is not None, "one of them is given"
        return Counted(what, target, model, context)


class _Search:
    """One run of the technique."""

    def __init__(self, step: Search, model: Model, context: StepContext) -> None:
        self.step, self.model, self.context = step, model, context
        self.budget = step.budget(model, context)
        self.rng = np.random.default_rng(seed_of("search", context.seed))
        self.elastic: ElasticNet
        self.weights = ""
        """A hash of the shared weights."""
        self.progress: Stage

    def result(self) -> Model:
        step, context = self.step, self.context
        if self.budget.met:
            context.log.note(
                f"search: left the model as it is: it meets {self.budget.what}="
                f"{decimal(self.budget.target)} already"
                + (", so nothing was trained" if step.epochs else "")
            )
            return self.model
        args = (step.criterion, step.round_to, step.narrowest, step.depth)
        with stage("finding widths and blocks"):
            self.elastic = ElasticNet(self.model, context, *args)
        if self.elastic.space.size == 1:
            context.log.note(
                "search: left the model whole: it has no channels that can be cut in steps of "
                f"round_to={step.round_to}, and no block that can be taken out"
            )
            return self.model
        self.budget.prepare(self.elastic)
        if step.epochs:
            self._train()
        self.weights = weights_hash(self.elastic.model.module)
        with stage("judging architectures", step.count, "architectures") as self.progress:
            best, share = self.budget.chosen(self._ranked(), self._judged, self.rng)
        return self._made(best, share)

    def _train(self) -> None:
        """Train the shared weights."""
        step, context, module = self.step, self.context, self.elastic.model.module
        sandwich = Sandwich(module, self.elastic, context.task, step.subnets, context.seed)
        hooks = TrainingHooks(
            before=sandwich.begin,
            after=sandwich.end,
            traced=False,
            about={"search": repr(step), "space": list(self.elastic.space.choices)},
        )
        try:
            trained = fit(self.elastic.model, context, step.training, sandwich.loss, hooks)
        finally:
            sandwich.remove()
        self.elastic.model = trained

    # --- judging --------------------------------------------------------------------------

    def _ranked(self) -> list[Judged]:
        """Return architectures within the budget, the best first."""
        step, space, fits = self.step, self.elastic.space, self.budget.fits
        if not step.judges:
            return [Judged(fits(space.drawn(self.rng), self.rng), ())]
        population, count = step.population, step.count
        if step.strategy == "sampling":
            return sampled(space, fits, self._scores, population, count, self.rng)
        starts = self._starts()
        return evolved(space, fits, self._scores, starts, population, count, self.rng)

    def _starts(self) -> list[Genes]:
        """Return what pruning and carving alone would do to meet the budget."""
        found = []
        ways = [(True, True, False), (True, False, False), (False, False, True)]
        for widths, streams, depth in [*ways, (True, False, True), (True, True, True)]:
            for share in np.linspace(1, 0, 65):
                genes = self.elastic.scaled(share, widths, streams, depth)
                if self.budget.estimate(genes) <= self.budget.target:
                    found.append(self.budget.fits(genes, self.rng))
                    break
        return found

    def _judged(self, genes: Genes) -> Judged:
        """Judge an architecture that comes after the others."""
        if not self.step.judges:
            return Judged(genes, ())
        return Judged(genes, self._scores([genes])[0])

    def _scores(self, some: Sequence[Genes]) -> list[Score]:
        """Return accuracy and negative loss of architectures, all of a generation together.

        A generation that was judged before the step was stopped is known.
        """
        context = self.context
        validation = self._validation()
        key = {
            "architectures": [list(genes) for genes in some],
            "of": [repr(self.step), self.weights, context.setting, context.seed],
            "on": [context.task.describe(), arrangement(validation)],
        }
        before = self.progress.done
        answer = context.cached(key, lambda: {"scores": [self._score(one) for one in some]})
        self.progress.advance(len(some) - (self.progress.done - before))
        return [tuple(score) for score in answer["scores"]]

    def _validation(self) -> Split:
        assert self.context.validation is not None, "run() has checked needs"
        return some_of(self.context.validation, self.step.judged)

    def _score(self, genes: Genes) -> list[float]:
        task, device = self.context.task, self.context.device
        module = self.elastic.subnet(genes).to(device)
        if self._refit.possible:
            elastic = self.elastic
            try:
                self._refit.refit(module, elastic.picks(genes), elastic.factors(genes))
            except NotFinite:
                self.progress.advance()
                return [0.0, -sys.float_info.max]
        else:
            self._reestimate(module, STATISTICS)
        accuracy, loss = evaluate(module, task, self._validation(), device)
        self.progress.advance()
        return [accuracy, -loss if math.isfinite(loss) else -sys.float_info.max]

    def _reestimate(self, module: nn.Module, count: int) -> None:
        """Estimate batch norms anew over so many training items."""
        context = self.context
        assert context.train is not None, "run() has checked needs"
        items = some_of(context.train, count)
        batches = prepared_batches(context.task, items, BATCH, context.device)
        reestimate(module, (inputs for inputs, _ in batches))

    @cached_property
    def _refit(self) -> SubnetRefit:
        (batch,) = self._inputs(REFITTED_ON, REFITTED_ON)
        model = self.elastic.model
        module = copied(model.module).to(self.context.device)
        return SubnetRefit(replace(model, module=module), batch)

    def _inputs(self, count: int, size: int) -> list[Tensors]:
        """Return batches of training items."""
        context = self.context
        assert context.train is not None, "run() has checked needs"
        items = some_of(context.train, count)
        batches = prepared_batches(context.task, items, size, context.device)
        return [inputs for inputs, _ in batches]

    # --- what comes out -------------------------------------------------------------------

    def _made(self, best: Judged, share: float) -> Model:
        context, elastic = self.context, self.elastic
        module = self._nearest(elastic.proven(best.genes))
        dropped = elastic.dropped(best.genes)
        for path, (before, after) in elastic.widths(best.genes).items():
            context.log.row("layer", layer=path, channels=before, kept=after)
        score = dict(zip(("accuracy", "negative_loss"), best.score, strict=False))
        context.log.row("search", removed=dropped, share=share, target=self.budget.target, **score)
        words = WORDS[self.budget.what]
        context.log.note(
            f"search: asked for {self.budget.target:.2f} {words}, reached {share:.2f}"
            + (", which is OVER the target" if share > (1 + NEAR) * self.budget.target else "")
            + (f", without {len(dropped)} of {len(elastic.blocks)} blocks" if dropped else "")
        )
        names = dict(module.named_parameters()).keys()
        return replace(elastic.model, module=module, sparse=elastic.model.sparse & names)

    def _nearest(self, done: Cut) -> nn.Module:
        """Return a subnet refitted or with norms estimated anew: what comes nearer to the whole."""
        context, elastic = self.context, self.elastic
        module = done.module
        if batch_norms(module):
            module = copied(module).to(context.device)
            self._reestimate(module, FINAL_STATISTICS)
            module = module.to("cpu")
        held_back, *others = self._inputs(FINALLY, HELD_BACK)
        if not others:
            return module
        given = LayerInputs(elastic.model, others, sum(len(one[0]) for one in others))
        found = refitted(elastic.model, done, elastic.channels.plan, given, [held_back])
        nets = (module, found.module)
        errors = output_errors(elastic.model.module, nets, [held_back])
        return nets[int(np.argmin([one if math.isfinite(one) else math.inf for one in errors]))]
