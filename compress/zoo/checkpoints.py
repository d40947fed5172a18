"""Files of weights as people save them: read without running anything, and a set chosen of them."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from compress.errors import UserError, unknown
from compress.system.files import nearest_path
from compress.zoo.averaged import is_averaged
from compress.zoo.fits import (
    COUNTERS,
    TOP,
    WRAPPERS,
    Fit,
    Tensors,
    all_fits,
    listed,
    misfits,
    named_by,
    rank,
)

PICKLED = (".pt", ".pth", ".th", ".bin", ".ckpt", ".tar")
LEVELS = 5
MOST = 1000
"""How deep, and in how many dictionaries, weights are looked for."""
SAFE_TORCH = (2, 11)


class Inert:
    """Stands for an object that is no tensor: it takes whatever that is made of, and keeps nothing.

    So the classes below are never called, and it does not matter what they, or crafted arguments,
    could do: of numpy's, say, a dtype with a damaged state.
    """

    def __new__(cls, *_: object) -> Inert:
        return super().__new__(cls)

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _state: object) -> None:
        pass


def _dictionary(*_: object) -> dict[Any, Any]:
    """Stand for a `defaultdict`: what is missing in it stays missing."""
    return {}


INERT = (
    # The settings of a training, as timm's and torchvision's scripts save them.
    *("argparse.Namespace", "types.SimpleNamespace"),
    *(
        f"{module}.{name}"
        for module in ("pathlib", "pathlib._local")
        for name in ("PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")
    ),
    # Numbers and histories; the dtypes' own classes are not named in a file.
    *(
        f"numpy.{core}.multiarray.{name}"
        for core in ("core", "_core")
        for name in ("scalar", "_reconstruct")
    ),
    *("numpy.dtype", "numpy.ndarray"),
    *(f"datetime.{name}" for name in ("date", "datetime", "time", "timedelta", "timezone")),
    *(f"builtins.{n}" for n in ("bool", "dict", "float", "frozenset", "int", "list")),
    *(f"builtins.{name}" for name in ("range", "slice", "str", "tuple")),
    "torch.torch_version.TorchVersion",
)
"""Classes that are known to be harmless, as a file names them; torch's reader knows OrderedDict and
Counter itself. All others are refused, although Inert could stand for them, too: a file that holds
them was not meant to be read without the code that it came from."""
STANDING_IN: list[Any] = [
    *((Inert, name) for name in INERT),
    (_dictionary, "collections.defaultdict"),
]


@dataclass(frozen=True)
class Chosen:
    """One set of weights of a file."""

    state: dict[str, Tensor]
    origin: str
    """In words: which it is, and which others there are."""
    notes: list[str]
    """In words: what was done to it."""
    left: list[str]
    """Names of tensors that are none of the module's."""


def file_and_key(source: str | Path) -> tuple[Path, str]:
    """Return the file that `FILE` or `FILE:KEY` names, and the key, '' if there is none."""
    path = Path(source).expanduser()
    file, colon, key = str(path).rpartition(":")
    return (Path(file), key) if colon and not path.exists() and Path(file).is_file() else (path, "")


def nearest_weights(path: Path) -> str:
    """Return a further sentence on a file that is not there: which beside it may be meant."""
    return nearest_path(path, lambda one: one.suffix in (".safetensors", *PICKLED))


def read(path: Path, key: str = "", module: nn.Module | None = None) -> Chosen:
    """Return one set of weights of a file: what `key` names, or what fits a module.

    Of several that fit, averaged weights come first. Of none, or without a module, what usually
    holds weights comes first. Raises UserError if there is no such set, or the file cannot be read.
    """
    content = _content(path)
    sets = _sets(content)
    if not sets:
        raise UserError(
            f"{path} holds no weights by name: save model.state_dict(), alone or under one of "
            f"the keys {', '.join(WRAPPERS)}"
        )
    if module is None:
        return _usual(_named(sets, path, key) if key else sets, path, key)
    lists = _averaged_lists(content, module)
    named = _named([*sets, *lists], path, key) if key else [*sets, *lists]
    fits = all_fits(named, sets, module)
    if not fits:
        return _usual(named if key else sets, path, key)
    if key:  # what it names exactly comes before what lies further inside
        fits.sort(key=lambda fit: not (fit.exact and fit.source.key == key))
        fits.sort(key=lambda fit: not (fit.exact and named_by(key, fit, fits)))
    chosen = _fitting(fits, path, bool(key) or sum(map(_is_known, sets)) > 1)
    if fits[0].averaged or (key and named_by(key, fits[0], fits)):
        return chosen
    return replace(chosen, notes=[*chosen.notes, *misfits(named, fits, path, module)])


def sets_in(path: Path) -> dict[str, int]:
    """Return how many tensors each set of weights of a file has, by the key that names it."""
    return {part.key or TOP: len(part.tensors) for part in _sets(_content(path))}


def _content(path: Path) -> Any:
    """Return what a file of weights holds. Raises UserError if it cannot be read safely."""
    if not path.is_file():
        raise UserError(f"there is no file of weights {str(path)!r}{nearest_weights(path)}")
    if path.suffix in PICKLED:
        return _read_pickled(path)
    if path.suffix != ".safetensors":
        raise UserError(
            f"cannot tell what {path.name} holds: weights are .safetensors, .pt, .pth or .bin files"
        )
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is damaged or no safetensors file: {error}") from error


def _read_pickled(path: Path) -> Any:
    if tuple(map(int, torch.__version__.split(".")[:2])) < SAFE_TORCH:
        raise UserError(
            f"torch {torch.__version__} can be made to run code by a file like {path.name} even "
            f"with weights_only=True: install torch 2.11 or newer, or convert it to safetensors"
        )
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(STANDING_IN):
            # About pickle protocols: what then fails is reported below.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+) w", str(error))
        what = (
            f"it holds an object of {named[1]}, which could run code when read"
            if named
            else "it is damaged, or holds Python objects that could run code when read"
        )
        raise UserError(
            f"{path} is refused: {what}. Save only the tensors: "
            f"torch.save(model.state_dict(), path), or safetensors"
        ) from error
    except Exception as error:  # bytes made by others: the reader may trip anywhere
        raise UserError(f"{path} is damaged or no file of torch weights: {error!r}") from error


def _dictionaries(value: Any) -> list[tuple[str, Mapping[Any, Any]]]:
    """Return every dictionary of a checkpoint with the key that leads there, outer ones first."""
    found: list[tuple[tuple[str, ...], Mapping[Any, Any]]] = []
    if isinstance(value, Mapping):
        found.append(((), value))
    for keys, part in found:  # which grows
        inner = [
            ((*keys, name), value)
            for name, value in part.items()
            if isinstance(name, str) and isinstance(value, Mapping) and len(keys) < LEVELS
        ]
        found += inner[: MOST - len(found)]
    return [(".".join(keys), part) for keys, part in found]


def _sets(value: Any) -> list[Tensors]:
    """Return every dictionary of a checkpoint that has tensors, the outer ones first."""
    found: list[Tensors] = []
    for key, part in _dictionaries(value):
        tensors = {str(name): t for name, t in part.items() if isinstance(t, Tensor)}
        if tensors:
            others = [str(name) for name, t in part.items() if not isinstance(t, Tensor)]
            found.append(Tensors(key, tensors, others))
    return found


def _averaged_lists(value: Any, module: nn.Module) -> list[Tensors]:
    """Return averages that were kept in the order of a module's parameters, as torch_ema does.

    Of as many as it has, each gets its parameter's name; of others, its number.
    """
    names = [name for name, _ in module.named_parameters()]
    found: list[Tensors] = []
    for outer, part in _dictionaries(value):
        for name, one in part.items():
            key = f"{outer}.{name}" if outer else str(name)
            if not isinstance(one, list | tuple) or not is_averaged(key):
                continue
            if one and all(isinstance(tensor, Tensor) for tensor in one):
                numbers = [str(number) for number in range(len(one))]
                own = names if len(names) == len(one) else numbers
                found.append(Tensors(key, dict(zip(own, one, strict=True))))
    return found


def _named(sets: Sequence[Tensors], path: Path, key: str) -> list[Tensors]:
    """Return what a key names: dictionaries, or the tensors whose names begin with it."""
    inside = f"{key}."
    found = [
        part
        for part in sets
        if part.key.startswith(inside) or part.key == (key if key != TOP else "")
    ]
    for part in sets:
        begin = inside.removeprefix(f"{part.key}." if part.key else "")
        if found or not begin or (part.key and begin == inside):
            continue
        tensors = {n.removeprefix(begin): t for n, t in part.tensors.items() if n.startswith(begin)}
        found += [Tensors(key, tensors)] if tensors else []
    if not found and path.suffix == ".safetensors":
        raise UserError(f"{path} holds one set of weights: leave out ':{key}'")
    if not found:
        raise unknown(f"set of weights in {path}", key, [part.key or TOP for part in sets])
    return found


def _fitting(fits: Sequence[Fit], path: Path, named: bool) -> Chosen:
    """Return the first of the sets that fit; `named` says which even if no other fits."""
    taken = fits[0]
    others = [fit for fit in fits[1:] if fit.exact == taken.exact]
    state: dict[str, Tensor] = {}
    left: list[str] = []
    apart = tuple(f.prefix for f in others if f.source is taken.source and f.prefix)
    for name, tensor in taken.source.tensors.items():
        if name.startswith(taken.prefix):
            short = name.removeprefix(taken.prefix)
            if not (apart and name.startswith(apart) and not taken.prefix.startswith(apart)):
                state[short] = tensor
        elif taken.outer != taken.prefix and name.startswith(taken.outer):
            state[name.removeprefix(taken.outer)] = tensor
        elif not name.startswith(apart) and not name.endswith(COUNTERS):
            left.append(name)
    state |= taken.lacking
    wrapped = all(part in WRAPPERS for part in taken.source.key.split(".") if part)
    beside = [fit.source.key for fit in (taken, *others)]
    shown = taken.key(beside.count(taken.source.key) == 1) if named or others or not wrapped else ""
    notes = []
    if not taken.usual:
        heads = "" if taken.outer == taken.prefix else ", which its outer layers lack"
        notes.append(f"its names taken without {taken.prefix!r}{heads}")
    keys = [fit.key(beside.count(fit.source.key) == 1) for fit in others]
    if taken.lent and taken.lender is not None:
        whose = taken.lender.key(beside.count(taken.lender.source.key) < 2)
        lent = f"the buffers of {path.name}:{whose}, since they come without"
        notes.append(f"averaged parameters with {lent}: {listed(taken.lent)}")
    if any(f.source is taken.source and not f.prefix for f in others):
        left = [name for name in left if name not in state]  # which are the other's
    return Chosen(
        state,
        _origin(path, shown, keys),
        notes + _aside(taken.source, keys),
        left,
    )


def _usual(sets: Sequence[Tensors], path: Path, key: str) -> Chosen:
    """Return the set where weights usually are, else the largest."""

    def order(part: Tensors) -> tuple[Any, ...]:
        first = (0, not is_averaged(part.key), rank(part.key)) if _is_known(part) else (1,)
        return (not key or part.key != key, *first, -len(part.tensors))

    taken, *rest = sorted(sets, key=order)
    others = [part.key for part in rest if not key and _is_known(part) and _is_known(taken)]
    wrapped = all(part in WRAPPERS for part in taken.key.split(".") if part)
    shown = taken.key or (TOP if key else "") if key or others or not wrapped else ""
    return Chosen(taken.tensors, _origin(path, shown, others), _aside(taken, others), [])


def _origin(path: Path, taken: str, others: Sequence[str]) -> str:
    words = f"{path.name}:{taken}" if taken else path.name
    if others:
        also = listed([f"{path.name}:{name}" for name in others])
        words += f" (the file has {also} too, which can be named instead)"
    return words


def _aside(part: Tensors, known: Sequence[str]) -> list[str]:
    """Say which names hold no tensors, without those that lead to other sets."""
    inner = part.key + "." if part.key else ""
    said = {key.removeprefix(inner).partition(".")[0] for key in known if key.startswith(inner)}
    names = [name for name in part.others if name not in said]
    return [f"without what holds no weights: {listed(names)}"] if names else []


def _is_known(part: Tensors) -> bool:
    return part.key.rpartition(".")[2] in WRAPPERS or is_averaged(part.key)
