"""A whole search of a tiny net, taken up again; and what is refused before any work."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from click.testing import CliRunner

import compress
from compress import api
from compress.cli import cli
from compress.errors import UserError
from compress.recommender import finals
from compress.recommender import search as searches
from compress.recommender.arguments import seconds_of
from compress.recommender.folder import WRITTEN
from compress.recommender.measured import Notebook
from compress.recommender.question import Request
from compress.system.files import sha256_file

ARGUMENTS: dict[str, Any] = {
    "data": "digits",
    "model": "mlp(width=32)",
    "baseline": "train(epochs=2)",
    "max_drop": 10.0,
    "by": "size",
    "only": ("prune_weights", "quantize"),
    "step_threads": 1,
    "threads": 1,
    "timing_seconds": 0.5,
    "progress": False,
}
SPACE = "[prune_weights]\nsparsity = [0.2, 0.3]\n[quantize]\nmax_drop = 'none'\n"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search")
    (folder / "wishes.toml").write_text(SPACE)
    return folder


@pytest.fixture(scope="module")
def found(out: Path) -> Any:
    space = out / "wishes.toml"
    return compress.recommend(out / "best", budget="20m", space=space, trials=2, **ARGUMENTS)


def computed(out: Path) -> list[str]:
    """Return what the processes of steps have begun, by their logs."""
    lines = [
        line
        for log in [*out.glob("search/logs/*.log"), *out.glob("finalists/logs/*.log")]
        for line in log.read_text().splitlines()
        if " begin " in line
    ]
    return [line.split(" begin ")[1] for line in lines]


def test_the_winner_lies_at_the_top_with_its_table(found: Any, out: Path) -> None:
    best = out / "best"
    about = json.loads((best / "best.json").read_text())
    assert about["chain"] == found.nearest
    assert about["sha256"] == sha256_file(best / "model.onnx")
    metadata = {p.key: p.value for p in onnx.load(best / "model.onnx").metadata_props}
    assert metadata["chain"].endswith(found.nearest)
    report = (best / "recommendation.md").read_text().replace("\\", "")
    assert f"{found.sentence}." in " ".join(report.split())
    assert "Optimism of the choice" in " ".join(report.split())
    assert "on the test split, as the first of 4 finalists (Holm)" in " ".join(report.split())
    assert (best / "frontier.png").read_bytes().startswith(b"\x89PNG")
    written = [(best / name).stat().st_mtime_ns for name in ("recommendation.md", "search.json")]
    assert written == sorted(written), "the time that was spent is that of the report, too"
    assert len((best / "trials.csv").read_text().splitlines()) == 1 + 2
    [baseline] = [row for row in found.rows if row["chain"] == "baseline"]
    assert baseline["items"] == 360  # the test split
    assert [one.number for one in found.trials] == [0, 1]
    assert found.trials[0].chain == "quantize(max_drop=None)"
    assert all(one.measured[-1].items == 143 for one in found.trials)  # the validation split
    # int8 weights take less room, and no answer of so small a net can be 10 points worse.
    assert found.winner == found.nearest
    assert found.sentence.endswith("equivalent within 10 points")


def test_no_step_of_the_search_is_computed_for_its_finalists(found: Any, out: Path) -> None:
    began = computed(out / "best")
    assert len(began) == len(set(began))
    steps = [line for line in began if not line.endswith(" measure")]
    assert sum("train(" in line for line in steps) == 1


def test_it_goes_on_where_it_stopped(found: Any, out: Path) -> None:
    before = (out / "best" / "trials.jsonl").read_bytes()
    again = compress.recommend(out / "best", budget="20m", trials=3, progress=False)
    assert (out / "best" / "trials.jsonl").read_bytes().startswith(before)
    assert len(again.trials) == 3
    assert again.trials[:2] == found.trials
    began = computed(out / "best")
    assert len(began) == len(set(began))
    report = " ".join((out / "best" / "recommendation.md").read_text().split())
    assert "The test split was looked at" not in report, "all finalists had been judged before"
    assert found.winner in [row["chain"] for row in again.rows], "what won is judged again"
    assert json.loads((out / "best" / "search.json").read_text())["winner"] == again.winner
    assert Notebook.read(out / "best" / "trials.jsonl").trials == list(again.trials)


def test_what_was_proven_stays_though_it_is_not_shown_again(
    found: Any, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(out / "best", tmp_path / "best")
    before = [(tmp_path / "best" / name).read_bytes() for name in ("model.onnx", "best.json")]
    proven = json.loads((tmp_path / "best" / "search.json").read_text())
    monkeypatch.setattr(finals, "_qualifies", lambda *_: False)
    text = json.dumps({**proven, "judged": []})  # as if its finals had had other chains
    (tmp_path / "best" / "search.json").write_text(text)
    again = compress.recommend(tmp_path / "best", budget="20m", trials=4, progress=False)
    assert (again.winner, again.sentence) == (proven["winner"], proven["said"])
    after = [(tmp_path / "best" / name).read_bytes() for name in ("model.onnx", "best.json")]
    assert after == before
    report = " ".join((tmp_path / "best" / "recommendation.md").read_text().split())
    assert "What reached the goal in earlier finals keeps that verdict" in report
    assert "\\`" not in report
    assert " held before| " in report
    assert "The test split was looked at twice" in report


def test_the_folder_of_another_search_is_refused(found: Any, out: Path) -> None:
    changed = {**ARGUMENTS, "max_drop": 5.0, "space": out / "wishes.toml"}
    before = (out / "best" / "search.json").read_bytes()
    goals = (
        "goal was the smallest within a loss of 10 points, and is the smallest within a loss of 5"
    )
    with pytest.raises(UserError, match=rf"is the folder of another search \({goals} points\):"):
        compress.recommend(out / "best", budget="20m", **changed)
    assert (out / "best" / "search.json").read_bytes() == before


def test_a_folder_whose_chains_are_others_now_says_how_to_go_on(
    found: Any, out: Path, tmp_path: Path
) -> None:
    about = json.loads((out / "best" / "search.json").read_text())
    about["question"]["space"] = []
    shutil.copytree(out / "best", tmp_path / "old")
    (tmp_path / "old" / "search.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match=r"toolkit or a plug-in has changed.*--like"):
        compress.recommend(tmp_path / "old", budget="20m", progress=False)


def test_a_search_that_runs_keeps_others_out(found: Any, out: Path) -> None:
    from compress.recommender.folder import SearchFolder

    with (
        SearchFolder(out / "best").lock(),
        pytest.raises(UserError, match="another search is writing to"),
    ):
        compress.recommend(out / "best", budget="20m", progress=False)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"max_drop": 0.0}, "No test can show a loss of 0"),
        ({"max_drop": -1.0}, "max-drop is the loss of accuracy"),
        ({"max_drop": None, "target_ms": -1.0}, "target-ms is a positive number"),
        ({"target_ms": 1.0}, "give one of --max-drop"),
        ({"by": "speed"}, "unknown quantity to make small"),
        ({"budget": "5s"}, r"a budget of 5 s is too small: to make the baseline.*Give at least"),
        ({"budget": "soon"}, "--budget is a time such as"),
        ({"budget": -3}, "--budget is a time such as"),
        ({"only": ("finetune",)}, "no technique is left"),
        ({"only": ("quantise",)}, "unknown technique 'quantise'. Did you mean 'quantize'"),
        ({"without": ("nothing",)}, "unknown technique 'nothing'"),
        ({"space": "none.toml"}, "cannot read the space file"),
        ({"colour": "red"}, "unknown option 'colour'"),
        ({"baseline": None}, r"the model has no weights: give weights.*\(--baseline\)"),
        ({"only": ("nosuch",)}, r"unknown technique 'nosuch'\. Known"),
        ({"model": "mpl"}, "unknown model 'mpl'"),
        ({"data": None}, "there is no search in"),
        ({"seeds": (0, 1)}, "recommend takes no seeds"),
        ({"trials": 0}, "trials must be a whole number of at least 1, not 0"),
        ({"trials": "3"}, "trials must be a whole number of at least 1, not '3'"),
        ({"max_drop": "1"}, "max-drop is the loss of accuracy.*not '1'"),
        ({"max_drop": True}, "max-drop is the loss of accuracy.*not True"),
        ({"max_drop": None, "target_ms": "1"}, "target-ms is a positive number of ms, not '1'"),
        ({"by": ["size"]}, r"by is one of latency, .*, not \['size'\]"),
        ({"by": 3}, "by is one of latency, .*, not 3"),
        ({"space": 3}, "space is a file, not 3"),
        ({"data": 3}, "data is a source's name, or a Data, not 3"),
        ({"model": 3}, "model is a name, or an nn.Module, not 3"),
        ({"only": (1,)}, "a name in only is a text, not 1"),
        ({"without": (None,)}, "a name in without is a text, not None"),
        ({"timing_seconds": 1100.0}, "a budget of 20 min is too small: .* to try one chain"),
        ({"seed": -1}, "seed must be a whole number of at least 0, not -1"),
        ({"seed": 1.5}, "seed must be a whole number of at least 0, not 1.5"),
        ({"seed": "a"}, "seed must be a whole number of at least 0, not 'a'"),
        ({"timing_seconds": -5}, "timing_seconds must be a positive number of seconds, not -5"),
        ({"timing_seconds": 0}, "timing_seconds must be a positive number of seconds, not 0"),
        ({"only": "quantize"}, r"only is a list, such as only=\['quantize'\], not 'quantize'"),
        ({"without": "quantize"}, r"without is a list, such as without=\['quantize'\]"),
        ({"like": "best"}, r"like is a list, such as like=\['best'\]"),
        ({"like": ("nowhere",)}, "--like nowhere: there is no search in that folder"),
    ],
)
def test_bad_input_is_refused_before_any_work(
    tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    arguments = {**ARGUMENTS, "only": ("quantize",), "budget": "20m", **changes}
    with pytest.raises(UserError, match=sentence):
        compress.recommend(tmp_path / "best", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_student_that_does_not_exist_is_refused_before_any_work(tmp_path: Path) -> None:
    space = tmp_path / "space.toml"
    space.write_text("[distill]\nstudent = ['resnet20', 'resnet2000']\n")
    arguments = {**ARGUMENTS, "only": ("distill",), "budget": "20m", "space": space}
    with pytest.raises(UserError, match=r"space.toml, student 'resnet2000': unknown model"):
        compress.recommend(tmp_path / "best", **arguments)
    assert list(tmp_path.iterdir()) == [space]


def test_a_place_that_cannot_be_a_folder_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("theirs")
    arguments = {**ARGUMENTS, "only": ("quantize",), "budget": "20m"}
    with pytest.raises(UserError, match=r"notes.txt is a file: give a folder"):
        compress.recommend(file, **arguments)
    with pytest.raises(UserError, match=r"cannot write to .*best: Not a directory"):
        compress.recommend(file / "best", **arguments)
    with pytest.raises(UserError, match=r"out is a folder, not 3"):
        compress.recommend(3, **arguments)
    assert file.read_text() == "theirs"


def test_where_nothing_was_tried_it_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searches, "check_budget", lambda *_: None)
    arguments = {**ARGUMENTS, "only": ("quantize",), "timing_seconds": 1100.0}
    found = compress.recommend(tmp_path / "best", budget="20m", **arguments)
    assert (found.trials, found.winner) == ((), "")
    assert found.sentence.startswith("Nothing was tried: of 20 min, ")
    assert "22 min are reserved to test and to time finalists" in found.sentence


@pytest.mark.parametrize("since", [None, 3.0])
def test_a_budget_begins_with_the_call_or_as_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, since: float | None
) -> None:
    requests: list[Request] = []
    monkeypatch.setattr(searches, "search", lambda *given: requests.append(given[2]))
    clock = itertools.count(5.0)
    monkeypatch.setattr(api, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    compress.recommend(tmp_path, budget="20m", since=since, **{**ARGUMENTS, "only": ("quantize",)})
    assert [request.since for request in requests] == [since or 5.0]


def test_the_folder_of_a_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=r"is the folder of a run \(results.jsonl\)"):
        compress.recommend(tmp_path, budget="20m", **{**ARGUMENTS, "only": ("quantize",)})


@pytest.mark.parametrize("name", ["model.onnx", "trials.csv", "best.json", "frontier.png"])
def test_a_users_own_file_is_not_written_over(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"theirs")
    with pytest.raises(
        UserError, match=rf"has a {name} already, which the search would write over"
    ):
        compress.recommend(tmp_path, budget="20m", **{**ARGUMENTS, "only": ("quantize",)})
    assert (tmp_path / name).read_bytes() == b"theirs"


def test_all_that_a_search_writes_is_known(found: Any, out: Path) -> None:
    written = {path.name for path in (out / "best").iterdir() if not path.name.startswith(".")}
    assert written - {"search.json", "space.toml"} <= set(WRITTEN)  # by these it knows its folder
    assert {"frontier.png", "best.json", "trials.csv", "trials.jsonl", "study.jsonl"} <= written


def test_a_damaged_study_is_refused_before_any_work(
    found: Any, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(out / "best", tmp_path / "best")
    with open(tmp_path / "best" / "study.jsonl", "ab") as file:
        file.write(b"\0\0\n")
    monkeypatch.setattr(searches, "probe", lambda plan: pytest.fail("it began to work"))
    with pytest.raises(UserError, match=r"study.jsonl is damaged in line \d+: give another --out"):
        compress.recommend(tmp_path / "best", budget="20m", progress=False)


def test_the_command_passes_only_what_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Defaults would take the place of what a search was begun with."""
    passed: list[dict[str, Any]] = []

    def recommend(place: Path, **options: Any) -> None:
        passed.append(options)
        raise UserError("enough")

    monkeypatch.setattr(api, "recommend", recommend)
    command = ["recommend", "best", "--budget", "1h", "--device", "cpu"]
    CliRunner().invoke(cli, command)
    CliRunner().invoke(cli, command, obj=7.0)
    assert passed == [{"budget": "1h", "device": "cpu", "since": since} for since in (None, 7.0)]


def test_the_command_ends_with_the_chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from compress import api
    from compress.recommender.question import Found

    found = Found(tmp_path, "4x smaller", "quantize()", "quantize()", (), (), {}, "a table")
    monkeypatch.setattr(api, "recommend", lambda *_, **__: found)
    done = CliRunner().invoke(cli, ["recommend", str(tmp_path), "--budget", "1h"])
    assert "a table\n\n4x smaller.\nThe chain: quantize()\n" in done.output
    assert done.exit_code == 0


def test_the_command_says_what_is_wrong() -> None:
    runner = CliRunner()
    done = runner.invoke(cli, ["recommend", "--data", "digits", "--model", "mlp"])
    assert done.exit_code == 2
    assert "--budget" in done.output
    help_text = runner.invoke(cli, ["recommend", "--help"]).output
    for option in ("--max-drop", "--target-ms", "--space", "--only", "--executor", "--weights"):
        assert option in help_text
    for option in ("--require-equivalent", "--dry-run", "--margin", "--seeds"):
        assert option not in help_text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90.0), (90, 90.0), ("90s", 90.0), ("30m", 1800.0), ("1h30m", 5400.0), ("1.5h", 5400.0)],
)
def test_budgets_are_times(text: str | float, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "-1m", "2 hours", "h", "nan", "inf", "1h-3m"])
def test_what_is_no_time_is_no_budget(text: str) -> None:
    with pytest.raises(UserError, match="--budget is a time"):
        seconds_of(text)
