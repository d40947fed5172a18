"""Trainings whose passes are replayed as CUDA graphs: the same weights, or a reason why not."""

from __future__ import annotations

import copy
import random
from dataclasses import replace

import pytest
import torch
from bench_fixtures import fresh_model, make_bench, small_digits
from torch import Tensor, nn

from compress.techniques.finetune import Finetune
from compress.training import labels_loss, loop
from compress.training.graphs import NotReplayable, Replayed, ReplayedAnswers, refuse_hooks
from compress.training.pace import Pace

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
    with pytest.raises(NotReplayable, match="off by"):
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
        chosen = Pace(precision, True, replayed=replayed)
        monkeypatch.setattr(loop, "choose_pace", lambda *_, chosen=chosen: chosen)
        bench = replace(make_bench(data), device=GPU)
        model = copy.deepcopy(fresh_model(data))
        loop.fit(model, bench, settings, labels_loss(bench))
        losses.append([row["loss"] for row in bench.journal.rows if row["kind"] == "epoch"])
        told = bench.journal.rows[-1]["pace"]
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


# The last one: after a recording that failed none is tried in a process.
@needs_gpu
def test_what_waits_for_the_device_is_refused_and_the_device_lives_on() -> None:
    class Waits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net()

        def forward(self, images: Tensor) -> Tensor:
            return self.inner(images) * images.sum().item()

    module = Waits()
    with pytest.raises(RuntimeError):
        Replayed(module, module, (batches()[0],), "float32")
    assert float(torch.rand(3, device=GPU).sum()) > 0, "it draws, too"
    with pytest.raises(NotReplayable, match="after one that failed"):
        Replayed(net(), net(), (batches()[0],), "float32")
