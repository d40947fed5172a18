"""Smaller models as students of a search: of a model's own family, and plain small ones."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import torch

from compress import counts
from compress.chain_parser import parse_model_name
from compress.errors import UserError
from compress.model import Model
from compress.tasks.base import Task
from compress.zoo.models import fresh

NARROWER = {"cnn-small": 64, "mlp": 256, **{f"resnet{n}": 16 for n in (20, 32, 44, 56, 110)}}
"""Our own models with an option `width`, and its default."""
LADDERS = (
    ("resnet20", "resnet32", "resnet44", "resnet56", "resnet110"),
    ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    ("mobilenet_v3_small", "mobilenet_v3_large"),
    ("shufflenet_v2_x0_5", "shufflenet_v2_x1_0", "shufflenet_v2_x1_5", "shufflenet_v2_x2_0"),
    ("mnasnet0_5", "mnasnet0_75", "mnasnet1_0", "mnasnet1_3"),
    ("regnet_y_400mf", "regnet_y_800mf", "regnet_y_1_6gf", "regnet_y_3_2gf", "regnet_y_8gf"),
    ("efficientnet_b0", "efficientnet_b1", "efficientnet_b2", "efficientnet_b3", "efficientnet_b4"),
    ("densenet121", "densenet169", "densenet201"),
    ("convnext_tiny", "convnext_small", "convnext_base", "convnext_large"),
    ("vit_b_32", "vit_b_16", "vit_l_16"),
    ("swin_t", "swin_s", "swin_b"),
)
"""Families, each from the smallest to the largest; the first is ours, the others torchvision's."""
PLAIN = ("cnn-small", "resnet20(width=8)", "resnet20")
"""Nets for small images, whatever the model is."""
SMALL = 64
"""Pixels a side up to which images are small."""
SHORTER = 3
"""Members of a ladder below the model that are worth trying: far smaller ones learn less."""


def students_of(model: str) -> tuple[str, ...]:
    """Return the names of smaller models like one, from the largest; none for an unknown family.

    A width is halved, and halved again; a depth goes down its ladder.
    """
    source, name, options = parse_model_name(model)
    width = options.get("width", NARROWER.get(name))
    found = []
    if not source and name in NARROWER and isinstance(width, int):
        found += [
            _named("", name, {**options, "width": width // by}) for by in (2, 4) if width >= by
        ]
    for number, ladder in enumerate(LADDERS):
        if name in ladder and source == ("torchvision" if number else ""):
            below = reversed(ladder[: ladder.index(name)][-SHORTER:])
            found += [_named(source, one, options) for one in below]
    return tuple(found)


def plain_students(model: Model, name: str, task: Task) -> tuple[str, ...]:
    """Return the names of plain nets for small images with fewer MACs than a model of a name.

    None for other inputs: at their size a net from fresh weights learns too slowly for a search.
    Those that cannot be built for the task are left out.
    """
    [shape] = [tensor.shape[1:] for tensor in model.example[:1]]
    if len(shape) != 3 or max(shape[1:]) > SMALL or len(model.example) > 1:
        return ()
    macs = counts.macs(model.module, model.example)
    found = []
    with torch.random.fork_rng(devices=[]):
        for other in PLAIN:
            if parse_model_name(other)[:2] == parse_model_name(name)[:2]:
                continue  # its own family has those
            with contextlib.suppress(UserError):
                student = fresh(other, task)
                if counts.macs(student.module, student.example) < macs:
                    found.append(other)
    return tuple(found)


def _named(source: str, name: str, options: Mapping[str, Any]) -> str:
    shown = ", ".join(f"{key}={value!r}" for key, value in options.items())
    return f"{source}:{name}".lstrip(":") + (f"({shown})" if shown else "")
