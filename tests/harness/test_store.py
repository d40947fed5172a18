"""The store of step results: found again, shared, and never believed when damaged."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from bench_fixtures import build, fresh_model, small_digits

from compress.harness.store import Store, step_key
from compress.model import Model
from compress.task import Data


@pytest.fixture(scope="module")
def data() -> Data:
    return small_digits()


@pytest.fixture
def store(tmp_path: Path, data: Data) -> Store:
    store = Store(tmp_path / "steps", build)
    store.put("key", fresh_model(data, "mlp(width=8)"), [{"kind": "note", "text": "hello"}])
    return store


def test_round_trip(store: Store, data: Data) -> None:
    kept = store.get("key")
    assert kept is not None
    model, journal = kept
    assert journal == [{"kind": "note", "text": "hello"}]
    for ours, theirs in zip(
        model.module.parameters(),
        fresh_model(data, "mlp(width=8)").module.parameters(),
        strict=True,
    ):
        assert torch.equal(ours, theirs)
    assert store.get("other") is None


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *itertools.product(
            ["model.safetensors", "blueprint.json"], ["truncated", "flipped", "gone"]
        ),
        ("entry.json", "truncated"),
        ("entry.json", "gone"),
    ],
)
def test_a_damaged_entry_is_set_aside(store: Store, name: str, damage: str) -> None:
    path = store.folder / "key" / name
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    else:
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    assert store.get("key") is None


def test_lowered_models_bring_their_file(tmp_path: Path, data: Data) -> None:
    model = fresh_model(data, "mlp(width=8)")
    store = Store(tmp_path, build)
    store.put("key", Model(**{**vars(model), "onnx": b"bytes"}), [])
    kept = store.get("key")
    assert kept is not None
    assert kept[0].onnx == b"bytes"


def test_keys_depend_on_everything() -> None:
    base = step_key("parent", "finetune()", {"seed": 0})
    assert base == step_key("parent", "finetune()", {"seed": 0})
    others = {
        step_key("other", "finetune()", {"seed": 0}),
        step_key("parent", "finetune(epochs=2)", {"seed": 0}),
        step_key("parent", "finetune()", {"seed": 1}),
    }
    assert base not in others
    assert len(others) == 3
