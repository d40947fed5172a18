"""A task that the package does not know goes all the way: trained, pruned, carved, int8."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import token_task
import torch

import compress
from compress.api import Results
from compress.errors import UserError

MODEL = f"{Path(token_task.__file__).as_posix()}:make"
CHAINS = (
    "train(epochs=6) -> prune_channels(macs=0.6) -> finetune(epochs=1)",
    "train(epochs=6) -> carve(ratio=0.5) -> finetune(epochs=1)",
    "train(epochs=6) -> distill(student='same', epochs=2) -> quantize()",
)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return compress.run(
        data=token_task.counted(),
        model=MODEL,
        allow_code=(Path(token_task.__file__),),
        chain=CHAINS,
        out=tmp_path_factory.mktemp("tokens"),
        threads=1,
        timing_seconds=1,
        timings=("cpu",),
        progress=False,
    )


def test_every_chain_gives_a_verified_file_that_learnt_something(results: Results) -> None:
    assert [row["status"] for row in results.rows] == ["ok"] * 4, [r["error"] for r in results.rows]
    for row in results.rows:
        assert row["accuracy"] > 0.6, (row["chain"], row["accuracy"])  # by chance a third


def test_what_was_read_is_said_in_the_tasks_own_unit() -> None:
    assert token_task.counted(items=9000).words() == (
        "counted: 3 classes, 5,400 sequences for training, 900 for validation, 2,700 for testing"
    )


def test_the_tasks_own_figure_stands_beside_accuracy(results: Results) -> None:
    data = token_task.counted()
    ids, mask = token_task.padded(data.test.rows)  # type: ignore[attr-defined]
    for row in results.rows[:3]:
        path = results.out / row["onnx_path"]
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        logits = session.run(None, {"ids": ids.numpy(), "mask": mask.numpy()})[0]
        odds = np.exp(logits.astype(float))
        own = odds[np.arange(len(odds)), data.test.targets.numpy()] / odds.sum(1)  # type: ignore[attr-defined]
        assert row["metric"] == pytest.approx(-np.log(own).mean(), rel=1e-4)
    assert "log loss" in (results.out / "table.md").read_text()


def test_pruned_and_carved_are_smaller(results: Results) -> None:
    whole, pruned, carved, _ = results.rows
    assert pruned["macs"] <= 0.62 * whole["macs"]
    assert carved["params"] < 0.62 * whole["params"]


def test_the_files_take_any_batch_and_any_length(results: Results) -> None:
    for row in results.rows:
        path = results.out / row["onnx_path"]
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        assert [given.name for given in session.get_inputs()] == ["ids", "mask"]
        for count, length in ((1, 3), (5, 9), (2, 40)):
            ids = np.arange(1, count * length + 1).reshape(count, length) % 11 + 1
            fed = {"ids": ids, "mask": np.ones_like(ids)}
            assert session.run(None, fed)[0].shape == (count, 3)


def test_padding_changes_no_answer(results: Results) -> None:
    path = results.out / results.rows[0]["onnx_path"]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    ids = np.array([[3, 1, 2, 2]])
    wide = np.pad(ids, ((0, 0), (0, 5)))
    alone = session.run(None, {"ids": ids, "mask": np.ones_like(ids)})[0]
    within = session.run(None, {"ids": wide, "mask": (wide != 0).astype(np.int64)})[0]
    np.testing.assert_allclose(within, alone, atol=1e-5)


def test_the_file_says_what_it_is_for(results: Results) -> None:
    proto = onnx.load(results.out / results.rows[-1]["onnx_path"])
    metadata = {pair.key: pair.value for pair in proto.metadata_props}
    assert metadata["task"] == "token-classification"
    assert json.loads(metadata["labels"]) == ["one", "two", "three"]
    assert "preprocessing" not in metadata


def test_the_probe_is_of_different_items() -> None:
    """Of equal ones a step that mixes up the items of a batch would pass for right."""
    ids, mask = token_task.counted().task.probe(6)
    assert len(torch.unique(ids, dim=0)) == 6
    assert mask.sum(1).unique().numel() > 1


def test_what_is_no_choice_among_classes_is_refused_before_any_work(tmp_path: Path) -> None:
    data = token_task.counted(items=90)
    values = token_task.Sequences(data.test.rows, data.test.targets.float())  # type: ignore[attr-defined]
    alone = replace(data.task, classes=("one",))  # type: ignore[type-var]
    for given, words in (
        (
            replace(data, test=values),
            "float32 of shape (1,) for one item; they must be the numbers",
        ),
        (replace(data, task=alone), "shape (1,) for one item; they must be one number for each"),
    ):
        with pytest.raises(UserError, match=re.escape(words)):
            compress.run(data=given, model=MODEL, chain="train(epochs=1)", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
