"""Structured magnitude pruning: whole channels go, and every layer that depends on them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from compress import counts
from compress.compressor import Compressor, require_one_of
from compress.context import StepContext
from compress.errors import StepFailed
from compress.model import Model
from compress.parts import kept_fraction, whole_number
from compress.techniques.channel_groups import (
    OUTPUT,
    Cut,
    cut_channels,
    differs_from_zeroed,
    sound_roots,
)

GRID = 128
"""Steps of the search for the width that meets a target."""


@dataclass(frozen=True, repr=False)
class PruneChannels(Compressor):
    """Remove the channels of least magnitude, in the same proportion from every layer.

    Coupled layers are found by Torch-Pruning's dependency graph and ranked together by the mean
    L2 norm over the group (Fang et al. 2023, section 3.3). Give one of `macs` (a common kept
    fraction of channels is searched that comes closest to the target from below) or `channels`.
    Counts are multiples of `round_to`, so that kernels stay fast. What produces the output is
    protected, and so is every group in which the pruned net would not equal the original with
    those channels set to zero.
    """

    imports = ("torch_pruning",)

    macs: float | None = field(default=None, metadata=kept_fraction())
    channels: float | None = field(default=None, metadata=kept_fraction())
    round_to: int = field(default=8, metadata=whole_number())

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_of(self, "macs", "channels")

    def compress(self, model: Model, context: StepContext) -> Model:
        origin = context.origin or model
        roots, protected = sound_roots(model.module, model.items())
        for path, reason in protected.items():
            context.log.row("layer", layer=path, left_alone=reason)
        if not roots:
            reason = next(iter(protected.values()), "it has no layer to prune")
            context.log.note(f"prune_channels: left the model whole ({reason})")
            return model
        unsound = [reason for reason in protected.values() if reason != OUTPUT]
        if unsound:
            context.log.note(
                f"prune_channels: {len(unsound)} of {len(unsound) + len(roots)} groups of channels "
                f"left whole, because cutting them would change more than those channels"
            )
        if self.channels is not None:
            widths = {
                path: _width(origin, path, width) * self.channels for path, width in roots.items()
            }
            cut = cut_channels(model.module, model.items(), widths, self.round_to)
        else:
            assert self.macs is not None
            cut = self._cut_to_macs(self.macs, model, origin, roots, context)
        if not cut.removed:
            return model
        if reason := differs_from_zeroed(model.module, cut, model.items()):
            raise StepFailed(f"pruning would change more than the removed channels: {reason}")
        for path, kept in cut.kept.items():
            context.log.row("layer", layer=path, channels=roots[path], kept=kept)
        return replace(model, module=cut.module, hints={})

    def _cut_to_macs(
        self,
        target: float,
        model: Model,
        origin: Model,
        roots: dict[str, int],
        context: StepContext,
    ) -> Cut:
        whole, inputs = counts.macs(origin.module, origin.example), model.items()

        def cut_at(step: int) -> tuple[Cut, float]:
            widths = {path: width * step / GRID for path, width in roots.items()}
            cut = cut_channels(model.module, inputs, widths, self.round_to)
            return cut, counts.macs(cut.module, model.example) / whole

        best, reached = cut_at(GRID)
        if reached <= target:
            return best
        best, reached = cut_at(1)
        low, high = 1, GRID
        while high - low > 1 and reached <= target:
            middle = (low + high) // 2
            cut, fraction = cut_at(middle)
            if fraction <= target:
                low, best, reached = middle, cut, fraction
            else:
                high = middle
        if reached > target:
            context.log.note(
                f"prune_channels: the target was {target:.2f} of the MACs, the least possible is "
                f"{reached:.2f}"
            )
        return best


def _width(origin: Model, path: str, width: int) -> int:
    """Return the number of output channels that a layer had in the origin."""
    layer = dict(origin.module.named_modules()).get(path)
    return int(getattr(layer, "out_channels", getattr(layer, "out_features", width)))
