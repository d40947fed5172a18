"""Families of models: names that differ in depth and width alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from compress.errors import UserError, unknown
from compress.tasks.base import Task

SMALL = 64
"""Pixels up to which images get the stem for small ones."""
MOST = 64
"""Models of timm that a pattern may match."""
SHARES = (0.1, 0.15, 0.2, 0.25, 0.35, 0.5, 0.75, 1.0, 1.4)
"""Width multipliers of mobile networks."""

FAMILIES: Mapping[str, str] = {
    "resnet": "resnet8 to resnet56, each of several widths",
    "cnn-small": "cnn-small of several widths",
    "mlp": "mlp of several widths",
    "mobilenet_v2": "torchvision's, of several widths",
    "mobilenet_v3_small": "torchvision's, of several widths",
    "mobilenet_v3_large": "torchvision's, of several widths",
    "timm:PATTERN": f"timm's models whose names match, such as timm:efficientnet_lite*, at most "
    f"{MOST}",
}


def members(family: str, task: Task) -> list[str]:
    """Return the names of a family's models. Raises UserError for an unknown family."""
    if family.startswith("timm:"):
        return _of_timm(family.removeprefix("timm:"))
    if family not in _OWN:
        raise unknown("family", family, FAMILIES)
    return _OWN[family](task)


def _resnets(_: Task) -> list[str]:
    depths, widths = (8, 14, 20, 32, 44, 56), (4, 6, 8, 12, 16, 24, 32)
    return [f"resnet{depth}(width={width})" for depth in depths for width in widths]


def _mobile(name: str) -> Callable[[Task], list[str]]:
    def names(task: Task) -> list[str]:
        stem = ", stem='small'" if _are_small(task) else ""
        return [f"torchvision:{name}(width_mult={share}{stem})" for share in SHARES]

    return names


def _are_small(task: Task) -> bool:
    size = task.arguments().get("input_size")
    return size is not None and max(size) <= SMALL


def _wide(name: str, widths: tuple[int, ...]) -> Callable[[Task], list[str]]:
    return lambda _: [f"{name}(width={width})" for width in widths]


_OWN: Mapping[str, Callable[[Task], list[str]]] = {
    "resnet": _resnets,
    "cnn-small": _wide("cnn-small", (4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)),
    "mlp": _wide("mlp", (8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512)),
    **{name: _mobile(name) for name in FAMILIES if name.startswith("mobilenet")},
}


def _of_timm(pattern: str) -> list[str]:
    try:
        import timm
    except ImportError:
        raise UserError(
            "a family of timm needs timm, which is not installed: "
            "pip install 'compress-models[timm]'"
        ) from None
    names = timm.list_models(pattern)
    if not names:
        raise UserError(f"no model of timm is called {pattern!r}: * stands for any text")
    if len(names) > MOST:
        raise UserError(
            f"{len(names)} models of timm match {pattern!r}: give a narrower pattern, of at most "
            f"{MOST}"
        )
    return [f"timm:{name}" for name in names]
