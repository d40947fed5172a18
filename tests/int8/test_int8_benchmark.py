"""The tables of benchmarks/int8: pairs of the same nets, McNemar's p, what is mostly float."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmark_modules import benchmark

from compress.tasks.base import TensorSplit


@pytest.fixture(scope="module")
def accuracy():
    return benchmark("int8", "accuracy")


def row(accuracy, net: str, candidate: str, lost: int, **more: object) -> dict:
    """Return a row of 1,000 items, 900 right in float, of which so many are lost."""
    right = np.arange(1000) < 900
    right[:lost] = False
    found = {"net": net, "candidate": candidate, "float": 90.0, "int8": 90.0 - lost / 10}
    found |= {"items": 1000, "bytes": 0.28, "int8 MACs": 1.0, "cpu": "made"}
    return {**found, "right": accuracy.packed(right), **more}


def table_line(text: str, begins: str) -> list[str]:
    [line] = [one for one in text.splitlines() if one.startswith(f"| {begins} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def written(accuracy, folder: Path, rows: list[dict]) -> str:
    (folder / "accuracy.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    accuracy.write(folder)
    return (folder / "accuracy.md").read_text()


def test_a_candidate_is_compared_on_the_nets_that_ours_has_too(accuracy, tmp_path):
    peer, ours = "ort_quantize()", accuracy.WHOLE
    rows = [
        row(accuracy, "resnet20", ours, 1),
        row(accuracy, "resnet56", ours, 3),
        row(accuracy, "resnet20", peer, 21),
        row(accuracy, "vgg-like", peer, 500),
    ]
    text = written(accuracy, tmp_path, rows)
    cells = table_line(text, peer)
    # One net in common; lost 2.1 and 0.1 points; 20 answers of 1,000 lost, none gained: p < 1e-5.
    assert cells[1:8] == ["1", "2.10", "2.10", "0.10", "0.10", "1 of 1", "0 of 1"]
    assert table_line(text, ours)[1:6] == ["2", "0.20", "0.30", "0.20", "0.30"]
    assert f"| resnet20 | {peer} | 90.0 | 87.9 |" in text


def test_answers_come_back_as_they_were(accuracy):
    right = np.random.default_rng(0).random(1003) < 0.9
    assert (
        accuracy.unpacked({"items": 1003, "right": accuracy.packed(right)}).tolist()
        == right.tolist()
    )


def test_what_is_mostly_float_is_marked_and_left_out(accuracy, tmp_path):
    peer, ours = "nncf_quantize()", accuracy.WHOLE
    rows = [
        row(accuracy, "resnet20", ours, 1),
        row(accuracy, "resnet20", peer, 5, **{"int8 MACs": 0.79}),
        row(accuracy, "resnet56", ours, 1),
        row(accuracy, "resnet56", peer, 7, bytes=0.36),
    ]
    text = written(accuracy, tmp_path, rows)
    assert text.count("(mostly float)") == 2
    assert not [line for line in text.splitlines() if line.startswith(f"| {peer} |")]


def test_the_default_file_is_ours_where_it_was_made(accuracy, tmp_path):
    rows = [
        row(accuracy, "resnet20", accuracy.WHOLE, 9),
        row(accuracy, "resnet20", accuracy.PLACED, 2, speedup=[1.5, 1.4, 1.6]),
        row(accuracy, "resnet20", "ort_quantize()", 3),
    ]
    text = written(accuracy, tmp_path, rows)
    assert table_line(text, "ort_quantize()")[1:6] == ["1", "0.30", "0.30", "0.20", "0.20"]
    assert "1.50 (1.40 to 1.60)" in text


def test_other_calibration_images_have_a_table_of_their_own(accuracy, tmp_path):
    peer, ours = "ort_quantize()", accuracy.WHOLE
    name = "resnet20" + accuracy.varied(16, False)
    rows = [row(accuracy, "resnet20", ours, 1), row(accuracy, name, peer, 9)]
    text = written(accuracy, tmp_path, rows)
    assert text.index("## Other calibration images") < text.index(f"| {name} | {peer} |")
    assert accuracy.varied(256, True) == " with 256 images, corrupted"
    assert accuracy.varied(256, False) == ""


def test_one_calibration_image_in_fifty_is_corrupted(accuracy):
    images = torch.full((256, 3, 4, 4), 100, dtype=torch.uint8)
    split = accuracy.Corrupted(TensorSplit((images,), torch.zeros(256, dtype=torch.int64)))
    (found,), _ = split.fetch(torch.arange(256))
    changed = [number for number in range(256) if not torch.equal(found[number], images[number])]
    assert changed == [25, 75, 125, 175, 225]
    assert set(found[25].unique().tolist()) == {0, 255}
    assert (images == 100).all()
    (again,), _ = split.fetch(torch.tensor([75, 3]))
    assert torch.equal(again[0], found[75])


def test_what_is_mostly_float_counts_as_no_gain_in_the_mean_of_latency():
    latency = benchmark("int8", "latency")
    rows = [
        {"int8": {"speedup": [4.0, 3.9, 4.1], "int8 MACs": 1.0, "bytes": 0.26}},
        {"int8": {"speedup": [2.0, 1.9, 2.1], "int8 MACs": 0.5, "bytes": 0.26}},
    ]
    assert latency.geometric(rows, "int8") == "2.00"
