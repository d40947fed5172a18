"""Whether a search is taken up with the objects that it was begun with, so that its steps count.

No key names an object of a process, such as a module that was passed from Python. It is taken for
the same in a later process if its weights are, its layers, the source of its classes, and its
answers to the probe.
"""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from compress.benchmark.plan.plan import Plan
from compress.heads import main_output
from compress.model import Model, identity
from compress.system.files import digest, write_json

ABOUT = "objects.json"
NEAR = 1e-3
"""How far answers may differ, relative to the largest: kernels may sum in another order."""


def keep_steps(plan: Plan, folder: Path) -> None:
    """Empty the store of what is made of a process's objects, unless they are still the same.

    Where that cannot be known (a class without source, a metric that is a function) it is emptied.
    """
    about = _about(plan)
    if about is None or not _same(about, _read(folder / ABOUT)):
        shutil.rmtree(folder, ignore_errors=True)
    if about is not None:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / ABOUT, about)


def _about(plan: Plan) -> dict[str, Any] | None:
    """Return what is known of a plan's objects (JSON); None if that is not enough."""
    models = {name: plan.teachers[name] for name in plan.own_teachers}
    if plan.instance is not None:
        models[""] = plan.start
    described = {name: _described(model) for name, model in models.items()}
    unknown_metric = plan.metric is not None and plan.metric.file is None
    if unknown_metric or None in described.values():
        return None
    return described


def _described(model: Model) -> dict[str, Any] | None:
    source = _source(model.module)
    if source is None:
        return None
    with torch.no_grad():
        answers = main_output(model.module, model.module(*model.probe)).double().flatten()
    return {"identity": identity(model), "source": source, "answers": answers.tolist()}


def _source(module: nn.Module) -> str | None:
    """Return a hash of the source of all classes of a module but torch's; None if one has none."""
    kinds = {kind for layer in module.modules() for kind in type(layer).__mro__}
    texts = {}
    for kind in kinds:
        if kind is object or kind.__module__.partition(".")[0] in ("torch", "typing", "abc"):
            continue
        try:
            texts[f"{kind.__module__}.{kind.__qualname__}"] = inspect.getsource(kind)
        except (OSError, TypeError):
            return None
    return digest(texts)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return found


def _same(ours: dict[str, Any], theirs: dict[str, Any] | None) -> bool:
    if theirs is None or ours.keys() != theirs.keys():
        return False
    return all(_alike(one, theirs[name]) for name, one in ours.items())


def _alike(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    if any(ours[key] != theirs.get(key) for key in ("identity", "source")):
        return False
    new, old = np.array(ours["answers"]), np.array(theirs["answers"])
    return new.shape == old.shape and bool(np.abs(new - old).max() <= NEAR * np.abs(old).max())
