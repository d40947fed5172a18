"""The techniques by name: ours, and those that installed packages bring as entry points."""

from __future__ import annotations

import functools
import keyword
from collections.abc import Mapping
from importlib.metadata import entry_points

from compress.chain_parser import parse_chain
from compress.compressor import Compressor, Repeat
from compress.errors import UserError
from compress.techniques.carve import Carve
from compress.techniques.cast import Cast
from compress.techniques.distill import Distill
from compress.techniques.factorize import Factorize
from compress.techniques.finetune import Finetune
from compress.techniques.prune_channels import PruneChannels
from compress.techniques.prune_weights import PruneWeights
from compress.techniques.quantize import Quantize
from compress.techniques.train import Train

BUILT_IN: tuple[type[Compressor], ...] = (
    Train,
    Finetune,
    Distill,
    PruneWeights,
    PruneChannels,
    Factorize,
    Carve,
    Quantize,
    Cast,
    Repeat,
)


@functools.cache
def techniques() -> Mapping[str, type[Compressor]]:
    """Return every technique by its name in chain text, plug-ins of installed packages included.

    Raises UserError if a plug-in takes a name that is in use or is not a Compressor.
    """
    found = {cls.name(): cls for cls in BUILT_IN}
    for entry in entry_points(group="compress.compressors"):
        cls = entry.load()
        if not (isinstance(cls, type) and issubclass(cls, Compressor)):
            raise UserError(f"the plug-in {entry.value} is not a Compressor")
        if keyword.iskeyword(cls.name()):
            raise UserError(f"the plug-in {entry.value} takes the name {cls.name()!r} of Python")
        if cls.name() in found:
            raise UserError(f"the plug-in {entry.value} takes the name {cls.name()!r}, in use")
        found[cls.name()] = cls
    return found


def chain(text: str) -> Compressor:
    """Parse chain text such as `distill(student='mlp', epochs=3) -> quantize()`."""
    return parse_chain(text, techniques())


__all__ = [
    "Carve",
    "Cast",
    "Distill",
    "Factorize",
    "Finetune",
    "PruneChannels",
    "PruneWeights",
    "Quantize",
    "Repeat",
    "Train",
    "chain",
    "techniques",
]
