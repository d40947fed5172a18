"""In which steps widths of channels suit this machine's kernels: found by measuring.

A vector register of AVX-512 holds 16 floats and onnxruntime lays channels out in blocks of as many;
with AVX2 it is 8. A width between two multiples then takes as long as the next one, or longer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np

from compress.lowrank.latency import Clock
from compress.techniques.channel_groups import Group
from compress.techniques.channel_scores import grains_kept
from compress.techniques.channel_times import Sizes, Timed, seconds_of_layers
from compress.techniques.channel_trace import Axis

STEPS = (16, 8, 4)
"""Steps that are tried, the coarsest first."""
TRIED = 4
"""The largest layers on which they are tried."""
UNEVEN = 1.05
"""How much longer a width may take than the mean of those a step narrower and wider."""


def liked_step(layers: Sequence[Timed], clock: Clock, seconds: float) -> int | None:
    """Return the finest step of widths at which kernels are as efficient as at coarser ones.

    A step is refused where its odd multiples take over `UNEVEN` times the mean of their even
    neighbours, in the median over the largest layers, whose inputs and outputs change together;
    layers that are too narrow for that are tried wider. The coarsest is taken for granted. None
    where no layer can be timed.
    """
    step = STEPS[0]
    several = [layer for layer in layers if not layer.depthwise]
    # A width that is even for the whole may be odd for a group.
    full = [one for one in several if getattr(one.layer, "groups", 1) == 1] or several
    tried = [layer for layer in full if layer.reads.of and layer.makes.of] or full
    tried.sort(key=lambda layer: -prod(layer.whole) * prod(layer.rows))
    for finer in STEPS[1:]:
        asked = {layer: _around(layer.whole, finer) for layer in tried[:TRIED]}
        found = seconds_of_layers(asked, clock, seconds)
        ratios = [
            2 * values[odd] / (values[below] + values[above])
            for layer, (below, odd, above) in asked.items()
            if (values := found[layer.path])
        ]
        if not ratios:
            return None
        if float(np.median(ratios)) > UNEVEN:
            break
        step = finer
    return step


def _around(sizes: Sizes, step: int) -> list[Sizes]:
    """Return an odd multiple of a step between two even ones, at about three quarters of a layer"""
    least = 3 * STEPS[0]
    reads, makes = (3 * max(size, least) // 4 // STEPS[0] * STEPS[0] for size in sizes)
    return [(reads - less * step, makes - less * step) for less in (2, 1, 0)]


def steps_of(groups: Sequence[Group], step: int) -> dict[Axis, int]:
    """Return each group's step: half of it for groups that would have one step only, down to 8."""
    return {
        group.axis: step if group.width >= 2 * step else max(min(step, 8), step // 2)
        for group in groups
    }


def at_share(groups: Sequence[Group], steps: Mapping[Axis, int], share: float) -> dict[Axis, int]:
    """Return the grains that stay of each group at a share of its width, at least one step."""
    return {
        group.axis: grains_kept(group, share * group.width, steps[group.axis]) for group in groups
    }
