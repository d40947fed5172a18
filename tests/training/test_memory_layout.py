"""Modules run in channels_last where they give there what they give otherwise, and only there."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from bench_fixtures import fresh_model, make_context, small_digits
from caches import Folder
from torch import Tensor, nn

from compress.compressor import run
from compress.context import StepContext, StepLog
from compress.ensemble import Ensemble, averaged
from compress.model import INSTANCE, Blueprint, Model, forward
from compress.tasks.base import Data
from compress.techniques import chain
from compress.techniques.teachers import Teacher
from compress.training import ExecutionMode, loop
from compress.training.layout import suits_channels_last
from compress.training.loop import _Fit

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
Flatten = Callable[[nn.Module, Tensor], Tensor]


class Net(nn.Module):
    """Two convolutions, and a way to flatten what they give."""

    def __init__(self, flatten: Flatten, channels: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(channels, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 2, 1)
        self.norm, self.out = nn.BatchNorm2d(8), nn.Linear(8 * 4 * 4, 10)
        self.flatten = flatten

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.b(F.relu(self.a(x)))))
        outputs: Tensor = self.out(self.flatten(self, x))
        return outputs


class OddBackward(torch.autograd.Function):
    """Flattens, and on the way back takes the gradient to lie in memory as the input did."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.shape, ctx.strides = x.shape, x.stride()
        return x.flatten(1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.contiguous().as_strided(ctx.shape, ctx.strides)


class NoBackward(OddBackward):
    """Flattens, and knows no way back from channels_last."""

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        assert ctx.strides[1] != 1, "only from the plain layout"
        return gradient.reshape(ctx.shape)


def view(net: nn.Module, x: Tensor) -> Tensor:
    return x.view(x.size(0), -1)


def flat(net: nn.Module, x: Tensor) -> Tensor:
    return x.flatten(1)


def as_it_lies(net: nn.Module, x: Tensor) -> Tensor:
    return x.as_strided((len(x), x[0].numel()), (x[0].numel(), 1))


def only(training: bool, odd: Flatten) -> Flatten:
    return lambda net, x: odd(net, x) if net.training is training else flat(net, x)


def refuses(net: nn.Module, x: Tensor) -> Tensor:
    if not x.is_contiguous():
        raise KeyError("strides")
    return flat(net, x)


ODD = {
    "view": (view, "view size is not compatible"),
    "view in training": (only(True, view), "view size is not compatible"),
    "view in eval mode": (only(False, view), "view size is not compatible"),
    "another order": (as_it_lies, "outputs in channels_last differ"),
    "another order in training": (only(True, as_it_lies), "outputs in channels_last differ"),
    "another order in eval mode": (only(False, as_it_lies), "outputs in channels_last differ"),
    "another order backwards": (lambda _, x: OddBackward.apply(x), "gradients in channels_last"),
    "no way back": (lambda _, x: NoBackward.apply(x), "only from the plain layout"),
    "any exception": (refuses, "KeyError: 'strides'"),
}


def reason(module: nn.Module, trains: bool = True) -> str:
    """Return why a module does not suit channels_last; '' if it does."""
    step_log = StepLog()
    suits = suits_channels_last(module, (IMAGES,), step_log, trains)
    assert suits == (not step_log.rows)
    return "" if suits else str(step_log.rows[0]["reason"])


@pytest.mark.parametrize("name", ODD)
def test_what_goes_wrong_in_channels_last_does_not_run_there(name: str) -> None:
    flatten, words = ODD[name]
    assert words in reason(Net(flatten))
    in_eval = "training" not in name and "back" not in name
    assert (words in reason(Net(flatten), trains=False)) == in_eval


class Doubled(nn.Module):
    """Gives logits and what an auxiliary head says, in a dictionary."""

    def __init__(self, flatten: Flatten) -> None:
        super().__init__()
        self.net, self.aux = Net(flat), Net(flatten)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": self.net(x), "aux": self.aux(x)}


def test_all_that_a_module_gives_counts() -> None:
    assert reason(Doubled(flat)) == ""
    assert "differ" in reason(Doubled(as_it_lies))


DROPOUTS: dict[str, Flatten] = {
    "none": flat,
    "values": lambda net, x: F.dropout(x, 0.5, net.training).flatten(1),
    "channels": lambda net, x: F.dropout2d(x, 0.5, net.training).flatten(1),
    "alpha": lambda net, x: F.alpha_dropout(x, 0.5, net.training).flatten(1),
    "by hand": lambda net, x: (x * (torch.rand_like(x) > 0.5 * net.training)).flatten(1),
    "in place": lambda net, x: (x + torch.empty_like(x).normal_() * net.training).flatten(1),
    "always": lambda _, x: F.dropout(x, 0.5).flatten(1),
    "numpy": lambda _, x: (x * np.random.rand() * random.random()).flatten(1),
    "infinite": lambda _, x: torch.where(x > 0.1, x, torch.tensor(torch.inf)).flatten(1),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", DROPOUTS)
def test_chance_makes_no_difference(name: str, seed: int) -> None:
    torch.manual_seed(seed)
    net = Net(DROPOUTS[name])
    torch.manual_seed(seed)
    assert reason(net) == ""


@pytest.mark.parametrize("name", ["cnn-small", "resnet20", "resnet20(width=2)", "resnet56"])
def test_nets_that_run_there_stay_there(name: str) -> None:
    data = small_digits()
    context, model = make_context(data), fresh_model(data, name)
    raw, _ = data.train.fetch(torch.arange(2))
    some = data.task.prepare(raw, context.device)
    assert suits_channels_last(model.module, some, context.log)
    assert suits_channels_last(model.module.eval(), some, context.log, trains=False)
    assert not context.log.rows


class RoundedByLayout(nn.Module):
    """Rounds as some processors' kernels do, not all: otherwise in channels_last."""

    def forward(self, images: Tensor) -> Tensor:
        return images if images.is_contiguous() else images * (1 + 2**-22)


def test_rounding_that_a_net_magnifies_is_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch norms over two values each make plus or minus one of them, whatever lies between."""
    torch.manual_seed(0)
    body: list[nn.Module] = [RoundedByLayout(), nn.Conv2d(3, 64, 8)]
    for _ in range(24):
        body += [nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 64, 1)]
    net, inputs = nn.Sequential(*body, nn.Flatten(), nn.Linear(64, 10)), (IMAGES[:2],)
    assert suits_channels_last(net, inputs, StepLog())
    monkeypatch.setattr("compress.training.layout.NOISE", 0.0)
    assert not suits_channels_last(net, inputs, StepLog()), "it magnifies rounding indeed"


def test_without_convolutions_nothing_is_tried() -> None:
    def fail(*_: Tensor) -> Tensor:
        raise AssertionError("it was run")

    module = nn.Linear(2, 2)
    module.forward = fail  # type: ignore[method-assign]
    assert not suits_channels_last(module, (torch.zeros(2, 2),), StepLog())


def chances() -> list[Any]:
    return [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]


@pytest.mark.parametrize("training", [True, False])
def test_trying_leaves_no_trace(training: bool) -> None:
    """Not in generators, statistics, gradients, the mode, the layout, nor in the inputs."""

    def noisy(net: nn.Module, x: Tensor) -> Tensor:
        x = x * np.random.rand() + random.random()
        return F.dropout(x, 0.5).relu_().flatten(1)

    net = nn.Sequential(nn.ReLU(inplace=True), Net(noisy)).train(training)
    inputs, before = IMAGES.clone(), {k: v.clone() for k, v in net.state_dict().items()}
    states = chances()
    suits_channels_last(net, (inputs,), StepLog())
    assert chances() == states
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert all(p.grad is None and p.is_contiguous() for p in net.parameters())
    assert all(module.training is training for module in net.modules())
    assert torch.equal(inputs, IMAGES)


# --- in trainings -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def data() -> Data:
    return small_digits()


def model(data: Data, flatten: Flatten) -> Model:
    return Model(Net(flatten, 1).eval(), data.task.probe(), blueprint=Blueprint(INSTANCE))


def weights(made: Model) -> list[Tensor]:
    return list(made.module.state_dict().values())


def equal(one: Model, other: Model) -> bool:
    return all(torch.equal(a, b) for a, b in zip(weights(one), weights(other), strict=True))


def plainly(
    text: str, entering: Model, context: StepContext, monkeypatch: pytest.MonkeyPatch
) -> Model:
    """Run a step whose training takes the plain layout unasked."""
    with monkeypatch.context() as patch:
        patch.setattr(loop, "autotune", lambda *_: ExecutionMode("float32", False))
        return run(chain(text), entering, context)


STEPS = [
    "finetune(epochs=2, batch_size=48)",
    "train(epochs=1, keep='best')",
    "distill(student='same', epochs=1)",
]


@pytest.mark.parametrize("text", STEPS)
def test_the_way_tutorials_flatten_trains(
    text: str, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = make_context(data, teacher=fresh_model(data))
    trained = run(chain(text), model(data, view), context)
    [row] = [row for row in context.log.rows if row["kind"] == "layout"]
    [fitted] = [row for row in context.log.rows if row["kind"] == "fit"]
    assert "view size is not compatible" in row["reason"]
    assert fitted["pace"] == "float32"
    expected = plainly(text, model(data, flat), context, monkeypatch)
    assert equal(trained, expected), "as one that flattens otherwise, in the plain layout"


def test_channels_last_remains_the_choice_of_what_runs_in_it(data: Data) -> None:
    context = make_context(data)
    run(chain("finetune(epochs=1)"), model(data, flat), context)
    [fitted] = [row for row in context.log.rows if row["kind"] == "fit"]
    assert fitted["pace"] == "float32, channels_last"


def test_in_bfloat16_too(data: Data) -> None:
    context = replace(make_context(data), precision="bfloat16")
    run(chain("finetune(epochs=1)"), model(data, view), context)
    [fitted] = [row for row in context.log.rows if row["kind"] == "fit"]
    assert fitted["pace"] == "bfloat16"


def test_a_stopped_training_goes_on_in_its_layout(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "WORTH_KEEPING", 0.0)
    context, keep, text = (
        replace(make_context(data), scope="here"),
        _Fit._keep,
        "finetune(epochs=3)",
    )
    undisturbed = run(chain(text), model(data, view), context)
    cache = Folder(tmp_path)

    class Stop(BaseException):
        pass

    def keep_and_stop(self: Any) -> None:
        keep(self)
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(_Fit, "_keep", keep_and_stop)
        with pytest.raises(Stop):
            run(chain(text), model(data, view), replace(context, cache=cache, log=StepLog()))
    again = replace(context, cache=cache, log=StepLog())
    monkeypatch.setattr("compress.training.execution_mode.suits_channels_last", lambda *_: 1 / 0)
    assert equal(run(chain(text), model(data, view), again), undisturbed)
    rows = [[row["kind"] for row in b.log.rows] for b in (context, again)]
    assert rows[0] == rows[1]


# --- teachers and ensembles -------------------------------------------------------------


def test_every_teacher_answers_in_its_own_layout(data: Data) -> None:
    teachers = [model(data, flatten) for flatten in (view, flat)]
    context = make_context(data)
    teacher = Teacher(teachers, context, "logits", (1, 3))
    raw, _ = data.train.fetch(torch.arange(16))
    inputs = data.task.prepare(raw, context.device)
    expected = averaged([forward(one.module, inputs) for one in teachers], "logits", (1, 3))
    torch.testing.assert_close(teacher.ask(inputs), expected)
    assert teacher.channels_last == [False, True]
    layouts = [one.module.b.weight.is_contiguous() for one in teacher.models]
    assert layouts == [True, False]


@pytest.mark.parametrize("hints", ["none", "fitnets"])
def test_a_teacher_that_flattens_with_view_teaches(hints: str, data: Data) -> None:
    context = make_context(data, teacher=model(data, view))
    text = f"distill(student='cnn-small(width=16)', epochs=1, hints='{hints}')"
    run(chain(text), model(data, view), context)
    [fitted] = [row for row in context.log.rows if row["kind"] == "fit"]
    assert fitted["pace"] == "float32, channels_last", "the student has a layout of its own"


def test_an_ensemble_runs_where_all_its_members_do(data: Data) -> None:
    assert reason(Ensemble([Net(flat), Net(flat)])) == ""
    assert "view size" in reason(Ensemble([Net(flat), Net(view)]))
    text = "repeat(2, distill(student='same', teacher='input', epochs=1), result='ensemble')"
    made = run(chain(text), model(data, view), make_context(data))
    context = make_context(data, teacher=made)
    run(chain("finetune(epochs=1) -> distill(epochs=1)"), made, context)
    paces = [row["pace"] for row in context.log.rows if row["kind"] == "fit"]
    assert paces == ["float32", "float32"]
