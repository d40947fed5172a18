"""What a search may look at: no test item, and nothing that a step was fitted to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from compress.benchmark.plan.suite import SEARCH, USUAL
from compress.tasks.base import Data, Split, Subset
from compress.zoo.source import CALIBRATION_ITEMS


def splits_for(purpose: str, data: Data) -> Data:
    """Return the splits of a run for a purpose: `usual`, `search` or `final`.

    A search measures on the validation split, which no training sees, in place of the test split.
    A final run has the splits of the search but for its test split, so steps of both have equal
    results and equal keys. Data that nothing can be trained on has one split for everything but
    testing: half of it, at most, stays for calibration, and the rest is for validation.
    """
    if purpose == USUAL:
        return data
    if data.untrainable and not data.calibration_fingerprint and not _apart(data):
        order = np.random.RandomState(0).permutation(len(data.validation)).astype(np.int64)
        count = min(len(order) // 2, CALIBRATION_ITEMS)
        parts = (torch.from_numpy(np.sort(part)) for part in (order[:count], order[count:]))
        calibration, validation = (Subset(data.validation, part) for part in parts)
        data = replace(data, calibration=calibration, validation=validation)
    return replace(data, test=data.validation) if purpose == SEARCH else data


def _apart(data: Data) -> bool:
    """Whether calibration and validation are different items of one split, as made here."""
    first, second = data.calibration, data.validation
    if not (isinstance(first, Subset) and isinstance(second, Subset)):
        return False
    if _root(first) is not _root(second) or first.whole is not second.whole:
        return False
    return not set(first.index.tolist()) & set(second.index.tolist())


def _root(split: Split) -> Split:
    return _root(split.whole) if isinstance(split, Subset) else split
