"""The Python side: a chain in a few lines, one's own module, one's own arrays and code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import compress


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


def test_ones_own_module_and_data(data: object, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 2))
    before = [parameter.clone() for parameter in module.parameters()]
    results = compress.run(
        data=data,
        model=module,
        chain=["finetune(epochs=8, learning_rate=0.01)", "finetune(epochs=8) -> quantize()"],
        out=tmp_path,
        timing_seconds=1.0,
        progress=False,
    )
    assert results.ok, str(results)
    assert all(map(torch.equal, before, module.parameters()))
    frame = results.frame
    assert next(iter(frame["chain"])) == "baseline"
    assert frame["accuracy"].iloc[1] == 1.0
    assert all("the ONNX file is the only artifact" in note for note in frame["note"])
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


def test_ones_own_factory_comes_back_only_when_allowed(data: object, tmp_path: Path) -> None:
    code = tmp_path / "mine.py"
    code.write_text(FACTORY)
    name = f"{code}:make(hidden=24)"
    with pytest.raises(compress.UserError, match="--allow-code"):
        compress.run(data=data, model=name, chain="train()", out=tmp_path / "a")
    results = compress.run(
        data=data,
        model=name,
        chain="train(epochs=4) -> factorize(rank=0.4)",
        out=tmp_path / "b",
        allow_code=[code],
        timing_seconds=1.0,
        progress=False,
    )
    assert results.ok, str(results)
    folder = (tmp_path / "b" / results.frame["onnx_path"].iloc[1]).parent
    with pytest.raises(compress.UserError, match="--allow-code"):
        compress.load(folder)
    assert isinstance(compress.load(folder, allow_code=[code]).module[1], nn.Sequential)


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


def test_seeds_give_a_row_each(data: object, tmp_path: Path) -> None:
    results = compress.run(
        data=data,
        model="mlp(width=16)",
        chain="train(epochs=2) -> finetune(epochs=1)",
        out=tmp_path,
        seeds=(0, 1),
        timing_seconds=1.0,
        progress=False,
    )
    assert results.ok, str(results)
    assert list(zip(results.frame["chain"], results.frame["seed"], strict=True)) == [
        ("baseline", 0),
        ("baseline", 1),
        ("finetune()", 0),
        ("finetune()", 1),
    ]
    assert results.frame["onnx_path"].nunique() == 4
