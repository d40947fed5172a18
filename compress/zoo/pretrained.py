"""What is known of weights: preprocessing, classes, accuracy.

Torchvision and timm say it of theirs, and a run of those that it wrote.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress.chain_parser import ModelName, parse_model_name
from compress.errors import UserError
from compress.model import FORMAT
from compress.tasks.base import Task
from compress.tasks.image_classification import ImageClassification
from compress.tasks.preprocessing import LEVELS, Settings
from compress.zoo.checkpoints import file_and_key, read
from compress.zoo.libraries import from_timm, from_torchvision
from compress.zoo.published import CLASSES, MEAN, OWNER, STD, published
from compress.zoo.settings import height_width, settings_of
from compress.zoo.weights import DEFAULT, read_state

MODES = {"center": "shorter", "squash": "exact", "border": "longer"}
"""timm's `crop_mode`s."""
USUAL: Any = {"scale": 1 / LEVELS, "colors": "RGB", "antialias": True}
"""Of all weights of both libraries, which do not say it."""
RESCALING = ("googlenet", "inception_v3")
"""Models whose weights torchvision ported from TensorFlow: in front of them, it has the module undo
the usual scaling of inputs."""
HEADS = ("head.", "fc.", "classifier.")
"""How the names of classifiers' tensors begin in timm."""


@dataclass(frozen=True)
class Pretrained:
    """What is known of a model's weights."""

    origin: str
    """In words: whose they are."""
    settings: Settings
    classes: int
    accuracy: float | None = None
    """The share of right answers that is promised, on ImageNet's validation images or the data."""
    data: str = ""
    """Where a run of ours wrote them: the name of its data."""
    transform_input: bool = False
    """Whether the module itself rescales its inputs, as torchvision's GoogLeNet and Inception."""


def pretrained(model: str, weights: str | None, assume: bool = False) -> Pretrained | None:
    """Return what a run or the library says of a model's weights; None where neither does.

    A file counts as the library's if it has as many outputs as the library's own weights: one for
    other classes was trained by others. Most of these began with the library's weights and kept
    their preprocessing, so with `assume` that is returned, and called assumed. Raises UserError if
    the file cannot be read.
    """
    if weights is None:
        return None
    if weights != DEFAULT and (recorded := _recorded(file_and_key(weights)[0])) is not None:
        return recorded
    name = parse_model_name(model)
    look_up = {"torchvision": _torchvision, "timm": _timm, "": _published}.get(name.source)
    if look_up is None or name.options.get("stem"):
        return None
    known = look_up(name, weights)
    if known is None or weights == DEFAULT:
        return known
    state = read(*file_and_key(weights), _untrained(name, known)).state
    if _has_outputs(state, known):
        return known
    if not assume:
        return None
    owner = name.source or OWNER
    usual = f"{owner}'s usual for {name.name}, which is assumed: the file has another head"
    return replace(known, origin=usual, accuracy=None, transform_input=False)


def _untrained(name: ModelName, known: Pretrained) -> nn.Module | None:
    """Return a library's model without memory: of several sets in a file, its fits is meant."""
    build = {"torchvision": from_torchvision, "timm": from_timm}.get(name.source)
    if build is None:
        return None
    size = known.settings.size
    try:
        with torch.device("meta"):
            return build(name.name, name.options, known.classes, 3, size if size else (224, 224))
    except Exception:  # then it cannot be built either, which is said there, or not so
        return None


def set_rescaling(module: nn.Module, known: Pretrained | None) -> None:
    """Have a module rescale its inputs as the weights that are known want it, where it can."""
    if known is not None and known.transform_input and hasattr(module, "transform_input"):
        module.transform_input = True  # type: ignore[assignment]


def seen_otherwise(known: Pretrained, task: Task) -> str:
    """Return in words how a model's inputs differ from those that it was trained on; '' if not.

    As a beginning of what is said of its weights. Teachers see their own; what is trained sees the
    run's, as its file will. Raises UserError for a way that does not fit the task's images.
    """
    if not isinstance(task, ImageClassification):
        return ""
    given = task.preprocessing
    try:
        own = given.under(known.settings, given.fit and known.settings.fit(given.size))
    except ValueError as error:
        raise UserError(f"the weights' own preprocessing (as {known.origin}): {error}") from None
    if own == given or own.words() == given.words():
        return ""
    return f"sees {given.words()}, and was trained with {own.words()} (as {known.origin}); "


def _has_outputs(state: Mapping[str, Tensor], known: Pretrained) -> bool:
    if known.classes == 0:  # the library's own have no head
        return not any(name.startswith(HEADS) for name in state)
    return any(tensor.shape[:1] == (known.classes,) for tensor in state.values())


def _recorded(path: Path) -> Pretrained | None:
    """Return what the run that wrote a file of weights says beside it; None if no run wrote it.

    Raises UserError for a description that is damaged, or of other weights.
    """
    place = path.parent / "blueprint.json"
    if path.name != "model.safetensors" or not place.is_file():
        return None
    state = read_state(path)
    try:
        described = json.loads(place.read_text())
        if not isinstance(described, dict) or not {"factory", "about"} <= described.keys():
            return None  # another tool's file
        task = described["about"].get("task")
        if (
            described.get("format") != FORMAT
            or (task or {}).get("kind") != ImageClassification.kind
        ):
            return None
        shapes = {name: list(tensor.shape) for name, tensor in state.items()}
        theirs = {k: v for k, v in described["shapes"].items() if k not in described["tied"]}
        if shapes != theirs:
            raise ValueError("its tensors are others")
        own = described.get("attributes", {}).get("", {})
        return Pretrained(
            f"the run that wrote {path.name} used it",
            _settings(task["preprocessing"]),
            len(task["classes"]),
            data=str(task["data"]),
            transform_input=own.get("transform_input") is True,
        )
    except (
        *(UserError, OSError, ValueError, LookupError, TypeError),
        *(AttributeError, ArithmeticError, RecursionError),
    ) as error:
        raise UserError(
            f"{place} should say how {path.name} beside it wants its inputs prepared, and is "
            f"damaged or of other weights ({error!r}): repair it, or move the weights elsewhere "
            f"and give mean, std, size and the other keys yourself"
        ) from error


def _settings(spec: Mapping[str, Any]) -> Settings:
    """Return preprocessing as `Preprocessing.to_json` gives it. Raises UserError for values."""
    fit = {} if spec["resize"] == "none" else spec["resize"]
    found = settings_of(
        mean=spec["mean"],
        std=spec["std"],
        size=tuple(spec["size"]),
        scale=1 / LEVELS if spec["scale"] == "1/255" else spec["scale"],
        colors=spec["colors"],
        resize=fit.get("mode"),
        interpolation=fit.get("interpolation"),
        antialias=fit.get("antialias"),
        exif=fit.get("exif"),
    )
    if not fit:
        return found
    size, to = height_width(tuple(spec["size"])), height_width(tuple(fit["to"]))
    assert size is not None, "it was given"
    assert to is not None, "it was given"
    return replace(found, to=to, crop_pct=size[0] / to[0])


def _torchvision(name: ModelName, weights: str) -> Pretrained | None:
    import torchvision.models

    if name.name not in torchvision.models.list_models(module=torchvision.models):
        return None
    known = torchvision.models.get_model_weights(name.name)
    file = file_and_key(weights)[0].stem
    named = [one for one in known if Path(one.url).stem == file]
    chosen = named[0] if len(named) == 1 else known.DEFAULT
    transforms = chosen.transforms()
    (crop,), (to,) = transforms.crop_size, transforms.resize_size
    metrics = chosen.meta.get("_metrics", {}).get("ImageNet-1K", {})
    settings = Settings(
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        size=(crop, crop),
        to=(to, to),
        crop_pct=crop / to,
        resize="shorter",
        interpolation=transforms.interpolation.value,
        **USUAL,
    )
    promised = metrics.get("acc@1")
    found = Pretrained(
        f"torchvision's {chosen}",
        settings,
        len(chosen.meta["categories"]),
        None if promised is None else promised / 100,
        transform_input=name.name in RESCALING,
    )
    if len(named) == 1 or weights == DEFAULT:
        return found
    usual = f"torchvision's usual for {name.name}, which is assumed: the file's name is none of its"
    # Who trained it may have scaled its inputs otherwise.
    return replace(found, origin=usual, accuracy=None, transform_input=False)


def _published(name: ModelName, weights: str) -> Pretrained | None:
    found = published(name)
    if found is None or (weights != DEFAULT and file_and_key(weights)[0].name != found.file):
        return None
    settings = Settings(mean=MEAN, std=STD, **USUAL)
    return Pretrained(found.words, settings, CLASSES, found.accuracy)


def _timm(name: ModelName, weights: str) -> Pretrained | None:
    try:
        import timm
    except ImportError:
        return None  # the model cannot be built either, which is said there
    found: Any = timm.get_pretrained_cfg(name.name)
    if found is None:
        return None
    origin = f"timm's {name.name}"
    if weights != DEFAULT and "." not in name.name:
        # Of several sets of weights for one architecture, the name of the file may say which it is.
        tags = timm.list_pretrained(f"{name.name}.*")
        others: list[Any] = [timm.get_pretrained_cfg(one) for one in tags]
        file = file_and_key(weights)[0].stem
        named = [one for one in others if one.url and Path(one.url).stem == file]
        if len(named) == 1:
            [found] = named
            origin = f"timm's {name.name}.{found.tag}"
        elif any(_timm_settings(name, one) != _timm_settings(name, found) for one in others):
            origin = (
                f"timm's {name.name}.{found.tag}, which is assumed: its other weights see images "
                f"otherwise (timm:{name.name}.TAG says which)"
            )
    return Pretrained(origin, _timm_settings(name, found), found.num_classes)


def _timm_settings(name: ModelName, found: Any) -> Settings:
    """Return the preprocessing that timm's description of some weights says."""
    size = name.options.get("img_size", found.input_size[1:])
    height, width = (size, size) if isinstance(size, int) else size
    resize: Any = MODES.get(found.crop_mode or "center", "shorter")
    return Settings(
        mean=tuple(found.mean),
        std=tuple(found.std),
        size=(height, width),
        crop_pct=found.crop_pct,
        resize=resize,
        interpolation=found.interpolation,
        **USUAL,
    )
