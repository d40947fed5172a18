"""Suites: what to run, as TOML with a schema. Unknown keys are refused with the nearest one."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from compress.errors import UserError, unknown
from compress.results.record import MARGIN
from compress.tasks import OPTIONS
from compress.timing.setting import DEFAULT, parse_setting

KINDS = {
    "str": str,
    "int": int,
    "float": (int, float),
    "bool": bool,
    "strs": list,
    "ints": list,
    "floats": list,
    "table": dict,
}


@dataclass(frozen=True)
class Named:
    """A model by name, and where its weights come from (None: fresh ones)."""

    model: str
    weights: str | None = None


@dataclass(frozen=True)
class Suite:
    """One data set, one model to start from, and chains to run on it.

    `baseline` is the chain text of the leading `train(...)`, or None where `weights` are given.
    `chains` are texts; one that begins with the baseline's own step is taken without it.
    """

    name: str
    data: str
    model: str
    chains: tuple[str, ...]
    weights: str | None = None
    baseline: str | None = None
    description: str = ""
    seeds: tuple[int, ...] = (0,)
    options: Mapping[str, Any] = field(default_factory=dict)
    """Those of the task (`compress.tasks.OPTIONS`), by key, such as `mean` and `std`."""
    precision: str = "auto"
    threads: int | None = None
    timing_seconds: float = 60.0
    timings: tuple[str, ...] = DEFAULT
    """Latency settings: see `compress.timing.setting`."""
    controls: bool = True
    """Whether every chain that trains gets a control of equal cost as a further row."""
    margin: float = MARGIN
    """Points: a row is equivalent if a loss of accuracy of this or more is ruled out."""
    metric: str | None = None
    """`FILE.py:NAME` of a user's own metric, which runs only if that file is allowed."""
    teachers: Mapping[str, Named] = field(default_factory=dict)


SCHEMA = {
    "description": "str",
    "data": "str",
    "model": "str",
    "weights": "str",
    "baseline": "str",
    "chains": "strs",
    "seeds": "ints",
    "precision": "str",
    "threads": "int",
    "timing_seconds": "float",
    "timings": "strs",
    "controls": "bool",
    "margin": "float",
    "metric": "str",
    "teachers": "table",
    **{key: option.kind for key, option in OPTIONS.items()},
}
PRECISIONS = ("auto", "float32", "bfloat16")


def suite_names() -> dict[str, str]:
    """Return the built-in suites: name -> description."""
    return {
        item.name.removesuffix(".toml"): parse_suite(item.name, item.read_text()).description
        for item in sorted(resources.files("compress.suites").iterdir(), key=lambda i: i.name)
        if item.name.endswith(".toml")
    }


def load_suite(name: str) -> Suite:
    """Return a built-in suite by name, or the suite in a TOML file."""
    if not name.endswith(".toml"):
        built_in = resources.files("compress.suites") / f"{name}.toml"
        if "/" in name or not built_in.is_file():
            raise unknown("suite", name, [*suite_names(), "FILE.toml"])
        return parse_suite(name, built_in.read_text())
    path = Path(name)
    if not path.is_file():
        raise UserError(f"there is no suite file {name}; built in are {', '.join(suite_names())}")
    try:
        return parse_suite(path.stem, path.read_text())
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not a text file: {error}") from error


def parse_suite(name: str, text: str) -> Suite:
    """Parse the TOML text of a suite. Raises UserError that says which key is wrong."""
    try:
        values = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: a number of thousands of digits
        raise UserError(f"suite {name}: not valid TOML: {error}") from error
    for key, value in values.items():
        if key not in SCHEMA:
            raise unknown(f"key in suite {name}", key, SCHEMA)
        _check_kind(f"suite {name}: {key}", value, SCHEMA[key])
    for key in ("data", "model", "chains"):
        if key not in values:
            raise UserError(f"suite {name}: the key {key!r} is missing")
    teachers = {
        key: _named(f"suite {name}: teachers.{key}", table)
        for key, table in values.pop("teachers", {}).items()
    }
    options = {key: values.pop(key) for key in OPTIONS if key in values}
    plain = {**_tuples(values), "options": _tuples(options), "teachers": teachers}
    return checked(Suite(name=name, **plain))


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}


def suite_from_json(values: Mapping[str, Any]) -> Suite:
    """Return the suite that `dataclasses.asdict` gave, after JSON has made lists of tuples."""
    teachers = {key: Named(**table) for key, table in values["teachers"].items()}
    options = _tuples(values["options"])
    return Suite(**{**_tuples(values), "teachers": teachers, "options": options})


def checked(suite: Suite) -> Suite:
    """Return the suite, or raise UserError if its values do not fit together."""
    if not suite.chains:
        raise UserError(f"suite {suite.name}: it has no chains")
    if (
        not suite.seeds
        or len(set(suite.seeds)) < len(suite.seeds)
        or not all(0 <= seed < 2**31 for seed in suite.seeds)
    ):
        raise UserError(
            f"suite {suite.name}: seeds must be different whole numbers from 0 to {2**31 - 1}"
        )
    for name in ("baseline", "input"):
        if name in suite.teachers:
            raise UserError(f"a teacher cannot be called {name!r}: that names another model")
    if suite.precision not in PRECISIONS:
        raise UserError(f"precision must be one of {', '.join(PRECISIONS)}")
    if (suite.options.get("mean") is None) != (suite.options.get("std") is None):
        raise UserError("give mean and std together: one without the other shifts every input")
    if suite.threads is not None and suite.threads < 1:
        raise UserError(f"threads must be at least 1, not {suite.threads}")
    if not 0 < suite.timing_seconds < float("inf"):
        raise UserError(f"timing_seconds must be positive and finite, not {suite.timing_seconds}")
    check_margin(suite.margin)
    if not suite.timings:
        raise UserError("timings is empty: name at least one latency setting, such as cpu")
    for name in suite.timings:
        parse_setting(name)
    if len(set(suite.timings)) < len(suite.timings):
        raise UserError(f"a latency setting stands twice in {', '.join(suite.timings)}")
    return suite


def check_margin(margin: float) -> None:
    """Raise UserError for a margin of equivalence that is none."""
    if not 0 < margin <= 100:
        raise UserError(
            f"margin must be above 0 and at most 100, in points of accuracy, not {margin}: it is "
            f"the loss that a row must be shown to stay below to count as equivalent"
        )


def _check_kind(where: str, value: Any, kind: str) -> None:
    expected = KINDS[kind]
    odd = isinstance(value, bool) and kind != "bool"  # Python counts True among the integers
    if odd or not isinstance(value, expected):  # type: ignore[arg-type]
        raise UserError(f"{where} must be of kind {kind}, not {value!r}")
    inner = {"strs": str, "ints": int, "floats": (int, float)}.get(kind)
    if inner is None:
        return
    for item in value:
        if not isinstance(item, inner) or isinstance(item, bool):  # type: ignore[arg-type]
            raise UserError(f"{where}: {item!r} does not fit in a list of {kind}")


def _named(where: str, table: Any) -> Named:
    if not isinstance(table, dict) or not isinstance(table.get("model"), str):
        raise UserError(f"{where} needs a model, such as model = 'resnet56'")
    for key, value in table.items():
        if key not in ("model", "weights"):
            raise unknown(f"key of {where}", key, ["model", "weights"])
        _check_kind(f"{where}.{key}", value, "str")
    return Named(**table)
