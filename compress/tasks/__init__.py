"""The kinds of tasks, and the options that each adds to suites and to the command line.

Imports nothing heavy: the command line asks for the options before it knows what it will do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Option:
    """A key of suites and an option of the command line that belongs to a task."""

    kind: str
    """'str', 'int', 'float', 'bool' or 'floats': the kind of its value in a suite."""
    help: str


OPTIONS: Mapping[str, Option] = {
    "mean": Option("floats", "Per channel, e.g. 0.485,0.456,0.406."),
    "std": Option("floats", "Per channel, for values in [0, 1]."),
    "size": Option("int", "Resize images to this side."),
    "crop_pct": Option("float", "Resize to size / crop_pct, then crop the centre, e.g. 0.875."),
    "resize": Option("str", "shorter, longer or exact: which sides; or none."),
    "interpolation": Option("str", "bilinear, bicubic, nearest, lanczos, box or hamming."),
    "antialias": Option("bool", "Of resizing; OpenCV does without. Default: true."),
    "colors": Option("str", "RGB, BGR, or L for gray."),
    "scale": Option("float", "Factor of the levels 0 to 255. Default: 1/255."),
    "exif": Option("bool", "Turn photographs as their EXIF says. Default: false."),
    "class_order": Option(
        "str",
        "Of an image folder's classes: text (as torchvision sorts them), number, or a file that "
        "lists them, one a line.",
    ),
    "augment": Option(
        "str",
        "none, or some of flip, crop, resizedcrop, jitter, cutout and mixup joined by hyphens, "
        "such as flip-crop; by default what suits the data.",
    ),
}
