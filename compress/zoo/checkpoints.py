"""Files of weights as people save them: read without running anything, and a set chosen of them."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from compress.errors import UserError, unknown
from compress.system.files import nearest_path

PICKLED = (".pt", ".pth", ".th", ".bin", ".ckpt", ".tar")
AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
"""Where checkpoints have averaged weights, which are meant to be used: they come first."""
WRAPPERS = (*AVERAGED, "state_dict", "model_state_dict", "model")
LIKE_AVERAGED = re.compile(
    r"(?i:averag|(?<![a-z])(ema|swa|avg)(?![a-z])|model_?ema|ema_?model)"
    r"|(?<=[a-z])(Ema|EMA|Swa|SWA|Avg)(?![a-z])"
)
"""Other names of averaged weights. ('schema' and 'semantic' are none.)"""
PREFIXES = ("module.", "_orig_mod.", "backbone.", "model.", "encoder.")
"""What usually stands before every name, and goes without saying."""
COUNTERS = ("num_batches_tracked", "total_ops", "total_params", "n_averaged")
"""Last parts of names under which libraries keep what is no weight."""
TOP = "."
"""As a key: what lies in no dictionary of the file's."""
LEVELS = 5
MOST = 1000
"""How deep, and in how many dictionaries, weights are looked for."""
SHOWN = 5
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
        averaged = not is_averaged(self.source.key)
        by_prefix = 0 if self.usual else 1 if is_averaged(self.prefix) else 2
        return (not self.exact, averaged, _rank(self.source.key), by_prefix)


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
    if not path.is_file():
        raise UserError(f"there is no file of weights {str(path)!r}{nearest_weights(path)}")
    if path.suffix == ".safetensors":
        try:
            sets = [Tensors("", load_file(path))]
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(f"{path} is damaged or no safetensors file: {error}") from error
    elif path.suffix in PICKLED:
        sets = _sets(_read_pickled(path))
    else:
        raise UserError(
            f"cannot tell what {path.name} holds: weights are .safetensors, .pt, .pth or .bin files"
        )
    if not sets:
        raise UserError(
            f"{path} holds no weights by name: save model.state_dict(), alone or under one of "
            f"the keys {', '.join(WRAPPERS)}"
        )
    if key:
        sets = _named(sets, path, key)
    fits = [] if module is None else sorted(_fits(sets, module), key=Fit.order)
    if key:  # what it names exactly comes before what lies further inside
        fits.sort(key=lambda fit: not (fit.exact and fit.source.key == key))
    several = sum(map(_is_known, sets)) > 1
    return _fitting(fits, path, bool(key) or several) if fits else _usual(sets, path, key)


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


def _sets(value: Any) -> list[Tensors]:
    """Return every dictionary of a checkpoint that has tensors, the outer ones first."""
    found: list[Tensors] = []
    waiting: list[tuple[tuple[str, ...], Mapping[Any, Any]]] = []
    if isinstance(value, Mapping):
        waiting.append(((), value))
    for keys, part in waiting:  # which grows
        tensors = {str(name): t for name, t in part.items() if isinstance(t, Tensor)}
        if tensors:
            others = [str(name) for name, t in part.items() if not isinstance(t, Tensor)]
            found.append(Tensors(".".join(keys), tensors, others))
        inner = [
            ((*keys, name), value)
            for name, value in part.items()
            if isinstance(name, str) and isinstance(value, Mapping) and len(keys) < LEVELS
        ]
        waiting += inner[: MOST - len(waiting)]
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


def _fits(sets: Sequence[Tensors], module: nn.Module) -> list[Fit]:
    """Return the sets, and parts of them, that have a tensor for every name of a module."""
    own = module.state_dict()
    # Checkpoints older than torch 0.4.1 do not count the batches of a batch norm.
    needed = {n: tensor.shape for n, tensor in own.items() if not n.endswith(COUNTERS[0])}
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
    wrapped = all(part in WRAPPERS for part in taken.source.key.split(".") if part)
    beside = [fit.source.key for fit in (taken, *others)]
    shown = taken.key(beside.count(taken.source.key) == 1) if named or others or not wrapped else ""
    notes = []
    if not taken.usual:
        heads = "" if taken.outer == taken.prefix else ", which its outer layers lack"
        notes.append(f"its names taken without {taken.prefix!r}{heads}")
    keys = [fit.key(beside.count(fit.source.key) == 1) for fit in others]
    return Chosen(
        state,
        _origin(path, shown, keys),
        notes + _aside(taken.source, keys),
        left,
    )


def _usual(sets: Sequence[Tensors], path: Path, key: str) -> Chosen:
    """Return the set where weights usually are, else the largest."""

    def order(part: Tensors) -> tuple[Any, ...]:
        rank = (0, not is_averaged(part.key), _rank(part.key)) if _is_known(part) else (1,)
        return (not key or part.key != key, *rank, -len(part.tensors))

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


def _rank(key: str) -> tuple[int, ...]:
    return tuple(
        WRAPPERS.index(part) if part in WRAPPERS else len(WRAPPERS) for part in key.split(".")
    )


def is_averaged(key: str) -> bool:
    """Whether a key is one under which averaged weights are saved."""
    return LIKE_AVERAGED.search(key) is not None


def without(name: str, prefixes: Sequence[str]) -> str:
    """Return a name without all of these in front."""
    while found := next((prefix for prefix in prefixes if name.startswith(prefix)), None):
        name = name.removeprefix(found)
    return name


def listed(names: Sequence[str]) -> str:
    """Return the first few names in words."""
    return ", ".join([*names[:SHOWN], *["..."] * (len(names) > SHOWN)])
