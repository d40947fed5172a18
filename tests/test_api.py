"""The Python side: a chain in a few lines, one's own module, one's own arrays and code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import compress
from compress.api import rewrite_reports
from compress.benchmark import run as bench
from compress.report import write
from compress.results.log import Stage
from compress.results.record import Record


def stripes(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images of horizontal or vertical stripes, with noise: two classes anyone can tell."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, count)
    lines = (np.arange(8) % 2 * 200).astype(np.uint8)
    images = np.where(labels[:, None, None] == 0, lines[None, :, None], lines[None, None, :])
    noise = generator.integers(0, 50, (count, 8, 8))
    return (images + noise).astype(np.uint8), labels


@pytest.fixture(scope="module")
def data() -> compress.load_data:
    return compress.from_arrays(*stripes(400, 0), *stripes(100, 1), classes=["rows", "columns"])


@pytest.fixture
def untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the timing processes and the pictures, which have tests of their own."""
    monkeypatch.setattr(bench, "time_records", lambda *_: [(Stage(reason="left out"), [])])
    for picture in ("pareto_png", "speedups_png", "curves_png"):
        monkeypatch.setattr(write, picture, lambda *_: None)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where tests whose chains begin alike find the steps of one another."""
    return tmp_path_factory.mktemp("store")


def test_ones_own_module_and_data(data: object, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 2))
    before = [parameter.clone() for parameter in module.parameters()]
    results = compress.run(
        data=data,
        model=module,
        chain=["finetune(epochs=8, learning_rate=0.01)", "finetune(epochs=8) -> quantize()"],
        out=tmp_path,
        timing_seconds=0.5,
        timings=("cpu",),
        progress=False,
    )
    assert results.ok, str(results)
    assert all(map(torch.equal, before, module.parameters()))
    assert "This command" not in str(results)
    frame = results.frame
    assert next(iter(frame["chain"])) == "baseline"
    assert frame["accuracy"].iloc[1] == 1.0
    words = "the model was passed as a module: the ONNX file is the only artifact"
    assert all(words in note for note in frame["note"])
    for path in frame["onnx_path"]:
        assert (tmp_path / path).exists()
        assert not (tmp_path / path).with_name("model.safetensors").exists()
    assert "finetune(epochs=8) -> quantize()" in str(results) or "quantize()" in str(results)


FACTORY = """
from torch import nn

def make(num_classes, in_channels, hidden=8):
    return nn.Sequential(nn.Flatten(), nn.Linear(64 * in_channels, hidden), nn.ReLU(),
                         nn.Linear(hidden, num_classes))
"""


@pytest.mark.usefixtures("untimed")
def test_ones_own_factory_comes_back_only_when_allowed(data: object, tmp_path: Path) -> None:
    code = tmp_path / "mine.py"
    code.write_text(FACTORY)
    name = f"{code}:make(hidden=24)"
    with pytest.raises(compress.UserError, match="--allow-code"):
        compress.run(data=data, model=name, chain="train()", out=tmp_path / "a")
    results = compress.run(
        data=data,
        model=name,
        chain="train(epochs=4) -> prune_channels(channels=0.5, round_to=1)",
        out=tmp_path / "b",
        allow_code=[code],
        progress=False,
    )
    assert results.ok, str(results)
    folder = (tmp_path / "b" / results.frame["onnx_path"].iloc[1]).parent
    with pytest.raises(compress.UserError, match="--allow-code"):
        compress.load(folder)
    assert compress.load(folder, allow_code=[code]).module[1].out_features == 12


def test_a_failing_baseline_fails_every_row_and_says_why(data: object, tmp_path: Path) -> None:
    results = compress.run(
        data=data,
        model="mlp",
        chain="train(epochs=1, optimizer='sgd', learning_rate=1e9) -> quantize()",
        out=tmp_path,
        progress=False,
    )
    assert not results.ok
    assert list(results.frame["status"]) == ["failed", "failed"]
    assert "the baseline failed" in results.frame["error"].iloc[1]


@pytest.mark.usefixtures("untimed")
def test_seeds_give_a_row_each(data: object, store: Path, tmp_path: Path) -> None:
    results = compress.run(
        data=data,
        model="mlp(width=16)",
        chain="train(epochs=2) -> finetune(epochs=1)",
        out=tmp_path,
        store=store,
        seeds=(0, 1),
        progress=False,
    )
    assert results.ok, str(results)
    assert list(zip(results.frame["chain"], results.frame["seed"], strict=True)) == [
        ("baseline", 0),
        ("baseline", 1),
        ("finetune(epochs=1)", 0),
        ("finetune(epochs=1)", 1),
    ]
    assert results.frame["onnx_path"].nunique() == 4


UNSAVABLE = """
import torch
from torch import nn

class Odd(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.linear = nn.Linear(64, classes)
        self.shift = torch.rand(3)  # neither a parameter nor a buffer, and another one each time

    def forward(self, x):
        return self.linear(x.flatten(1))

def make(num_classes):
    return Odd(num_classes)
"""


@pytest.mark.usefixtures("untimed")
def test_a_model_that_cannot_be_saved_still_gets_its_row_and_file(
    data: object, tmp_path: Path
) -> None:
    code = tmp_path / "odd.py"
    code.write_text(UNSAVABLE)
    results = compress.run(
        data=data,
        model=f"{code}:make",
        chain="train(epochs=1) -> prune_weights(sparsity=0.5)",
        out=tmp_path / "out",
        allow_code=[code],
        progress=False,
    )
    assert results.ok, str(results)
    assert all("the ONNX file is the only artifact" in note for note in results.frame["note"])
    assert "49% of the parameters are zero" in results.frame["note"].iloc[1]
    assert (tmp_path / "out" / results.frame["onnx_path"].iloc[1]).exists()


def test_options_are_never_silently_ignored(data: object, tmp_path: Path) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    with pytest.raises(compress.UserError, match="give them to from_arrays"):
        compress.run(data=data, chain="train()", out=tmp_path, mean=(0.9,), std=(0.1,))
    with pytest.raises(compress.UserError, match="no file of weights"):
        compress.run(data=data, model=module, chain="quantize()", weights="no.pt", out=tmp_path)
    with pytest.raises(compress.UserError, match=r"'seed'\. Did you mean 'seeds'"):
        compress.run(data=data, chain="train()", out=tmp_path, seed=3)
    with pytest.raises(compress.UserError, match="does not take the data's inputs"):
        compress.run(data=data, model=nn.Linear(3, 2), chain="quantize()", out=tmp_path)


def test_nothing_is_written_among_the_images_that_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, other = tmp_path / "photos", tmp_path / "other"
    for place in (photos / "cat", photos / "dog", other / "cat"):
        place.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(place / "0.png")
    before = sorted(tmp_path.rglob("*"))
    images = {"data": f"imagefolder:{photos}", "size": 8, "model": "mlp", "progress": False}
    transfer = f"train() -> distill(transfer='imagefolder:{other}')"
    for option, place, folder, given in [
        ("out", photos / "e1", photos, images),
        ("store", photos / "cat" / "steps", photos, images | {"out": tmp_path / "out"}),
        ("out", other / "e1", other, images | {"calibration": f"imagefolder:{other}"}),
        ("out", other / "e1", other, images | {"chain": transfer}),
    ]:
        words = f"--{option} {place} lies among the images of {folder}, and what is written there"
        with pytest.raises(compress.UserError, match=words):
            compress.run(**{"chain": "train()", **given, option: place})
    given = {"data": f"imagefolder:{photos}", "model": "mlp", "progress": False}
    with pytest.raises(compress.UserError, match=f"--out {photos / 'best'} lies among the images"):
        compress.recommend(photos / "best", budget="5m", baseline="train()", **given)
    monkeypatch.chdir(photos)
    with pytest.raises(compress.UserError, match="--out compress-out/run lies among the images of"):
        compress.run(chain="train()", **images | {"data": "imagefolder:."})
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.usefixtures("untimed")
def test_ones_own_module_teaches(data: object, tmp_path: Path) -> None:
    """It says the contrary of every label, so a student that is always wrong learnt from it."""
    contrary = nn.Sequential(nn.Flatten(), nn.Linear(64, 2, bias=False))
    images, labels = stripes(200, 2)
    inputs = torch.from_numpy(images / 255).float().flatten(1)
    opposite = torch.from_numpy(np.eye(2)[1 - labels]).float()
    fitted = torch.linalg.lstsq(inputs, opposite).solution
    with torch.no_grad():
        contrary[1].weight.copy_(20 * fitted.T)
    weights = tmp_path / "contrary.safetensors"
    save_file({"1.weight": contrary[1].weight.detach()}, weights)
    code = tmp_path / "mine.py"
    code.write_text(
        "from torch import nn\n\ndef make():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 2, bias=False))\n"
    )
    for number, teacher in enumerate((contrary, (f"{code}:make", str(weights)))):
        results = compress.run(
            data=data,
            model="mlp",
            chain="train(epochs=4) -> distill(teacher='contrary', hard_weight=0, epochs=8)",
            teachers={"contrary": teacher},
            allow_code=[code],
            out=tmp_path / str(number),
            progress=False,
        )
        assert results.ok, str(results)
        right, wrong = results.frame["accuracy"]
        assert right > 0.95
        assert wrong < 0.05


def test_a_teacher_that_cannot_teach_is_refused(data: object, tmp_path: Path) -> None:
    for teacher, sentence in [
        (nn.Linear(3, 2), "teacher 'own' does not take the data's inputs"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), "teacher 'own' gives outputs of shape"),
        ("mlp", "is an nn.Module, or a model's name and a file of its weights"),
        (("mlp", 3), "is an nn.Module, or a model's name and a file of its weights"),
    ]:
        with pytest.raises(compress.UserError, match=sentence):
            compress.run(data=data, chain="train()", teachers={"own": teacher}, out=tmp_path)


@pytest.mark.usefixtures("untimed")
def test_two_instances_in_one_folder_are_not_mixed_up(data: object, tmp_path: Path) -> None:
    """Both are a Sequential; what one run made must not be taken for the other's."""
    files = []
    for hidden in (2, 32):
        module = nn.Sequential(nn.Flatten(), nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 2))
        module.train()
        results = compress.run(
            data=data,
            model=module,
            chain="train(epochs=1) -> distill(student='mlp(width=16)', epochs=1)",
            out=tmp_path,
            progress=False,
        )
        assert module.training
        files.append((tmp_path / results.frame["onnx_path"].iloc[1]).read_bytes())
    assert files[0] != files[1]


def test_an_instance_that_cannot_be_reset_is_not_trained_from_its_old_weights(
    data: object, tmp_path: Path
) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrix = nn.Parameter(torch.randn(64, 2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1) @ self.matrix

    results = compress.run(data=data, model=Own(), chain="train() -> quantize()", out=tmp_path)
    assert list(results.frame["status"]) == ["failed", "failed"]
    assert "no reset_parameters()" in results.frame["error"].iloc[0]


@pytest.mark.usefixtures("untimed")
def test_ones_own_metric_is_a_column(data: object, store: Path, tmp_path: Path) -> None:
    """By function and by name; what fails on the real outputs is a reason, and no failed row."""

    def rows_right(outputs: np.ndarray, targets: np.ndarray) -> float:
        return (outputs.argmax(1) == targets)[targets == 0].mean()

    def picky(outputs: np.ndarray, targets: np.ndarray) -> float:
        if len(targets) == 100:
            raise ValueError("no more than 4")
        return 0.0

    options = {"data": data, "model": "mlp(width=16)", "store": store, "progress": False}
    chain = "train(epochs=2) -> finetune(epochs=1)"
    results = compress.run(**options, chain=chain, metric=rows_right, out=tmp_path)
    assert results.ok
    assert results.about["metric"] == "rows_right"
    (_, targets) = data.test.fetch(torch.arange(100))  # type: ignore[attr-defined]
    for row in results.rows:
        folder = (tmp_path / row["onnx_path"]).parent
        with np.load(tmp_path / "raw" / f"{folder.name}.npz") as answers:
            right = answers["predictions"] == targets.numpy()
        assert row["metric"] == pytest.approx(right[targets.numpy() == 0].mean())
    code = tmp_path / "mine.py"
    code.write_text("def half(outputs, targets):\n    return 0.5\n")
    chain = "train(epochs=2)"
    results = compress.run(
        **options, chain=chain, metric=f"{code}:half", allow_code=[code], out=tmp_path
    )
    assert [row["metric"] for row in results.rows] == [0.5]
    results = compress.run(**options, chain=chain, metric=picky, out=tmp_path)
    assert results.ok
    assert all("the metric picky raised ValueError: no more" in row["note"] for row in results.rows)
    assert not any("metric" in row for row in results.rows)


@pytest.mark.usefixtures("untimed")
def test_one_chain_gets_no_control_unless_it_is_asked_for(
    data: object, store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def chains(**more: bool) -> list[tuple[str, str]]:
        results = compress.run(
            data=data,
            model="mlp(width=16)",
            chain="train(epochs=2) -> prune_weights(sparsity=0.5) -> finetune(epochs=1)",
            out=tmp_path,
            store=store,
            progress=False,
            **more,
        )
        assert results.ok, str(results)
        return [(row["chain"], row["control"]) for row in results.rows]

    chain = "prune_weights(sparsity=0.5) -> finetune(epochs=1)"
    assert chains() == [("baseline", ""), (chain, "")]
    control = "finetune(epochs=1)"
    assert chains(controls=True) == [("baseline", ""), (chain, control), (control, "")]
    assert capfd.readouterr() == ("", ""), "progress=False prints nothing"


@pytest.mark.usefixtures("untimed")
def test_what_is_finished_when_a_run_is_stopped_is_compared(
    data: object, store: Path, tmp_path: Path
) -> None:
    stopped = []

    def stop(row: Mapping[str, Any]) -> None:
        if row["chain"] == "finetune(epochs=1)" and not stopped:
            stopped.append(row)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress.run(
            data=data,
            model="mlp(width=16)",
            chain=["train(epochs=2) -> finetune(epochs=1)", "finetune(epochs=2)"],
            out=tmp_path,
            store=store,
            progress=False,
            on_record=stop,
        )
    baseline, finished = rewrite_reports(tmp_path).rows
    assert "accuracy_verdict" not in baseline
    assert finished["accuracy_verdict"] in ("better", "equivalent", "worse", "not shown")
    assert stopped[0]["accuracy"] == finished["accuracy"]
    assert "accuracy_verdict" not in stopped[0]


def test_the_timing_on_the_cpu_is_kept_whatever_happens_afterwards(
    data: object, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> Stage:
        raise RuntimeError("the GPU is gone")

    monkeypatch.setattr(bench, "time_on_gpu", broken)
    with pytest.raises(RuntimeError, match="the GPU is gone"):
        compress.run(
            data=data,
            model="mlp(width=16)",
            chain="train(epochs=1)",
            out=tmp_path,
            store=store,
            timings=("cpu",),
            timing_seconds=0.1,
            threads=1,
            progress=False,
        )
    [baseline] = rewrite_reports(tmp_path).rows
    assert baseline["cpu_ms_p50"] > 0


@pytest.mark.usefixtures("untimed")
def test_a_file_that_is_caught_while_timed_leaves_the_comparison(
    data: object, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def caught(records: dict[tuple[str, int], Record], *_: object) -> object:
        record = records["prune_weights(sparsity=0.9)", 0]
        yield Stage(reason="left out"), [replace(record, status="unverified", files={})]
        # Another runtime still times it.
        assert (tmp_path / record.files["onnx"]).exists()
        yield Stage(runtime="other", title="another one", reason="left out"), []

    monkeypatch.setattr(bench, "time_records", caught)
    results = compress.run(
        data=data,
        model="mlp(width=16)",
        chain=["train(epochs=2) -> prune_weights(sparsity=0.9)", "quantize()"],
        out=tmp_path,
        store=store,
        progress=False,
    )
    _, pruned, int8 = results.rows
    assert (pruned["status"], int8["status"]) == ("unverified", "ok")
    assert "accuracy_verdict" not in pruned
    assert int8["accuracy_verdict"] in ("equivalent", "not shown")
    assert "onnx_path" not in pruned
    assert (tmp_path / int8["onnx_path"]).exists()


@pytest.mark.usefixtures("untimed")
def test_equivalence_is_a_question_to_results_and_rows_are_reported_twice(
    data: object, store: Path, tmp_path: Path
) -> None:
    seen: list[Mapping[str, Any]] = []
    chain = "train(epochs=2) -> prune_weights(sparsity=0.01)"
    options: dict[str, Any] = {"data": data, "model": "mlp(width=16)", "progress": False}
    options["store"] = store
    with pytest.raises(compress.UserError, match="unknown chain"):
        compress.run(**options, chain=chain, out=tmp_path / "x", require_equivalent=["quantize()"])
    with pytest.raises(compress.UserError, match="margin must be above 0"):
        compress.run(**options, chain=chain, out=tmp_path / "x", margin=-1.0)
    assert not (tmp_path / "x").exists(), "refused before any work"
    results = compress.run(**options, chain=chain, out=tmp_path, margin=60.0, on_record=seen.append)
    assert results.about["margin"] == 60.0
    assert results.rows[1]["accuracy_verdict"] == "equivalent"
    assert results.equivalent(chain)
    assert results.equivalent("prune_weights(sparsity=.01)")
    assert "= equivalent within 60 points" in str(results)
    with pytest.raises(compress.UserError, match="unknown chain 'quantize\\(\\)'"):
        results.equivalent("quantize()")
    with pytest.raises(compress.UserError, match="is the baseline itself"):
        results.equivalent("train(epochs=2)")
    narrow = rewrite_reports(tmp_path, margin=1e-6)
    assert not narrow.equivalent(chain)
    assert rewrite_reports(tmp_path).equivalent(chain), "the run's own margin stays"
    assert [row["chain"] for row in seen] == [row["chain"] for row in results.rows] * 2
    assert seen[1]["accuracy"] == seen[3]["accuracy"]
    assert "accuracy_verdict" not in seen[1]
    assert seen[2:] == list(results.rows)
