"""An archive times a run's files with numpy and onnxruntime alone, and tells of no machine."""

from __future__ import annotations

import ast
import json
import os
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from packed import NAMES, SECRET, SETTINGS, linear, machine

import compress
from compress.benchmark.portable.pack import MODULES, pack
from compress.benchmark.portable.portable_timer import main
from compress.errors import UserError
from compress.results.log import RunLog, Stage
from compress.results.record import Record
from compress.system.files import sha256
from compress.timing.launch import WorkerFailed
from compress.timing.raw_timings import CONTROL, LEVELS, RawTimings
from compress.timing.worker import DIFFERENT

ROOT = Path(compress.__file__).resolve().parents[1]


@pytest.fixture
def unpacked(unpacked: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(unpacked, tmp_path / "other" / "unpacked"))


def contents(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


# --- the archive ------------------------------------------------------------------------------


def test_the_archive_holds_the_sound_files_their_inputs_and_the_timer(run: Path) -> None:
    path = pack(run)
    assert path == run / "pack.zip"
    held = contents(path)
    said = json.loads(held["pack.json"])
    models = {c["name"]: c["file"] for c in said["candidates"]}
    assert tuple(models) == NAMES
    assert [held[models[name]] for name in NAMES] == [linear(number) for number in range(3)]
    expected = {*MODULES, *models.values(), "inputs.npz", "time_here.py", "README.txt"}
    assert held.keys() == {*expected, "pack.json"}
    assert said["files"] == {name: sha256(held[name]) for name in expected}
    assert said["baseline"] == "baseline [seed 0]"
    assert said["settings"] == list(SETTINGS)
    second = said["candidates"][1]
    assert (second["chain"], second["seed"]) == ("quantize(target='vnni')", 0)
    readme = held["README.txt"].decode()
    assert "It times 3 models" in readme
    assert "64 items of the run's test data" in readme


def test_the_inputs_give_what_is_expected(run: Path, tmp_path: Path) -> None:
    (tmp_path / "inputs.npz").write_bytes(contents(pack(run))["inputs.npz"])
    with np.load(tmp_path / "inputs.npz") as arrays:
        assert set(arrays.files) == {"input_0", *(f"expected/{name}" for name in NAMES)}
        session = onnxruntime.InferenceSession(linear(1))
        (found,) = session.run(None, {"input": arrays["input_0"]})
        np.testing.assert_allclose(arrays[f"expected/{NAMES[1]}"], found, rtol=1e-4, atol=1e-4)


def test_the_same_run_gives_the_same_bytes(run: Path, tmp_path: Path) -> None:
    first = pack(run, tmp_path / "new" / "one.zip")
    assert first.read_bytes() == pack(run, tmp_path / "two.zip").read_bytes()
    with zipfile.ZipFile(first) as archive:
        entries = archive.infolist()
    assert {entry.date_time for entry in entries} == {(1980, 1, 1, 0, 0, 0)}
    assert [entry.filename for entry in entries] == sorted(entry.filename for entry in entries)


def test_the_archive_tells_of_no_machine(run: Path) -> None:
    secrets = [SECRET, str(run), str(ROOT), f"{Path.home()}{os.sep}"]
    for name, content in contents(pack(run)).items():
        assert [secret for secret in secrets if secret.encode() in content] == [], name


def source(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def imported(module: str) -> set[str]:
    """Return the modules that a module of ours imports; lazily too, but not for type checkers."""
    tree = ast.parse(source(module).read_text())
    unseen: set[ast.AST] = set()
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            unseen |= set(node.body)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node not in unseen:
            assert node.module, "imports are absolute"
            found.add(node.module)
    return found


KNOWN = {"compress.runtimes.base", "compress.runtimes.onnxruntime_cpu"}


def test_the_modules_are_all_that_the_timer_imports() -> None:
    ours: set[str] = set()
    others: set[str] = set()
    left = [
        "compress.benchmark.portable.portable_timer",
        "compress.timing.worker",
    ]  # started by its name
    while left:
        module = left.pop()
        if module not in ours:
            ours.add(module)
            names = imported(module)
            left += [name for name in names if name.startswith("compress.")]
            left.append(module.rpartition(".")[0] or "compress")
            # A runtime imports its own library, where it is there.
            if module.rpartition(".")[0] != "compress.runtimes" or module in KNOWN:
                others |= {name.partition(".")[0] for name in names} - {"compress"}
    assert {str(source(module).relative_to(ROOT)) for module in ours} == set(MODULES)
    # scipy is for verdicts and psutil for a run's machine, which the timer does not call for;
    # below, it runs without them.
    assert others - sys.stdlib_module_names - {"scipy", "psutil"} == {"numpy", "onnxruntime"}


def refused(run: Path, sentence: str, out: Path | None = None) -> None:
    with pytest.raises(UserError, match=sentence):
        pack(run, out)
    assert not list(run.glob("*.zip*"))
    assert not list(run.glob(".pack*"))


def test_a_run_that_was_not_timed_is_refused(run: Path) -> None:
    refused(run / "nowhere", r"there is no .*results.jsonl")
    log = RunLog(run / "results.jsonl", {"suite": "later"})
    log.record(Record("baseline", 0, "ok", hashes={"onnx": "y"}, files={"onnx": "x"}))
    refused(run, "was stopped before it; let compress-models bench finish")
    log.timings(Stage(reason="all nodes are lost"))
    refused(run, "was stopped before it; let compress-models bench finish")
    log.timings(Stage(file="raw/timing.json"))
    log.record(Record("baseline", 0, "unverified"))
    refused(run, "has no sound baseline")


def damaged(path: Path) -> bytes:
    """Return a zip whose first entry begins with a block of a kind that deflate has not."""
    with zipfile.ZipFile(path) as archive:
        entry = archive.infolist()[0]
    content = bytearray(path.read_bytes())
    name, extra = struct.unpack_from("<HH", content, entry.header_offset + 26)
    content[entry.header_offset + 30 + name + extra] = 0xFF
    return bytes(content)


def test_inputs_that_are_not_the_runs_are_refused(run: Path) -> None:
    sidecar = run / "raw" / "timing-inputs.npz"
    with np.load(sidecar) as arrays:
        some = {key: arrays[key] for key in arrays.files if key != f"expected/{NAMES[1]}"}
    np.savez_compressed(sidecar, **some)
    refused(run, r"does not hold the inputs of this run's timing .*quantize\(target")
    sidecar.write_bytes(damaged(sidecar))
    refused(run, "does not hold the inputs .*while decompressing")
    sidecar.write_bytes(b"")
    refused(run, "does not hold the inputs .*No data left")
    sidecar.write_bytes(b"rubbish")
    refused(run, "does not hold the inputs")
    sidecar.unlink()
    refused(run, "does not hold the inputs .*No such file")


def test_a_file_that_changed_since_is_refused(run: Path) -> None:
    model = run / "models" / "baseline" / "model.onnx"
    model.write_bytes(linear(5))
    refused(run, "is not the file that was measured")
    model.unlink()
    refused(run, "cannot be read: No such file")


def test_an_archive_that_cannot_be_written_is_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    refused(run, "cannot write .*folder: Is a directory", tmp_path / "folder")
    (tmp_path / "file").touch()
    refused(run, "cannot write .*pack.zip", tmp_path / "file" / "pack.zip")


# --- on the other machine ---------------------------------------------------------------------


def test_what_is_written_is_all_that_was_found(
    unpacked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out" / "timings.json"
    assert main(["--threads", "3", "--out", str(out)], unpacked, machine()) == 0
    said = json.loads(out.read_bytes())
    pack_json = json.loads((unpacked / "pack.json").read_bytes())
    assert (said["kind"], said["schema"]) == ("compress-models timings", 1)
    assert said["run"] == pack_json["run"]
    assert said["models"] == {name: sha256(linear(i)) for i, name in enumerate(NAMES)}
    raw_timings = RawTimings.from_json(said["timings"])
    assert raw_timings.names == (*NAMES, CONTROL, *LEVELS)
    assert raw_timings.settings == SETTINGS
    assert (raw_timings.all_threads, raw_timings.environment["threads"]) == (3, 3)
    assert raw_timings.series("cpu_batch32", NAMES[1])[0]["medians"] == [0.032] * 4
    lines = capsys.readouterr().out.splitlines()
    assert lines[:5] == [
        "Median milliseconds per call (all threads: 3).",
        "cpu: batch 1, all threads",
        "cpu1: batch 1, 1 thread",
        "cpu_batch32: batch 32, all threads",
        "",
    ]
    assert lines[5:9] == [
        "  cpu   cpu1  cpu_batch32  file",
        "4.000  4.000        128.0  baseline [seed 0]",
        "1.000  1.000        32.00  quantize(target='vnni') [seed 0]",
        "4.000  4.000        128.0  quantize() [seed 0]",
    ]
    assert lines[-1] == "Where the run is: compress-models merge RUN timings.json"


def test_a_file_that_gives_other_outputs_is_named_and_no_path_is_told(
    unpacked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    errors = {
        NAMES[1]: f"{DIFFERENT} (by 31.0%)",
        NAMES[2]: f"onnxruntime cannot load the file: {unpacked}{os.sep}models/x.onnx",
    }
    out = tmp_path / "timings.json"
    assert main(["--out", str(out)], unpacked, machine(errors=errors)) == 0
    text = out.read_text()
    assert "cannot load the file: models/x.onnx" in text
    assert str(tmp_path) not in text
    printed = capsys.readouterr().out
    assert f"    -     -            -  {NAMES[1]}".split() in [
        x.split() for x in printed.splitlines()
    ]
    assert f"{NAMES[1]}: {DIFFERENT} (by 31.0%)" in printed


@pytest.mark.parametrize(
    ("error", "told"),
    [
        ("Load model from /srv/bob/x/model.onnx failed", "Load model from model.onnx failed"),
        ("failed:/srv/bob/model.onnx, (line 3)", "failed:model.onnx, (line 3)"),
        ("[Errno 28] No space: '/srv/bob of us/a b.onnx'", "[Errno 28] No space: 'a b.onnx'"),
        ('open "C:\\Users\\bob\\x.onnx"', 'open "x.onnx"'),
        ("open C:\\Users\\bob\\x.onnx now", "open x.onnx now"),
        ("share \\\\host\\bob\\x.onnx", "share x.onnx"),
        (
            "opset 9/10: see https://onnx.ai/docs/x.html",
            "opset 9/10: see https://onnx.ai/docs/x.html",
        ),
        (f"in {Path.home()}", "in "),
    ],
)
def test_of_a_path_the_last_part_alone_is_written(
    unpacked: Path, tmp_path: Path, error: str, told: str
) -> None:
    out = tmp_path / "timings.json"
    assert main(["--out", str(out)], unpacked, machine(errors={NAMES[1]: error})) == 0
    found = RawTimings.from_json(json.loads(out.read_bytes())["timings"])
    assert {part["error"] for part in found.series("cpu", NAMES[1]) if part} == {told}


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (KeyboardInterrupt(), 130, "Stopped. What was timed so far is kept"),
        (MemoryError("all full"), 1, "Failed. What was timed so far is kept"),
        (WorkerFailed("it was killed"), 1, "was not written: process 1: it was killed"),
    ],
    ids=["ctrl-c", "crash", "every process dies"],
)
def test_what_ends_it_early_is_told_in_a_sentence(
    unpacked: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    sentence: str,
) -> None:
    out = tmp_path / "results" / "timings.json"
    out.parent.mkdir()
    out.write_text("of an earlier day")

    def dies(*_: Any) -> None:
        raise error

    assert main(["--out", str(out)], unpacked, dies) == code
    assert sentence in capsys.readouterr().err.splitlines()[-1]
    assert [path.read_text() for path in out.parent.iterdir()] == ["of an earlier day"]


def never(*_: Any) -> None:
    raise AssertionError("nothing was to be timed")


def test_what_is_not_as_it_was_packed_is_not_timed(
    unpacked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def says(sentence: str, *arguments: str) -> None:
        assert main(list(arguments), unpacked, never) == 2
        assert sentence in capsys.readouterr().err

    out = ["--out", str(tmp_path / "timings.json")]
    says(f"{tmp_path} is a folder", "--out", str(tmp_path))
    (tmp_path / "file").touch()
    says("cannot write to", "--out", str(tmp_path / "file" / "timings.json"))
    (unpacked / "models" / "baseline.onnx").write_bytes(linear(7))
    says("models/baseline.onnx is not the file that was packed", *out)
    (unpacked / "models" / "baseline.onnx").unlink()
    says("models/baseline.onnx cannot be read", *out)
    (unpacked / "pack.json").unlink()
    says("there is no pack.json beside time_here.py", *out)
    assert not (tmp_path / "timings.json").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--seconds", "0"], "--seconds: must be a positive number, not 0.0"),
        (["--seconds", "nan"], "--seconds: must be a positive number, not nan"),
        (["--seconds", "inf"], "--seconds: must be a positive number, not inf"),
        (["--seconds", "soon"], "--seconds: invalid float value: 'soon'"),
        (["--threads", "0"], "--threads: must be at least 1, not 0"),
        (["--threads", "1.5"], "--threads: invalid int value: '1.5'"),
        (["--colour"], "unrecognized arguments"),
    ],
)
def test_a_wrong_call_exits_with_2(
    arguments: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments, tmp_path, never)
    assert caught.value.code == 2
    assert sentence in capsys.readouterr().err


# Python runs a module of this name before anything else, in the processes that are started too.
ONLY_NUMPY_AND_ONNXRUNTIME = """
import sys

class Nothing:
    def find_spec(self, name, path=None, target=None):
        first = name.partition(".")[0]
        if first in sys.stdlib_module_names or first in ("numpy", "onnxruntime", "compress"):
            return None
        raise ImportError(f"{first} is not installed on this machine")

sys.meta_path[:] = [Nothing(), *(f for f in sys.meta_path if "editable" not in repr(f).lower())]
"""

IMPORT_OTHERS = """
for name in ("torch", "scipy", "onnx", "psutil"):
    try:
        __import__(name)
    except ImportError as error:
        print(error)
"""


def test_the_real_files_are_timed_with_numpy_and_onnxruntime_alone(
    unpacked: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "sitecustomize.py").write_text(ONLY_NUMPY_AND_ONNXRUNTIME)
    quick(unpacked)
    done = subprocess.run(
        [
            sys.executable,
            "-P",
            str(unpacked / "time_here.py"),
            "--seconds",
            "0.1",
            "--threads",
            "1",
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(bare)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = RawTimings.from_json(json.loads((tmp_path / "timings.json").read_bytes())["timings"])
    assert [part.failure for part in found.launched] == [""] * 5
    for name in NAMES:
        for series in found.series("cpu", name):
            assert series is not None
            assert series["error"] == ""
            assert min(series["medians"]) > 0
    blocked = subprocess.run(
        [sys.executable, "-c", IMPORT_OTHERS],
        env={**os.environ, "PYTHONPATH": str(bare)},
        capture_output=True,
        text=True,
    )
    assert blocked.stdout.splitlines() == [
        f"{name} is not installed on this machine" for name in ("torch", "scipy", "onnx", "psutil")
    ]


def quick(unpacked: Path) -> None:
    """Leave one setting, so that there are five processes instead of ten."""
    said = json.loads((unpacked / "pack.json").read_bytes())
    (unpacked / "pack.json").write_text(json.dumps({**said, "settings": ["cpu"]}))


def test_an_older_python_and_a_missing_package_are_told(unpacked: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.version_info = (3, 10, 1)")
    script = [sys.executable, str(unpacked / "time_here.py")]
    there = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(script, env=there, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("time_here.py needs Python 3.11 or newer; this is 3.")
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['onnxruntime'] = None")
    done = subprocess.run(script, env=there, capture_output=True, text=True)
    assert done.returncode == 1
    assert "to install both: python -m pip install numpy onnxruntime" in done.stderr


def test_onnxruntime_is_told_not_to_report_before_it_is_imported(
    unpacked: Path, tmp_path: Path
) -> None:
    (tmp_path / "onnxruntime.py").write_text(
        "import os, sys; sys.exit('telemetry disabled: ' + os.environ['ORT_DISABLE_TELEMETRY'])"
    )
    there = {**os.environ, "PYTHONPATH": str(tmp_path)}
    script = [sys.executable, str(unpacked / "time_here.py")]
    for given, found in ((None, "1"), ("0", "0")):
        there.pop("ORT_DISABLE_TELEMETRY", None)
        if given is not None:
            there["ORT_DISABLE_TELEMETRY"] = given
        done = subprocess.run(script, env=there, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (1, f"telemetry disabled: {found}\n")
