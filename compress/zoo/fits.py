"""Which of the tensors in a file of weights are those of a module."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress.zoo.averaged import AVERAGED, averaged_prefixes, is_averaged

WRAPPERS = (*AVERAGED, "state_dict", "model_state_dict", "model")
PREFIXES = ("module.", "_orig_mod.", "backbone.", "model.", "encoder.")
"""What usually stands before every name, and goes without saying."""
COUNTERS = ("num_batches_tracked", "total_ops", "total_params", "n_averaged")
"""Last parts of names under which libraries keep what is no weight."""
TOP = "."
"""As a key: what lies in no dictionary of the file's."""
SHOWN = 5


@dataclass(frozen=True)
class Tensors:
    """The tensors that lie beside one another in a file."""

    key: str
    """What leads there, joined by dots; '' for what lies in no other dictionary."""
    tensors: dict[str, Tensor]
    others: list[str] = field(default_factory=list)
    """Names beside them of what are no tensors."""


@dataclass(frozen=True)
class Fit:
    """Tensors among which there is one for every name of a module."""

    source: Tensors
    prefix: str
    """What the names have in front."""
    outer: str
    """What those have instead that lie further out, such as a head."""
    exact: bool
    """Whether the shapes are the module's."""
    lacking: Mapping[str, Tensor] = field(default_factory=dict)
    """By the module's names, what the tensors are too few for: buffers, if they are averages."""
    lender: Fit | None = None
    """Whose buffers these are."""

    @property
    def lent(self) -> list[str]:
        """Return the names of the lender's tensors."""
        lender = self.lender
        return [n for n, t in self.lacking.items() if lender and t is lender.tensor(n)]

    @property
    def averaged(self) -> bool:
        """Whether the weights are averaged ones, by their key or by what their names begin with."""
        return is_averaged(f"{self.source.key}.{self.prefix}")

    def tensor(self, name: str) -> Tensor | None:
        """Return the tensor for one of the module's names."""
        inner = self.source.tensors.get(self.prefix + name)
        return self.source.tensors.get(self.outer + name) if inner is None else inner

    def key(self, alone: bool) -> str:
        """Return what names them after the file and a colon; `alone`: no others lie beside them."""
        short = self.prefix != self.outer or (alone and self.usual and self.source.key)
        inner = "" if short else self.prefix
        return ".".join(filter(None, (self.source.key, inner.rstrip(".")))) or TOP

    @property
    def usual(self) -> bool:
        """Whether the prefix is what wrappers add."""
        return self.prefix == self.outer and not without(self.prefix, PREFIXES)

    def order(self) -> tuple[Any, ...]:
        """Return what sorts the sets that fit: the one to take is the first."""
        by_prefix = 0 if self.usual else 1 if is_averaged(self.prefix) else 2
        by_key = (bool(self.lacking), rank(self.source.key), by_prefix)
        return (not self.exact, not self.averaged, *by_key)


def all_fits(named: Sequence[Tensors], sets: Sequence[Tensors], module: nn.Module) -> list[Fit]:
    """Return those that fit among the sets that are named, the one to take first.

    Averages that are written by hand have parameters alone. They get the buffers of the first of
    all sets that is no average.
    """
    own = module.state_dict()
    # Checkpoints older than torch 0.4.1 do not count the batches of a batch norm.
    needed = {n: tensor.shape for n, tensor in own.items() if not n.endswith(COUNTERS[0])}
    fits = _fits(named, needed)
    lenders = [fit for fit in sorted(_fits(sets, needed), key=Fit.order) if not fit.averaged]
    parameters = {name: value.shape for name, value in module.named_parameters()}
    whole = {(id(fit.source), fit.prefix) for fit in fits}
    for fit in _fits(named, parameters) if lenders else ():
        if fit.averaged and (id(fit.source), fit.prefix) not in whole:
            fits += _with_buffers(fit, lenders[0], module)
    return sorted(fits, key=Fit.order)


def _with_buffers(fit: Fit, lender: Fit, module: nn.Module) -> list[Fit]:
    """Return averaged parameters with another set's buffers; none if the shapes are not its own."""
    first = {id(value): name for name, value in module.named_parameters()}
    if any(_shape(fit, name) != _shape(lender, name) for name in first.values()):
        return []
    lacking: dict[str, Tensor] = {}
    for name, value in module.state_dict(keep_vars=True).items():
        # A parameter of two names is in an average under its first.
        shared = first.get(id(value))
        found = lender.tensor(name) if shared is None else fit.tensor(shared)
        if fit.tensor(name) is None and found is not None:
            lacking[name] = found
    return [replace(fit, exact=lender.exact, lacking=lacking, lender=lender)]


def _shape(fit: Fit, name: str) -> torch.Size | None:
    tensor = fit.tensor(name)
    return None if tensor is None else tensor.shape


def named_by(key: str, fit: Fit, fits: Sequence[Fit]) -> bool:
    """Whether a key names one of the sets that fit, and nothing further out."""
    return key in (fit.key(False), fit.key([f.source.key for f in fits].count(fit.source.key) == 1))


def misfits(
    sets: Sequence[Tensors], fits: Sequence[Fit], path: Path, module: nn.Module
) -> list[str]:
    """Say of averaged weights why they do not fit, as the first of the sets that do does."""
    taken = fits[0]
    wanted = {name: _shape(taken, name) for name, _ in module.named_parameters()}
    used = {f"{prefix}{n}" for n in module.state_dict() for prefix in (taken.prefix, taken.outer)}
    found: dict[str, dict[str, Tensor]] = {}
    for part in sets:
        found |= _averages(part, used if part is taken.source else ())
    alike = [fit for fit in fits if fit.exact == taken.exact]
    fitting = [f"{fit.source.key}.{fit.prefix}".strip(".") + "." for fit in alike]
    return [
        f"{path.name}:{key} was not taken, though it looks averaged: {_fault(tensors, wanted)}"
        for key, tensors in found.items()
        if any(tensor.numel() > 1 for tensor in tensors.values())
        if not any(one.startswith(f"{key}.") for one in fitting)
    ]


def _averages(part: Tensors, used: Container[str]) -> dict[str, dict[str, Tensor]]:
    """Return what of a dictionary looks averaged, by key: all, or what begins with such a name."""
    if is_averaged(part.key):
        return {part.key: part.tensors}
    free = {name: tensor for name, tensor in part.tensors.items() if name not in used}
    return {
        ".".join(filter(None, (part.key, prefix.rstrip(".")))): {
            name.removeprefix(prefix): t for name, t in free.items() if name.startswith(prefix)
        }
        for prefix in averaged_prefixes(free)
    }


def _fault(tensors: Mapping[str, Tensor], wanted: Mapping[str, torch.Size | None]) -> str:
    """Say why tensors are not a model's parameters."""
    if all(name.isdigit() for name in tensors):
        return f"it has {len(tensors):,} tensors without names for {len(wanted):,} parameters"
    names = dict(zip(_bare(tensors, wanted), tensors.values(), strict=True))
    missing = [name for name in wanted if name not in names]
    if missing:
        return f"it lacks {len(missing):,} of {len(wanted):,} parameters ({listed(missing)})"
    others = [name for name, shape in wanted.items() if names[name].shape != shape]
    return f"{len(others):,} of its {len(wanted):,} parameters have other shapes ({listed(others)})"


def _bare(names: Iterable[str], wanted: Container[str]) -> list[str]:
    """Return names without what usually stands before every one of them."""
    bare = list(names)
    while not any(name in wanted for name in bare):
        shared = (p for p in PREFIXES if all(name.startswith(p) for name in bare))
        prefix = next(shared, None)
        if prefix is None:
            break
        bare = [name.removeprefix(prefix) for name in bare]
    return bare


def _fits(sets: Sequence[Tensors], needed: dict[str, torch.Size]) -> list[Fit]:
    """Return the sets, and parts of them, that have a tensor for every name that is needed."""
    found: list[Fit] = []
    for part in sets if needed else []:
        names = part.tensors.keys()
        ends = {next(iter(needed)), next(reversed(needed))}
        prefixes = [
            name.removesuffix(end)
            for name in names
            for end in ends
            if name == end or name.endswith(f".{end}")
        ]
        for prefix in dict.fromkeys(prefixes):
            outer = _outer(prefix, names, needed.keys())
            if outer is None:
                continue
            exact = all(
                part.tensors[prefix + n if prefix + n in names else outer + n].shape == shape
                for n, shape in needed.items()
            )
            found.append(Fit(part, prefix, outer, exact))
    whole = {id(fit.source) for fit in found if fit.prefix == fit.outer}
    return [fit for fit in found if fit.prefix == fit.outer or id(fit.source) not in whole]


def _outer(prefix: str, names: Any, needed: Any) -> str | None:
    """Return what stands before the names that lack the prefix, or it if none do; None: no fit.

    None either if a name is there both with and without it: which is meant cannot be told.
    """
    inside = {name for name in needed if prefix + name in names}
    parts = prefix.split(".")[:-1]
    outers = ["".join(f"{part}." for part in parts[:n]) for n in range(len(parts))]
    for outer in reversed(outers):
        outside = {name for name in needed if outer + name in names}
        if outside and len(outside) < len(needed):
            return outer if inside and inside ^ outside == set(needed) else None
    return prefix if len(inside) == len(needed) else None


def rank(key: str) -> tuple[int, ...]:
    return tuple(
        WRAPPERS.index(part) if part in WRAPPERS else len(WRAPPERS) for part in key.split(".")
    )


def without(name: str, prefixes: Sequence[str]) -> str:
    """Return a name without all of these in front."""
    while found := next((prefix for prefix in prefixes if name.startswith(prefix)), None):
        name = name.removeprefix(found)
    return name


def listed(names: Sequence[str]) -> str:
    """Return the first few names in words."""
    return ", ".join([*names[:SHOWN], *["..."] * (len(names) > SHOWN)])
