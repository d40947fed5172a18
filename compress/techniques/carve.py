"""Knowledge carving: the student is cut out of its teacher, and keeps the weights of its parts."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import nn

from compress.compressor import Compressor, kept_at, require, require_choice, require_fraction
from compress.context import StepContext
from compress.errors import IllegalChain, nearest
from compress.model import Model, forward
from compress.tasks.base import Tensors, stacked_inputs
from compress.techniques.blocks import Stage, stages, without
from compress.techniques.losses.kd import divergence
from compress.techniques.prune_channels import PruneChannels

JUDGED = 256
"""Calibration items on which the effect of a removal is measured."""
CHUNK = 64


@dataclass(frozen=True, repr=False)
class Carve(Compressor):
    """Take residual blocks out of the model; those that stay keep their weights.

    `ratio` is the fraction of blocks that is kept: in every stage evenly spread ones
    (`by='even'`, as DistilBERT takes every second layer: Sanh et al. 2019, section 3), or, over
    the whole model, what is left after removing one by one the block whose removal changes the
    answers least on calibration data (`by='effect'`). `blocks` instead names those that stay,
    such as ['layer1.0', 'layer1.3']; blocks that change shapes stay in any case. `width` keeps
    that fraction of the channels as well, as `prune_channels(channels=...)` does.
    """

    ratio: float | None = None
    by: str = "even"
    blocks: tuple[str, ...] = ()
    width: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.blocks, list):
            object.__setattr__(self, "blocks", tuple(self.blocks))
        require_fraction(self, "ratio")
        require_fraction(self, "width")
        require_choice(self, "by", ("even", "effect"))
        sound = isinstance(self.blocks, tuple) and all(isinstance(b, str) for b in self.blocks)
        require(sound, self, f"blocks is a list of names, not {self.blocks!r}")
        require(self.ratio is None or not self.blocks, self, "give ratio or blocks, not both")
        judged = self.by == "even" or self.ratio is not None
        require(judged, self, "by='effect' says which blocks a ratio keeps, and there is no ratio")
        given = self.ratio is not None or bool(self.blocks) or self.width is not None
        require(given, self, "give ratio, blocks or width")

    @property
    def needs(self) -> frozenset[str]:
        judged = self.by == "effect" and self.ratio is not None
        return frozenset({"calibration"} if judged else ())

    def at(self, progress: float) -> Self:
        return replace(
            self, ratio=kept_at(self.ratio, progress), width=kept_at(self.width, progress)
        )

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
            model = PruneChannels(channels=self.width).compress(model, context)
        return model

    def _shortened(self, model: Model, context: StepContext) -> Model:
        origin = context.origin or model
        whole = stages(origin.module, origin.items())
        there = dict(model.module.named_modules())
        # Of the blocks of the origin, those that earlier steps have not taken out.
        left = [stage.among(lambda p: not isinstance(there.get(p), nn.Identity)) for stage in whole]
        removed = self._removed(model, context, whole, left)
        kept = [path for stage in left for path in stage.blocks if path not in removed]
        self._tell(context, whole, kept)
        if not removed:
            return model
        context.log.row("carve", kept=kept, removed=removed)
        sparse = {
            name for name in model.sparse if not any(name.startswith(f"{p}.") for p in removed)
        }
        module = without(model.module, removed)
        return replace(model, module=module, sparse=frozenset(sparse), hints={})

    def _tell(self, context: StepContext, whole: list[Stage], kept: list[str]) -> None:
        """Say where the target could not be reached."""
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
        """Return the paths of the blocks that go; `left` are the stages as they are now."""
        if self.blocks:
            return self._others(whole, left)
        if self.by == "even":
            return [
                path
                for before, now in zip(whole, left, strict=True)
                for path in now.blocks
                if path not in now.evenly(self._target(len(before.blocks)))
            ]
        total = sum(len(stage.blocks) for stage in whole)
        return self._least_missed(model, context, left, max(1, self._target(total)))

    def _others(self, whole: list[Stage], left: list[Stage]) -> list[str]:
        self._check_blocks(whole)
        return [
            path
            for stage in left
            for path in stage.blocks
            if path in stage.removable and path not in self.blocks
        ]

    def _least_missed(
        self, model: Model, context: StepContext, left: list[Stage], target: int
    ) -> list[str]:
        """Remove, one by one, the block without which the answers change least."""
        assert context.calibration is not None, "run() has checked needs"
        inputs = stacked_inputs(context.task, context.calibration, JUDGED)
        inputs = tuple(tensor.to(context.device) for tensor in inputs)
        here = replace(model, module=copy.deepcopy(model.module).to(context.device))
        expected = _answers(here.module, inputs)
        candidates = [path for stage in left for path in stage.blocks if path in stage.removable]
        count = sum(len(stage.blocks) for stage in left)
        removed: list[str] = []
        effects: list[float] = []
        while count - len(removed) > target and candidates:
            trials = {}
            for path in candidates:
                trial = without(copy.deepcopy(here.module), [*removed, path])
                trials[path] = float(divergence(_answers(trial, inputs), expected))
            best = min(trials, key=lambda path: trials[path])
            removed.append(best)
            effects.append(round(trials[best], 6))
            candidates.remove(best)
        context.log.row("removal", order=list(removed), divergence=effects)
        return removed


def _answers(module: nn.Module, inputs: Tensors) -> torch.Tensor:
    """Return log-probabilities, (N, classes)."""
    parts = zip(*(tensor.split(CHUNK) for tensor in inputs), strict=True)
    return torch.cat([forward(module.eval(), part) for part in parts]).log_softmax(dim=1)
