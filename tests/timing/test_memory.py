"""Peak memory: of a child by what it allocates, of a file by what its weights need."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.timing import memory
from compress.timing.launch import WorkerFailed
from compress.timing.memory import IDENTITY, in_child, peak_bytes

MEGABYTE = 1 << 20


def linear(path, rows, columns):
    """Write a file that multiplies a row by a matrix."""
    weights = np.random.default_rng(0).normal(size=(rows, columns)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", rows])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", columns])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path)
    return path


GONE = """
import numpy as np
from compress.timing import memory

def action():
    before = memory._forget_peak()
    block = np.ones(50 << 20, np.uint8)
    assert block.sum() == 50 << 20
    del block
    return memory._peak() - before

print(*memory.in_child(action))
"""


def test_a_peak_that_is_gone_again_counts():
    # In a process without torch, as in earnest: a system that reclaims pages of mapped libraries
    # meanwhile would hide as much of the growth.
    done = subprocess.run([sys.executable, "-c", GONE], capture_output=True, text=True, check=True)
    grown, *reason = done.stdout.split()
    assert reason == []
    assert 50 * MEGABYTE <= int(grown) < 60 * MEGABYTE


def test_a_child_that_raises_or_is_killed_says_so():
    def fail():
        raise ValueError("first line\nsecond")

    assert in_child(fail) == (None, "ValueError: first line")
    killed = in_child(lambda: os.kill(os.getpid(), signal.SIGKILL))
    assert killed == (None, "the process that ran the file was killed by signal 9")


def test_without_fork_there_is_a_reason(monkeypatch):
    monkeypatch.delattr(os, "fork")
    assert in_child(lambda: 1) == (
        None,
        "peak memory is measured in forked processes, and this system has none",
    )


def test_without_procfs_the_peak_is_that_of_getrusage(monkeypatch, tmp_path):
    told = memory._status("VmHWM")
    if told is None:
        pytest.skip("this system has no /proc/self/status")
    monkeypatch.setattr(memory, "STATUS", tmp_path / "none")
    monkeypatch.setattr(memory, "CLEAR", tmp_path / "no folder" / "none")
    assert memory._status("VmHWM") is None
    assert memory._peak() == pytest.approx(told, rel=0.1)
    assert memory._forget_peak() == memory._peak()


def test_the_idle_graph_is_one_identity():
    graph = onnx.load_from_string(IDENTITY).graph
    onnx.checker.check_model(onnx.load_from_string(IDENTITY))
    assert [node.op_type for node in graph.node] == ["Identity"]


def test_files_in_order_and_a_broken_one_among_them(tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"rubbish")
    paths = [
        linear(tmp_path / "large.onnx", 1024, 8192),
        tmp_path / "broken.onnx",
        linear(tmp_path / "small.onnx", 1024, 4),
    ]
    large, broken, small = peak_bytes(paths, [np.zeros((1, 1024), np.float32)], threads=1)
    weights = 4 * 1024 * 8192
    assert weights <= large[0] < 5 * weights
    assert 0 < small[0] < 8 * MEGABYTE
    assert large[1] == small[1] == ""
    assert broken[0] is None
    assert "INVALID_PROTOBUF" in broken[1]


def test_if_the_process_dies_every_file_says_why(tmp_path, monkeypatch):
    def dead(*_):
        raise WorkerFailed("it was killed by signal 9")

    monkeypatch.setattr(memory, "launch", dead)
    found = peak_bytes([tmp_path / "a", tmp_path / "b"], [np.zeros(1)], 1)
    assert found == [(None, "it was killed by signal 9")] * 2


def test_the_process_has_no_torch_in_it():
    code = "import sys, compress.timing.memory; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_what_was_killed_once_is_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed_at_first() -> int:
        if not (tmp_path / "mark").exists():
            (tmp_path / "mark").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return 7

    assert in_child(killed_at_first) == (7, "")
    real, calls = memory.launch, []

    def once(job: Path, *others: Any) -> None:
        calls.append(job)
        if len(calls) == 1:
            raise WorkerFailed("the timing process was killed by signal 9 ()")
        real(job, *others)

    monkeypatch.setattr(memory, "launch", once)
    onnx = tmp_path / "it.onnx"
    onnx.write_bytes(memory.IDENTITY)
    [(peak, reason)] = peak_bytes([onnx], [np.zeros((), np.float32)], 1)
    assert reason == ""
    assert peak is not None
    assert len(calls) == 2
