"""The calls to CUDA: their order where there is no GPU, what they give where there is one."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fake_cuda import IMAGES, Caching, logits, net
from torch import Tensor, nn

from compress.runtimes.torch_cuda import CHANNELS_LAST, Form, peak_bytes
from compress.system.cuda import Cuda
from compress.timing.cuda import Feeds, module_candidate, take_turns
from compress.timing.interleave import Plan, interleave
from compress.timing.summary import summarise

PLAN = Plan(seconds=0.0, min_rounds=6, block_seconds=0.002)


def test_torch_is_not_imported():
    code = (
        "import compress.timing.cuda, compress.runtimes.onnxruntime_cuda, "
        "compress.runtimes.torch_cuda, sys; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_a_gpu_there_is_a_reason(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Cuda().absent() == "torch finds no CUDA device"
    assert Cuda().failure() == ""


def precisions() -> list[str]:
    cudnn = torch.backends.cudnn
    places = torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn
    return [place.fp32_precision for place in places]


@pytest.fixture(params=["tf32", "ieee"])
def convolutions(request) -> Iterator[str]:
    """With cuDNN's convolutions in ieee alone, torch refuses to read its older allow_tf32."""
    place = torch.backends.cudnn.conv
    before = place.fp32_precision
    place.fp32_precision = request.param
    yield request.param
    place.fp32_precision = before


def test_float32_is_settled_and_what_was_set_comes_back(convolutions):
    before = [*precisions(), torch.backends.cudnn.benchmark]

    def fail() -> None:
        with Cuda().settled():
            assert precisions() == ["ieee"] * 3
            assert torch.backends.cudnn.benchmark is True
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [*precisions(), torch.backends.cudnn.benchmark] == before
    assert before[1] == convolutions


class Recorder:
    """Takes the place of torch.cuda's functions, and notes in which order they are called."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def note(self, name: str, answer: object = None):
        def call(*_: object, **__: object) -> object:
            self.calls.append(name)
            return answer

        return call

    def event(self, enable_timing: bool):
        assert enable_timing
        name = "end" if "event" in self.calls else "start"
        self.calls.append("event")
        return SimpleNamespace(
            record=self.note(f"{name}.record"),
            synchronize=self.note(f"{name}.synchronize"),
            elapsed_time=self.note("elapsed", 2.5),
        )

    @contextlib.contextmanager
    def within(self, name: str):
        self.calls.append(f"into {name}")
        yield
        self.calls.append(f"out of {name}")


def test_the_stopwatch_begins_on_an_idle_device_and_waits_for_the_end(monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr(torch.cuda, "Event", recorder.event)
    monkeypatch.setattr(torch.cuda, "synchronize", recorder.note("synchronize"))
    device = Cuda()
    for _ in range(2):
        seconds, outputs = device.stopwatch(recorder.note("call", "logits"), 3)
    assert (seconds, outputs) == (0.0025, "logits")
    assert recorder.calls[:2] == ["event"] * 2, "events are made once"
    order = ["synchronize", "start.record", "call", "end.record", "end.synchronize", "elapsed"]
    assert recorder.calls[2:] == order * 2


@pytest.fixture
def recorder(monkeypatch) -> Recorder:
    """Streams and graphs that note what is done with them."""
    noted = Recorder()
    side = SimpleNamespace(name="side", wait_stream=noted.note("side waits"))
    main = SimpleNamespace(name="main", wait_stream=noted.note("main waits"))
    graph = SimpleNamespace(replay=noted.note("replay"))
    monkeypatch.setattr(torch.cuda, "Stream", lambda: side)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: main)
    monkeypatch.setattr(torch.cuda, "stream", lambda given: noted.within(given.name))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda given: noted.within("graph"))
    return noted


WARM = ["side waits", "into side", "run", "run", "run", "out of side", "main waits"]


def test_a_capture_warms_up_on_a_side_stream_first(recorder):
    run = recorder.note("run", "logits")
    captured = Cuda().capture(run)
    captured.replay()
    assert captured.outputs == "logits"
    assert captured.run is run, "what the graph reads would be freed"
    assert recorder.calls == [*WARM, "into graph", "run", "out of graph", "replay"]


def failing_in_a_graph(recorder: Recorder, error: Exception):
    def run() -> None:
        recorder.calls.append("run")
        if "into graph" in recorder.calls:
            raise error

    return run


def test_after_a_capture_that_failed_no_other_is_tried(recorder):
    device = Cuda()
    error = RuntimeError("operation not permitted when stream is capturing\nadvice")
    with pytest.raises(RuntimeError, match="operation not permitted"):
        device.capture(failing_in_a_graph(recorder, error))
    recorder.calls.clear()
    with pytest.raises(RuntimeError, match=r"^no graph is tried after one .* is capturing$"):
        device.capture(recorder.note("run", "logits"))
    assert recorder.calls == []
    assert Cuda().capture(recorder.note("run", "logits")).outputs == "logits"


def test_after_a_capture_for_which_memory_was_short_others_are_tried(recorder):
    device = Cuda()
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
    with pytest.raises(torch.OutOfMemoryError):
        device.capture(failing_in_a_graph(recorder, error))
    assert device.capture(recorder.note("run", "logits")).outputs == "logits"


def test_what_fails_before_the_capture_spoils_no_other(recorder):
    device = Cuda()

    def run() -> None:
        raise ValueError("shapes")

    with pytest.raises(ValueError, match="shapes"):
        device.capture(run)
    assert device.capture(recorder.note("run", "logits")).outputs == "logits"


def test_peak_memory_is_reset_before_the_run(monkeypatch):
    recorder = Recorder()
    for name in ("synchronize", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, recorder.note(name))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", recorder.note("peak", 42))
    monkeypatch.setattr(torch.cuda, "memory_allocated", recorder.note("now", 7))
    device = Cuda()
    device.name = "cpu"
    assert device.held() == 7
    assert device.peak(recorder.note("run")) == 42
    assert recorder.calls == [
        *("synchronize", "now"),
        *("synchronize", "reset_peak_memory_stats", "run", "synchronize", "peak"),
    ]


def test_a_broken_device_is_told_from_a_full_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    def raising(error: Exception):
        def ones(*_: object, **__: object) -> None:
            raise error

        return ones

    monkeypatch.setattr(torch, "ones", raising(torch.OutOfMemoryError("CUDA out of memory")))
    assert Cuda().failure() == ""
    error = torch.AcceleratorError("CUDA error: an illegal memory access\nAdvice")
    monkeypatch.setattr(torch, "ones", raising(error))
    assert Cuda().failure() == "CUDA error: an illegal memory access"


def test_bfloat16_is_asked_for_without_emulation(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert Cuda().lacks("bfloat16") == "this GPU does not compute in bfloat16"
    assert Cuda().lacks("float16") == ""


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")


@needs_gpu
def test_a_gpu_times_by_events_and_computes_what_the_cpu_does():
    module, device = net(), Cuda()
    feeds = Feeds((IMAGES,), device)
    with device.settled():
        for form in (Form(), Form("float16", 32), Form(layout=CHANNELS_LAST), Form(graph=True)):
            made = module_candidate(module, form, feeds, logits(module), device)
            series = interleave({"it": made}, Plan(0, 4), 0)["it"]
            assert series.error == ""
            assert min(series.medians) > 0
    assert device.failure() == ""


@needs_gpu
def test_two_graphs_take_turns_after_their_modules_were_let_go():
    device, feeds = Cuda(), Feeds((IMAGES,), Cuda())
    expected = [logits(net(seed)) for seed in (0, 1)]
    with device.settled():
        made = [
            module_candidate(net(seed), Form(graph=True), feeds, expected[seed], device)
            for seed in (0, 1)
        ]
    device.free()
    # What was freed is taken, and what lay there is overwritten.
    others = [torch.full((size,), 1e3, device="cuda") for size in (10, 100, 1000, 10_000) * 50]
    with device.settled():
        for index in (0, 5, 31, 2):
            for candidate in made:
                assert candidate.check(index, candidate.call(index)) == ""
    assert len(others) == 200


@needs_gpu
def test_a_gpu_catches_a_module_that_caches():
    module, device = net(), Cuda()
    made = module_candidate(
        Caching(module), Form(), Feeds((IMAGES,), device), logits(module), device
    )
    assert "differ from those" in interleave({"it": made}, Plan(0, 4), 0)["it"].error


@needs_gpu
def test_what_cannot_be_captured_is_an_error_and_the_device_lives_on():
    class ReadsBack(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.mean((2, 3)) * images.sum().item()

    device = Cuda()
    with pytest.raises(RuntimeError):
        module_candidate(
            ReadsBack(), Form(graph=True), Feeds((IMAGES,), device), np.zeros((48, 3)), device
        )
    assert device.failure() == ""


@needs_gpu
def test_peak_memory_holds_the_weights_at_least():
    module = nn.Sequential(nn.Flatten(), nn.Linear(192, 4096), nn.Linear(4096, 10))
    size = sum(parameter.nbytes for parameter in module.parameters())
    peak = peak_bytes(module, (IMAGES,), Cuda())
    assert size < peak < 1.2 * size + 2**20


@needs_gpu
def test_rows_take_turns_on_a_gpu():
    device, module = Cuda(), net()
    feeds = Feeds((IMAGES,), device)

    def make():
        return module_candidate(module, Form(), feeds, logits(module), device)

    makers = {"base": make, "same": make}
    raw = take_turns(makers, baseline="base", batch=1, device=device, plan=PLAN, repetitions=5)
    found = summarise(raw)
    assert found["same", "cpu"].p50_ms > 0
    assert found["same", "cpu"].low < found["same", "cpu"].high
