"""What a search is called with: the text of a budget, and arguments that outlive the call."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from compress.benchmark.plan.suite import FINAL, Suite
from compress.errors import UserError
from compress.parts import is_number
from compress.recommender.folder import SPACE, read_about
from compress.recommender.goal import BY, Goal
from compress.recommender.question import Request
from compress.recommender.space_file import Wishes, merged, read_wishes
from compress.system.files import write_atomic
from compress.tasks.base import Data
from compress.techniques import techniques
from compress.timing.setting import DEFAULT

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
OBJECTS = "objects"
"""Under this name: the arguments that were objects, which no file holds."""


def seconds_of(budget: float | str) -> float:
    """Return the seconds of a budget such as 90, '90s', '2h' or '1h30m'. Raises UserError."""
    text = str(budget).strip().lower()
    parts = _PART.findall(text)
    try:
        seconds = float(text) if not parts else sum(float(n) * UNITS[unit] for n, unit in parts)
    except ValueError:
        seconds = math.nan
    if parts and "".join(n + unit for n, unit in parts) != text:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds > 0):
        raise UserError(f"--budget is a time such as 90s, 30m, 2h or 1h30m, not {budget!r}")
    return seconds


def names_of(what: str, value: object) -> tuple[Any, ...]:
    """Return a list of names or folders as a tuple; () for None. Raises UserError for one name."""
    if value is None:
        return ()
    if isinstance(value, str | Path) or not isinstance(value, Iterable):
        raise UserError(f"{what} is a list, such as {what}=['{value}'], not {value!r}")
    return tuple(_one_of(f"a name in {what}", one, str | Path, "a text") for one in value)


def folder_of(out: Any) -> Path:
    """Return the folder of a search. Raises UserError for what cannot be one."""
    folder = Path(_one_of("out", out, str | Path, "a folder"))
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: give a folder for the search (--out)")
    return folder


def _one_of(what: str, value: Any, kinds: Any, shown: str) -> Any:
    """Return a value of some types. Raises UserError, which says what it should be, for others."""
    if not isinstance(value, kinds):
        raise UserError(f"{what} is {shown}, not {value!r:.100}")
    return value


def _whole(what: str, value: object, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"{what} must be a whole number of at least {least}, not {value!r}")
    return value


def _seconds(value: Any) -> float | None:
    if value is not None and not (is_number(value) and value > 0):
        raise UserError(f"timing_seconds must be a positive number of seconds, not {value!r}")
    return value


def asked(given: Mapping[str, Any]) -> tuple[Suite, Request, dict[str, Any]]:
    """Return the suite of a search's final run, what is searched for, and what else was given.

    A typing error is reported before data is read. Raises UserError.
    """
    options = {key: value for key, value in given.items() if value is not None}
    by = _one_of("by", options.pop("by", "latency"), str, f"one of {', '.join(BY)}")
    target, drop = options.pop("target_ms", None), options.pop("max_drop", None)
    drop = 1.0 if drop is None and target is None else drop
    goal = Goal(by, drop, target)
    place = _one_of("space", options.pop("space", None), str | Path | None, "a file")
    wishes = Wishes() if place is None else read_wishes(Path(place))
    wishes = merged(wishes, options.pop("only", ()), options.pop("without", ()))
    wishes.forms(techniques(), ())
    request = Request(
        goal,
        wishes,
        trials=_whole("trials", options.pop("trials"), 1) if "trials" in options else None,
        timing_seconds=_seconds(options.pop("timing_seconds", None)),
        earlier=tuple(map(Path, options.pop("like", ()))),
    )
    data = _one_of("data", options.pop("data"), str | Data, "a source's name, or a Data")
    model = _one_of("model", options.pop("model"), str | nn.Module, "a name, or an nn.Module")
    suite = Suite(
        name="recommend",
        data=data if isinstance(data, str) else data.task.name,
        model=model if isinstance(model, str) else type(model).__name__,
        chains=(),
        weights=options.pop("weights", None),
        baseline=options.pop("baseline", None),
        seeds=(_whole("seed", options.pop("seed", 0), 0),),
        timings=DEFAULT[:1],
        controls=False,
        splits=FINAL,
    )
    options["data"] = None if isinstance(data, str) else data
    options["model"] = None if isinstance(model, str) else model
    return suite, request, options


def remembered(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments as JSON, with which the search in a folder can be taken up again.

    The space file is copied there; what is an object (a module, data) is only named.
    """
    kept: dict[str, Any] = {OBJECTS: []}
    for name, value in arguments.items():
        if value is None or (isinstance(value, tuple | list) and not value):
            continue
        if name == "space":
            kept[name] = SPACE
        elif (plain := _plain(value)) is None:
            kept[OBJECTS].append(name)
        else:
            kept[name] = plain
    return kept


def search_in(place: str | Path) -> str:
    """Return the whole path of a search's folder. Raises UserError if there is none."""
    path = Path(place).expanduser().resolve()
    if not path.is_dir() or read_about(path) is None:
        raise UserError(f"--like {place}: there is no search in that folder")
    return str(path)


def keep_space(arguments: Mapping[str, Any], out: Path) -> None:
    """Copy the space file of a call into the search's folder."""
    if space := arguments.get("space"):
        write_atomic(out / SPACE, Path(space).read_bytes())


def recalled(out: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of the search in a folder; `given` ones take their place.

    Raises UserError if there is no search, or objects that it was called with are missing.
    """
    about = read_about(out) if out.is_dir() else None
    if about is None:
        raise UserError(
            f"there is no search in {out}: begin one with --data, --model and --budget, and "
            f"--weights or --baseline"
        )
    kept = dict(about["arguments"])
    objects = [name for name in kept.pop(OBJECTS, []) if given.get(name) is None]
    if objects:
        raise UserError(
            f"the search in {out} was called with objects ({', '.join(objects)}), which no file "
            f"holds: call compress.recommend(...) with them again"
        )
    if "space" in kept:
        kept["space"] = str(out / kept["space"])
    return {**_tuples(kept), **{k: v for k, v in given.items() if v is not None}}


def _plain(value: Any) -> Any:
    """Return a value as JSON; None for an object."""
    if isinstance(value, Path):
        return str(value.expanduser().resolve())
    if isinstance(value, tuple | list):
        parts = [_plain(part) for part in value]
        return None if None in parts else parts
    if isinstance(value, Mapping):
        named = {str(key): _plain(part) for key, part in value.items()}
        return None if None in named.values() else named
    return value if isinstance(value, str | int | float | bool) else None


def _tuples(value: Any) -> Any:
    """Return JSON with tuples in place of its lists."""
    if isinstance(value, dict):
        return {key: _tuples(part) for key, part in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
