"""Loading trained weights into a fresh module, without unpickling anything but tensors."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from compress.chain_parser import parse_model_name
from compress.errors import UserError

DEFAULT = "DEFAULT"
PICKLED = (".pt", ".pth", ".th", ".bin", ".ckpt", ".tar")
WRAPPERS = ("state_dict", "model_state_dict", "model")
PREFIXES = ("module.", "_orig_mod.")
SHOWN = 5
SAFE_TORCH = (2, 11)


def load_weights(module: nn.Module, source: str | Path, model_name: str) -> str:
    """Copy weights into `module`, and return a short description of where they come from.

    `source` is a .safetensors or .pt/.pth/.bin file, or `DEFAULT` for torchvision's own weights
    of a torchvision model, which are downloaded once. Raises UserError if they cannot be read
    safely, or do not fit; then the module is unchanged.
    """
    if str(source) == DEFAULT:
        state, origin = _torchvision_weights(module, model_name)
    else:
        path = Path(source).expanduser()
        state, origin = read_state(path), path.name
    state = _without_prefixes(state, module)
    _check_fit(module, state, origin, model_name)
    for name, tensor in state.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(f"{origin} holds values that are not finite numbers, in {name!r}")
    module.load_state_dict(state, strict=False)
    if str(source) == DEFAULT and hasattr(module, "transform_input"):
        # These weights (GoogLeNet, Inception) were trained on inputs scaled in another way.
        module.transform_input = True  # type: ignore[assignment]
    return origin


def read_state(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file by name; nothing else in it is read, and nothing is run.

    Raises UserError if it is missing, damaged, or holds more than tensors.
    """
    if not path.is_file():
        raise UserError(f"there is no file of weights {str(path)!r}")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(f"{path} is damaged or no safetensors file: {error}") from error
    if path.suffix in PICKLED:
        return _unwrap(_read_pickled(path), path)
    raise UserError(
        f"cannot tell what {path.name} holds: weights are .safetensors, .pt, .pth or .bin files"
    )


def _read_pickled(path: Path) -> Any:
    if tuple(map(int, torch.__version__.split(".")[:2])) < SAFE_TORCH:
        raise UserError(
            f"torch {torch.__version__} can be made to run code by a file like {path.name} even "
            f"with weights_only=True: install torch 2.11 or newer, or convert it to safetensors"
        )
    try:
        with warnings.catch_warnings():
            # About pickle protocols: what then fails is reported below.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is refused: it is damaged, or holds Python objects that could run code when "
            f"read. Save only the tensors: torch.save(model.state_dict(), path), or safetensors"
        ) from error
    except Exception as error:  # bytes made by others: the reader may trip anywhere
        raise UserError(f"{path} is damaged or no file of torch weights: {error!r}") from error


def _unwrap(value: Any, path: Path) -> dict[str, Tensor]:
    while isinstance(value, Mapping):
        inner = next((value[key] for key in WRAPPERS if isinstance(value.get(key), Mapping)), None)
        if inner is None:
            break
        value = inner
    tensors = isinstance(value, Mapping) and all(isinstance(v, Tensor) for v in value.values())
    if not tensors or not value:
        raise UserError(
            f"{path} holds no weights by name: save model.state_dict(), alone or under one of "
            f"the keys {', '.join(WRAPPERS)}"
        )
    return {str(key): tensor for key, tensor in value.items()}


def _without_prefixes(state: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Strip what DataParallel and torch.compile put before every name."""
    own, stripped = module.state_dict().keys(), dict(state)
    while not own & stripped.keys():
        prefix = next((p for p in PREFIXES if all(key.startswith(p) for key in stripped)), None)
        if prefix is None or not stripped:
            break
        stripped = {key.removeprefix(prefix): tensor for key, tensor in stripped.items()}
    return stripped


def _check_fit(
    module: nn.Module, state: Mapping[str, Tensor], origin: str, model_name: str
) -> None:
    own = module.state_dict()
    # Checkpoints older than torch 0.4.1 do not count the batches of a batch norm.
    missing = [n for n in own if n not in state and not n.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in own]
    shapes = [
        f"{name} (file {tuple(state[name].shape)}, model {tuple(own[name].shape)})"
        for name in own
        if name in state and own[name].shape != state[name].shape
    ]
    problems = {
        "missing in the file": missing,
        "unknown to the model": unexpected,
        "of another shape": shapes,
    }
    if any(problems.values()):
        listed = [
            f"{len(names)} {what}: {', '.join(names[:SHOWN] + ['...'] * (len(names) > SHOWN))}"
            for what, names in problems.items()
            if names
        ]
        raise UserError(f"the weights {origin} do not fit {model_name}: {'; '.join(listed)}")


def _torchvision_weights(module: nn.Module, model_name: str) -> tuple[dict[str, Tensor], str]:
    import torchvision.models

    name = parse_model_name(model_name)
    if name.source != "torchvision" or name.name not in torchvision.models.list_models():
        raise UserError(
            f"only models of torchvision have {DEFAULT} weights, and {model_name} is none: name "
            f"a file of weights"
        )
    weights = torchvision.models.get_model_weights(name.name).DEFAULT
    # The last parameter is the head's bias.
    classes, own = len(weights.meta["categories"]), len(list(module.parameters())[-1])
    if classes != own:
        raise UserError(
            f"torchvision's weights of {name.name} are for {classes} classes, but the model has "
            f"{own}: name a file of weights for your data, or train the model first"
        )
    try:
        state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"torchvision's weights of {name.name} could not be downloaded: {error}. Connect to "
            f"the network, or name a file of weights"
        ) from error
    return dict(state), f"{weights} of torchvision"
