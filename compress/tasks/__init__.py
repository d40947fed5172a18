"""The kinds of tasks: the options that each adds to suites and to the command line, and its data.

Imports nothing heavy: the command line asks for the options before it knows what it will do.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from compress.errors import UserError

if TYPE_CHECKING:
    from compress.tasks.base import Data

GROUP = "compress.data"
"""Entry points of other packages: `SCHEME = "module:class"`, of a `DataSource` each."""
KINDS = ("str", "int", "float", "bool", "floats")
BUILT_IN = ("imagefolder", "arrays")
"""Schemes of images."""
SOURCES: Mapping[str, str] = {}
"""What else is built in: `SCHEME: "module:class"`, of a `DataSource` each."""


@dataclass(frozen=True)
class Option:
    """A key of suites and an option of the command line that belongs to a task."""

    kind: str
    """One of `KINDS`: that of its value in a suite."""
    help: str


IMAGE_OPTIONS: Mapping[str, Option] = {
    "mean": Option("floats", "Per channel, e.g. 0.485,0.456,0.406."),
    "std": Option("floats", "Per channel, for values in [0, 1]."),
    "size": Option("int", "Resize images to this side."),
    "crop_pct": Option("float", "Resize to size / crop_pct, then crop the centre, e.g. 0.875."),
    "resize": Option("str", "shorter, longer or exact: which sides; or none."),
    "interpolation": Option("str", "bilinear, bicubic, nearest, lanczos, box or hamming."),
    "antialias": Option("bool", "Of resizing; OpenCV does without. Default: true."),
    "colors": Option("str", "RGB, BGR, or L for gray."),
    "scale": Option("float", "Factor of the levels 0 to 255; with mean and std. Default: 1/255."),
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


class DataSource(ABC):
    """Data of a task, by the name `SCHEME:PLACE`.

    Every command imports its module, to know the options: heavy libraries belong into `load`.
    """

    words: ClassVar[str]
    """What it is, for `compress-models list data`."""
    options: ClassVar[Mapping[str, Option]] = {}
    """Its keys of suites and options of the command line, such as `max_length`."""

    @abstractmethod
    def load(self, place: str, root: Path, **options: Any) -> Data:
        """Return the data at a place, by the options that were given, of those that it has.

        `root` is the folder of data sets. Raises UserError for a place or an option that cannot be.
        """


@functools.cache
def data_sources() -> Mapping[str, DataSource]:
    """Return the data sources that are no images, built in and of other packages, by scheme.

    Raises UserError for one that can't be loaded, or is not what it has to be.
    """
    found: dict[str, DataSource] = {}
    built_in = (EntryPoint(scheme, place, GROUP) for scheme, place in SOURCES.items())
    for entry in (*built_in, *entry_points(group=GROUP)):
        what = f"the data source {entry.name} = {entry.value!r} of an installed package"
        try:
            cls = entry.load()
            source = cls()
        except Exception as error:  # whatever a foreign module does at its import
            raise UserError(
                f"{what} can't be loaded ({type(error).__name__}: {error}): mend or uninstall it"
            ) from error
        if not isinstance(source, DataSource):
            raise UserError(f"{what} is not a DataSource")
        if not entry.name.isidentifier() or entry.name in (*BUILT_IN, *found):
            raise UserError(f"{what} needs another scheme: a word that no other source has")
        known = {key: option for one in found.values() for key, option in one.options.items()}
        known |= IMAGE_OPTIONS
        for key, option in source.options.items():
            if not key.isidentifier() or option.kind not in KINDS:
                raise UserError(f"{what} has an option {key!r} of kind {option.kind!r}")
            if key in known and known[key].kind != option.kind:
                raise UserError(f"{what} has an option {key!r} of another kind than others have")
        found[entry.name] = source
    return found


@functools.cache
def task_options() -> Mapping[str, Option]:
    """Return the options of all tasks, by key. Raises UserError as `data_sources` does."""
    foreign = {key: o for source in data_sources().values() for key, o in source.options.items()}
    return {**foreign, **IMAGE_OPTIONS}
