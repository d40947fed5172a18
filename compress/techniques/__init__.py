"""The techniques by name: ours, and those that installed packages bring as entry points."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from compress.chain_parser import parse_chain
from compress.compressor import Compressor, Repeat
from compress.parts import by_name
from compress.techniques.carve import Carve
from compress.techniques.cast import Cast
from compress.techniques.criteria import criteria
from compress.techniques.distill import Distill
from compress.techniques.factorize import Factorize
from compress.techniques.finetune import Finetune
from compress.techniques.hints import hints
from compress.techniques.losses import losses
from compress.techniques.prune_channels import PruneChannels
from compress.techniques.prune_weights import PruneWeights
from compress.techniques.quantize import Quantize
from compress.techniques.search import Search
from compress.techniques.sparsify import Sparsify
from compress.techniques.train import Train
from compress.techniques.untrained import Untrained

BUILT_IN: tuple[type[Compressor], ...] = (
    Train,
    Finetune,
    Distill,
    Sparsify,
    PruneWeights,
    PruneChannels,
    Factorize,
    Carve,
    Search,
    Quantize,
    Cast,
    Repeat,
    Untrained,
)


@functools.cache
def techniques() -> Mapping[str, type[Compressor]]:
    """Return every technique by its name in chain text, plug-ins of installed packages included.

    Raises UserError if a plug-in takes a name that is in use or is not a Compressor.
    """
    return by_name(Compressor, "compress.compressors", BUILT_IN)


def chain(text: str) -> Compressor:
    """Parse chain text such as `distill(student='mlp', epochs=3) -> quantize()`."""
    return parse_chain(text, techniques())


__all__ = ["chain", "criteria", "hints", "losses", "techniques"]
