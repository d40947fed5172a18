"""Suites: what to run, as TOML with a schema. Unknown keys are refused with the nearest one."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

import msgspec

from compress.errors import UserError, unknown
from compress.results.record import MARGIN
from compress.tasks import task_options
from compress.tasks.preprocessing import Settings
from compress.timing.setting import DEFAULT, parse_setting
from compress.zoo.settings import settings_of

BUILT_IN = Path(__file__).resolve().parents[2] / "suites"
Option = str | int | float | bool | tuple[int | float, ...]
PRECISIONS = ("auto", "float32", "bfloat16")
USUAL, SEARCH, FINAL = "usual", "search", "final"
"""What rows are measured on: the test split; in a search the validation split, of which no step
learns and no test item is part; what a search has found, on the test split again."""
OLDEST_OPSET = 13
"""The first in which int8 weights have a scale per channel."""


@dataclass(frozen=True)
class Named:
    """A model by name, and where its weights come from (None: fresh ones)."""

    model: str
    weights: str | None = None


@dataclass(frozen=True)
class NamedTeacher(Named):
    """A teacher by name, and the preprocessing that it was trained with; None: the data's.

    Of a library's own weights the library says it.
    """

    size: int | tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    scale: float | None = None
    colors: str | None = None
    resize: str | None = None
    crop_pct: float | None = None
    interpolation: str | None = None
    antialias: bool | None = None
    exif: bool | None = None

    def settings(self) -> Settings:
        """Return what is given of the preprocessing. Raises UserError for what is none."""
        given = {item.name: getattr(self, item.name) for item in fields(NamedTeacher)}
        return settings_of(**{k: v for k, v in given.items() if k not in ("model", "weights")})


TABLES = {"teachers": NamedTeacher, "students": Named}
"""Keys of a suite whose values are tables of models, by name."""


@dataclass(frozen=True)
class Suite:
    """One data set, one model to start from, and chains to run on it.

    `baseline` is the chain text of the leading `train(...)`, or None where `weights` are given.
    `chains` are texts; one that begins with the baseline's own step is taken without it.
    The fields are the keys of a suite's file too, with the task's options in place of `options`.
    """

    name: str
    data: str
    model: str
    chains: tuple[str, ...]
    weights: str | None = None
    baseline: str | None = None
    calibration: str | None = None
    """A data source whose images int8 ranges are fitted to, in place of training images."""
    description: str = ""
    seeds: tuple[int, ...] = (0,)
    options: Mapping[str, str | int | float | bool | tuple[int | float, ...]] = field(
        default_factory=dict
    )
    """Those of the task (`compress.tasks.task_options`), by key, such as `mean` and `std`."""
    precision: str = "auto"
    threads: int | None = None
    timing_seconds: float = 60.0
    timings: tuple[str, ...] = DEFAULT
    """Latency settings: see `compress.timing.setting`."""
    controls: bool = True
    """Whether every chain that trains gets a control of equal cost as a further row."""
    margin: float = MARGIN
    """Points: a row is equivalent if a loss of accuracy of this or more is ruled out."""
    opset: int | None = None
    """Of the ONNX files, for an older runtime; None: the lowest that the export needs."""
    metric: str | None = None
    """`FILE.py:NAME` of a user's own metric, which runs only if that file is allowed."""
    teachers: Mapping[str, NamedTeacher] = field(default_factory=dict)
    students: Mapping[str, Named] = field(default_factory=dict)
    """Models with weights that chains may take for students, by name."""
    splits: str = USUAL
    """What rows are measured on (see `compress.benchmark.plan.splits`). No key of a suite's file:
    `recommend` sets it."""


def suite_names() -> dict[str, str]:
    """Return the built-in suites: name -> description."""
    paths = sorted(BUILT_IN.glob("*.toml"))
    return {path.stem: parse_suite(path.stem, path.read_text()).description for path in paths}


def load_suite(name: str) -> Suite:
    """Return a built-in suite by name, or the suite in a TOML file."""
    path = Path(name)
    if not name.endswith(".toml"):
        if name not in suite_names():
            raise unknown("suite", name, [*suite_names(), "FILE.toml"])
        path = BUILT_IN / f"{name}.toml"
    elif not path.is_file():
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
    types = _types()
    for key, value in values.items():
        if key not in types:
            raise unknown(f"key in suite {name}", key, types)
        try:
            values[key] = msgspec.convert(value, types[key])
        except msgspec.ValidationError as error:
            raise UserError(f"suite {name}: {key} = {value!r:.100}: {error}") from error
        for one, table in value.items() if key in TABLES else ():
            keys = [item.name for item in fields(TABLES[key])]
            for extra in table.keys() - set(keys):
                raise unknown(f"key of {key[:-1]} {one!r}", extra, keys)
    for key in ("data", "model", "chains"):
        if key not in values:
            raise UserError(f"suite {name}: the key {key!r} is missing")
    options = {key: values.pop(key) for key in task_options() if key in values}
    return checked(Suite(name=name, options=options, **values))


def _types() -> dict[str, Any]:
    """Return the type of every key of a suite's file."""
    kinds = {"str": str, "int": int, "float": float, "bool": bool, "floats": tuple[float, ...]}
    own, options = get_type_hints(Suite), task_options()
    if shared := own.keys() & options.keys():
        raise UserError(
            f"a data source of an installed package has an option {min(shared)!r}, which is a key "
            f"of suites: uninstall the package"
        )
    types = own | {key: kinds[option.kind] for key, option in options.items()}
    return {key: kind for key, kind in types.items() if key not in ("name", "options", "splits")}


def checked(suite: Suite) -> Suite:
    """Return the suite, or raise UserError if its values do not fit together."""
    # A search draws its chains when it has begun.
    _require(suite.chains or suite.splits != USUAL, f"suite {suite.name}: it has no chains")
    different = len(set(suite.seeds)) == len(suite.seeds) > 0
    _require(
        different and all(0 <= seed < 2**31 for seed in suite.seeds),
        f"suite {suite.name}: seeds must be different whole numbers from 0 to {2**31 - 1}",
    )
    for name in ("baseline", "input"):
        _require(
            name not in suite.teachers,
            f"a teacher cannot be called {name!r}: that names another model",
        )
    for name, teacher in suite.teachers.items():
        given = teacher.settings()
        _require(
            (given.mean is None) == (given.std is None),
            f"teacher {name!r}: give mean and std together",
        )
    for name in suite.students:
        _require(
            name.isidentifier() and name != "same",
            f"a student is called by a word of letters, digits and underscores, other than 'same', "
            f"not {name!r}",
        )
    _require(suite.precision in PRECISIONS, f"precision must be one of {', '.join(PRECISIONS)}")
    _require(
        (suite.options.get("mean") is None) == (suite.options.get("std") is None),
        "give mean and std together: one without the other shifts every input",
    )
    _require(
        suite.threads is None or suite.threads >= 1,
        f"threads must be at least 1, not {suite.threads}",
    )
    _require(
        0 < suite.timing_seconds < float("inf"),
        f"timing_seconds must be positive and finite, not {suite.timing_seconds}",
    )
    check_margin(suite.margin)
    _require(
        suite.opset is None or suite.opset >= OLDEST_OPSET,
        f"opset must be at least {OLDEST_OPSET}, not {suite.opset}: in older ones int8 weights "
        f"have no scale per channel",
    )
    _require(suite.timings, "timings is empty: name at least one latency setting, such as cpu")
    for name in suite.timings:
        parse_setting(name)
    _require(
        len(set(suite.timings)) == len(suite.timings),
        f"a latency setting stands twice in {', '.join(suite.timings)}",
    )
    return suite


def check_margin(margin: float) -> None:
    """Raise UserError for a margin of equivalence that is none."""
    _require(
        0 < margin <= 100,
        f"margin must be above 0 and at most 100, in points of accuracy, not {margin}: it is the "
        f"loss that a row must be shown to stay below to count as equivalent",
    )


def _require(condition: object, sentence: str) -> None:
    if not condition:
        raise UserError(sentence)
