"""The folder of a search: what it is about, its lock, and whether another search lies there."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.benchmark.store.store import locked
from compress.errors import UserError
from compress.recommender.goal import Goal
from compress.system.files import write_json

ABOUT, LOCK, STUDY, TRIALS = "search.json", ".lock", "study.jsonl", "trials.jsonl"
SEARCH, FINALISTS, PRIVATE, SPACE = "search", "finalists", ".private", "space.toml"
VERSION = 1
OTHERS = ("results.jsonl", "results.csv")
"""Files by which the folder of an ordinary run is known."""
WRITTEN = (
    *("model.onnx", "preprocess.py", "layers.csv", "recommendation.md", "frontier.png"),
    *("best.json", "trials.csv", TRIALS, STUDY, SEARCH, FINALISTS),
)
"""What a search writes at the top of its folder."""


@dataclass
class SearchFolder:
    """A folder with one search in it, for one process at a time."""

    path: Path

    def lock(self) -> AbstractContextManager[Any]:
        """Keep others out until the returned context ends. Raises UserError if one is inside."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            held = locked(self.path / LOCK)
        except OSError as error:
            raise UserError(f"cannot write to {self.path}: {error.strerror}") from error
        if held is None:
            raise UserError(
                f"another search is writing to {self.path}: wait for it, or give another folder"
            )
        return held

    def about(self) -> dict[str, Any] | None:
        """Return what the search here is about; None if there is none.

        Raises UserError for a folder of something else.
        """
        return read_about(self.path)

    def write(self, about: Mapping[str, Any]) -> None:
        write_json(self.path / ABOUT, {"version": VERSION, **about})

    def check_same(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """Return what is known of the search here, {} of a new one.

        Raises UserError if it asks something else.
        """
        known = self.about()
        if known is None:
            return {}
        asked = known["question"]
        different = [key for key in question if asked.get(key) != question[key]]
        if different == ["space"]:
            raise UserError(
                f"{self.path} is of a search among other chains: --space, --only or --without say "
                f"something else now, or this toolkit or a plug-in has changed since. Give another "
                f"--out, and --like {self.path} to begin with what was best there"
            )
        if different:
            if "goal" in different and "space" in different:
                different.remove("space")  # which chains there are also depends on the goal
            shown = "; ".join(
                f"{key} was {_short(key, asked.get(key))}, and is {_short(key, question[key])}"
                for key in different
            )
            raise UserError(
                f"{self.path} is the folder of another search ({shown}): give another --out, or "
                f"go on with that one by `compress-models recommend {self.path} --budget TIME`"
            )
        return known


def read_about(path: Path) -> dict[str, Any] | None:
    """Return what a folder's search is about; None if there is none. Raises UserError."""
    place = path / ABOUT
    if not place.exists():
        if found := [name for name in OTHERS if (path / name).exists()]:
            raise UserError(f"{path} is the folder of a run ({found[0]}): give another --out")
        if found := [name for name in WRITTEN if (path / name).exists()]:
            raise UserError(
                f"{path} has a {found[0]} already, which the search would write over: give another "
                f"--out"
            )
        return None
    try:
        about = dict(json.loads(place.read_text()))
        version = about["version"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"{place} is damaged: {error!r}. Give another --out") from error
    if version != VERSION:
        raise UserError(f"{place} is of version {version}, and this one writes {VERSION}")
    return about


def _short(key: str, value: Any) -> str:
    if key == "goal":
        with contextlib.suppress(TypeError, UserError):  # of a damaged file
            return Goal(**value).words()
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
