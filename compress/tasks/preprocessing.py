"""How an image file becomes a model's input: one spec for training, evaluation and deployment.

Geometry is Pillow's, as torchvision's and timm's own transforms of an image file are: resized,
cropped about the centre, as uint8. What follows is arithmetic on these levels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from compress.system.amounts import decimal

Resize = Literal["shorter", "longer", "exact", "none"]
Interpolation = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
Colors = Literal["RGB", "BGR", "L"]
RESIZES: tuple[str, ...] = get_args(Resize)
INTERPOLATIONS: tuple[str, ...] = get_args(Interpolation)
COLORS: tuple[str, ...] = get_args(Colors)
PLAIN = ("nearest", "bilinear", "bicubic")
"""Interpolations that Pillow can do without antialiasing."""
LEVELS = 255
HIGHEST = 1.01
"""A mean is at most so many times the highest level times scale, which may be written rounded."""


@dataclass(frozen=True)
class Fit:
    """How an image of any size comes to `size`, (height, width) in pixels.

    It is first resized to `to`, (height, width): its 'shorter' side has then that length, or its
    'longer' one, or both have ('exact'); with 'none' it must have `size` already. Then its centre
    is cropped; what it lacks is filled with the level `fill` of each channel. `antialias` is what
    Pillow's and torchvision's resizing do, and OpenCV's does not. `exif` turns a photograph as
    its camera says; torchvision and timm leave it as it is stored.
    """

    size: tuple[int, int]
    to: tuple[int, int]
    resize: Resize = "shorter"
    interpolation: Interpolation = "bilinear"
    antialias: bool = True
    exif: bool = False
    fill: tuple[int, ...] = ()
    """In the order of the image's channels; empty: zero."""

    def __post_init__(self) -> None:
        if not self.antialias and self.interpolation not in PLAIN:
            raise ValueError(
                f"without antialiasing, interpolation is one of {', '.join(PLAIN)}, not "
                f"{self.interpolation}"
            )

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Return the pixels of an image, uint8 of shape (height, width[, channels]).

        Raises ValueError for an image of another size that is not to be resized.
        """
        if self.resize == "none" and (image.height, image.width) != self.size:
            raise ValueError(
                f"it has {image.height}x{image.width} pixels, not {self.size[0]}x{self.size[1]}, "
                f"and resize is 'none'"
            )
        height, width = self.resized(image.height, image.width)
        resample = Image.Resampling[self.interpolation.upper()]
        if (image.height, image.width) != (height, width):
            if self.antialias:
                image = image.resize((width, height), resample)
            else:
                scale = (image.width / width, 0, 0, 0, image.height / height, 0)
                image = image.transform((width, height), Image.Transform.AFFINE, scale, resample)
        return np.asarray(self._cropped(image))

    def changes(self, size: tuple[int, int]) -> bool:
        """Whether it does anything to images of this height and width."""
        return not self.resized(*size) == size == self.size

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width of an image once it is resized.

        Of a square target as torchvision rounds it, of another one as timm does.
        """
        if self.resize in ("exact", "none"):
            return self.to
        if self.resize == "shorter" and self.to[0] == self.to[1]:
            long = int(self.to[0] * max(height, width) / min(height, width))
            return (self.to[0], long) if height <= width else (long, self.to[0])
        ratios = (height / self.to[0], width / self.to[1])
        ratio = min(ratios) if self.resize == "shorter" else max(ratios)
        return max(1, round(height / ratio)), max(1, round(width / ratio))

    def _cropped(self, image: Image.Image) -> Image.Image:
        height, width = self.size
        whole = (max(width, image.width), max(height, image.height))
        if whole != image.size:
            left, top = ((side - have) // 2 for have, side in zip(image.size, whole, strict=True))
            padded = Image.new(image.mode, whole, self.fill or 0)
            padded.paste(image, (left, top))
            image = padded
        left, top = round((whole[0] - width) / 2), round((whole[1] - height) / 2)
        return image.crop((left, top, left + width, top + height))

    def settings(self) -> Settings:
        """Return what leads to it, and for another size to the like."""
        return Settings(
            size=self.size,
            crop_pct=self.size[0] / self.to[0],
            to=self.to,
            resize=self.resize,
            interpolation=self.interpolation,
            antialias=self.antialias,
            exif=self.exif,
        )

    def words(self) -> str:
        """Return it in a few words: 'shorter side to 256, bicubic, centre 224x224'."""
        if self.resize == "none":
            return f"as stored, {_by(self.size)}"
        square = self.to[0] == self.to[1] and self.resize != "exact"
        to = str(self.to[0]) if square else _by(self.to)
        first = f"both sides to {to}" if self.resize == "exact" else f"{self.resize} side to {to}"
        plain = "" if self.antialias else " without antialiasing"
        crop = "" if self.resize == "exact" and self.to == self.size else f"centre {_by(self.size)}"
        turned = "turned as EXIF says" if self.exif else ""
        return ", ".join(filter(None, [first, self.interpolation + plain, crop, turned]))

    def to_json(self) -> dict[str, Any]:
        return {
            "mode": self.resize,
            "to": list(self.to),
            "interpolation": self.interpolation,
            "antialias": self.antialias,
            "exif": self.exif,
            "fill": list(self.fill),
        }


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


@dataclass(frozen=True)
class Preprocessing:
    """How a raw image becomes an input: fitted, scaled, less the mean, divided by std.

    `size` is (height, width) in pixels; `mean` and `std` have one value per channel, in the order
    of `colors`, and refer to levels times `scale`. Without `fit` raw images have that size. One
    spec serves training, calibration, evaluation and the metadata of the ONNX file.
    """

    channels: int
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fit: Fit | None = None
    scale: float = 1 / LEVELS
    colors: Colors = "RGB"

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != self.channels:
                raise ValueError(
                    f"{name} has {len(values)} values, but the images have {self.channels} "
                    f"channel(s): give one value per channel"
                )
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, not {self.std}")
        if max(self.mean) > HIGHEST * LEVELS * self.scale:
            raise ValueError(
                f"mean is {_values(self.mean)}, and levels times scale are at most "
                f"{decimal(LEVELS * self.scale)}: give mean and std in levels times scale, or the "
                f"scale that they are for (1 if they are in levels from 0 to {LEVELS})"
            )
        if self.colors == "BGR" and self.channels != 3:
            raise ValueError(f"colors is BGR, and the images have {self.channels} channel(s)")
        if self.colors == "L" and self.channels != 1:
            raise ValueError(f"colors is L, and the images have {self.channels} channel(s)")

    def under(self, settings: Settings, fit: Fit | None) -> Preprocessing:
        """Return it as settings say, as far as they say anything, with a fit for their size."""
        own = settings.over(self.levels())
        return replace(
            self,
            size=own.size or self.size,
            mean=own.mean or self.mean,
            std=own.std or self.std,
            fit=fit,
            scale=own.scale or self.scale,
            colors=own.colors or self.colors,
        )

    def levels(self) -> Settings:
        """Return what it does to the levels of images of the right size."""
        return Settings(mean=self.mean, std=self.std, colors=self.colors, scale=self.scale)

    def normalize(self, images: Tensor) -> Tensor:
        """Map uint8 images (N, C, H, W) of the right size, RGB, to float32 inputs."""
        # Creating a tensor on a GPU would wait for all its pending work.
        mean, std = (
            torch.tensor(values).view(1, -1, 1, 1).to(images.device, non_blocking=True)
            for values in (self.mean, self.std)
        )
        if self.colors == "BGR":
            images = images.flip(1)
        levels = images.float()
        levels = levels.div_(LEVELS) if self.scale == 1 / LEVELS else levels.mul_(self.scale)
        return levels.sub_(mean).div_(std)

    def words(self) -> str:
        """Return it in a few words."""
        fit = _by(self.size) if self.fit is None else self.fit.words()
        scale = "" if self.scale == 1 / LEVELS else f"levels times {decimal(self.scale)}"
        colors = "" if self.colors == "RGB" or self.channels == 1 else self.colors
        mean, std = (_values(values) for values in (self.mean, self.std))
        return ", ".join(filter(None, [fit, colors, scale, f"mean {mean}", f"std {std}"]))

    def to_json(self) -> dict[str, Any]:
        return {
            "layout": "NCHW",
            "channels": self.channels,
            "size": list(self.size),
            "resize": "none" if self.fit is None else self.fit.to_json(),
            "colors": "L" if self.channels == 1 else self.colors,
            "scale": "1/255" if self.scale == 1 / LEVELS else self.scale,
            "mean": list(self.mean),
            "std": list(self.std),
        }


def _values(values: tuple[float, ...]) -> str:
    shown = [decimal(value, 4) for value in values]
    return shown[0] if len(set(shown)) == 1 else "/".join(shown)


@dataclass(frozen=True)
class Settings:
    """What may be said of preprocessing: by the user, by what comes with weights, by a source.

    None leaves it to the next of them. `mean` and `std` are in the order of `colors`. `crop_pct` is
    the share of the resized image's side that the crop has, `to` what it is resized to where that
    is known instead.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: tuple[int, int] | None = None
    crop_pct: float | None = None
    to: tuple[int, int] | None = None
    resize: Resize | None = None
    interpolation: Interpolation | None = None
    antialias: bool | None = None
    colors: Colors | None = None
    scale: float | None = None
    exif: bool | None = None

    def over(self, other: Settings) -> Settings:
        """Return these settings, and where they say nothing the other ones.

        Where both differ in RGB and BGR, the mean and std of the other ones come to this order.
        """
        mine = {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}
        fit = mine.keys() & {"size", "crop_pct", "resize"}
        if self.to is None and any(mine[name] != getattr(other, name) for name in fit):
            other = replace(other, to=None)
        if {self.colors, other.colors or "RGB"} == {"RGB", "BGR"}:
            other = replace(other, mean=_reversed(other.mean), std=_reversed(other.std))
        return replace(other, **mine)

    def levels(self) -> Settings:
        """Return those alone that hold for images which have their size already."""
        return Settings(mean=self.mean, std=self.std, colors=self.colors, scale=self.scale)

    def sized(self) -> Settings:
        """Return those that hold for images which were cropped already: their size, and levels."""
        return replace(self, crop_pct=None, to=None, resize=None)

    @property
    def geometry(self) -> bool:
        """Whether they say anything of an image's size."""
        return not all(value is None for value in (self.size, self.crop_pct, self.to, self.resize))

    @property
    def of_files(self) -> list[str]:
        """Which of them hold for image files alone, where images come to another model's size."""
        names = ("resize", "crop_pct", "interpolation", "antialias", "exif")
        return [name for name in names if getattr(self, name) is not None]

    def fit(self, usual: tuple[int, int], resize: Resize = "shorter") -> Fit:
        """Return how images come to their size, by default `usual`, and by `resize`."""
        height, width = self.size or usual
        share = self.crop_pct or 1.0
        to = self.to or (math.floor(height / share), math.floor(width / share))
        mode = self.resize or resize
        mean, scale = self.mean or (), self.scale or 1 / LEVELS
        if self.colors == "BGR":  # images are filled as RGB
            mean = mean[::-1]
        resizes = mode != "none"
        return Fit(
            (height, width),
            to if resizes else (height, width),
            mode,
            (self.interpolation if resizes else None) or "bilinear",
            not resizes or self.antialias is not False,
            bool(self.exif),
            tuple(_level(value / scale) for value in mean) if mode == "longer" else (),
        )


def _level(value: float) -> int:
    """Return the level that an image can have."""
    return min(max(round(value), 0), LEVELS)


def _reversed(values: tuple[float, ...] | None) -> tuple[float, ...] | None:
    return None if values is None else values[::-1]


def script(spec: Preprocessing) -> str:
    """Return Python code that makes a spec's inputs of an image file, for Pillow and numpy alone.

    Run as a program, it classifies image files by the model beside it, which needs onnxruntime.
    """
    colors = "L" if spec.channels == 1 else "RGB"
    lines = [
        '"""From an image file to the input of model.onnx: needs Pillow and numpy.',
        "",
        "`python preprocess.py IMAGE ...` classifies images, and needs onnxruntime, too.",
        '"""',
        "",
        "import json",
        "import sys",
        "from pathlib import Path",
        "",
        "import numpy as np",
        "from PIL import Image, ImageOps",
        "",
        "",
        "def preprocess(path):",
        f'    """Return float32 of shape (1, {spec.channels}, {spec.size[0]}, {spec.size[1]})."""',
        "    image = Image.open(path)",
        "    levels = np.asarray(image)",
        "    if image.mode == 'F':  # shares of white, or levels",
        "        levels = (levels * (255 if levels.max() <= 1 else 1)).round()",
        "    elif image.mode[0] == 'I' and (image.mode != 'I' or levels.max() > 255):  # 16 bits",
        "        levels = levels >> 8",
        "    if image.mode[0] in 'FI':",
        "        image = Image.fromarray(levels.astype(np.uint8))",
        "    if image.mode == 'P' and 'transparency' in image.info:",
        "        image = image.convert('RGBA')",
        f"    image = image.convert({colors!r})",
        *(_fit_lines(spec.fit) if spec.fit is not None else ()),
        "    levels = np.asarray(image, np.float32)"
        + (".reshape(*image.size[::-1], 1)" if spec.channels == 1 else ""),
        *(["    levels = levels[:, :, ::-1]  # BGR"] if spec.colors == "BGR" else []),
        f"    mean, std = np.float32({list(spec.mean)}), np.float32({list(spec.std)})",
        f"    inputs = ({_scaled(spec.scale)} - mean) / std",
        "    return np.ascontiguousarray(inputs.transpose(2, 0, 1))[None]",
        "",
        "",
        'if __name__ == "__main__":',
        "    import onnxruntime",
        "",
        "    if not sys.argv[1:]:",
        "        sys.exit(__doc__)",
        '    model = onnxruntime.InferenceSession(Path(__file__).with_name("model.onnx"))',
        '    labels = json.loads(model.get_modelmeta().custom_metadata_map["labels"])',
        "    for path in sys.argv[1:]:",
        '        [logits] = model.run(["logits"], {"input": preprocess(path)})',
        "        print(path, labels[logits[0].argmax()])",
    ]
    if spec.fit is not None and spec.fit.exif:
        turned = lines.index("    image = Image.open(path)") + 1
        lines.insert(turned, "    image = ImageOps.exif_transpose(image)")
    else:
        lines[lines.index("from PIL import Image, ImageOps")] = "from PIL import Image"
    return "\n".join(lines) + "\n"


def _scaled(scale: float) -> str:
    return f"levels / {LEVELS}" if scale == 1 / LEVELS else f"levels * np.float32({scale!r})"


def _fit_lines(fit: Fit) -> list[str]:
    """Return the lines of code that do what `fit` does to `image`."""
    if fit.resize == "none":
        return []
    resample = f"Image.Resampling.{fit.interpolation.upper()}"
    (height, width), (to_height, to_width) = fit.size, fit.to
    if fit.resize == "exact":
        lines = [f"    width, height = {to_width}, {to_height}"]
    elif fit.resize == "shorter" and to_height == to_width:
        lines = [
            "    short, long = sorted(image.size)",
            f"    long = int({to_height} * long / short)",
            f"    width, height = ({to_height}, long) if image.width <= image.height "
            f"else (long, {to_height})",
        ]
    else:
        which = "min" if fit.resize == "shorter" else "max"
        lines = [
            f"    ratio = {which}(image.height / {to_height}, image.width / {to_width})",
            "    width, height = (max(1, round(side / ratio)) for side in image.size)",
        ]
    if fit.antialias:
        lines.append(f"    image = image.resize((width, height), {resample})")
    else:
        lines += [
            "    scale = (image.width / width, 0, 0, 0, image.height / height, 0)",
            "    affine = Image.Transform.AFFINE",
            f"    image = image.transform((width, height), affine, scale, {resample})",
        ]
    if fit.resize == "longer" or height > to_height or width > to_width:
        lines += [
            f"    whole = (max(width, {width}), max(height, {height}))",
            f"    padded = Image.new(image.mode, whole, {fit.fill or 0})",
            "    padded.paste(image, ((whole[0] - width) // 2, (whole[1] - height) // 2))",
            "    image, (width, height) = padded, whole",
        ]
    if fit.resize != "exact" or fit.size != fit.to:
        lines += [
            f"    left, top = round((width - {width}) / 2), round((height - {height}) / 2)",
            f"    image = image.crop((left, top, left + {width}, top + {height}))",
        ]
    return lines
