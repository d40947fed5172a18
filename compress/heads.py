"""Which of the tensors that a module returns are its logits, and which those of auxiliary heads.

One rule holds wherever an output is taken. The value called `logits` is taken; else one of the
task's shape that is called `out`, `output` or `predictions`; else the only one of that shape; and
if weights are given, the one that is clearly more accurate than all others. What is left is
refused: never the first by luck. It is decided once, before any work (`compress.find_heads`), and
stays with the module.

In training mode a module may return more. The logits are then the tensor that has such a name, or
the one that is computed from the same parameters as the logits of eval mode. Other tensors of the
task's shape that have parameters of their own are auxiliary heads, which are trained along.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from compress.errors import UserError
from compress.tasks.base import Tensors

NAMES = ("logits", "out", "output", "predictions")
"""What the logits are called, the surest name first."""
ATTRIBUTE = "compress_heads"
"""Under which a module carries what was decided."""
DEEPEST = 4
DROPOUTS = {
    *(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout),
    *(torch.dropout, torch.alpha_dropout, torch.feature_alpha_dropout),
}
REMEDY = "Return the logits alone, or a dictionary that has them as 'logits'"

Path = tuple[str | int, ...]
"""The keys, fields and numbers that lead to a tensor in what a module returned."""


@dataclass(frozen=True)
class Heads:
    """Where a module's heads are among what it returns."""

    main: Path = ()
    """The logits in eval mode."""
    training: Path = ()
    """The logits in training mode."""
    auxiliary: tuple[Path, ...] = ()
    """Other heads that training mode returns."""
    untrainable: str = ""
    """Why the module cannot be trained; '' if it can."""
    note: str = ""
    """What a reader of its figures must know."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Heads:
        paths = {key: tuple(values[key]) for key in ("main", "training")}
        return Heads(**{**values, **paths, "auxiliary": tuple(map(tuple, values["auxiliary"]))})


def heads_of(module: nn.Module) -> Heads | None:
    """Return the heads decided for a module; None where it returns one tensor in every mode."""
    return vars(module).get(ATTRIBUTE)


def has_auxiliary(module: nn.Module) -> bool:
    """Whether training also uses heads that are not deployed."""
    heads = heads_of(module)
    return heads is not None and bool(heads.auxiliary)


def set_heads(module: nn.Module, heads: Heads | None) -> None:
    """Have a module, and every copy of it, carry what was decided."""
    if heads is None:
        vars(module).pop(ATTRIBUTE, None)
    else:
        setattr(module, ATTRIBUTE, heads)


def heads_by_path(module: nn.Module) -> dict[str, Heads]:
    """Return the heads decided for a module and its parts (members of ensembles), by path."""
    return {path: heads for path, part in module.named_modules() if (heads := heads_of(part))}


def set_all_heads(module: nn.Module, heads: Mapping[str, Heads]) -> None:
    """Have a module of the same parts carry what `heads_by_path` returned."""
    for path, part_heads in heads.items():
        set_heads(module.get_submodule(path), part_heads)


def main_output(module: nn.Module, outputs: Any) -> Tensor:
    """Return the logits from the outputs of a module's forward pass."""
    if isinstance(outputs, Tensor):
        return outputs
    heads = heads_of(module)
    if heads is None:
        tensors = tensors_of(outputs)
        return tensors[only_one(tensors, candidates(tensors), outputs)]
    if module.training and heads.untrainable:
        raise UserError(heads.untrainable)
    path = heads.training if module.training else heads.main
    with contextlib.suppress(LookupError, TypeError, AttributeError):
        if isinstance(logits := pick(outputs, path), Tensor):
            return logits
    raise UserError(f"the model's outputs have changed: {path_name(path)} was a tensor of logits")


def all_heads(module: nn.Module, outputs: Any) -> tuple[Tensor, ...]:
    """Return the logits, then in training mode those of auxiliary heads."""
    main, heads = main_output(module, outputs), heads_of(module)
    if heads is None or not module.training or isinstance(outputs, Tensor):
        return (main,)
    return (main, *(pick(outputs, path) for path in heads.auxiliary))


def heads_in_training(module: nn.Module, inputs: Tensors) -> tuple[Tensor, ...]:
    """Return the logits and those of auxiliary heads, norms and dropout being as in eval mode.

    Without auxiliary heads, the logits of the mode that the module is in.
    """
    if not has_auxiliary(module):
        return (main_output(module, module(*inputs)),)
    with as_in_training(module):
        return all_heads(module, module(*inputs))


@contextlib.contextmanager
def as_in_training(module: nn.Module) -> Iterator[None]:
    """Have a module return its training outputs, with norms and dropout as in eval mode.

    Those are modules without parts of their own: nothing is drawn, and no statistics change.
    """
    modes = {part: part.training for part in module.modules()}
    for part in modes:
        part.training = part is module or any(True for _ in part.children())
    try:
        with _WithoutDropout():
            yield
    finally:
        for part, mode in modes.items():
            part.training = mode


class _WithoutDropout(TorchFunctionMode):
    """Skips dropout that is called as a function, which no module's mode switches off."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in DROPOUTS:
            return args[0] if args else (kwargs or {})["input"]
        return func(*args, **(kwargs or {}))


def tensors_of(outputs: Any, deepest: int = DEEPEST) -> dict[Path, Tensor]:
    """Return every tensor in a module's outputs, by its path."""
    if isinstance(outputs, Tensor):
        return {(): outputs}
    if deepest == 0:
        return {}
    return {
        (key, *path): tensor
        for key, value in _entries(outputs)
        if isinstance(key, str | int)
        for path, tensor in tensors_of(value, deepest - 1).items()
    }


def _entries(outputs: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(outputs, Mapping):  # as are the outputs of Hugging Face's models
        return outputs.items()
    if hasattr(outputs, "_fields"):
        return zip(outputs._fields, outputs, strict=True)
    if isinstance(outputs, list | tuple):
        return enumerate(outputs)
    if dataclasses.is_dataclass(outputs):
        return [(field.name, getattr(outputs, field.name)) for field in dataclasses.fields(outputs)]
    return getattr(outputs, "__dict__", {}).items()


def pick(outputs: Any, path: Path) -> Any:
    """Return what a path leads to in a module's outputs."""
    for key in path:
        named = isinstance(key, str) and not isinstance(outputs, Mapping)
        outputs = getattr(outputs, str(key)) if named else outputs[key]
    return outputs


# --- the rule -----------------------------------------------------------------------------


def candidates(tensors: Mapping[Path, Tensor], shape: Sequence[int] | None = None) -> list[Path]:
    """Return the path of the logits, or all paths between which neither name nor shape decides."""
    fitting = [path for path in tensors if fits(tensors[path], shape)]
    ranks = {path: rank for path in tensors if (rank := _rank(path)) is not None}
    # `logits` are never anything else; what is called `output` may be features.
    ranks = {path: rank for path, rank in ranks.items() if rank[0] == 0 or path in fitting}
    best = [path for path, rank in ranks.items() if rank == min(ranks.values())]
    if len(best) == 1 or len(tensors) == 1:
        return best or list(tensors)
    return [path for path in best if path in fitting] or best or fitting


def fits(tensor: Tensor, shape: Sequence[int] | None) -> bool:
    """Whether a tensor may be logits: floats, of the expected shape if that is known."""
    return tensor.is_floating_point() and (shape is None or [*tensor.shape] == [*shape])


def _rank(path: Path) -> tuple[int, int] | None:
    """Return how surely a name in a path means the logits, and how deep it is; None without one."""
    named = [(NAMES.index(str(key)), depth) for depth, key in enumerate(path) if key in NAMES]
    return min(named, default=None)


def only_one(
    tensors: Mapping[Path, Tensor], paths: Sequence[Path], outputs: Any, why: str = ""
) -> Path:
    """Return the only path; raise UserError where there are several, or none."""
    if len(paths) == 1:
        return paths[0]
    if not tensors:
        raise UserError(f"the model returned {type(outputs).__name__}, not a tensor. {REMEDY}")
    if not why:
        several = "several may be the logits, and no name tells which"
        why = several if paths else "none has the shape of the task's outputs"
    shapes = ", ".join(
        f"{path_name(path)} of shape ({', '.join(['N', *map(str, tensor.shape[1:])])})"
        for path, tensor in tensors.items()
    )
    raise UserError(f"the model returns {shapes}: {why}. {REMEDY}")


def path_name(path: Path) -> str:
    return repr(".".join(map(str, path)))
