"""What torchvision and timm say of their pretrained weights: preprocessing, classes, accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from compress.chain_parser import ModelName, parse_model_name
from compress.tasks.preprocessing import LEVELS, Settings
from compress.zoo.checkpoints import file_and_key
from compress.zoo.weights import DEFAULT, read_state

MODES = {"center": "shorter", "squash": "exact", "border": "longer"}
"""timm's `crop_mode`s."""
USUAL: Any = {"scale": 1 / LEVELS, "colors": "RGB"}
"""Of all weights of both libraries, which do not say it."""


@dataclass(frozen=True)
class Pretrained:
    """What is known of a library's weights of a model."""

    origin: str
    """In words: whose they are."""
    settings: Settings
    classes: int
    accuracy: float | None = None
    """The share of right answers on ImageNet's validation images that the library promises."""


def pretrained(model: str, weights: str | None) -> Pretrained | None:
    """Return what the library says of a model's weights; None where it says nothing of these.

    A file counts as the library's if it has as many outputs as the library's own weights: one for
    other classes was trained by others, in a way that the library does not know. Raises UserError
    if the file cannot be read.
    """
    if weights is None:
        return None
    name = parse_model_name(model)
    read = {"torchvision": _torchvision, "timm": _timm}.get(name.source)
    if read is None or name.options.get("stem"):
        return None
    known = read(name, weights)
    if known is None or weights == DEFAULT:
        return known
    return known if _has_outputs(read_state(*file_and_key(weights)), known) else None


def _has_outputs(state: Mapping[str, Tensor], known: Pretrained) -> bool:
    return any(tensor.shape[:1] == (known.classes,) for tensor in state.values())


def _torchvision(name: ModelName, weights: str) -> Pretrained | None:
    import torchvision.models

    if name.name not in torchvision.models.list_models(module=torchvision.models):
        return None
    known = torchvision.models.get_model_weights(name.name)
    file = Path(weights).stem
    chosen = next((one for one in known if Path(one.url).stem == file), known.DEFAULT)
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
    return Pretrained(
        f"torchvision's {chosen}",
        settings,
        len(chosen.meta["categories"]),
        None if promised is None else promised / 100,
    )


def _timm(name: ModelName, weights: str) -> Pretrained | None:
    try:
        import timm
    except ImportError:
        return None  # the model cannot be built either, which is said there
    found: Any = timm.get_pretrained_cfg(name.name)
    if found is None:
        return None
    size = name.options.get("img_size", found.input_size[1:])
    height, width = (size, size) if isinstance(size, int) else size
    resize: Any = MODES.get(found.crop_mode or "center", "shorter")
    settings = Settings(
        mean=tuple(found.mean),
        std=tuple(found.std),
        size=(height, width),
        crop_pct=found.crop_pct,
        resize=resize,
        interpolation=found.interpolation,
        **USUAL,
    )
    return Pretrained(f"timm's {name.name}", settings, found.num_classes)
