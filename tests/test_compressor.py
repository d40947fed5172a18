"""`run` checks what a technique returns; a third party's technique needs only its class."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from bench_fixtures import fresh_model, make_context, small_digits
from caches import Folder
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from compress.benchmark.plan.keys import foreign_sources
from compress.benchmark.store.store import Store, StoredStepCache
from compress.compressor import Chain, Compressor, Repeat, leaves, run, step_seed
from compress.context import StepContext, StepLog
from compress.errors import IllegalChain, StepFailed, UserError
from compress.model import Model
from compress.tasks.image_classification import ImageClassification, Preprocessing
from compress.techniques import chain, losses, techniques
from compress.techniques.distill import Distill
from compress.techniques.losses import Kd, Loss

TASK = ImageClassification("test", ("a", "b"), Preprocessing(1, (2, 2), (0.5,), (0.5,)))


@dataclass(frozen=True, repr=False, kw_only=True)
class Huber(Loss):
    """A stand-in for a loss of others."""

    delta: float

    def compare(self, student: Tensor, teacher: Tensor, targets: Tensor, progress: float) -> Tensor:
        return F.huber_loss(student, teacher, delta=self.delta)


@dataclass(frozen=True, repr=False)
class Scale(Compressor):
    """Multiply every parameter; a stand-in for a plug-in."""

    factor: float = 1.0

    def compress(self, model: Model, context: StepContext) -> Model:
        with torch.no_grad():
            for parameter in model.module.parameters():
                parameter.mul_(self.factor)
        return model


@dataclass(frozen=True, repr=False)
class Widen(Compressor):
    """Return another output shape."""

    def compress(self, model: Model, context: StepContext) -> Model:
        return replace(model, module=nn.Sequential(nn.Flatten(), nn.Linear(4, 3)))


def model() -> Model:
    torch.manual_seed(0)
    return Model(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval(), (torch.zeros(1, 1, 2, 2),))


def step_context() -> StepContext:
    return StepContext(TASK, log=StepLog())


def test_the_input_is_copied() -> None:
    original = model()
    before = original.module[1].weight.clone()
    result = run(Scale(2.0), original, step_context())
    assert torch.equal(original.module[1].weight, before)
    assert torch.equal(result.module[1].weight, 2 * before)


def test_hints_end_with_the_weights_that_they_are_about() -> None:
    """Also where a step of others hands its model on with them; its own hints stay."""

    @dataclass(frozen=True, repr=False)
    class Hinting(Scale):
        def compress(self, model: Model, context: StepContext) -> Model:
            return replace(super().compress(model, context), hints={"factor": self.factor})

    hinted = replace(model(), hints={"ranges": {"1": [0.0, 2.5]}})
    assert run(Scale(1.0), hinted, step_context()).hints == hinted.hints
    assert not run(Scale(3.0), hinted, step_context()).hints
    assert not run(Chain(Scale(3.0), Scale(1.0)), hinted, step_context()).hints
    assert run(Hinting(3.0), hinted, step_context()).hints == {"factor": 3.0}


def test_a_model_that_does_not_run_on_its_inputs_is_refused_before_the_step() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    with pytest.raises(UserError, match=r"scale cannot start: the model does not run on its 1 inp"):
        run(Scale(2.0), replace(model(), module=Two()), step_context())


def test_values_that_are_not_finite_are_refused() -> None:
    with pytest.raises(StepFailed, match="not finite"):
        run(Scale(float("nan")), model(), step_context())


def test_another_output_shape_is_refused() -> None:
    with pytest.raises(StepFailed, match=r"from \(2, 2\) to \(2, 3\)"):
        run(Widen(), model(), step_context())


def test_needs_are_checked_before_work() -> None:
    with pytest.raises(IllegalChain, match="finetune needs labels"):
        run(chain("finetune()"), model(), step_context())
    with pytest.raises(IllegalChain, match="quantize needs calibration"):
        run(chain("quantize()"), model(), step_context())


def test_the_step_log_names_steps_and_seconds() -> None:
    context = step_context()
    run(Scale(0.5) >> Scale(2.0), model(), context)
    steps = [row["step"] for row in context.log.rows if row["kind"] == "step"]
    assert steps == ["scale(factor=0.5)", "scale(factor=2.0)"]


@dataclass(frozen=True, repr=False)
class Draw(Compressor):
    """Say which seed the step was given, and torch with it."""

    def compress(self, model: Model, context: StepContext) -> Model:
        context.log.row("drawn", seed=context.seed)
        assert torch.initial_seed() == context.seed
        return model


def drawn(step: Compressor, **options: int) -> list[int]:
    context = replace(step_context(), **options)
    run(step, model(), context)
    return [row["seed"] for row in context.log.rows if row["kind"] == "drawn"]


COMPOSED = st.recursive(
    st.just(Draw()),
    lambda inner: (
        st.lists(inner, min_size=2, max_size=3).map(lambda parts: Chain(*parts))
        | st.builds(Repeat, st.integers(1, 3), inner)
    ),
    max_leaves=4,
)


@given(COMPOSED, st.integers(0, 2**63), st.integers(0, 3))
@settings(deadline=None, max_examples=50)
def test_no_two_steps_of_a_chain_have_the_same_seed(
    step: Compressor, seed: int, position: int
) -> None:
    seeds = drawn(step, seed=seed, position=position)
    assert len(set(seeds)) == len(seeds) == sum(times for _, times in leaves(step))
    if position == 0:
        assert seeds[0] == seed, "what is done in one step has the seed that it was given"
    assert drawn(step, seed=seed, position=position) == seeds


def test_a_chain_gives_each_step_the_seed_of_its_position() -> None:
    parts = [Draw(), Repeat(2, Draw() >> Draw()), Draw()]
    whole = drawn(Chain(*parts), seed=7)
    positions = [0, 1, 3]
    apart = [drawn(part, seed=7, position=at) for part, at in zip(parts, positions, strict=True)]
    assert [seed for seeds in apart for seed in seeds] == whole
    assert whole[::5] == [7, step_seed(7, 3)]


def test_the_source_of_a_foreign_technique_is_part_of_its_key() -> None:
    sources = foreign_sources(chain("finetune()") >> Repeat(2, Scale(2.0)))
    assert list(sources) == [f"{__name__}.Scale"]
    assert foreign_sources(chain("finetune() -> quantize()")) == {}
    parts = Distill(loss=Huber(delta=1.0)) >> Repeat(2, Distill(loss=(Kd(), Huber(delta=2.0))))
    assert list(foreign_sources(parts)) == [f"{__name__}.Huber"]
    assert list(foreign_sources(Repeat(2, Distill(loss=(Kd(), Huber(delta=1.0)))))) == list(
        foreign_sources(parts)
    )


class Entry:
    def __init__(self, cls: object) -> None:
        self.cls = cls
        self.value = "package:thing"

    def load(self) -> object:
        return self.cls


def test_plug_ins_come_by_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    techniques.cache_clear()
    monkeypatch.setattr("compress.parts.entry_points", lambda group: [Entry(Scale)])
    try:
        assert chain("scale(factor=3.0) -> quantize()").steps[0] == Scale(3.0)
        techniques.cache_clear()
        monkeypatch.setattr("compress.parts.entry_points", lambda group: [Entry(int)])
        with pytest.raises(UserError, match="not a Compressor"):
            chain("scale()")
    finally:
        techniques.cache_clear()


def test_losses_of_others_come_by_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = {"compress.losses": [Entry(Huber)]}
    monkeypatch.setattr("compress.parts.entry_points", lambda group: groups.get(group, []))
    losses.cache_clear()
    try:
        step = chain("distill(loss=[kd(), huber(delta=2.0, weight=0.5)], hard_weight=0, epochs=1)")
        assert isinstance(step, Distill)
        assert step.loss == (Kd(), Huber(delta=2.0, weight=0.5))
        assert chain(repr(step)) == step
        with pytest.raises(IllegalChain, match="huber: missing a required argument: 'delta'"):
            chain("distill(loss='huber')")
        data = small_digits()
        teacher = fresh_model(data)
        run(step, teacher, make_context(data, teacher))
        groups["compress.losses"] = [Entry(Scale)]
        losses.cache_clear()
        with pytest.raises(UserError, match="not a Loss"):
            chain("distill(loss='huber')")
    finally:
        losses.cache_clear()


def test_a_measured_answer_is_asked_once(tmp_path: Path) -> None:
    context = replace(make_context(small_digits()), cache=Folder(tmp_path))
    calls: list[int] = []

    def measure() -> dict[str, int]:
        calls.append(1)
        return {"answer": len(calls)}

    assert context.cached({"what": 1}, measure) == {"answer": 1}
    assert context.cached({"what": 1}, measure) == {"answer": 1}
    assert context.cached({"what": 2}, measure) == {"answer": 2}
    assert replace(context, cache=None).cached({"what": 1}, measure) == {"answer": 3}
    assert isinstance(context.cache, Folder)
    context.cache.full = True
    assert context.cached({"what": 3}, measure) == {"answer": 4}
    assert replace(context, code="other").cached({"what": 1}, measure) == {"answer": 5}


def test_of_two_who_measure_at_once_one_answer_holds(tmp_path: Path) -> None:
    store = Store(tmp_path)
    context = replace(make_context(small_digits()), cache=StoredStepCache(store, "f" * 64))

    def slower() -> dict[str, int]:
        replace(context, cache=StoredStepCache(store, "e" * 64)).cached(
            {"what": 1}, lambda: {"answer": 1}
        )
        return {"answer": 2}

    assert context.cached({"what": 1}, slower) == {"answer": 1}
