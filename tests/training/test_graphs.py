"""Trainings whose passes are replayed as CUDA graphs: the same weights, or a reason why not."""

from __future__ import annotations

import copy
import random
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from bench_fixtures import fresh_model, make_context, small_digits
from torch import Tensor, nn

from compress.techniques.finetune import Finetune
from compress.techniques.teachers import Teacher
from compress.training import execution_mode, graphs, labels_loss, loop
from compress.training.batch_loader import BatchLoader
from compress.training.execution_mode import ExecutionMode
from compress.training.graphs import (
    NotReplayable,
    Replayed,
    ReplayedAnswers,
    compare,
    refuse_hooks,
    unchanged,
)
from compress.training.stepper import Stepper

# torch says so when its thread for gradients multiplies for the first time.
pytestmark = pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
GPU = torch.device("cuda")


def batches(count: int = 8) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(16, 3, 8, 8, device=GPU) for _ in range(count)]


def net(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(dropout), nn.Flatten(),
        nn.Linear(8 * 36, 5),
    ).to(GPU)  # fmt: skip


def descend(module: nn.Module, run: object, feeds: list[Tensor]) -> list[Tensor]:
    optimizer = torch.optim.SGD(module.parameters(), 0.05, momentum=0.9)
    module.train()
    for images in feeds:
        optimizer.zero_grad(set_to_none=True)
        run(images).square().mean().backward()  # type: ignore[operator]
        optimizer.step()
    return [value.detach().clone() for value in module.state_dict().values()]


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@needs_gpu
def test_replayed_steps_lead_to_the_weights_that_plain_ones_do(dropout: float) -> None:
    plain, module = net(dropout), net(dropout)
    feeds = batches()
    feeds[3] = feeds[3][:5]  # another shape takes the plain way
    before = [value.clone() for value in module.state_dict().values()]
    random_state = torch.cuda.get_rng_state()
    run = Replayed(module, module, (feeds[0],), "float32")
    after = list(module.state_dict().values())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True)), "buffers as before"
    assert torch.equal(torch.cuda.get_rng_state(), random_state)
    torch.cuda.manual_seed(3)
    expected = descend(plain, plain, feeds)
    torch.cuda.manual_seed(3)
    found = descend(module, run, feeds)
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-4)
    assert not torch.equal(found[0], before[0]), "the weights moved"


def test_hooks_are_refused_since_a_replay_calls_none() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    refuse_hooks(module)
    handle = module[0].register_forward_hook(lambda *_: None)
    with pytest.raises(NotReplayable, match="0 has hooks"):
        refuse_hooks(module)
    with pytest.raises(NotReplayable, match="0 has hooks"):
        Replayed(module, module, (torch.zeros(2, 4),), "float32")
    handle.remove()
    refuse_hooks(module)


def test_what_a_pass_changes_is_put_back_or_refused() -> None:
    module = nn.Sequential(nn.BatchNorm1d(3))
    mean = module[0].running_mean
    assert isinstance(mean, Tensor)
    inputs = torch.randn(8, 3)
    with unchanged(module):
        module(inputs)
        assert mean.abs().sum() > 0
    assert module[0].running_mean is mean
    assert mean.abs().sum() == 0
    assert int(module[0].num_batches_tracked) == 0


def test_a_tensor_in_a_buffers_place_is_refused() -> None:
    module = nn.BatchNorm1d(3)
    before = module.running_mean
    with (
        pytest.raises(NotReplayable, match="another tensor in a buffer's place"),
        unchanged(module),
    ):
        module.running_mean = module.running_mean + 1
    assert module.running_mean is before


def test_attributes_that_change_are_put_back_and_refused() -> None:
    module = nn.Sequential(nn.Dropout(0.5))
    with pytest.raises(NotReplayable, match="attributes change"), unchanged(module):
        module[0].p = 0.4
    assert module[0].p == 0.5


@pytest.mark.parametrize(
    "draw", [random.random, lambda: torch.rand(1), lambda: np.random.rand()], ids=["py", "pt", "np"]
)
def test_chance_of_the_host_is_put_back_and_refused(draw: Callable[[], object]) -> None:
    module, first = nn.Linear(1, 1), draw
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    with pytest.raises(NotReplayable, match="random numbers on the host"), unchanged(module):
        found = float(first())
    assert float(draw()) == found


def test_results_are_compared_as_a_whole() -> None:
    ones, zeros, lost = torch.ones(4), torch.zeros(4), torch.full((4,), torch.nan)
    compare("outputs", [ones, zeros], [ones * 1.05, zeros])
    compare("outputs", [zeros], [zeros])
    with pytest.raises(NotReplayable, match="replayed outputs are off by 20%"):
        compare("outputs", [ones, zeros], [ones * 1.2, zeros])
    with pytest.raises(NotReplayable, match="off from zero"):
        compare("outputs", [zeros], [ones])
    with pytest.raises(NotReplayable, match="off by nan"):
        compare("outputs", [ones], [lost])
    with pytest.raises(NotReplayable, match="1 replayed gradients instead of 2"):
        compare("gradients", [ones, ones], [ones])


def record_on_the_cpu(monkeypatch: pytest.MonkeyPatch, replay: Callable[..., Tensor]) -> None:
    """Put `replay(module, *inputs)` in the place of a recorded graph."""
    monkeypatch.setattr(graphs, "_recording", nullcontext)
    monkeypatch.setattr(graphs, "_autocast", lambda precision: nullcontext())
    monkeypatch.setattr(
        torch.cuda, "make_graphed_callables", lambda module, *_, **__: partial(replay, module)
    )


def test_what_replays_as_it_runs_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    record_on_the_cpu(monkeypatch, lambda module, *inputs: module(*inputs))
    module = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2))
    before = [value.clone() for value in module.state_dict().values()]
    run = Replayed(module, module, (torch.randn(8, 3),), "float32")
    for old, new in zip(before, module.state_dict().values(), strict=True):
        assert torch.equal(old, new)
    called: list[str] = []
    run.run, run.recorded = lambda *_: called.append("plain"), lambda *_: called.append("replayed")
    run(torch.randn(8, 3)), run(torch.randn(5, 3))
    with torch.no_grad():
        run(torch.randn(8, 3))
    module.eval()
    run(torch.randn(8, 3))
    assert called == ["replayed", "plain", "plain", "plain"]


@pytest.mark.parametrize(
    ("what", "replay"),
    [
        ("outputs", lambda module, inputs: 2 * module(inputs)),
        ("gradients", lambda module, inputs: module(inputs).detach() + 0 * module(inputs)),
        ("buffers", lambda module, inputs: F.linear(inputs, *module.module[1].parameters())),
    ],
)
def test_what_replays_otherwise_is_refused(
    monkeypatch: pytest.MonkeyPatch, what: str, replay: Callable[..., Tensor]
) -> None:
    record_on_the_cpu(monkeypatch, replay)
    first = nn.BatchNorm1d(3, affine=False) if what == "buffers" else nn.Identity()
    module = nn.Sequential(first, nn.Linear(3, 2))
    inputs = torch.randn(64, 3)
    inputs = (inputs - inputs.mean(0)) / inputs.std(0, unbiased=False)
    with pytest.raises(NotReplayable, match=f"replayed {what} are off"):
        Replayed(module, module, (inputs,), "float32")


def test_a_training_that_cannot_be_recorded_says_so_and_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise NotReplayable("it has hooks")

    data = small_digits()
    settings = Finetune(epochs=1, batch_size=16)
    made = []
    for chosen in (ExecutionMode(), ExecutionMode(replayed=True)):
        monkeypatch.setattr(loop, "autotune", lambda *_, chosen=chosen: chosen)
        monkeypatch.setattr(execution_mode, "Replayed", refuse)
        context = make_context(data)
        model = loop.fit(fresh_model(data), context, settings, labels_loss(context))
        made.append(model.module.state_dict())
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])
    assert context.log.notes == ["training could not be replayed as CUDA graphs: it has hooks"]
    [row] = [row for row in context.log.rows if row["kind"] == "fit"]
    assert "replayed" not in row["pace"]


def test_when_memory_runs_out_the_recording_goes_before_the_batch_is_halved() -> None:
    class Full(Replayed):
        def __init__(self, run: execution_mode.Run) -> None:
            self.run = run

        def __call__(self, *inputs: Tensor) -> Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory")

    data = small_digits()
    context, model = make_context(data), fresh_model(data)
    parameters = list(model.module.parameters())
    optimizer = torch.optim.SGD(parameters, 0.1)
    plain = execution_mode.runner(model.module, ExecutionMode(), None)
    run = Full(plain)
    stepper = Stepper(
        run, parameters, optimizer, labels_loss(context), context, ExecutionMode(replayed=True)
    )
    assert context.train is not None
    stepper.step(
        BatchLoader(context.train, context.task, context.device, 0, 32).batch(torch.arange(32), 0)
    )
    assert stepper.run is plain
    assert stepper.micro_batches == 1
    assert not stepper.mode.replayed
    assert [row["micro_batches"] for row in context.log.rows if row["kind"] == "memory"] == [1]


def test_a_teacher_is_recorded_at_its_most_frequent_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    data = small_digits()
    teacher = Teacher([fresh_model(data)], make_context(data), "probabilities", ())
    teacher.context = replace(teacher.context, device=GPU)
    recorded: list[torch.Size] = []
    monkeypatch.setattr(Teacher, "_ask", lambda self, inputs: inputs[0])
    monkeypatch.setattr(Teacher, "_record", lambda self, inputs: recorded.append(inputs[0].shape))
    for _ in range(15):
        for count in (32, 32, 7):
            teacher.ask((torch.zeros(count, 1, 8, 8),))
    assert recorded == [torch.Size([32, 1, 8, 8])]


@needs_gpu
def test_what_asks_chance_on_the_host_is_refused() -> None:
    class Moody(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net()

        def forward(self, images: Tensor) -> Tensor:
            return self.inner(images) * (1 if random.random() < 0.5 else 2)

    module = Moody()
    with pytest.raises(NotReplayable, match="random numbers on the host"):
        Replayed(module, module, (batches()[0],), "float32")


@needs_gpu
def test_what_was_frozen_into_the_recording_is_found() -> None:
    class Counts(nn.Module):
        """Scales by the number of calls, as a warm-up by Python's own counter would."""

        def __init__(self) -> None:
            super().__init__()
            self.inner, self.calls = net(), 0

        def forward(self, images: Tensor) -> Tensor:
            self.calls += 1
            return self.inner(images) * self.calls

    module = Counts()
    with pytest.raises(NotReplayable, match="attributes change"):
        Replayed(module, module, (batches()[0],), "float32")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@needs_gpu
def test_a_training_with_and_without_graphs(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = small_digits()
    settings = Finetune(epochs=3, batch_size=48)
    losses = []
    for replayed in (False, True):
        chosen = ExecutionMode(precision, True, replayed=replayed)
        monkeypatch.setattr(loop, "autotune", lambda *_, chosen=chosen: chosen)
        context = replace(make_context(data), device=GPU)
        model = copy.deepcopy(fresh_model(data))
        loop.fit(model, context, settings, labels_loss(context))
        losses.append([row["loss"] for row in context.log.rows if row["kind"] == "epoch"])
        told = context.log.rows[-1]["pace"]
        assert ("replayed" in told) == replayed
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert losses[0][-1] < losses[0][0]


@needs_gpu
def test_answers_are_those_of_plain_passes() -> None:
    module, feeds = net().eval(), batches()

    def ask(inputs: tuple[Tensor, ...]) -> Tensor:
        with torch.no_grad():
            return module(*inputs)

    replayed = ReplayedAnswers(ask, (feeds[0],))
    found = [replayed((images,)) for images in feeds]
    for images, one in zip(feeds, found, strict=True):
        torch.testing.assert_close(one, ask((images,)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(replayed((feeds[1][:3],)), ask((feeds[1][:3],)))


@needs_gpu
def test_a_gradient_that_two_parameters_share_is_refused() -> None:
    class Twins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Parameter(torch.ones(5)), nn.Parameter(torch.ones(5))

        def forward(self, images: Tensor) -> Tensor:
            return images.mean((2, 3)).sum(1, keepdim=True) * (self.one + self.other)

    module = Twins().to(GPU)
    with pytest.raises(NotReplayable, match="share one gradient"):
        Replayed(module, module, (batches()[0],), "float32")


WAITS = """
import torch
from torch import nn
from compress.training.graphs import NotReplayable, NotTried, Replayed

class Waits(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(8, 5)

    def forward(self, x):
        return self.inner(x) * x.sum().item()

images = torch.randn(4, 8, device="cuda")
for module, wanted in ((Waits(), RuntimeError), (nn.Linear(8, 5), NotTried)):
    module.cuda()
    try:
        Replayed(module, module, (images,), "float32")
    except wanted as error:
        print(type(error).__name__, error)
    else:
        raise SystemExit("recorded")
    assert float(torch.rand(3, device="cuda").sum()) > 0, "the device lives on, and draws"
"""


@needs_gpu
def test_what_waits_for_the_device_is_refused_and_the_device_lives_on() -> None:
    # In a process of its own: after a recording that failed none is tried in it.
    done = subprocess.run([sys.executable, "-c", WAITS], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no graph is tried after one that failed" in done.stdout
