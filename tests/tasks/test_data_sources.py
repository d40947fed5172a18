"""A task whose data a package brings by name: in suites and on the command line, with options."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import token_task

import compress
from compress import tasks
from compress.benchmark.plan.suite import parse_suite
from compress.errors import UserError
from compress.zoo.data import described_data

SOURCE = """
import token_task
from compress.tasks import DataSource, Option
from compress.errors import UserError

class Tokens(DataSource):
    words = "sequences that were counted"
    options = {"items": Option("int", "How many."), "vocabulary": Option("int", "Of tokens.")}

    def load(self, place, root, **options):
        if place != "counted":
            raise UserError(f"there are no tokens {place!r}")
        return token_task.counted(place, **options)

class Heavy(Tokens):
    options = {"size": Option("str", "Of another kind than that of images.")}

class Clashing(Tokens):
    options = {"model": Option("str", "A key of suites.")}

class Odd(Tokens):
    options = {"depth": Option("complex", "No kind.")}

class Torn(Tokens):
    def load(self, place, root, **options):
        raise ZeroDivisionError("torn")

class Wrong(Tokens):
    def load(self, place, root, **options):
        return [1, 2, 3]
"""
MODEL = f"{Path(token_task.__file__).as_posix()}:make"


def installed(folder: Path, entries: str) -> None:
    """Make a folder look like an installed package that brings data sources."""
    info = folder / "token_data-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: token-data\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{tasks.GROUP}]\n{entries}\n")
    (folder / "token_data.py").write_text(SOURCE)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of packages that this process and its children find."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    places = [str(folder), str(Path(token_task.__file__).parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(places))

    def forget() -> None:
        tasks.data_sources.cache_clear()
        tasks.task_options.cache_clear()
        sys.modules.pop("token_data", None)
        importlib.invalidate_caches()

    forget()
    yield folder
    forget()


def test_a_source_of_a_package_goes_all_the_way_by_the_command_line(
    site: Path, tmp_path: Path
) -> None:
    installed(site, "tokens = token_data:Tokens")
    words = ["run", "--data", "tokens:counted", "--items", "300", "--model", MODEL]
    words += ["--allow-code", token_task.__file__, "--chain", "train(epochs=1) -> quantize()"]
    words += ["--timings", "cpu", "--timing-seconds", "0.1", "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-m", "compress", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "out" / "results.jsonl").read_text().splitlines()
    rows = [one for one in map(json.loads, lines) if one["kind"] == "row"]
    assert {row["status"] for row in rows} == {"ok"}
    assert "90 test items" in (tmp_path / "out" / "table.md").read_text()
    command = [sys.executable, "-m", "compress", "list", "data"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "tokens:PLACE\n    sequences that were counted" in listed.stdout


def test_a_source_may_be_built_in(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (site / "token_data.py").write_text(SOURCE)
    monkeypatch.setattr(tasks, "SOURCES", {"tokens": "token_data:Tokens"})
    assert len(compress.load_data("tokens:counted", items=200).test) == 60
    assert "tokens:PLACE" in described_data()
    installed(site, "tokens = token_data:Tokens")
    tasks.data_sources.cache_clear()
    with pytest.raises(UserError, match="needs another scheme"):
        tasks.data_sources()


def test_a_suite_has_the_options_of_a_package_too(site: Path) -> None:
    installed(site, "tokens = token_data:Tokens")
    suite = parse_suite(
        "own", 'data = "tokens:counted"\nmodel = "m"\nchains = ["train()"]\nitems = 200\n'
    )
    assert suite.options == {"items": 200}
    assert len(compress.load_data("tokens:counted", **suite.options).test) == 60


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("tokens:counted", {"size": 32}, "size is no option of tokens:counted .it has: items, voc"),
        ("tokens:counted", {"augment": "flip"}, "augment is no option of tokens:counted"),
        ("digits", {"items": 5}, "items is no option of images, which digits has"),
        ("tokens:others", {}, "there are no tokens 'others'"),
        ("wrong:counted", {}, "wrong:counted gave a list in place of Data"),
        ("torn:counted", {}, "torn:counted could not be read .ZeroDivisionError: torn"),
        ("token:counted", {}, "unknown data source 'token:counted'"),
    ],
)
def test_what_a_source_does_not_know_is_refused(
    site: Path, name: str, options: dict[str, int], words: str
) -> None:
    entries = ("tokens", "wrong", "torn")
    installed(site, "\n".join(f"{one} = token_data:{one.capitalize()}" for one in entries))
    with pytest.raises(UserError, match=words):
        compress.load_data(name, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("tokens = token_data:Gone", "can't be loaded .AttributeError"),
        ("tokens = gone:Tokens", "can't be loaded .ModuleNotFoundError"),
        ("tokens = token_data:UserError", "is not a DataSource"),
        ("arrays = token_data:Tokens", "needs another scheme"),
        ("to-kens = token_data:Tokens", "needs another scheme"),
        ("tokens = token_data:Heavy", "an option 'size' of another kind"),
        ("tokens = token_data:Odd", "an option 'depth' of kind 'complex'"),
        ("tokens = token_data:Clashing", "an option 'model', which is a key of suites"),
    ],
)
def test_a_bad_source_is_refused_with_its_name(site: Path, entry: str, words: str) -> None:
    installed(site, entry)
    with pytest.raises(UserError, match=words):
        parse_suite("own", 'data = "digits"\nmodel = "mlp"\nchains = ["train()"]\n')
