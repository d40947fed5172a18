"""Starting from weights: with their own preprocessing, for other classes, and doubted if wrong."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bench_fixtures import fresh_model, make_context, small_digits
from safetensors.torch import save_file

import compress
from compress.benchmark import run as bench
from compress.benchmark.plan.graph import make_graph
from compress.benchmark.plan.plan import make_plan
from compress.benchmark.plan.suite import Named, Suite
from compress.benchmark.plan.teachers import judged_weights
from compress.compressor import run
from compress.errors import IllegalChain, UserError
from compress.results.doubt import doubt_of
from compress.results.log import Stage
from compress.system.progress import showing
from compress.techniques import chain
from compress.zoo.models import fresh
from compress.zoo.pretrained import pretrained
from compress.zoo.weights import load_weights

MODEL = "cnn-small(width=16)"
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "time_records", lambda *_: [(Stage(reason="left out"), [])])


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a net that was trained on the ten digits."""
    data = small_digits()
    model = run(chain("train(epochs=6)"), fresh_model(data), make_context(data))
    path = tmp_path_factory.mktemp("weights") / "digits.safetensors"
    save_file(model.module.state_dict(), path)
    return path


def digits(classes: int, shift: int = 0) -> Any:
    """The digits below `classes`, with their numbers shifted by some."""
    data = compress.load_data("digits")
    arrays = []
    for split in (data.train, data.test):
        (images,), labels = split.fetch(torch.arange(len(split)))
        few = labels < classes
        arrays += [images[few, 0].numpy()[:400], ((labels[few] + shift) % classes).numpy()[:400]]
    return compress.from_arrays(*arrays, mean=(0.3053,), std=(0.3762,))


def test_weights_are_trained_on_with_a_head_for_other_classes(
    weights: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"data": digits(3), "model": MODEL, "weights": str(weights)}
    with pytest.raises(UserError, match=r"are for 10 classes, and .* has 3 for these data"):
        compress.run(**options, chain="quantize()", out=tmp_path)
    with pytest.raises(IllegalChain, match=r"or train the weights on with finetune\(...\)"):
        compress.run(**options, baseline="train()", chain="quantize()", out=tmp_path)
    results = compress.run(
        **options,
        baseline="finetune(epochs=2, learning_rate=0.005)",
        chain="finetune(epochs=2, learning_rate=0.005) -> prune_weights(sparsity=0.3)",
        out=tmp_path,
        progress=False,
    )
    assert results.ok, str(results)
    assert [row["chain"] for row in results.rows] == ["baseline", "prune_weights(sparsity=0.3)"]
    assert results.rows[0]["accuracy"] > 0.8  # by chance a third
    assert "its head for 10 classes replaced by an untrained one for 3" in results.about["weights"]
    assert results.about["baseline"] == "finetune(epochs=2, learning_rate=0.005)"


def test_the_rest_of_the_weights_is_kept(weights: Path) -> None:
    suite = Suite("s", "x", MODEL, ("quantize()",), str(weights), "finetune(epochs=1)")
    plan = make_plan(suite, data=digits(3))
    kept = fresh(MODEL, small_digits().task).module
    load_weights(kept, weights, MODEL)
    same = [
        torch.equal(value, kept.state_dict()[name])
        for name, value in plan.start.module.state_dict().items()
        if value.shape == kept.state_dict()[name].shape
    ]
    assert all(same)
    assert len(same) == len(kept.state_dict()) - 2
    raw, labels = plan.data.test.fetch(torch.arange(9))
    outputs = plan.start.module(*plan.data.task.prepare(raw, CPU))
    loss = plan.data.task.loss(outputs, labels)
    assert float(loss.detach()) == pytest.approx(math.log(3), abs=0.05), "the head knows nothing"


def test_weights_of_classes_in_another_order_are_doubted_at_once(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = compress.run(
        data=digits(10, shift=1),
        model=MODEL,
        weights=str(weights),
        teachers={"right": (MODEL, str(weights))},
        chain="quantize()",
        out=tmp_path,
    )
    base = results.rows[0]
    assert base["accuracy"] < 0.1
    assert "DOUBTFUL WEIGHTS: right on" in base["note"]
    assert "not shown to be better than a guess among 10 classes" in base["note"]
    [teacher] = [note for note in results.about["notes"] if "DOUBTFUL TEACHER 'right'" in note]
    assert "another order of the classes (class_order)" in teacher
    assert "DOUBTFUL TEACHER 'right'" in capsys.readouterr().err


def test_a_student_starts_from_its_own_weights(weights: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"data": digits(3), "model": "mlp(width=16)", "progress": False}
    with pytest.raises(UserError, match="a student is called by a word"):
        compress.run(**options, students={"a b": (MODEL, "x")}, chain="train()", out=tmp_path)
    with pytest.raises(UserError, match="student 'small' is a model's name and a file"):
        compress.run(**options, students={"small": MODEL}, chain="train()", out=tmp_path)
    with pytest.raises(UserError, match=r"no file of weights 'no\.pt', .* --student small"):
        compress.run(**options, students={"small": (MODEL, "no.pt")}, chain="train()", out=tmp_path)
    results = compress.run(
        **options,
        students={"small": (MODEL, str(weights))},
        chain="train(epochs=2) -> distill(student='small', epochs=1)",
        controls=True,
        out=tmp_path,
    )
    assert results.ok, str(results)
    _, taught, control = results.rows
    assert control["chain"].startswith("train(student='small', epochs=1")
    assert taught["params"] == control["params"] > 0
    [note] = [note for note in results.about["notes"] if note.startswith("student 'small'")]
    assert "its head for 10 classes replaced by an untrained one for 3" in note
    folder = (tmp_path / taught["onnx_path"]).parent
    assert compress.load(folder).blueprint.factory == MODEL


def test_other_weights_of_a_student_are_another_step(weights: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    save_file(fresh_model(small_digits(), MODEL, seed=5).module.state_dict(), other)
    keys = []
    for path in (weights, weights, other):
        suite = Suite(
            *("s", "x", "mlp", ("train() -> distill(student='small')",)),
            students={"small": Named(MODEL, str(path))},
        )
        graph = make_graph(make_plan(suite, data=digits(10)))
        keys.append(graph.chain_runs[1].nodes[0].key)
    assert keys[0] == keys[1] != keys[2]


def test_what_counts_as_doubtful() -> None:
    assert doubt_of(90, 100, 10) == ""
    assert "not shown to be better than a guess among 10 classes" in doubt_of(12, 100, 10)
    assert doubt_of(700, 1000, 1000, promised=0.71) == ""
    assert "70.0% of 1,000 items, where 80.0%" in doubt_of(700, 1000, 1000, promised=0.8)
    assert doubt_of(7, 10, 1000, promised=0.8) == "", "too few items to tell"


def test_a_library_says_how_its_weights_want_their_images(tmp_path: Path) -> None:
    known = pretrained("torchvision:resnet50", "DEFAULT")
    assert known is not None
    assert (known.settings.size, known.settings.to) == ((224, 224), (232, 232))
    assert known.settings.interpolation == "bilinear"
    assert known.classes == 1000
    assert known.accuracy == pytest.approx(0.80858)
    assert "IMAGENET1K_V2" in known.origin
    assert pretrained("torchvision:resnet50", None) is None
    assert pretrained("mlp", "DEFAULT") is None
    assert pretrained("torchvision:resnet50(stem='small')", "DEFAULT") is None
    save_file({"fc.bias": torch.zeros(10)}, tmp_path / "mine.safetensors")
    assert pretrained("torchvision:resnet50", str(tmp_path / "mine.safetensors")) is None
    first = tmp_path / "resnet50-0676ba61.safetensors"  # as torchvision names its first ones
    save_file({"fc.bias": torch.zeros(1000)}, first)
    found = pretrained("torchvision:resnet50", str(first))
    assert found is not None
    assert found.settings.to == (256, 256)


def test_a_library_counts_before_the_source_and_the_user_before_both(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("timm", reason="needs timm")
    from PIL import Image

    for part in ("train", "test"):
        for name in ("a", "b"):
            for number in range(4):
                path = tmp_path / "p" / part / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (300, 280)).save(path)
    name = "timm:tf_efficientnet_lite0"
    task = compress.load_data(f"imagefolder:{tmp_path / 'p'}", size=32).task
    state = fresh(name, task).module.state_dict()
    state = {
        k: v if "classifier" not in k else v.new_zeros((1000, *v.shape[1:]))
        for k, v in state.items()
    }
    save_file(state, tmp_path / "lite0.safetensors")
    suite = Suite(
        *("s", f"imagefolder:{tmp_path / 'p'}", name, ("quantize()",)),
        weights=str(tmp_path / "lite0.safetensors"),
        baseline="finetune(epochs=1)",
        options={"crop_pct": 0.8},
    )
    with showing(progress=True):
        plan = make_plan(suite)
    assert plan.data.task.input_words() == (
        "shorter side to 280, bicubic, centre 224x224, mean 0.5, std 0.5 (as timm's "
        "tf_efficientnet_lite0; crop_pct as given)"
    )
    assert np.isclose(plan.data.task.probe(1)[0].min(), -1)
    lines = capsys.readouterr().err.splitlines()
    first = next(at for at, line in enumerate(lines) if line.startswith("p: 2 classes"))
    assert lines[first + 1 : first + 3] == [
        "preprocessing: shorter side to 280, bicubic, centre 224x224, mean 0.5, std 0.5 (as timm's",
        "  tf_efficientnet_lite0; crop_pct as given)",
    ]


def test_weights_that_are_trained_on_are_judged_before_if_their_head_was_kept(
    tmp_path: Path,
) -> None:
    whole = small_digits()
    good = run(chain("train(epochs=20)"), fresh_model(whole), make_context(whole))
    weights = tmp_path / "good.safetensors"
    save_file(good.module.state_dict(), weights)
    base = "finetune(epochs=1)"
    for shift, classes, doubted in ((1, 10, True), (0, 10, False), (0, 3, False)):
        suite = Suite("s", "x", MODEL, ("quantize()",), str(weights), base)
        sentences = [*judged_weights(make_plan(suite, data=digits(classes, shift)))]
        assert len(sentences) == doubted, sentences
        for sentence in sentences:
            assert sentence.startswith(f"DOUBTFUL WEIGHTS, before {base[:-1]}")
            assert "not shown to be better than a guess among 10 classes" in sentence
    results = compress.run(
        data=digits(10, shift=1),
        model=MODEL,
        weights=str(weights),
        baseline=base,
        chain="quantize()",
        out=tmp_path,
        progress=False,
    )
    assert any("DOUBTFUL WEIGHTS, before" in note for note in results.about["notes"])
