"""What another machine found becomes columns; what is not about the run's files is refused."""

from __future__ import annotations

import copy
import json
import os
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from packed import NAMES, SECONDS, SETTINGS, linear, machine, write_run

import compress
from compress import cli
from compress.errors import UserError
from compress.files import append_line, sha256
from compress.harness.merge import merge, slug_of
from compress.harness.outputs import Outputs
from compress.harness.pack import pack
from compress.harness.record import Record, RunLog, read_results
from compress.timing.elsewhere import main
from compress.timing.environment import environment
from compress.timing.gather import CONTROL, LEVELS
from compress.timing.rounds import KEPT_CALLS
from compress.timing.worker import DIFFERENT

EPYC = {
    "threads": 2,
    "cores": 2,
    "cpu": "AMD EPYC 7B13 64-Core Processor",
    "cpu_flags": ["avx2"],
    "onnxruntime": "1.30.0",
    "system": "Linux x86_64",
}
SLUG = "amd_epyc_7b13_2t"
BASE, INT8, NARROW = NAMES
INT8_FIGURES = f"on_{SLUG}_cpu_ms_p50"


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as monkeypatch:
        return write_run(monkeypatch, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def unpacked(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(pack(made, folder / "pack.zip")) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


def timings(unpacked: Path, **options: Any) -> dict[str, Any]:
    """Return what the timer writes on a machine like `EPYC`."""
    path = unpacked / "timings.json"
    assert main(["--threads", "2", "--out", str(path)], unpacked, machine(**options)) == 0
    values: dict[str, Any] = json.loads(path.read_bytes())
    values["timings"]["environment"] = dict(EPYC)
    return values


@pytest.fixture(scope="session")
def found(unpacked: Path) -> dict[str, Any]:
    return timings(unpacked)


def saved(folder: Path, values: Any, name: str = "timings.json") -> Path:
    path = folder / name
    path.write_text(values if isinstance(values, str) else json.dumps(values))
    return path


def rows(run: Path) -> dict[str, Record]:
    return {record.chain: record for record in read_results(run / "results.jsonl")[0]}


# --- what is right ----------------------------------------------------------------------------


def test_the_figures_are_columns_of_the_rows(
    run: Path, tmp_path: Path, found: dict[str, Any]
) -> None:
    before = rows(run)
    path = saved(tmp_path, found)
    assert merge(run, [path]) == [SLUG]
    after = rows(run)
    gained = {
        key.removeprefix(f"on_{SLUG}_"): value
        for key, value in after["quantize()"].measured.items()
        if key not in before["quantize()"].measured
    }
    # A machine without noise: 4 ms against 1 ms an item, and intervals without width.
    for setting, items in (("cpu", 1), ("cpu1", 1), ("cpu_batch32", 32)):
        assert gained[f"{setting}_ms_p50"] == pytest.approx(items)
        assert gained[f"{setting}_ms_p90"] == pytest.approx(items)
        assert gained[f"{setting}_per_s"] == pytest.approx(1000)
        for figure in ("speedup", "speedup_low", "speedup_high"):
            assert gained[f"{setting}_{figure}"] == pytest.approx(4)
        assert gained[f"{setting}_verdict"] == "faster"
    assert after["quantize(reduce_range=True)"].measured[f"on_{SLUG}_cpu_verdict"] == (
        "indistinguishable"
    )
    base = after["baseline"].measured
    assert base[f"on_{SLUG}_cpu_speedup"] == 1
    assert f"on_{SLUG}_cpu_verdict" not in base
    for chain in ("odd()", "broken()"):
        assert after[chain] == before[chain]
    assert after["quantize()"].notes == before["quantize()"].notes
    assert (run / "raw" / f"elsewhere-{SLUG}.json").read_bytes() == path.read_bytes()


def test_what_this_machine_writes_can_be_merged(run: Path, unpacked: Path, tmp_path: Path) -> None:
    path = tmp_path / "timings.json"
    assert main(["--threads", "1", "--out", str(path)], unpacked, machine()) == 0
    (slug,) = merge(run, [path])
    there = read_results(run / "results.jsonl")[1]["elsewhere"][slug]["environment"]
    assert there.pop("date") == json.loads(path.read_bytes())["date"]
    assert there == environment(1)


def test_the_description_names_the_machine(
    run: Path, tmp_path: Path, found: dict[str, Any]
) -> None:
    merge(run, [saved(tmp_path, found)])
    there = read_results(run / "results.jsonl")[1]["elsewhere"]
    assert there.keys() == {SLUG}
    assert there[SLUG]["environment"] == {**EPYC, "date": found["date"]}
    assert tuple(there[SLUG]["latency"]) == SETTINGS
    assert there[SLUG]["latency"]["cpu"]["control"] == 1
    assert there[SLUG]["latency"]["cpu"]["processes"] == 5


def test_from_python_the_reports_are_written_anew(
    run: Path, tmp_path: Path, found: dict[str, Any]
) -> None:
    archive = compress.pack(str(run), str(tmp_path / "a.zip"))
    assert zipfile.is_zipfile(archive)
    results = compress.merge(str(run), str(saved(tmp_path, found)))
    table = pd.read_csv(run / "results.csv").set_index("chain")
    assert table.loc["quantize()", f"on_{SLUG}_cpu_ms_p50"] == pytest.approx(1)
    assert results.frame.set_index("chain").loc["quantize()", f"on_{SLUG}_cpu_speedup"] == 4
    assert (run / "table.md").is_file()


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    """Run the command line in this process and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["compress-models", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return int(caught.value.code or 0)


def test_the_commands(
    run: Path,
    tmp_path: Path,
    found: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    archive = tmp_path / "a.zip"
    assert command(monkeypatch, "pack", run, "--out", archive) == 0
    assert f"Written to {archive}: the models, some test items" in capsys.readouterr().out
    assert zipfile.is_zipfile(archive)
    assert command(monkeypatch, "merge", run, archive) == 2
    assert "a.zip: it is not JSON" in capsys.readouterr().err
    # As after a run: 1, because two rows of this one are not ok.
    assert command(monkeypatch, "merge", run, saved(tmp_path, found)) == 1
    said = f"Columns on_{SLUG}_...: {EPYC['cpu']}, threads: 2, timed {found['date']}"
    assert capsys.readouterr().out.splitlines()[0] == said


def test_the_same_machine_replaces_and_another_gets_a_number(
    run: Path, tmp_path: Path, found: dict[str, Any], unpacked: Path
) -> None:
    later = timings(unpacked, seconds={**SECONDS, INT8: 0.002})
    later["date"] = "2031-02-03"
    newer = copy.deepcopy(found)
    newer["timings"]["environment"]["onnxruntime"] = "1.31.0"
    first, second, third = (
        saved(tmp_path, values, f"{i}.json") for i, values in enumerate((found, later, newer))
    )
    assert merge(run, [first, third]) == [SLUG, f"{SLUG}_2"]
    assert merge(run, [second]) == [SLUG]
    assert merge(run, [third]) == [f"{SLUG}_2"]
    measured = rows(run)["quantize()"].measured
    assert measured[f"on_{SLUG}_cpu_speedup"] == pytest.approx(2)
    assert measured[f"on_{SLUG}_2_cpu_speedup"] == pytest.approx(4)
    there = read_results(run / "results.jsonl")[1]["elsewhere"]
    assert there[SLUG]["environment"]["date"] == "2031-02-03"
    assert {path.name for path in (run / "raw").glob("elsewhere-*")} == {
        f"elsewhere-{SLUG}.json",
        f"elsewhere-{SLUG}_2.json",
    }


@pytest.mark.parametrize(
    ("cpu", "threads", "number", "slug"),
    [
        ("AMD EPYC", 2, 1, "amd_epyc_2t"),
        ("Intel(R) Xeon(R) Platinum 8375C CPU @ 2.90GHz", 16, 1, "xeon_platinum_8375c_16t"),
        ("Intel(R) Xeon(R) Platinum 8375C CPU @ 2.90GHz", 16, 12, "platinum_8375c_16t_12"),
        ("13th Gen Intel(R) Core(TM) i7-1370P", 20, 1, "13th_intel_i7_1370p_20t"),
        ("../../etc/passwd", 1, 1, "etc_passwd_1t"),
        ("", 8, 1, "machine_8t"),
        ("龍芯", 4, 1, "machine_4t"),
        ("x" * 90, 128, 3, "x" * 17 + "_128t_3"),
    ],
)
def test_slugs_are_short_and_plain(cpu: str, threads: int, number: int, slug: str) -> None:
    assert slug_of(cpu, threads, number) == slug
    assert len(slug) <= 24


# --- what could not be had --------------------------------------------------------------------


def test_other_outputs_there_cost_the_figures_and_say_so(
    run: Path, tmp_path: Path, unpacked: Path
) -> None:
    error = f"{DIFFERENT} (by 31.0%)"
    merge(run, [saved(tmp_path, timings(unpacked, errors={INT8: error, NARROW: error}))])
    row = rows(run)["quantize()"]
    assert row.status == "ok"
    assert not [key for key in row.measured if key.startswith("on_")]
    assert {key for key in row.missing if key.startswith("on_")} == {
        f"on_{SLUG}_{setting}_ms_p50" for setting in SETTINGS
    }
    assert row.missing[f"on_{SLUG}_cpu1_ms_p50"] == error
    told = (
        f"on AMD EPYC 7B13 64-Core Processor (2 threads): {error}, so it computes something else "
        f"there, and its accuracy does not hold there"
    )
    assert row.notes[-1] == (
        f"{told}: that processor has no VNNI, and sums of int8 products can saturate, which "
        f"quantize(reduce_range=True) avoids"
    )
    assert rows(run)["quantize(reduce_range=True)"].notes[-1] == told
    assert f"on_{SLUG}_cpu_ms_p50" in rows(run)["baseline"].measured


def test_with_vnni_saturation_is_not_the_reason(run: Path, tmp_path: Path, unpacked: Path) -> None:
    values = timings(unpacked, errors={INT8: f"{DIFFERENT} (by 31.0%)"})
    values["timings"]["environment"]["cpu_flags"] = ["avx2", "avx512_vnni"]
    merge(run, [saved(tmp_path, values)])
    assert rows(run)["quantize()"].notes[-1].endswith("its accuracy does not hold there")


def test_a_file_that_cannot_be_loaded_there_has_that_as_its_reason(
    run: Path, tmp_path: Path, unpacked: Path
) -> None:
    error = "onnxruntime cannot load the file: opset\n 99\u202e"
    merge(run, [saved(tmp_path, timings(unpacked, errors={INT8: error}))])
    note = rows(run)["quantize()"].notes[-1]
    assert note.endswith("(2 threads): onnxruntime cannot load the file: opset 99")


def test_if_the_baseline_fails_there_are_times_without_speedups(
    run: Path, tmp_path: Path, unpacked: Path
) -> None:
    error = f"{DIFFERENT} (by 31.0%)"
    errors = dict.fromkeys((BASE, CONTROL, *LEVELS), error)
    merge(run, [saved(tmp_path, timings(unpacked, errors=errors))])
    row = rows(run)["quantize()"]
    assert row.measured[f"on_{SLUG}_cpu_ms_p50"] == pytest.approx(1)
    assert f"on_{SLUG}_cpu_speedup" not in row.measured
    assert row.missing[f"on_{SLUG}_cpu_speedup"] == "the baseline has no time there"
    latency = read_results(run / "results.jsonl")[1]["elsewhere"][SLUG]["latency"]
    assert latency["cpu"]["trusted"] is False


def test_processes_that_died_are_noted(run: Path, tmp_path: Path, found: dict[str, Any]) -> None:
    values = copy.deepcopy(found)
    for part in values["timings"]["launched"]:
        if part["threads"] == 1:
            part |= {"settings": {}, "failure": "process 2: killed by signal 9"}
    merge(run, [saved(tmp_path, values)])
    row = rows(run)["quantize()"]
    assert row.missing[f"on_{SLUG}_cpu1_ms_p50"].startswith("process 2: killed")
    assert f"on_{SLUG}_cpu_ms_p50" in row.measured
    assert any("(2 threads): not timed: process 2: killed by signal 9" in n for n in row.notes)


def test_a_later_run_has_nothing_of_it_until_it_is_merged_again(
    run: Path, tmp_path: Path, found: dict[str, Any]
) -> None:
    path = saved(tmp_path, found)
    merge(run, [path])
    log = RunLog(run / "results.jsonl", {"suite": "later"})
    for name, chain in zip(NAMES, ("baseline", "quantize()", NARROW[:-9]), strict=True):
        log.record(Record(chain, 0, "ok", hashes={"onnx": found["models"][name]}))
    assert not rows(run)["quantize()"].measured
    assert "elsewhere" not in read_results(run / "results.jsonl")[1]
    merge(run, [path])
    assert rows(run)["quantize()"].measured[f"on_{SLUG}_cpu_speedup"] == pytest.approx(4)


def test_figures_are_those_of_the_file_that_was_timed(
    run: Path, tmp_path: Path, found: dict[str, Any]
) -> None:
    merge(run, [saved(tmp_path, found)])
    line = json.loads((run / "results.jsonl").read_bytes().splitlines()[-1])
    line["rows"] = [{**row, "onnx": sha256(linear(8))} for row in line["rows"]]
    append_line(run / "results.jsonl", line)
    assert f"on_{SLUG}_cpu_ms_p50" not in rows(run)["quantize()"].measured


# --- what is wrong ----------------------------------------------------------------------------


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
HOSTILE: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "another kind": (at("kind", value="poem"), "is no file of timings"),
    "schema": (at("schema", value=2), "has schema 2, and 1 is known"),
    "a schema to be shown": (at("schema", value="\x1b[2J" * 99), "has schema '.{119}[.]{3}, and"),
    "wrong hash": (at("models", INT8, value="0" * 64), "is not the run's"),
    "no hash": (at("models", INT8, value=None), "is not the run's"),
    "unknown name": (renamed("prune() [seed 0]"), "'prune.. .seed 0.', which the run has not"),
    "a row that is not sound": (renamed("odd() [seed 0]"), "which the run has not"),
    "path in a name": (renamed("../../etc/passwd"), "which the run has not"),
    "no models": (at("models", value=[]), "has no models"),
    "no timings": (at("timings", value=[]), "has no timings"),
    "foreign key": (at("timings", "more", value=1), "must have the keys"),
    "names": (at("timings", "names", value=[BASE]), "names of its candidates"),
    "name twice": (at("timings", "names", 1, value=BASE), "names of its candidates"),
    "baseline": (at("timings", "baseline", value=INT8), "its baseline .* is none of the run"),
    "odd baseline": (at("timings", "baseline", value={}), "its baseline .* is none of the run"),
    "setting": (at("timings", "settings", 0, value="gpu"), "is no latency setting"),
    "setting twice": (at("timings", "settings", 0, value="cpu1"), "different ones"),
    "no settings": (at("timings", "settings", value=[]), "settings must be 1 to 32"),
    "a setting without process": (
        at("timings", "settings", value=[*SETTINGS, "cpu7"]),
        "no process has timed the setting cpu7",
    ),
    "threads": (at("timings", "all_threads", value=True), "all_threads must be a whole number"),
    "seconds": (at("timings", "seconds", value=float("nan")), "seconds must be a number"),
    "endless": (at("timings", "seconds", value=10**400), "must be a number from 0 to 1e.09"),
    "date": (at("date", value="yesterday"), "its date is none"),
    "control signs": (at("timings", "environment", "cpu", value="\x1b[2J"), "no plain text"),
    "surrogate": (at("timings", "environment", "system", value="\ud800"), "no plain text"),
    "long text": (at("timings", "environment", "cpu", value="x" * 301), "no plain text"),
    "host": (at("timings", "environment", "host", value="x"), "is not what time_here.py writes"),
    "flags": (at("timings", "environment", "cpu_flags", value=["a b"]), "are not names"),
    "other threads": (at("timings", "environment", "threads", value=5), "from 2 to 2, not 5"),
    "cores": (at("timings", "environment", "cores", value=0), "cores must be a whole number"),
    "no process": (at("timings", "launched", value=[]), "list of 1 to 500 processes"),
    "processes": (at("timings", "launched", value=[None] * 501), "list of 1 to 500 processes"),
    "a process of nothing": (at(*PROCESS, value=None), "process 1 must have the keys"),
    "failure": (at(*PROCESS, "failure", value=7), "failure of process 1 must be a text"),
    "failed with figures": (at(*PROCESS, "failure", value="x"), "has not timed the settings"),
    "process threads": (at(*PROCESS, "threads", value=64), "has not timed the settings"),
    "batch": (at(*PROCESS, "settings", "7", value={}), "has not timed the settings"),
    "a candidate too many": (at(*PROCESS, "settings", "1", "x", value={}), "candidates are not"),
    "no candidate": (at(*PROCESS, "settings", "1", value={}), "candidates are not"),
    "series": (at(*SERIES, value=[]), "process 1, batches of 1, baseline .* must have the keys"),
    "error": (at(*SERIES, "error", value=None), "its error must be a text"),
    "NaN": (at(*SERIES, "medians", 0, value=float("nan")), "medians must be positive seconds"),
    "infinite": (at(*SERIES, "medians", 0, value=float("inf")), "medians must be positive"),
    "negative": (at(*SERIES, "medians", 0, value=-1e-3), "medians must be positive seconds"),
    "zero": (at(*SERIES, "medians", 0, value=0), "medians must be positive seconds"),
    "huge": (at(*SERIES, "medians", 0, value=10**400), "medians must be positive seconds"),
    "tiny": (at(*SERIES, "medians", 0, value=1e-320), "medians must be positive seconds"),
    "truth": (at(*SERIES, "medians", 0, value=True), "medians must be positive seconds"),
    "text": (at(*SERIES, "medians", 0, value="1"), "medians must be positive seconds"),
    "calls": (
        at(*SERIES, "calls", 0, value=[1.0] * (KEPT_CALLS + 1)),
        f"lists of 1 to {KEPT_CALLS} positive seconds",
    ),
    "no calls": (
        at(*SERIES, "calls", 0, value=[]),
        f"lists of 1 to {KEPT_CALLS} positive seconds",
    ),
    "calls of fewer blocks": (at(*SERIES, "calls", value=[[1.0]]), "one for every block"),
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
        "not all candidates have as many rounds",
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
        ("", "is not JSON"),
        ("\x00\x01", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("1" * 5000, "is not JSON"),
        ("[]", "is no file of timings"),
        ("null", "is no file of timings"),
        ("{}", "is no file of timings"),
    ],
    ids=["empty", "binary", "deep", "long number", "list", "null", "nothing"],
)
def test_other_files_are_refused(run: Path, tmp_path: Path, content: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
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
    monkeypatch.setattr("compress.harness.received.LIMIT", 1_000_000)
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
    suppress_health_check=[HealthCheck.function_scoped_fixture],
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
        assert slug in read_results(results)[1]["elsewhere"]
        results.write_bytes(before)
