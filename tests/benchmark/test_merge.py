"""What another machine found becomes columns of the rows."""

from __future__ import annotations

import copy
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from packed import (
    EPYC,
    NAMES,
    SECONDS,
    SETTINGS,
    SLUG,
    by_chain,
    linear,
    machine,
    rows,
    saved,
    timings,
)

import compress
from compress import cli
from compress.benchmark.portable.merge import merge, slug_of
from compress.benchmark.portable.portable_timer import main
from compress.errors import UserError
from compress.results.derive import read_results
from compress.results.log import RunLog
from compress.results.raw import write_values
from compress.results.record import Record
from compress.results.timed import of_files
from compress.system.environment import environment
from compress.system.files import append_line, sha256
from compress.timing.raw_timings import CONTROL, LEVELS
from compress.timing.worker import DIFFERENT

BASE, INT8, NARROW = NAMES
VNNI = "quantize(target='vnni')"
INT8_FIGURES = f"on_{SLUG}_cpu_ms_p50"


def test_the_figures_are_columns_of_the_rows(
    run: Path, tmp_path: Path, found: dict[str, Any]
) -> None:
    before = rows(run)
    path = saved(tmp_path, found)
    assert merge(run, [path]) == [SLUG]
    after = rows(run)
    gained = {
        key.removeprefix(f"on_{SLUG}_"): value
        for key, value in after[VNNI].items()
        if key not in before[VNNI]
    }
    # A machine without noise: 4 ms against 1 ms an item, and intervals without width.
    for setting, items in (("cpu", 1), ("cpu1", 1), ("cpu_batch32", 32)):
        assert gained[f"{setting}_ms_p50"] == pytest.approx(items)
        assert gained[f"{setting}_ms_p90"] == pytest.approx(items)
        assert gained[f"{setting}_per_s"] == pytest.approx(1000)
        for figure in ("speedup", "speedup_low", "speedup_high"):
            assert gained[f"{setting}_{figure}"] == pytest.approx(4)
        assert gained[f"{setting}_verdict"] == "faster"
    assert after["quantize()"][f"on_{SLUG}_cpu_verdict"] == ("indistinguishable")
    base = after["baseline"]
    assert base[f"on_{SLUG}_cpu_speedup"] == 1
    assert f"on_{SLUG}_cpu_verdict" not in base
    for chain in ("odd()", "broken()"):
        assert after[chain] == before[chain]
    assert after[VNNI]["note"] == before[VNNI]["note"]
    kept = json.loads((run / "raw" / f"other-machine-{SLUG}.json").read_bytes())
    assert kept == {key: value for key, value in found.items() if key != "run"}


def test_what_this_machine_writes_can_be_merged(run: Path, unpacked: Path, tmp_path: Path) -> None:
    path = tmp_path / "timings.json"
    assert main(["--threads", "1", "--out", str(path)], unpacked, machine()) == 0
    (slug,) = merge(run, [path])
    there = read_results(run).about["other_machines"][slug]["environment"]
    assert there.pop("date") == json.loads(path.read_bytes())["date"]
    assert there == environment(1)


def test_the_description_names_the_machine(
    run: Path, tmp_path: Path, found: dict[str, Any]
) -> None:
    merge(run, [saved(tmp_path, found)])
    about = read_results(run).about
    there = about["other_machines"]
    assert there.keys() == {SLUG}
    assert there[SLUG]["environment"] == {**EPYC, "date": found["date"]}
    timed = of_files(about, SLUG)
    assert tuple(one.setting for one in timed) == SETTINGS
    assert timed[0].known["control"] == 1
    assert timed[0].known["processes"] == 5


def test_from_python_the_reports_are_written_anew(
    run: Path, tmp_path: Path, found: dict[str, Any]
) -> None:
    archive = compress.pack(str(run), str(tmp_path / "a.zip"))
    assert zipfile.is_zipfile(archive)
    results = compress.merge(str(run), str(saved(tmp_path, found)))
    table = pd.read_csv(run / "results.csv").set_index("chain")
    assert table.loc[VNNI, f"on_{SLUG}_cpu_ms_p50"] == pytest.approx(1)
    assert results.frame.set_index("chain").loc[VNNI, f"on_{SLUG}_cpu_speedup"] == 4
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
    assert "a.zip: time_here.py does not write such a file" in capsys.readouterr().err
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
    results = read_results(run)
    measured = by_chain(results)[VNNI]
    assert measured[f"on_{SLUG}_cpu_speedup"] == pytest.approx(2)
    assert measured[f"on_{SLUG}_2_cpu_speedup"] == pytest.approx(4)
    there = results.about["other_machines"]
    assert there[SLUG]["environment"]["date"] == "2031-02-03"
    assert {path.name for path in (run / "raw").glob("other-machine-*")} == {
        f"other-machine-{SLUG}.json",
        f"other-machine-{SLUG}_2.json",
    }


def test_machines_that_are_alike_are_told_apart_by_names(
    run: Path,
    tmp_path: Path,
    found: dict[str, Any],
    unpacked: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = timings(unpacked, seconds={**SECONDS, INT8: 0.002})
    first, second = saved(tmp_path, found, "1.json"), saved(tmp_path, other, "2.json")
    before = (run / "results.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"1\.json and .*2\.json are of machines that are alike"):
        merge(run, [first, second])
    with pytest.raises(UserError, match="'left' can name one machine only"):
        merge(run, [first, second], "left")
    for bad in ("Left", "a-b", "_a", "a" * 25, "a\n"):
        with pytest.raises(UserError, match="becomes part of column names"):
            merge(run, [first], bad)
    assert (run / "results.jsonl").read_bytes() == before
    assert merge(run, [first], "left") == ["left"]
    capsys.readouterr()
    assert command(monkeypatch, "merge", run, second, "--as", "right_cpu") == 1
    said = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in said[:2]] == [
        "Columns on_left_...",
        "Columns on_right_cpu_...",
    ]
    assert merge(run, [second]) == [SLUG]  # without a name, names are not looked for
    results = read_results(run)
    measured, about = by_chain(results)[VNNI], results.about
    assert measured["on_left_cpu_speedup"] == pytest.approx(4)
    assert measured["on_right_cpu_cpu_speedup"] == pytest.approx(2)
    left, right = ([t.setting for t in of_files(about, name)] for name in ("left", "right_cpu"))
    assert left == right == [*SETTINGS]
    assert merge(run, [second], "left") == ["left"]
    assert rows(run)[VNNI]["on_left_cpu_speedup"] == pytest.approx(2)


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
    after = rows(run)
    row = after[VNNI]
    assert row["status"] == "ok"
    assert not [key for key in row if key.startswith("on_")]
    assert {key for key in row["missing"] if key.startswith("on_")} == {
        f"on_{SLUG}_{setting}_ms_p50" for setting in SETTINGS
    }
    assert row["missing"][f"on_{SLUG}_cpu1_ms_p50"] == error
    told = (
        f"on AMD EPYC 7B13 64-Core Processor (2 threads): {error}, so it computes something else "
        f"there, and its accuracy does not hold there"
    )
    assert row["note"] == (
        f"{told}: that processor has no VNNI, and sums of int8 products can saturate, which "
        f"quantize() avoids by default"
    )
    assert after["quantize()"]["note"] == told
    assert f"on_{SLUG}_cpu_ms_p50" in after["baseline"]


def test_with_vnni_saturation_is_not_the_reason(run: Path, tmp_path: Path, unpacked: Path) -> None:
    values = timings(unpacked, errors={INT8: f"{DIFFERENT} (by 31.0%)"})
    values["timings"]["environment"]["cpu_flags"] = ["avx2", "avx512_vnni"]
    merge(run, [saved(tmp_path, values)])
    assert rows(run)[VNNI]["note"].endswith("its accuracy does not hold there")


def test_a_file_that_cannot_be_loaded_there_has_that_as_its_reason(
    run: Path, tmp_path: Path, unpacked: Path
) -> None:
    error = "onnxruntime cannot load the file: opset\n 99\u202e"
    merge(run, [saved(tmp_path, timings(unpacked, errors={INT8: error}))])
    note = rows(run)[VNNI]["note"]
    assert note.endswith("(2 threads): onnxruntime cannot load the file: opset 99")


def test_if_the_baseline_fails_there_are_times_without_speedups(
    run: Path, tmp_path: Path, unpacked: Path
) -> None:
    error = f"{DIFFERENT} (by 31.0%)"
    errors = dict.fromkeys((BASE, CONTROL, *LEVELS), error)
    merge(run, [saved(tmp_path, timings(unpacked, errors=errors))])
    results = read_results(run)
    row = by_chain(results)[VNNI]
    assert row[f"on_{SLUG}_cpu_ms_p50"] == pytest.approx(1)
    assert f"on_{SLUG}_cpu_speedup" not in row
    assert row["missing"][f"on_{SLUG}_cpu_speedup"] == "the baseline has no time there"
    why = row["missing"][f"on_{SLUG}_cpu_verdict"]
    assert why.startswith(f"the baseline was not timed: {DIFFERENT}")
    assert not of_files(results.about, SLUG)[0].trusted


def test_processes_that_died_are_noted(run: Path, tmp_path: Path, found: dict[str, Any]) -> None:
    values = copy.deepcopy(found)
    for part in values["timings"]["launched"]:
        if part["threads"] == 1:
            part |= {"settings": {}, "failure": "process 2: killed by signal 9"}
    merge(run, [saved(tmp_path, values)])
    row = rows(run)[VNNI]
    assert row["missing"][f"on_{SLUG}_cpu1_ms_p50"].startswith("process 2: killed")
    assert f"on_{SLUG}_cpu_ms_p50" in row
    assert "(2 threads): not timed: process 2: killed by signal 9" in row["note"]


def test_a_later_run_has_nothing_of_it_until_it_is_merged_again(
    run: Path, tmp_path: Path, found: dict[str, Any]
) -> None:
    path = saved(tmp_path, found)
    merge(run, [path])
    log = RunLog(run / "results.jsonl", {"suite": "later"})
    for name, chain in zip(NAMES, ("baseline", VNNI, NARROW[:-9]), strict=True):
        log.record(Record(chain, 0, "ok", hashes={"onnx": found["models"][name]}))
    results = read_results(run)
    assert not [key for key in by_chain(results)[VNNI] if key.startswith("on_")]
    assert "other_machines" not in results.about
    merge(run, [path])
    assert rows(run)[VNNI][f"on_{SLUG}_cpu_speedup"] == pytest.approx(4)


def test_figures_are_those_of_the_file_that_was_timed(
    run: Path, tmp_path: Path, found: dict[str, Any]
) -> None:
    merge(run, [saved(tmp_path, found)])
    line = json.loads((run / "results.jsonl").read_bytes().splitlines()[-1])
    values = json.loads((run / line["file"]).read_bytes())
    values["models"][INT8] = sha256(linear(8))
    line["sha256"] = write_values(run / line["file"], values)
    append_line(run / "results.jsonl", line)
    assert f"on_{SLUG}_cpu_ms_p50" not in rows(run)[VNNI]
