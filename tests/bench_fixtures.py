"""A small data set and context that tests of steps share."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch

from compress.compressor import seed_everything
from compress.context import StepContext, StepLog
from compress.model import Model
from compress.tasks.base import Data, Subset
from compress.tasks.image_classification import ImageClassification
from compress.tasks.preprocessing import Preprocessing
from compress.zoo.data import load_data
from compress.zoo.models import build_module, fresh


def small_digits() -> Data:
    """Return the digits with 320 training and 128 test items."""
    data = load_data("digits")
    return replace(
        data,
        train=Subset(data.train, torch.arange(320)),
        calibration=Subset(data.calibration, torch.arange(128)),
        test=Subset(data.test, torch.arange(128)),
    )


def images(side: int = 32, channels: int = 3, classes: int = 10) -> ImageClassification:
    """Return a task of images of one size, which has no data."""
    preprocessing = Preprocessing(channels, (side, side), (0.5,) * channels, (0.2,) * channels)
    return ImageClassification("made", tuple(map(str, range(classes))), preprocessing)


def make_context(data: Data, teacher: Model | None = None, seed: int = 0) -> StepContext:
    return StepContext(
        task=data.task,
        train=data.train,
        validation=data.validation,
        calibration=data.calibration,
        teacher=teacher,
        build=lambda name: fresh(name, data.task),
        seed=seed,
        log=StepLog(),
    )


def fresh_model(data: Data, name: str = "cnn-small(width=16)", seed: int = 0) -> Model:
    seed_everything(seed)
    return fresh(name, data.task)


build = partial(build_module)
