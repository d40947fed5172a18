"""Models with several outputs in a plan: decided, or refused, before any work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import heads_nets
import pytest
import torch
from bench_fixtures import make_context, small_digits
from safetensors.torch import save_file
from torch import nn

from compress import counts
from compress.benchmark.measure import row as measuring
from compress.benchmark.measure.row import Measured
from compress.benchmark.plan.plan import Plan, make_plan
from compress.benchmark.plan.suite import Named, Suite
from compress.compressor import run, seed_everything
from compress.deploy.export import export
from compress.deploy.verify import verify
from compress.errors import IllegalChain, UserError
from compress.heads import heads_of
from compress.model import forward, identity
from compress.results.draft import Draft
from compress.results.record import Record
from compress.tasks.base import stacked_inputs
from compress.techniques import chain
from compress.training import accuracy
from compress.zoo.models import fresh

NETS = Path(heads_nets.__file__)
DATA = small_digits()
SUITE = Suite(
    name="heads",
    data="digits",
    model=f"{NETS}:net",
    chains=("quantize()",),
    controls=False,
)


def plan(factory: str = "net", model: nn.Module | None = None, **options: Any) -> Plan:
    suite = replace(SUITE, model=f"{NETS}:{factory}", **options)
    return make_plan(suite, data=DATA, model=model, allow_code=[NETS], device="cpu")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Those of a net whose second output, `out`, is right, and whose `aux` is not trained."""
    seed_everything(0)
    made = fresh(f"{NETS}:net", DATA.task, [NETS])
    step = chain("finetune(epochs=20, batch_size=32, learning_rate=0.01)")
    trained = run(step, made, make_context(DATA)).module
    with torch.no_grad():
        trained.aux.weight.copy_(made.module.aux.weight)
        trained.aux.bias.copy_(made.module.aux.bias)
    path = tmp_path_factory.mktemp("weights") / "heads.safetensors"
    save_file(trained.state_dict(), path)
    return str(path)


def test_the_logits_of_a_dictionary_are_deployed(weights: str) -> None:
    """The first value is an auxiliary head's: exporting it gave a third of the accuracy."""
    start = plan("net", weights=weights).start
    assert accuracy(start.module, DATA.task, DATA.test) > 0.7
    inputs = stacked_inputs(DATA.task, DATA.test, 64)
    content = export(start)
    assert verify(content, start, inputs, lowered=False).ok
    body = start.module(*inputs)
    torch.testing.assert_close(forward(start.module, inputs), body["logits"])
    assert not torch.allclose(body["aux"], body["logits"])


def test_without_a_name_trained_weights_may_decide(weights: str) -> None:
    made = plan("nameless", weights=weights, chains=("distill(student='same')",))
    heads = heads_of(made.start.module)
    assert heads is not None
    assert (heads.main, heads.training, heads.auxiliary) == ((1,), (1,), ((0,),))
    assert "'1' was taken, the most accurate on" in heads.note
    again = made.fresh(made.suite.model)
    assert heads_of(again.module) == heads
    assert identity(again)[3:] == identity(made.start)[3:] != []
    found = Measured()
    measuring._count(
        made.start, counts.count(made.start.module, made.start.example), b"onnx", 20, found
    )
    assert heads.note in found.notes


def test_without_names_and_weights_it_is_refused() -> None:
    said = r"nameless returns '0' of shape \(N, 10\), '1' of shape \(N, 10\): several may be"
    with pytest.raises(UserError, match=said):
        plan("nameless", baseline="train(epochs=1)")
    with pytest.raises(UserError, match=said):
        plan("net", baseline="train(epochs=1)", chains=(f"train(student='{NETS}:nameless')",))


def test_modules_and_teachers_of_a_python_user_are_asked_too() -> None:
    module = heads_nets.nameless(10, 1)
    with pytest.raises(UserError, match=r"^the model returns '0' .* none is clearly the most"):
        plan(model=module)
    suite = replace(SUITE, baseline="train(epochs=1)", teachers={"own": Named("Heads")})
    with pytest.raises(UserError, match=r"^teacher 'own' returns '0' of shape"):
        make_plan(suite, data=DATA, teachers={"own": module}, allow_code=[NETS])


class Mean(heads_nets.Heads):
    """Two heads that are trained as two, and averaged in eval mode."""

    def __init__(self) -> None:
        super().__init__(
            lambda main, aux, hidden, training: (main, aux) if training else (main + aux) / 2,
            channels=1,
        )


@pytest.mark.parametrize(
    "text", ["finetune()", "repeat(2, prune_weights(sparsity=0.5) -> finetune())", "distill()"]
)
def test_what_cannot_be_trained_is_refused_before_any_work(text: str) -> None:
    with pytest.raises(IllegalChain, match=r"cannot train: in training mode the model returns '0'"):
        plan(model=Mean(), chains=("quantize()", text))
    assert plan(model=Mean()).rows[1].text == "quantize()"


def test_another_student_may_be_trained_all_the_same() -> None:
    text = "distill(student='mlp', epochs=1)"
    assert plan(model=Mean(), chains=(text,)).rows[1].text == text


def test_a_row_tells_of_parameters_that_are_not_deployed() -> None:
    start = plan("trained_apart", baseline="train(epochs=1)").start
    found = Measured()
    measuring._count(start, counts.count(start.module, start.example), b"onnx", 20, found)
    assert found.figures["params"] == 16 * 9 + 16 + 2 * 16 + 32 * 16 * 9 + 32 + 320 + 10
    record = Record("baseline", 0, "ok", found.figures, log=tuple(found.log))
    assert Draft.of(record).notes == [
        "170 parameters that the deployed file does without, such as those of heads that are only "
        "used in training, are not counted"
    ]
