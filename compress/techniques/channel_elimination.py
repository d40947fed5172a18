"""What layers lose by channels that go one after another, where those that stay make up for it.

A layer with weights W (O x D) and second moments S (D x D) of its inputs loses, by a channel whose
inputs are the places C among the D,

    tr(W_C ((S^-1)_CC)^-1 W_C')

of the sum of its outputs' squares once the weights of the other inputs are refitted: the optimal
brain surgeon (Hassibi and Stork 1993; for blocks: Frantar and Alistarh 2022, arXiv 2208.11580).
Channels are taken out one by one, those first by which all layers that read them lose least, the
aim of ThiNet (Luo et al. 2017, arXiv 1707.06342, section 3.2); W and S^-1 follow in closed form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

ROUNDS = 64
"""In how many rounds all channels go: of a wider layer several at once."""


@dataclass(frozen=True)
class Reader:
    """A layer that reads channels, and what it is given."""

    weight: Tensor
    """(O, D), in float64."""
    moments: Tensor
    """(D, D), in float64, of full rank."""
    places: Sequence[Tensor]
    """Of each channel, its indices among the D."""


class _Reduced:
    """A reader without some channels; weights and inverse moments are those of what is left."""

    def __init__(self, reader: Reader) -> None:
        self.places = reader.places
        energy = float(((reader.weight @ reader.moments) * reader.weight).sum())
        # Every layer's loss is a share of its own outputs' squares: one with large ones counts as
        # much as others.
        self.weight = reader.weight / energy**0.5 if energy > 0 else reader.weight
        self.inverse = torch.linalg.inv(reader.moments)
        self.at = torch.arange(len(reader.moments))
        """Where each of the D inputs stands now."""

    def losses(self, channels: Sequence[int]) -> npt.NDArray[np.float64]:
        """Return what each channel would cost, (channels,)."""
        result = np.zeros(len(channels))
        sizes = np.asarray([len(self.places[one]) for one in channels])
        for size in np.unique(sizes[sizes > 0]):
            some = np.flatnonzero(sizes == size)
            at = self.at[torch.stack([self.places[channels[int(one)]] for one in some])]
            columns = self.weight[:, at]  # (O, n, size)
            if size == 1:
                alone = self.inverse.diagonal()[at[:, 0]]
                result[some] = (columns[..., 0].square().sum(0) / alone).numpy()
                continue
            blocks = self.inverse[at[:, :, None], at[:, None, :]]
            sides = columns.permute(1, 2, 0)  # (n, size, O)
            result[some] = (sides * torch.linalg.solve(blocks, sides)).sum((1, 2)).numpy()
        return result

    def without(self, channels: Sequence[int]) -> None:
        """Take channels out, and have the others make up for them."""
        gone = self.at[torch.cat([self.places[one] for one in channels])]
        if not len(gone):
            return
        stays = torch.ones(len(self.inverse), dtype=torch.bool)
        stays[gone] = False
        rows = self.inverse[gone]
        factor = torch.linalg.solve(rows[:, gone], rows[:, stays])
        self.weight = self.weight[:, stays] - self.weight[:, gone] @ factor
        self.inverse = self.inverse[stays][:, stays] - rows[:, stays].T @ factor
        self.at = (stays.cumsum(0) - 1)[self.at.clamp(min=0)]


def losses_in_turn(readers: Sequence[Reader], count: int) -> Tensor:
    """Return by how much each of `count` channels makes its readers' outputs worse, (count,).

    That is the share of their squares that is lost by it where those that are worth less have gone
    before; what comes later is worth no less.
    """
    reduced = [_Reduced(one) for one in readers]
    left = list(range(count))
    worth, least = np.zeros(count), 0.0
    together = -(-count // ROUNDS)
    while left:
        losses = sum((one.losses(left) for one in reduced), np.zeros(len(left)))
        first = np.argsort(losses, kind="stable")[:together]
        for one in first:
            # Their order stays, where one costs less than another did that went before.
            least = max(np.nextafter(least, np.inf), float(losses[one]))
            worth[left[one]] = least
        gone = [left[int(one)] for one in first]
        left = [one for one in left if one not in set(gone)]
        if left:
            for reader in reduced:
                reader.without(gone)
    return torch.from_numpy(worth)
