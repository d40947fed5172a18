"""Knowledge carving: the student is cut out of its teacher, and keeps the weights of its parts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch

from compress.compressor import (
    Compressor,
    Workbench,
    kept_at,
    require,
    require_choice,
    require_fraction,
)
from compress.errors import IllegalChain, nearest
from compress.model import Model, forward
from compress.task import Tensors, stacked_inputs
from compress.techniques.blocks import Stage, stages, without
from compress.techniques.losses import kd
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

    imports = ("torch_pruning",)

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

    def compress(self, model: Model, bench: Workbench) -> Model:
        if self.blocks or (self.ratio is not None and self.ratio < 1):
            model = self._shortened(model, bench)
        if self.width is not None:
            model = PruneChannels(channels=self.width).compress(model, bench)
        return model

    def _shortened(self, model: Model, bench: Workbench) -> Model:
        found = stages(model.module, model.example)
        removed = self._removed(model, bench, found)
        if not removed and not self.blocks:
            bench.journal.note(
                "carve: nothing was taken out: no block of the model can be removed without "
                "changing shapes"
                if not found
                else "carve: every block that can go is gone"
            )
            return model
        kept = [path for stage in found for path in stage.blocks if path not in removed]
        bench.journal.row("carve", kept=kept, removed=removed)
        sparse = {
            name for name in model.sparse if not any(name.startswith(f"{p}.") for p in removed)
        }
        module = without(model.module, removed)
        return replace(model, module=module, sparse=frozenset(sparse), hints={})

    def _removed(self, model: Model, bench: Workbench, found: list[Stage]) -> list[str]:
        """Return the paths of the blocks that go."""
        if self.blocks:
            return self._others(found)
        assert self.ratio is not None, "one of the three is given"
        origin = stages(bench.origin.module, bench.origin.example) if bench.origin else found
        if self.by == "even":
            counts = {stage.blocks[0]: len(stage.blocks) for stage in origin}
            removed: list[str] = []
            for stage in found:
                # Of a stage that lost its first block, the number now is all that is known.
                before = counts.get(stage.blocks[0], len(stage.blocks))
                stay = stage.evenly(round(self.ratio * before))
                removed += [path for path in stage.blocks if path not in stay]
            return removed
        target = round(self.ratio * sum(len(stage.blocks) for stage in origin))
        return self._least_missed(model, bench, found, max(1, target))

    def _others(self, found: list[Stage]) -> list[str]:
        known = [path for stage in found for path in stage.blocks]
        for path in self.blocks:
            if path not in known:
                raise IllegalChain(
                    f"carve: there is no block {path!r}. {nearest(path, known)}Blocks: "
                    f"{', '.join(known) or 'none'}"
                )
        removable = set().union(*(stage.removable for stage in found)) if found else set()
        return [path for path in known if path in removable and path not in self.blocks]

    def _least_missed(
        self, model: Model, bench: Workbench, found: list[Stage], target: int
    ) -> list[str]:
        """Remove, one by one, the block without which the answers change least."""
        assert bench.calibration is not None, "run() has checked needs"
        inputs = stacked_inputs(bench.task, bench.calibration, JUDGED)
        expected = _answers(model, inputs)
        candidates = [path for stage in found for path in stage.blocks if path in stage.removable]
        total = sum(len(stage.blocks) for stage in found)
        removed: list[str] = []
        effects: list[float] = []
        while total - len(removed) > target and candidates:
            trials = {}
            for path in candidates:
                trial = model.copy()
                without(trial.module, [*removed, path])
                trials[path] = float(kd(_answers(trial, inputs), expected, 1.0))
            best = min(trials, key=lambda path: trials[path])
            removed.append(best)
            effects.append(round(trials[best], 6))
            candidates.remove(best)
        bench.journal.row("removal", order=list(removed), divergence=effects)
        return removed


def _answers(model: Model, inputs: Tensors) -> torch.Tensor:
    parts = zip(*(tensor.split(CHUNK) for tensor in inputs), strict=True)
    return torch.cat([forward(model.module.eval(), part) for part in parts])
