"""Reading a model that a run has saved."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from pathlib import Path

from compress import model as saved
from compress.model import Model
from compress.zoo.models import build_module


def load(folder: str | Path, allow_code: Collection[str | Path] = ()) -> Model:
    """Rebuild the model in `folder` (`model.safetensors` and `blueprint.json`).

    A model whose factory is a user's own file needs that file in `allow_code`. Raises UserError
    if the files are missing, damaged, or name code that is not allowed.
    """
    allowed = tuple(Path(path) for path in allow_code)
    return saved.load(Path(folder), partial(build_module, allow_code=allowed))
