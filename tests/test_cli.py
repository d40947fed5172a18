"""The command line: exit codes, sentences, and one suite from end to end."""

from __future__ import annotations

import csv
import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import scipy.stats
import torch
from safetensors.torch import save_file
from sklearn.metrics import balanced_accuracy_score

import compress
from compress.cli import main
from compress.deploy.export import read_metadata
from compress.results.columns import COLUMNS
from compress.results.derive import read_results

ROOT = Path(compress.__file__).resolve().parents[1]


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run the command line in this process and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["compress-models", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0)


SEVEN = """
from torch import nn

def make():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 7))
"""

WRONG = [
    (["frobnicate"], "No such command 'frobnicate'"),
    (["bench", "digit"], "unknown suite 'digit'. Did you mean 'digits'"),
    (["bench", "none.toml"], "there is no suite file none.toml"),
    (["run", "--chain", "train() -> shrink()"], "unknown technique 'shrink'"),
    (["run", "--chain", "train() -> distill(studnt='mlp')"], "Did you mean 'student'"),
    (["run", "--chain", "train() -> quantize() -> distill()"], "no step may follow"),
    (["run", "--chain", "train() -> distill(epochs=print())"], "unknown technique 'print'"),
    (["run", "--chain", "train() -> prune_channels(macs=1.5)"], "not 1.5"),
    (["run", "--chain", "train() -> prune_channels(macs=0)"], "not 0"),
    (["run", "--chain", "train() -> prune_weights(sparsity=-1)"], "not -1"),
    (["run", "--chain", "quantize()"], "the model has no weights"),
    (
        ["run", "--data", "/", "--chain", "quantize()"],
        "folder of images write imagefolder:/",
    ),
    (["run", "--model", "resnet19", "--chain", "train()"], "unknown model 'resnet19'"),
    (["run", "--model", "torchvision:resnet81", "--chain", "train()"], "resnet"),
    (["run", "--data", "digitz", "--chain", "train()"], "unknown data source 'digitz'"),
    (["run", "--data", "arrays:nowhere.npz", "--chain", "train()"], "nowhere.npz"),
    (["run", "--data", "imagefolder:nowhere", "--chain", "train()"], "nowhere"),
    (["run", "--chain", "train()", "--weights", "no.pt"], "leave out the step, or the weights"),
    (["run", "--chain", "quantize()", "--weights", "no.pt"], "no file of weights 'no.pt'"),
    (["run", "--chain", "train()", "--mean", "0.5,x"], "not a list of numbers"),
    (["run", "--chain", "train()", "--mean", "0.5"], "mean and std together"),
    (["run", "--chain", "train()", "--mean", "0,0", "--std", "1,1"], "one value per channel"),
    (
        ["run", "--chain", "train()", "--teacher", "big", "mlp", "no.pt"],
        "no file of weights 'no.pt', neither here nor",
    ),
    (["run", "--chain", "train()", "--teacher", "big", "mlp"], "requires 3 arguments"),
    (["run", "--chain", "train()", "--teacher", "input", "mlp", "m.py"], "names another model"),
    (
        ["run", "--chain", "train()", *["--teacher", "big", "mlp", "m.py"] * 2],
        "a name stands twice",
    ),
    (["run", "--chain", "train()", "--colour"], "No such option"),
    (["run", "--chain", "train()", "--device", "tpu"], "device must be"),
    (["run", "--chain", "train()", "--augment", "rotate"], "joined by hyphens"),
    (["run", "--chain", "train()", "--out", "/proc/nowhere"], "cannot write to"),
    (["run", "--chain", "train()", "--model", "m.py:make"], "--allow-code m.py"),
    (["run", "--chain", "train()", "--metric", "m.py:make"], "--allow-code m.py"),
    (["run", "--chain", "train()", "--metric", "none.py:f1"], "there is no file 'none.py'"),
    (["run", "--chain", "train()", "--metric", "accuracy"], "metric must be FILE.py:NAME"),
    (
        ["run", "--chain", "train()", "--metric", "m.py:make", "--allow-code", "m.py"],
        "the metric make raised TypeError",
    ),
    (["run", "--chain", "train() -> distill(student=5)"], "student is a name, not 5"),
    (["run", "--chain", "train() -> distill(teacher=3)"], "teacher is a name or a list"),
    (["run", "--chain", "train() -> distill(teacher=['a'])"], "unknown teacher 'a'"),
    (["run", "--chain", "train()", "--seeds", "18446744073709551616"], "whole numbers from 0"),
    (["run", "--chain", "train()", "--model", "timm:resnet18(checkpoint_path='a')"], "timm"),
    (["run", "--chain", "train()", "--margin", "0"], "margin must be above 0 and at most 100"),
    (["run", "--chain", "train()", "--margin", "nan"], "margin must be above 0 and at most 100"),
    (["report", ".", "--margin", "101"], "margin must be above 0 and at most 100"),
    (
        ["run", "--chain", "train() -> quantize()", "--require-equivalent", "quantise()"],
        "unknown technique 'quantise'",
    ),
    (
        ["run", "--chain", "train() -> quantize()", "--require-equivalent", "cast('float16')"],
        "unknown chain \"cast('float16')\". Known: quantize()",
    ),
    (
        ["run", "--chain", "train() -> quantize()", "--require-equivalent", "train()"],
        "is the baseline itself",
    ),
    (
        ["run", "--chain", "train() -> quantize()", "--require-equivalent", "baseline"],
        "'baseline' is the baseline itself: name a row that is compared with it",
    ),
    (["report", "."], "there is no results.jsonl"),
    (["list", "colours"], "'colours' is not one of"),
]


@pytest.mark.parametrize(("arguments", "sentence"), WRONG, ids=lambda value: str(value)[:50])
def test_a_wrong_call_exits_with_2_and_a_sentence(
    arguments: list[str],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.py").write_text(SEVEN)
    assert call(monkeypatch, *arguments) == 2
    message = capsys.readouterr().err
    assert sentence in " ".join(message.split())
    assert "Traceback" not in message


def test_a_student_with_another_number_of_classes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.py").write_text(SEVEN)
    chain = "train() -> distill(student='m.py:make')"
    assert call(monkeypatch, "run", "--chain", chain, "--allow-code", "m.py") == 2
    assert "needs (1, 10): one logit for each class" in capsys.readouterr().err


def test_weights_of_another_shape(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"0.weight": torch.zeros(3, 3)}, path)
    assert call(monkeypatch, "run", "--chain", "quantize()", "--weights", str(path)) == 2
    assert "0.weight" in capsys.readouterr().err


LISTED = {
    "techniques": ["distill(student=None, teacher='baseline', loss=kd(), "],
    "losses": [
        "kd(temperature=4.0, final_temperature=None, temperature_schedule='linear', weight=0.9, ",
        "T² · KL(softmax(teacher / T) || softmax(student / T)). Hinton, Vinyals and Dean 2015",
        "Σ (student - teacher)², over an item's logits. Ba and Caruana 2014, equation 1",
        "KL of the target against all others + beta · KL among the others). Zhao et al. 2022",
        "1 - correlation over classes + 1 - correlation over the batch), of probabilities. Huang",
    ],
    "hints": ["fitnets(weight=1.0, layers=())", "Romero et al. 2015", "Zagoruyko and Komodakis"],
    "criteria": ["taylor(count=128)", "Σ w². Fang et al. 2023", "He et al. 2019"],
    "models": ["resnet56"],
    "data": ["cifar100"],
    "suites": ["digits"],
    "columns": ["on_MACHINE_SETTING_speedup"],
}


@pytest.mark.parametrize("what", LISTED)
def test_list(
    what: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "list", what) == 0
    listed = capsys.readouterr().out
    assert all(words in listed for words in LISTED[what]), listed


@pytest.mark.parametrize("command", ["bench", "run", "recommend"])
def test_help_says_what_the_budget_of_the_timing_does_not_bound(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, command, "--help") == 0
    words = " ".join(capsys.readouterr().out.split())
    assert "At least five processes per number of threads run in any case" in words
    assert "quantize(seconds=...) has a budget of its own" in words


def test_python_m_compress_is_the_command() -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "compress", "--version"], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == f"compress-models, version {compress.__version__}"


SUITE = """
data = "digits"
model = "cnn-small(width=16)"
baseline = "train(epochs=8)"
timing_seconds = 1.5
threads = 1
chains = [
    "train(epochs=8) -> quantize()",
    "distill(student='mlp', epochs=4)",
    "prune_channels(macs=0.5)",
    "finetune(epochs=1, learning_rate=1e6, optimizer='sgd')",
]
"""

SMALLER = """
data = "digits"
model = "mlp(width=8)"
baseline = "train(epochs=1)"
timing_seconds = 0.3
timings = ["cpu"]
chains = ["prune_weights(sparsity=0.5)"]
"""

NAMES = tuple(column.name for column in COLUMNS)
STATES = ["ok"] * 4 + ["failed", "ok"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_output_that_cannot_be_written_is_no_success() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "compress", "list", "techniques"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode != 0
    assert "No space left on device" in done.stderr


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("suite")
    (folder / "small.toml").write_text(SUITE)
    arguments = ["bench", "small.toml", "--out", "out"]
    done = subprocess.run(
        [sys.executable, "-m", "compress", *arguments], cwd=folder, capture_output=True, text=True
    )
    # The last chain cannot learn at that rate: its row failed, the others are there.
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Written to out" in done.stdout
    (folder / "stderr.txt").write_text(done.stderr)
    return folder / "out"


def test_a_log_tells_what_every_row_is_doing(finished: Path) -> None:
    lines = (finished.parent / "stderr.txt").read_text().splitlines()
    progress = [line[5:].strip() for line in lines if re.match(r"\d\d:\d\d  ", line)]
    begun = [line for line in progress if not line.partition(" s so far")[1]]
    measuring = [
        "writing the ONNX file",
        "verifying the file on 360 images",
        "measuring the accuracy on 360 images",
        "saving the model, counting its operations and bytes",
    ]
    assert begun[0] == "reading digits"
    assert lines[1] == (
        "digits: 10 classes (0, 1, 2, ...), 1,294 images for training, 143 for validation, 360 for "
        "testing"
    )
    assert sum("for validation" in line for line in lines) == 1, "once, not by every process"
    assert re.fullmatch(
        r"preprocessing: 8x8, mean 0\.\d+, std 0\.\d+ \(measured on the training images\)", lines[2]
    )
    first = next(number for number, line in enumerate(begun) if "step 1 of 1" in line)
    assert begun[first].endswith("baseline [seed 0]: step 1 of 1, train(epochs=8)")
    assert begun[first + 1 : first + 6] == ["training on 1,294 images", *measuring]
    row = "3 of 6 rows: prune_channels(macs=0.5) [seed 0]: step 1 of 1, prune_channels(macs=0.5)"
    pruned = begun.index(row)
    assert begun[pruned + 1 : pruned + 6] == ["refitting the layers that are left", *measuring]
    assert begun[-3:] == [
        "measuring the memory of 5 file(s)",
        "timing 5 file(s) in onnxruntime on the CPU",
        "writing the reports to out",
    ]


def rows(out: Path) -> list[dict[str, str]]:
    with open(out / "results.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_csv_has_the_promised_columns_and_the_baseline_first(finished: Path) -> None:
    table = rows(finished)
    assert tuple(table[0]) == NAMES
    assert [row["chain"] for row in table] == [
        "baseline",
        "quantize()",
        "distill(student='mlp', epochs=4)",
        "prune_channels(macs=0.5)",
        "finetune(epochs=1, optimizer='sgd', learning_rate=1000000.0)",
        "train(student='mlp', epochs=4)",  # the control of the distilled student
    ]
    assert [row["status"] for row in table] == STATES
    assert "smaller learning_rate" in table[4]["error"] or "finite" in table[4]["error"]
    good = table[:4]
    for column in ("accuracy", "params", "macs", "gzip_bytes", "cpu_ms_p50", "cpu_batch32_per_s"):
        assert all(float(row[column]) > 0 for row in good), column
    for row in good:
        assert float(row["accuracy_low"]) < float(row["accuracy"]) <= float(row["accuracy_high"])
        assert float(row["accuracy_delta"]) == pytest.approx(
            float(row["accuracy"]) - float(table[0]["accuracy"])
        )
        assert row["cuda_ms_p50"] or row["cuda_note"]
    assert float(table[0]["accuracy"]) > 0.8
    assert int(table[2]["train_samples"]) == 4 * int(table[0]["train_samples"]) // 8


def test_controls_see_as_many_samples_and_are_compared(finished: Path) -> None:
    by_chain = {row["chain"]: row for row in read_results(finished).rows}
    student = by_chain["distill(student='mlp', epochs=4)"]
    control = by_chain["train(student='mlp', epochs=4)"]
    assert (student["role"], control["role"]) == ("", "control")
    assert student["control"] == control["chain"]
    assert control["train_samples"] == student["train_samples"] > 0
    difference = student["accuracy"] - control["accuracy"]
    assert student["control_delta"] == pytest.approx(difference)
    assert [name for name, row in by_chain.items() if "control_p" in row] == [student["chain"]]


def test_comparisons_follow_from_the_answers_that_are_kept(finished: Path) -> None:
    results = read_results(finished).rows
    with np.load(finished / "raw" / "targets.npz") as answers:
        targets = answers["targets"]
    right, predictions = {}, {}
    for row in results:
        if row["status"] != "ok":
            assert "agreement" not in row
            continue
        folder = (finished / row["onnx_path"]).parent
        with np.load(finished / "raw" / f"{folder.name}.npz") as answers:
            predictions[row["chain"]] = answers["predictions"]
            right[row["chain"]] = answers["predictions"] == targets
            assert (right[row["chain"]] == answers["correct"]).all()
            assert ((answers["confidence"] >= 0.1) & (answers["confidence"] <= 1)).all()
        before, after = right["baseline"], right[row["chain"]]
        lost, gained = int((before & ~after).sum()), int((after & ~before).sum())
        assert row["accuracy"] == pytest.approx(after.mean())
        assert row["balanced_accuracy"] == pytest.approx(
            balanced_accuracy_score(targets, predictions[row["chain"]])
        )
        if row["chain"] != "baseline":
            p = scipy.stats.binomtest(lost, lost + gained).pvalue if lost + gained else 1.0
            assert row["accuracy_p"] == pytest.approx(p)
            assert (row["lost"], row["gained"]) == (lost, gained)
    assert len(right) == 5


def test_the_run_records_what_it_was_measured_on(finished: Path) -> None:
    about = read_results(finished).about
    assert len(about["split_hash"]) == len(about["preprocessing_hash"]) == 64
    assert "Holm" in about["multiplicity"]
    assert about["metric"] == ""


def test_the_deployed_file_gives_the_accuracy_of_its_row(finished: Path) -> None:
    """An independent reader: onnxruntime, the metadata's preprocessing, scikit-learn's images."""
    data = compress.load_data("digits")
    (images,), targets = data.test.fetch(torch.arange(len(data.test)))
    for row in rows(finished)[:4]:
        path = finished / row["onnx_path"]
        about = read_metadata(path.read_bytes())
        spec = json.loads(about["preprocessing"])
        mean, std = (np.float32(spec[key]).reshape(1, -1, 1, 1) for key in ("mean", "std"))
        inputs = (images.numpy().astype(np.float32) / 255 - mean) / std
        session = onnxruntime.InferenceSession(str(path))
        (logits,) = session.run(["logits"], {"input": inputs.astype(np.float32)})
        accuracy = float((logits.argmax(1) == targets.numpy()).mean())
        assert accuracy == pytest.approx(float(row["accuracy"]), abs=0.004)
        assert json.loads(about["labels"]) == list("0123456789")
        assert about["chain"].startswith("train(epochs=8)")
        assert path.stat().st_size == int(row["onnx_bytes"])


def test_a_row_that_must_be_equivalent_and_is_not_exits_with_1(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the run that is finished: the question is asked of its results."""
    results = compress.api.Results(finished, *_read(finished, margin=99.0))
    # Written otherwise, and with the baseline's own step before it: the same chain.
    assert results.equivalent("train(epochs=8) -> prune_channels( macs = .5 )")
    monkeypatch.setattr("compress.api.run", lambda **_: results)
    words = ["run", "--chain", "train() -> quantize()", "--require-equivalent"]
    failed = "finetune(epochs=1, learning_rate=1e6, optimizer='sgd')"
    assert call(monkeypatch, *words, "prune_channels(macs=0.5)", *words[3:], failed) == 1
    message = capsys.readouterr().err
    assert message.startswith("Not equivalent: finetune(epochs=1, optimizer='sgd', learning_rate=1")
    assert "is not shown to be equivalent within 99 points: its row is failed" in message
    close = compress.api.Results(finished, *_read(finished, margin=0.001))
    why = close.why_not_equivalent("prune_channels(macs=0.5)")
    row = next(row for row in close.rows if row["chain"] == "prune_channels(macs=0.5)")
    assert f"differs from the baseline's by {100 * row['accuracy_delta']:+.2f} points" in why
    assert f"it may differ by {100 * row['accuracy_bound']:+.2f}" in why


def _read(out: Path, margin: float) -> tuple[tuple[dict[str, Any], ...], dict[str, Any]]:
    results = read_results(out, margin)
    return results.rows, results.about


def test_outputs_lie_where_they_should(finished: Path) -> None:
    for name in ("results.jsonl", "results.csv", "table.md", "pareto.png"):
        assert (finished / name).stat().st_size > 100
    for row in rows(finished)[:4]:
        folder = (finished / row["onnx_path"]).parent
        assert {path.name for path in folder.iterdir()} >= {
            "model.onnx",
            "model.safetensors",
            "blueprint.json",
        }
        assert compress.load(folder).example[0].shape == (1, 1, 8, 8)
        said = "prune" in row["chain"] or "quantize" in row["chain"]
        assert (folder / "layers.csv").exists() == said
    assert max(map(len, (finished / "table.md").read_text().splitlines())) <= 100


MEASURED = {"seconds", "peak_bytes"}
"""Columns besides the timings that a machine answers a little differently each time."""


def test_running_again_does_no_step_twice(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = {path: path.stat().st_ino for path in (finished / ".steps").iterdir()}
    before = rows(finished)
    monkeypatch.chdir(finished.parent)
    assert call(monkeypatch, "bench", "small.toml", "--out", "out") == 1
    assert {path: path.stat().st_ino for path in (finished / ".steps").iterdir()} == entries
    for old, new in zip(before, rows(finished), strict=True):
        for column in set(NAMES) - {c for c in NAMES if c.startswith("cpu")} - MEASURED:
            if column != "note":  # a noisy timing is noted
                assert old[column] == new[column], column


def test_files_of_the_current_folder_are_not_run_by_the_timing(tmp_path: Path) -> None:
    """A user's own compress.py or random.py must neither run unasked nor break the timing."""
    (tmp_path / "small.toml").write_text(SMALLER)
    for name in ("compress.py", "random.py", "onnxruntime.py"):
        (tmp_path / name).write_text("raise SystemExit('run unasked')")
    script = f"import sys; sys.path.remove(''); sys.path.insert(0, {str(ROOT)!r}); "
    script += "from compress.cli import main; sys.argv[1:] = ['bench', 'small.toml']; main()"
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True)
    table = rows(tmp_path / "compress-out" / "small")
    assert [row["status"] for row in table] == ["ok", "ok"]
    assert all(row["cpu_ms_p50"] for row in table)


def test_ctrl_c_keeps_what_is_finished_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(SMALLER)
    # A shell that starts a job in the background has it ignore Ctrl-C; this one must not.
    process = subprocess.Popen(
        [sys.executable, "-m", "compress", "bench", "small.toml", "--out", "out"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stderr is not None
    assert next(line for line in process.stderr if line.startswith("baseline [seed 0]: ok"))
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "What was finished is kept" in stderr
    assert rows(tmp_path / "out")[0]["status"] == "ok"


def test_report_is_a_function_of_the_results(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {name: (finished / name).read_bytes() for name in ("results.csv", "table.md")}
    for name in before:
        (finished / name).unlink()
    assert call(monkeypatch, "report", str(finished)) == 1
    assert {name: (finished / name).read_bytes() for name in before} == before


def test_a_budget_runs_from_when_the_process_began() -> None:
    code = (
        "import time\n"
        "before = time.monotonic()\n"
        "from compress import cli\n"
        "cli.main = lambda since: print(before - 60 < since <= before)\n"
        "cli.command()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "True\n", done.stderr


def test_ctrl_c_counts_also_while_an_object_is_removed() -> None:
    """Python ignores what a `__del__` raises, as that of a lock's object."""
    code = (
        "import os, signal, time\n"
        "from compress import cli\n"
        "class Removed:\n"
        "    def __del__(self):\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        time.sleep(0.1)\n"
        "def main(since):\n"
        "    removed = Removed()\n"
        "    del removed\n"
        "    try:\n"
        "        time.sleep(20)\n"
        "    except KeyboardInterrupt:\n"
        "        raise SystemExit(130)\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "cli.main = main\n"
        "cli.command()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 130, done.stderr
