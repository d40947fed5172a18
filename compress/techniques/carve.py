"""Knowledge carving: the student is cut out of its teacher, and keeps the weights of its parts."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import nn

from compress.compressor import Compressor, require
from compress.context import StepContext
from compress.errors import IllegalChain, nearest
from compress.model import Model, forward
from compress.parts import Choices, Range, are_names, kept_fraction, one_of, rule, searched
from compress.ranks import ranks
from compress.tasks.base import Tensors, stacked_inputs
from compress.techniques.blocks import Stage, stages, without
from compress.techniques.prune_channels import PruneChannels

MEASURED_ON = 256
"""Calibration items on which the effect of a removal is measured."""
CHUNK = 64


@dataclass(frozen=True, repr=False)
class Carve(Compressor):
    """Remove residual blocks (`drop_blocks`, depth pruning); the others keep their weights.

    `ratio` is the fraction of blocks that is kept: in every stage evenly spread ones
    (`by='even'`, as DistilBERT takes every second layer: Sanh et al. 2019, section 3), or, over
    the whole model, what is left after removing one by one the block whose removal changes the
    answers least on calibration data (`by='effect'`). `blocks` instead names those that stay,
    such as ['layer1.0', 'layer1.3']; blocks that change shapes stay in any case. `width` keeps
    that fraction of the channels as well, as `prune_channels(channels=..., calibration=0)` does.
    """

    ratio: float | None = field(
        default=None, metadata={**kept_fraction(), **searched(Range(0.4, 0.9, step=0.1))}
    )
    by: str = field(
        default="even",
        metadata={**one_of("even", "effect"), **searched(Choices(("even", "effect")))},
    )
    blocks: tuple[str, ...] = field(default=(), metadata=rule("is a list of names", are_names))
    width: float | None = field(default=None, metadata=kept_fraction())

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.ratio is None or not self.blocks, self, "give ratio or blocks, not both")
        measurable = self.by == "even" or self.ratio is not None
        what = "by='effect' says which blocks a ratio keeps, and there is no ratio"
        require(measurable, self, what)
        removes = self.ratio is not None or bool(self.blocks) or self.width is not None
        require(removes, self, "give ratio, blocks or width")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"calibration"} if self.by == "effect" else ())

    def check(self, context: StepContext) -> None:
        if self.blocks and context.enters is not None:
            self._check_blocks(stages(context.enters.copy().module, context.enters.items()))

    def _check_blocks(self, whole: list[Stage]) -> None:
        known = [path for stage in whole for path in stage.blocks]
        for path in self.blocks:
            if path not in known:
                raise IllegalChain(
                    f"carve: there is no block {path!r}. {nearest(path, known)}Blocks: "
                    f"{', '.join(known) or 'none'}"
                )

    def compress(self, model: Model, context: StepContext) -> Model:
        if self.blocks or (self.ratio is not None and self.ratio < 1):
            model = self._shortened(model, context)
        if self.width is not None:
            model = PruneChannels(channels=self.width, calibration=0).compress(model, context)
        return model

    def _shortened(self, model: Model, context: StepContext) -> Model:
        origin = context.origin or model
        whole = stages(origin.module, origin.items())
        layers = dict(model.module.named_modules())
        # Of the blocks of the origin, those that earlier steps have not taken out.
        left = [
            stage.among(lambda path: not isinstance(layers.get(path), nn.Identity))
            for stage in whole
        ]
        removed = self._removed(model, context, whole, left)
        kept = [path for stage in left for path in stage.blocks if path not in removed]
        self._note_missed_target(context, whole, kept)
        if not removed:
            return model
        context.log.row("carve", kept=kept, removed=removed)
        inside = tuple(f"{path}." for path in removed)
        sparse = frozenset(name for name in model.sparse if not name.startswith(inside))
        return replace(model, module=without(model.module, removed), sparse=sparse)

    def _note_missed_target(
        self, context: StepContext, whole: list[Stage], kept: list[str]
    ) -> None:
        total = sum(len(stage.blocks) for stage in whole)
        if not total:
            context.log.note(
                "carve: nothing was taken out: the model has no stack of blocks that are called "
                "once, with one tensor, give one of the same shape, and have a way past them"
            )
        elif self.ratio is not None and len(kept) > self._target(total) + len(whole) / 2:
            context.log.note(
                f"carve: {len(kept)} of {total} blocks stay ({len(kept) / total:.2f} of them): the "
                f"others change shapes, and every stage keeps one"
            )

    def _target(self, count: int) -> int:
        """Return how many of so many blocks are kept."""
        assert self.ratio is not None, "there is a ratio"
        return int(self.ratio * count + 0.5)

    def _removed(
        self, model: Model, context: StepContext, whole: list[Stage], left: list[Stage]
    ) -> list[str]:
        """Return the paths of the blocks to remove; `left` are the stages as they are now."""
        candidates = [path for stage in left for path in stage.blocks if path in stage.removable]
        if self.blocks:
            self._check_blocks(whole)
            return [path for path in candidates if path not in self.blocks]
        if self.by == "even":
            return [
                path
                for before, now in zip(whole, left, strict=True)
                for path in now.blocks
                if path not in now.evenly(self._target(len(before.blocks)))
            ]
        target = max(1, self._target(sum(len(stage.blocks) for stage in whole)))
        excess = sum(len(stage.blocks) for stage in left) - target
        order, effects = ranks().agreed(
            lambda: self._of_least_effect(model, context, candidates, excess)
        )
        context.log.row("removal", order=list(order), divergence=effects)
        return order

    def _of_least_effect(
        self, model: Model, context: StepContext, candidates: list[str], count: int
    ) -> tuple[list[str], list[float]]:
        """Choose up to `count` blocks, one by one the one whose removal changes answers least.

        Returns them, and the divergence of the answers after each.
        """
        assert context.calibration is not None, "run() has checked needs"
        inputs = stacked_inputs(context.task, context.calibration, MEASURED_ON)
        inputs = tuple(tensor.to(context.device) for tensor in inputs)
        module = copy.deepcopy(model.module).to(context.device)
        expected = _answers(module, inputs)
        removed: list[str] = []
        effects: list[float] = []
        while len(removed) < count and candidates:
            trials = {}
            for path in candidates:
                answers = _answers(without(copy.deepcopy(module), [*removed, path]), inputs)
                divergence = F.kl_div(answers, expected, reduction="batchmean", log_target=True)
                trials[path] = float(divergence)
            best = min(trials, key=lambda path: trials[path])
            removed.append(best)
            effects.append(round(trials[best], 6))
            candidates.remove(best)
        return removed, effects


def _answers(module: nn.Module, inputs: Tensors) -> torch.Tensor:
    """Return log-probabilities, (N, classes)."""
    parts = zip(*(tensor.split(CHUNK) for tensor in inputs), strict=True)
    return torch.cat([forward(module.eval(), part) for part in parts]).log_softmax(dim=1)
