"""What runs files: the one that is built in, and a second one that a package brings."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from bench_fixtures import small_digits
from onnx import TensorProto, helper

import compress
from compress import runtimes as room
from compress.errors import UserError
from compress.runtimes import OnnxruntimeCpu, runtime_named, runtimes

FAKE = Path(__file__).parent / "fake_runtime.py"


def doubling() -> bytes:
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        "doubling",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
    )
    opsets = [helper.make_opsetid("", 17)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


def installed(folder: Path, entry: str) -> None:
    """Make a folder look like an installed package that brings a runtime."""
    info = folder / "fake_runtime-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fake-runtime\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{room.GROUP}]\nfake = {entry}\n")
    (folder / FAKE.name).write_bytes(FAKE.read_bytes())


@pytest.fixture
def plugged_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of packages that this process and its children find."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", str(folder))
    runtimes.cache_clear()
    yield folder
    runtimes.cache_clear()


@pytest.mark.parametrize("level", ["default", *OnnxruntimeCpu.levels])
def test_a_file_runs_at_every_level(level: str) -> None:
    session = runtime_named("").open(doubling(), threads=1, level=level)
    assert session.names == ["x"]
    assert session.run({"x": np.float32([1, -3])}).tolist() == [2, -6]


def test_an_unknown_runtime_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="unknown runtime 'tvm'"):
        runtime_named("tvm")


def test_a_second_runtime_brings_columns_verdicts_and_its_table(
    plugged_in: Path, tmp_path: Path
) -> None:
    installed(plugged_in, "fake_runtime:Fake")
    importlib.invalidate_caches()
    results = compress.run(
        data=small_digits(),
        model="mlp(width=32)",
        chain="train(epochs=1) -> prune_channels(channels=0.5)",
        out=tmp_path / "out",
        threads=1,
        timing_seconds=1,
        timings=("cpu",),
        progress=False,
    )
    baseline, pruned = results.rows
    # It pauses by the length of the file, so its medians are in that proportion, almost.
    sizes = baseline["onnx_bytes"] / pruned["onnx_bytes"]
    assert pruned["fake_cpu_speedup"] == pytest.approx(sizes, rel=0.2)
    assert pruned["fake_cpu_verdict"] == "faster"
    assert baseline["fake_cpu_ms_p50"] >= baseline["onnx_bytes"] / 1e3
    assert "fake_cpu_ms_p50" in results.frame
    assert "cpu_ms_p50" in results.frame
    table = (results.out / "table.md").read_text()
    assert "a made-up runtime" in table
    assert (results.out / "raw" / "timing-fake.json").exists()
    assert "Timed in a made-up runtime too: fake 3.1." in table


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ("gone_runtime:Fake", r"gone_runtime:Fake .* can't be loaded \(ModuleNotFoundError"),
        ("fake_runtime:Unbuilt", r"can't be loaded \(RuntimeError: no license\)"),
        ("fake_runtime:Slowed", "is not a Runtime"),
        ("fake_runtime:Numbered", "'fake2': .* must be of letters alone"),
    ],
)
def test_a_bad_plug_in_is_refused_before_any_work(
    plugged_in: Path, tmp_path: Path, entry: str, reason: str
) -> None:
    installed(plugged_in, entry)
    importlib.invalidate_caches()
    with pytest.raises(UserError, match=reason):
        compress.run(data="digits", model="mlp(width=8)", chain="train(epochs=1)", out=tmp_path)
    assert not list(tmp_path.glob("results*"))


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ("fake_runtime:Missing", "libfake.so is missing"),
        ("fake_runtime:Torn", r"its plug-in failed \(RuntimeError: torn\)"),
        ("fake_runtime:Unversioned", r"its plug-in failed \(KeyError: 'version'\)"),
    ],
)
def test_a_runtime_that_cannot_be_used_costs_its_own_columns_alone(
    plugged_in: Path, tmp_path: Path, entry: str, reason: str
) -> None:
    installed(plugged_in, entry)
    importlib.invalidate_caches()
    [baseline] = compress.run(
        data=small_digits(),
        model="mlp(width=8)",
        chain="train(epochs=1)",
        out=tmp_path / "out",
        threads=1,
        timing_seconds=0.1,
        timings=("cpu",),
        progress=False,
    ).rows
    assert baseline["cpu_ms_p50"] > 0
    assert re.search(f"in a made-up runtime: not timed: {reason}", baseline["note"])
