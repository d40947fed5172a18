"""A file of timings that is not about the run's files, or not what the timer writes, is refused."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from packed import NAMES, SETTINGS, SLUG, saved

from compress.benchmark.portable.merge import merge
from compress.benchmark.portable.validate_timings import Process, _deadly
from compress.benchmark.store.outputs import Outputs
from compress.errors import UserError
from compress.results.derive import read_results
from compress.timing.interleave import KEPT_CALLS
from compress.timing.raw_timings import CONTROL

BASE, INT8, _ = NAMES


def at(*keys: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(values: dict[str, Any]) -> None:
        part: Any = values
        for key in keys[:-1]:
            part = part[key]
        part[keys[-1]] = value

    return change


def renamed(name: str) -> Callable[[dict[str, Any]], None]:
    def change(values: dict[str, Any]) -> None:
        text = json.dumps(values).replace(json.dumps(INT8), json.dumps(name))
        values.clear()
        values.update(json.loads(text))

    return change


PROCESS = ("timings", "launched", 0)
SERIES = (*PROCESS, "settings", "1", BASE)


def absent(values: dict[str, Any]) -> None:
    for part in values["timings"]["launched"]:
        for series in part["settings"].values():
            series.pop(INT8, None)


HOSTILE: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "another kind": (at("kind", value="poem"), "is no file of timings"),
    "schema": (at("schema", value=2), "has schema 2, and this version reads 1"),
    "a schema of text": (at("schema", value="\x1b[2J"), "Expected `int`, got `str`.*schema"),
    "a schema of many digits": (at("schema", value=10**400), "Expected `int` <= 9999.*schema"),
    "wrong hash": (at("models", INT8, value="0" * 64), "is not the run's"),
    "no hash": (at("models", INT8, value=None), "Expected `str`, got `null`.*models"),
    "unknown name": (renamed("prune() [seed 0]"), "the run has no file 'prune.. .seed 0.'"),
    "a row that is not sound": (renamed("odd() [seed 0]"), "the run has no file"),
    "path in a name": (renamed("../../etc/passwd"), "the run has no file"),
    "a name to be shown": (renamed("\x1b[2J" * 99), "the run has no file '.{119}[.]{3}: were"),
    "no models": (at("models", value=[]), "Expected `object`, got `array`.*models"),
    "no timings": (at("timings", value=[]), "Expected `object`, got `array`.*timings"),
    "foreign key": (at("timings", "more", value=1), "unknown field `more`.*timings"),
    "a key to be shown": (at("timings", "\x1b[2J", value=1), r"unknown field `\\x1b\[2J`"),
    "names": (at("timings", "names", value=[BASE]), "names of its candidates"),
    "name twice": (at("timings", "names", 1, value=BASE), "names of its candidates"),
    "baseline": (at("timings", "baseline", value=INT8), "its baseline .* is not one of the run"),
    "odd baseline": (at("timings", "baseline", value={}), "Expected `str`, got `object`.*baseline"),
    "setting": (at("timings", "settings", 0, value="gpu"), "is no latency setting"),
    "setting twice": (at("timings", "settings", 0, value="cpu1"), "a setting occurs twice"),
    "no settings": (at("timings", "settings", value=[]), "length >= 1.*settings"),
    "too many settings": (at("timings", "settings", value=["cpu"] * 33), "length <= 32.*settings"),
    "a setting without process": (
        at("timings", "settings", value=[*SETTINGS, "cpu7"]),
        "no process has timed the setting cpu7",
    ),
    "threads": (at("timings", "all_threads", value=True), "got `bool`.*all_threads"),
    "seconds": (at("timings", "seconds", value=float("nan")), "JSON is malformed"),
    "negative seconds": (at("timings", "seconds", value=-1), "`float` >= 0.0.*timings.seconds"),
    "endless": (at("timings", "seconds", value=10**400), "out of range.*timings.seconds"),
    "long": (at("timings", "seconds", value=2e9), "`float` <= 1000000000.0.*timings.seconds"),
    "date": (at("date", value="yesterday"), "Invalid RFC3339.*date"),
    "control signs": (at("timings", "environment", "cpu", value="\x1b[2J"), "cannot be printed"),
    "surrogate": (at("timings", "environment", "system", value="\ud800"), "not write such a file"),
    "long text": (at("timings", "environment", "cpu", value="x" * 301), "length <= 300.*cpu"),
    "host": (at("timings", "environment", "host", value="x"), "unknown field `host`"),
    "flags": (at("timings", "environment", "cpu_flags", value=["a b"]), "regex.*cpu_flags"),
    "a flag's line": (at("timings", "environment", "cpu_flags", value=["a\n"]), "regex.*cpu_flags"),
    "many flags": (at("timings", "environment", "cpu_flags", value=["a"] * 101), "<= 100.*flags"),
    "other threads": (at("timings", "environment", "threads", value=5), "all_threads is 2, in"),
    "cores": (at("timings", "environment", "cores", value=0), "`int` >= 1.*cores"),
    "no process": (at("timings", "launched", value=[]), "length >= 1.*launched"),
    "processes": (lambda v: v["timings"].update(launched=v["timings"]["launched"] * 60), "<= 500"),
    "a process of nothing": (at(*PROCESS, value=None), "`object`, got `null`.*launched"),
    "failure": (at(*PROCESS, "failure", value=7), "`str`, got `int`.*launched.*failure"),
    "failed with figures": (at(*PROCESS, "failure", value="x"), "has not timed the settings"),
    "process threads": (at(*PROCESS, "threads", value=64), "has not timed the settings"),
    "batch": (at(*PROCESS, "settings", "7", value={}), "has not timed the settings"),
    "a candidate too many": (
        at(
            *PROCESS, "settings", "1", "x", value={"error": "it failed", "medians": [], "calls": []}
        ),
        "candidates are not",
    ),
    "a series of nothing": (at(*PROCESS, "settings", "1", BASE, value={}), "field `error`"),
    "a file left out though no process died at it": (absent, "candidates are not"),
    "no candidate": (at(*PROCESS, "settings", "1", value={}), "candidates are not"),
    "series": (at(*SERIES, value=[]), "`object`, got `array`.*launched.*settings"),
    "error": (at(*SERIES, "error", value=None), "`str`, got `null`.*error"),
    "NaN": (at(*SERIES, "medians", 0, value=float("nan")), "JSON is malformed"),
    "infinite": (at(*SERIES, "medians", 0, value=float("inf")), "JSON is malformed"),
    "negative": (at(*SERIES, "medians", 0, value=-1e-3), "`float` >= 1e-09.*medians"),
    "zero": (at(*SERIES, "medians", 0, value=0), "`float` >= 1e-09.*medians"),
    "huge": (at(*SERIES, "medians", 0, value=10**400), "out of range.*medians"),
    "large": (at(*SERIES, "medians", 0, value=1e6), "`float` <= 100000.0.*medians"),
    "tiny": (at(*SERIES, "medians", 0, value=1e-320), "`float` >= 1e-09.*medians"),
    "truth": (at(*SERIES, "medians", 0, value=True), "`float`, got `bool`.*medians"),
    "text": (at(*SERIES, "medians", 0, value="1"), "`float`, got `str`.*medians"),
    "calls": (
        at(*SERIES, "calls", 0, value=[1.0] * (KEPT_CALLS + 1)),
        f"length <= {KEPT_CALLS}.*calls",
    ),
    "a call of no time": (at(*SERIES, "calls", 0, 0, value=0), "`float` >= 1e-09.*calls"),
    "no calls": (at(*SERIES, "calls", 0, value=[]), "length >= 1.*calls"),
    "calls of fewer blocks": (at(*SERIES, "calls", value=[[1.0]]), "median for every block"),
    "no rounds": (
        lambda values: (
            at(*SERIES, "medians", value=[])(values),
            at(*SERIES, "calls", value=[])(values),
        )[0],
        "the same number of rounds",
    ),
    # Of ten: the bootstrap takes as many rounds of each as the longest has.
    "a process without end": (
        lambda values: (
            at(*SERIES, "medians", value=[1.0] * 500_001)(values),
            at(*SERIES, "calls", value=[[1.0]] * 500_001)(values),
        )[0],
        "it has more than 500000 rounds",
    ),
    "rounds": (
        lambda values: (
            at(*SERIES, "medians", value=[1.0])(values),
            at(*SERIES, "calls", value=[[1.0]])(values),
        )[0],
        "the same number of rounds",
    ),
}


def snapshot(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


@pytest.mark.parametrize(("change", "sentence"), HOSTILE.values(), ids=HOSTILE)
def test_what_the_timer_would_not_write_is_refused_and_nothing_is_written(
    run: Path,
    tmp_path: Path,
    found: dict[str, Any],
    change: Callable[[dict[str, Any]], None],
    sentence: str,
) -> None:
    before = snapshot(run)
    values = copy.deepcopy(found)
    change(values)
    good, bad = saved(tmp_path, found, "good.json"), saved(tmp_path, values, "bad.json")
    with pytest.raises(UserError, match=rf"^bad.json: .*{sentence}.*; nothing was merged$"):
        merge(run, [good, bad])
    assert snapshot(run) == before


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "was truncated"),
        ("\x00\x01", "JSON is malformed"),
        ("[" * 100_000, "got `array`"),
        ('{"x":' * 100_000, "recursion"),
        ("1" * 5000, "out of range"),
        ("[]", "got `array`"),
        ("null", "got `null`"),
        ("{}", "missing required field `kind`"),
    ],
    ids=["empty", "binary", "deep list", "deep", "long number", "list", "null", "nothing"],
)
def test_other_files_are_refused(run: Path, tmp_path: Path, content: str, sentence: str) -> None:
    with pytest.raises(UserError, match=rf"time_here.py does not write such a file: .*{sentence}"):
        merge(run, [saved(tmp_path, content)])


def test_files_that_are_not_there_or_too_large_are_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: dict[str, Any]
) -> None:
    with pytest.raises(UserError, match=r"none.json: it cannot be read \(No such file"):
        merge(run, [tmp_path / "none.json"])
    with pytest.raises(UserError, match="at least one file"):
        merge(run, [])
    with pytest.raises(UserError, match=r"there is no .*results.jsonl"):
        merge(tmp_path / "nowhere", [tmp_path])
    assert not (tmp_path / "nowhere").exists()
    monkeypatch.setattr("compress.benchmark.portable.validate_timings.LIMIT", 1_000_000)
    with pytest.raises(UserError, match="it has more than 1 MB"):
        merge(run, [saved(tmp_path, json.dumps(found) + " " * 1_000_000)])


def test_what_is_no_file_is_refused_without_reading_it(run: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "zeros.json").symlink_to("/dev/zero")
    for path in (tmp_path / "pipe.json", tmp_path / "zeros.json", tmp_path):
        with pytest.raises(UserError, match=rf"^{path.name}: it is no file: name the one"):
            merge(run, [path])


def test_a_run_that_is_going_on_is_left_alone(
    run: Path, tmp_path: Path, found: dict[str, Any]
) -> None:
    with (
        Outputs(run, (0,)).lock,
        pytest.raises(UserError, match=r"another run is writing .* wait for it"),
    ):
        merge(run, [saved(tmp_path, found)])
    assert merge(run, [saved(tmp_path, found)]) == [SLUG]


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 5),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(["cpu", "cpu1", "cpu_batch32", "1", "32", *NAMES, CONTROL, 10**400, [], {}]),
    st.lists(st.floats(), max_size=3),
    st.dictionaries(st.sampled_from(["error", "1", "threads", BASE]), st.none(), max_size=2),
)


def places(values: Any, head: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the way to every part of a JSON value; of a list, to its first two."""
    found = [head] if head else []
    if isinstance(values, dict):
        for key in values:
            found += places(values[key], (*head, key))
    elif isinstance(values, list):
        for number in range(min(2, len(values))):
            found += places(values[number], (*head, number))
    return found


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_whatever_is_changed_is_refused_in_words_or_can_be_merged(
    data: st.DataObject, run: Path, tmp_path: Path, found: dict[str, Any]
) -> None:
    values = copy.deepcopy(found)
    values["timings"]["launched"] = values["timings"]["launched"][:4]
    for _ in range(data.draw(st.integers(1, 3))):
        *head, last = data.draw(st.sampled_from(places(values) or [("new",)]))
        part: Any = values
        for key in head:
            part = part[key]
        if data.draw(st.booleans()) or not values:
            part[last] = data.draw(VALUES)
        else:
            del part[last]
    results = run / "results.jsonl"
    before = results.read_bytes()
    try:
        (slug,) = merge(run, [saved(tmp_path, values)])
    except UserError as error:
        assert str(error).endswith("; nothing was merged")  # noqa: PT017
        assert results.read_bytes() == before
    else:
        assert slug in read_results(run).about["other_machines"]
        results.write_bytes(before)


@pytest.mark.parametrize("deaths", [1, 2])
def test_a_file_may_be_absent_where_processes_died_at_it(deaths: int) -> None:
    said = f"process 1: the timing process was killed by signal 11 (loading {INT8})"
    launched = [*[Process(0, {}, said)] * deaths, Process(0, {}, "")]
    assert _deadly(launched, {INT8, "other"}) == ({INT8} if deaths == 2 else set())
