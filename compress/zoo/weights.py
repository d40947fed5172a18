"""Loading trained weights into a fresh module, without unpickling anything but tensors."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from compress.chain_parser import ModelName, parse_model_name
from compress.errors import UserError, clause, first_line
from compress.system.files import sha256
from compress.system.progress import stage
from compress.zoo.checkpoints import file_and_key, read
from compress.zoo.fits import COUNTERS, PREFIXES, listed
from compress.zoo.published import OWNER, PUBLISHED, published

DEFAULT = "DEFAULT"
OLD_NAMES = (
    (
        r"(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.(?:weight|bias|running_mean|running_var))",
        r"\1\2",
    ),
    (r"(.*\.mlp)\.linear_1\.(weight|bias)", r"\1.0.\2"),
    (r"(.*\.mlp)\.linear_2\.(weight|bias)", r"\1.3.\2"),
)
"""Names in torchvision's files of DenseNets and ViTs, which its own loading replaces."""
HEAD = 0.01
"""As torchvision draws the last layers of VGG and MobileNets."""
HASHED = re.compile(r"-[0-9a-f]{8,}\.\w+(\.\w+)?$")
"""How a file's name ends that gives the beginning of its own SHA-256."""
MANY, SOME = 0.1, 20
"""Where more than this share of a model's tensors do not fit, and at least so many, the weights
look like those of another architecture."""
SHA256 = 64
"""Digits of such a hash."""


@dataclass(frozen=True)
class Loaded:
    """What became of weights."""

    words: str
    """Where they come from."""
    new_head: bool
    """Whether the head has fresh weights instead of theirs."""


def load_weights(
    module: nn.Module,
    source: str | Path,
    model_name: str,
    new_head: bool = False,
    classes: int | None = None,
) -> Loaded:
    """Copy weights into `module`, and return what became of them.

    `source` is a .safetensors or .pt/.pth/.bin file, `FILE:KEY` for one of several sets of weights
    in it (`FILE:model.ema` for one further inside), or `DEFAULT` for those that torchvision or timm
    have for their models, or others for built-in ones, which are downloaded once. With `new_head`,
    layers that differ in the number of classes alone keep the module's own fresh weights, made
    small; so do those that the file lacks, if these alone give numbers for `classes`. Raises
    UserError if they cannot be read safely, or do not fit; then the module is unchanged.
    """
    if str(source) == DEFAULT:
        state, origin = _library_weights(model_name)
        notes, left = [], []
    else:
        chosen = read(*file_and_key(source), module)
        state, origin, notes, left = chosen.state, chosen.origin, chosen.notes, chosen.left
    state, spare, lost = _without_prefixes(state, module, classes)
    spare = [*left, *spare]
    head = _head_for(module, classes) if new_head else []
    _check_fit(module, state, origin, model_name, classes, new_head, lost, head)
    _check_floats(module, state, origin, model_name)
    for name, tensor in state.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(f"{origin} holds values that are not finite numbers, in {name!r}")
    own = module.state_dict()
    head = [name for name in own if name in state and own[name].shape != state[name].shape]
    words = [origin, *notes]
    if head:
        have, want = len(state[head[0]]), len(own[head[0]])
        words.append(f"its head for {have:,} classes replaced by an untrained one for {want:,}")
    if lost:
        words.append(f"without a head: it has an untrained one for {classes:,} classes")
        head += lost
    if spare:
        words.append(f"without {listed(spare)}, which the model has no place for")
    fitting = {name: tensor for name, tensor in state.items() if name in own and name not in head}
    _place(module, fitting | {name: _small(name, own[name]) for name in head}, origin, model_name)
    return Loaded("; ".join(words), bool(head))


def _place(module: nn.Module, state: Mapping[str, Tensor], origin: str, model_name: str) -> None:
    """Copy tensors whose names and shapes are the module's own, by the loading that it may have.

    Names and shapes say that they are of its present layout, so its layers get their own versions.
    """
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    versions = getattr(module.state_dict(), "_metadata", {})

    def place(tensors: Mapping[str, Tensor]) -> None:
        ordered = OrderedDict(tensors)
        ordered._metadata = versions  # type: ignore[attr-defined]
        module.load_state_dict(ordered, strict=False)

    try:
        place(state)
    except Exception as error:  # a module's own loading may raise anything
        with contextlib.suppress(Exception):
            place(before)
        reason = str(error).strip().partition("\n")[0] or repr(error)
        raise UserError(f"{model_name} does not take the weights {origin}: {reason}") from error


def _small(name: str, fresh: Tensor) -> Tensor:
    """Return a new head's fresh weights with a standard deviation of at most HEAD, no bias.

    What some libraries draw for few classes is so large that it ruins the layers below before the
    head has learnt anything. (All zero would be dead where a ReLU follows, as in SqueezeNet.)
    """
    if name.endswith(".bias"):
        return torch.zeros_like(fresh)
    if not name.endswith(".weight"):
        return fresh
    return fresh * min(1.0, HEAD / max(float(fresh.std()), HEAD))


def read_state(path: Path, key: str = "") -> dict[str, Tensor]:
    """Return the tensors of a file by name; nothing else in it is read, and nothing is run.

    `key` names one of several sets of weights. Raises UserError if it is missing, damaged, or holds
    more than tensors.
    """
    return read(path, key).state


def _without_prefixes(
    state: Mapping[str, Tensor], module: nn.Module, classes: int | None = None
) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """Strip what wrappers put before every name.

    Return the names with no place in the model, too, and the model's names of a head for `classes`
    that the file lacks. What lies where the model has layers of its own is no name without a place:
    it may be a layer that the model lacks. (But what modules compute again, and no file needs, our
    own files have.)
    """
    own, stripped = module.state_dict().keys(), dict(state)
    left: dict[str, Tensor] = {}
    while stripped and not own & stripped.keys():
        prefix = next((p for p in PREFIXES if any(key.startswith(p) for key in stripped)), None)
        if prefix is None:
            break
        left |= {key: tensor for key, tensor in stripped.items() if not key.startswith(prefix)}
        stripped = {
            key.removeprefix(prefix): tensor
            for key, tensor in stripped.items()
            if key.startswith(prefix)
        }
    stripped = {_present(name, own): tensor for name, tensor in stripped.items()}
    computed = {name for name, _ in module.named_buffers(remove_duplicate=False)} - own
    stripped = {name: tensor for name, tensor in stripped.items() if name not in computed}
    lost = _lost_head(module, stripped, classes)
    layers = {name.partition(".")[0] for name in own - set(lost)}
    spare = [
        name
        for name in stripped
        if name not in own
        and (name.partition(".")[0] not in layers or name.rpartition(".")[2] in COUNTERS)
    ]
    if own <= stripped.keys() | {*lost} | {n for n in own if n.endswith(COUNTERS[0])}:
        # All that the model needs is there.
        kept = {name: tensor for name, tensor in stripped.items() if name not in spare}
        return kept, [name for name in (*left, *spare) if not name.endswith(COUNTERS)], lost
    return stripped | left, [], lost


def _present(name: str, own: Collection[str]) -> str:
    """Return the present name of what a file may call by an old one."""
    for old, new in OLD_NAMES if name not in own else ():
        if (found := re.sub(f"^{old}$", new, name)) in own:
            return found
    return name


def _lost_head(module: nn.Module, state: Collection[str], classes: int | None) -> list[str]:
    """Return the names that a state lacks, if each is in a layer of a head that it lacks whole.

    A head comes after all that the state has, and its last layer gives numbers for `classes`.
    """
    own = module.state_dict()
    missing = [n for n in own if n not in state and not n.endswith(COUNTERS[0])]
    # All that the state has something of: what is below none of these, it lacks whole.
    there = {above for name in own if name in state for above in _above(name)}
    for name in missing:
        part = next((above for above in _above(name) if above not in there), name)
        inside = [own[other] for other in missing if other.startswith(f"{part}.")]
        layers = [tensor for tensor in inside if tensor.ndim > 1]
        if not layers or len(layers[-1]) != classes:
            return []
    order = {name: number for number, name in enumerate(own)}
    last = max((order[name] for name in own if name in state), default=-1)
    return missing if there and all(order[name] > last for name in missing) else []


def _head_for(module: nn.Module, classes: int | None) -> list[str]:
    """Return the names of the last layer's tensors if it gives numbers for `classes`."""
    own = module.state_dict()
    layer = next(reversed(own), "").rpartition(".")[0]
    inside = [name for name in own if name.rpartition(".")[0] == layer]
    return inside if all(own[name].shape[:1] == (classes,) for name in inside) else []


def _above(name: str) -> list[str]:
    """Return the parts of a module that hold a tensor, from the largest."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def _check_fit(
    module: nn.Module,
    state: Mapping[str, Tensor],
    origin: str,
    model_name: str,
    classes: int | None,
    new_head: bool,
    lost: Collection[str],
    head: Collection[str],
) -> None:
    """Refuse weights that do not fit. Beside others, the `head` that is replaced is no reason.

    Tensors that differ in their first axis alone are those of heads where that has `classes` in the
    model: the table of positions of a net for larger images differs like this, too.
    """
    own = module.state_dict()
    # Checkpoints older than torch 0.4.1 do not count the batches of a batch norm.
    missing = [n for n in own if n not in state and not n.endswith(COUNTERS[0])]
    unexpected = [name for name in state if name not in own]
    if new_head:
        missing = [name for name in missing if name not in lost]
    differing = [n for n in own if n in state and own[n].shape != state[n].shape]
    if differing and not missing and not unexpected:
        pairs = [(tuple(state[name].shape), tuple(own[name].shape)) for name in differing]
        counts = {(have[:1], want[:1]) for have, want in pairs}
        alike = all(have[1:] == want[1:] for have, want in pairs)
        heads = alike and len(counts) == 1 and classes in (None, *pairs[0][1][:1])
        if heads and pairs[0][0] and new_head:
            return
        if heads and pairs[0][0]:
            [((have,), (want,))] = counts
            raise UserError(
                f"the weights {origin} are for {have:,} classes, and {model_name} has {want:,} "
                f"for these data. To train them on with a new head, give the baseline "
                f"finetune(epochs=...). If these data, for testing alone, show a part of the "
                f"classes: list them all in a file, one a line, and give it as class_order"
            )
    if unexpected or {*missing, *differing} - {*head}:
        missing, differing = ([n for n in names if n not in head] for names in (missing, differing))
    shapes = [
        f"{name} (file {tuple(state[name].shape)}, model {tuple(own[name].shape)})"
        for name in differing
    ]
    problems = {
        "missing in the file": missing,
        "unknown to the model": unexpected,
        "of another shape": shapes,
    }
    if lost and missing == [*lost] and not unexpected and not differing:
        raise UserError(
            f"the weights {origin} are of {model_name} without its head ({listed(missing)}). To "
            f"train them on with a new head, give the baseline finetune(epochs=...)"
        )
    if any(problems.values()):
        parts = [f"{len(n)} {what}: {listed(n)}" for what, n in problems.items() if n]
        wrong = len(missing) + len(unexpected) + len(shapes)
        other = wrong >= SOME and wrong > MANY * len(own)
        looks = "look like those of another architecture, and " if other else ""
        raise UserError(f"the weights {origin} {looks}do not fit {model_name}: {'; '.join(parts)}")


def _check_floats(
    module: nn.Module, state: Mapping[str, Tensor], origin: str, model_name: str
) -> None:
    """Refuse whole numbers where the model has fractions, but for single ones, such as counts.

    And tensors without plain values, such as sparse ones.
    """
    for name, tensor in state.items():
        if tensor.layout is not torch.strided or tensor.is_meta or tensor.is_complex():
            kind = "no values" if tensor.is_meta else f"{tensor.layout} values of {tensor.dtype}"
            raise UserError(
                f"the weights {origin} hold {kind} in {name!r}: save plain numbers, as by "
                f"tensor.to_dense()"
            )
    whole = [
        f"{name} ({str(state[name].dtype).removeprefix('torch.')})"
        for name, tensor in module.state_dict().items()
        if name in state and tensor.is_floating_point() and tensor.numel() > 1
        if not state[name].is_floating_point()
    ]
    if whole:
        raise UserError(
            f"the weights {origin} hold no fractions where {model_name} has them: {listed(whole)}. "
            f"They look quantized: give the float weights that they were made from"
        )


def _library_weights(model_name: str) -> tuple[dict[str, Tensor], str]:
    """Return a library's own weights of one of its models, downloaded once, and whose they are."""
    name = parse_model_name(model_name)
    found = published(name)
    if found is None and name.source not in ("torchvision", "timm"):
        raise UserError(
            f"only models of torchvision and timm have {DEFAULT} weights, and "
            f"{', '.join(PUBLISHED)} without options; {model_name} is none of them: name a file of "
            f"weights"
        )
    try:
        with stage(f"finding {name.source or OWNER}'s weights of {name.name}, or downloading them"):
            if found is not None:
                return found.download(), found.words
            return _timm_weights(name) if name.source == "timm" else _torchvision_weights(name)
    except UserError:
        raise
    except Exception as error:  # of three libraries and a network
        raise UserError(
            f"{name.source or OWNER}'s weights of {name.name} could not be downloaded: "
            f"{clause(first_line(error))}. Connect to the network, or name a file of weights"
        ) from error


def _torchvision_weights(name: ModelName) -> tuple[dict[str, Tensor], str]:
    import torchvision.models

    if name.name not in torchvision.models.list_models(module=torchvision.models):
        raise UserError(f"torchvision has no weights of {name.name}: name a file of weights")
    weights = torchvision.models.get_model_weights(name.name).DEFAULT
    state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    return dict(state), f"{weights} of torchvision"


def _timm_weights(name: ModelName) -> tuple[dict[str, Tensor], str]:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import timm

    found = timm.get_pretrained_cfg(name.name)
    if found is None or not found.has_weights:
        raise UserError(f"timm has no weights of {name.name}: name a file of weights")
    words = f"timm's weights of {found.architecture}.{found.tag}"
    hashed = HASHED.search(str(found.url))
    if found.url and not found.hf_hub_id and not hashed:
        words += f" (downloaded from {found.url}, of which no hash is known to check)"
    with _quiet("huggingface_hub"), _hashes_checked(bool(hashed)):
        module = timm.create_model(name.name, pretrained=True, **name.options)
    if found.hf_hub_id:
        _check_hub_file(found.hf_hub_id)
    return module.state_dict(), words


@contextlib.contextmanager
def _hashes_checked(check: bool) -> Iterator[None]:
    """Have timm check the hashes that the names of files give, which it does not by itself."""
    from timm.models import _builder, set_pretrained_check_hash

    before = _builder._CHECK_HASH
    set_pretrained_check_hash(check)
    try:
        yield
    finally:
        set_pretrained_check_hash(before)


@contextlib.contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Silence some loggers: what they say of a failed download, the error says."""
    with contextlib.ExitStack() as stack:
        for logger in map(logging.getLogger, names):
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.CRITICAL)
        yield


def _check_hub_file(repository: str) -> None:
    """Check the SHA-256 of a hub's files, as its server gives it. Raises UserError.

    The hub's library, which timm downloads by, looks at their lengths alone. In its cache a file
    has the name of its ETag, which of large files is the SHA-256.
    """
    import huggingface_hub

    place = Path(huggingface_hub.constants.HF_HUB_CACHE)
    folder = huggingface_hub.file_download.repo_folder_name(repo_id=repository, repo_type="model")
    for file in (place / folder / "blobs").glob("*"):
        if len(file.name) == SHA256 and sha256(file.read_bytes()) != file.name:
            file.unlink()
            raise UserError(
                f"the downloaded weights of {repository} are damaged (their SHA-256 is not the "
                f"one that the server gives), and were removed: try again"
            )
