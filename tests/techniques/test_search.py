"""What comes out of a search is within its budget, proven, repeatable, and resumes exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from bench_fixtures import fresh_model, make_context, small_digits
from caches import Folder
from torch import nn

from compress import counts
from compress.compressor import run
from compress.context import StepContext, StepLog
from compress.errors import IllegalChain, StepFailed, UserError
from compress.model import Model, forward
from compress.supernet import latency
from compress.supernet.costs import macs_by_tensor
from compress.supernet.sandwich import Sandwich, Subnet
from compress.supernet.space import Genes
from compress.tasks.base import Data
from compress.techniques import chain, search, search_budget, search_family
from compress.techniques.criteria import L2
from compress.techniques.elastic import ElasticNet
from compress.training import Batch, loop

NET = "resnet14(width=8)"
SMALL = "round_to=2, candidates=6, population=3, judged=60"


@pytest.fixture(scope="module")
def data() -> Data:
    return small_digits()


@pytest.fixture(scope="module")
def trained(data: Data) -> Model:
    step = chain("train(epochs=2, learning_rate=0.01)")
    return run(step, fresh_model(data, NET), make_context(data))


def equal(a: Model, b: Model) -> bool:
    ours, theirs = a.module.state_dict(), b.module.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def kept(result: Model, before: Model, what: str) -> float:
    ours, theirs = (counts.count(one.module, before.example) for one in (result, before))
    return getattr(ours, what) / getattr(theirs, what)


# --- budgets ----------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["macs", "params"])
@pytest.mark.parametrize("strategy", ["evolution", "sampling", "random"])
def test_the_result_is_within_the_budget_and_near_it(
    what: str, strategy: str, data: Data, trained: Model
) -> None:
    context = make_context(data)
    text = f"search({what}=0.5, strategy='{strategy}', {SMALL})"
    result = run(chain(text), trained, context)
    reached = kept(result, trained, what)
    assert 0.4 < reached <= 0.5
    [row] = [row for row in context.log.rows if row["kind"] == "search"]
    assert row["share"] == pytest.approx(reached)
    [note] = [note for note in context.log.notes if note.startswith("search: asked for 0.50")]
    assert f"reached {reached:.2f}" in note


def test_fractions_refer_to_the_origin(data: Data, trained: Model) -> None:
    result = run(chain(f"repeat(2, search(macs=0.5, {SMALL}))"), trained, make_context(data))
    assert 0.4 < kept(result, trained, "macs") <= 0.5


def test_a_target_out_of_reach_is_refused_before_training(
    data: Data, trained: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "fit", None)
    step = chain("search(macs=0.05, epochs=5, round_to=4)")
    with pytest.raises(StepFailed, match=r"macs=0.05 cannot be reached.* keeps 0\.\d\d") as caught:
        run(step, trained, make_context(data))
    least = float(str(caught.value).partition("Ask for macs=")[2][:4])
    found = run(
        chain(f"search(macs={least}, round_to=4, candidates=2)"), trained, make_context(data)
    )
    assert kept(found, trained, "macs") <= least


def test_what_follows_carving_drops_other_blocks(data: Data, trained: Model) -> None:
    text = f"carve(blocks=['layer1.0', 'layer2.0', 'layer3.0']) -> search(macs=0.3, {SMALL})"
    context = make_context(data)
    result = run(chain(text), trained, context)
    assert kept(result, trained, "macs") <= 0.3
    [row] = [row for row in context.log.rows if row["kind"] == "search"]
    assert set(row["removed"]) <= {"layer2.1", "layer3.1", "layer1.0"}
    parameters = dict(result.module.named_parameters())
    for layer in [row for row in context.log.rows if row["kind"] == "layer"]:
        assert len(parameters[f"{layer['layer']}.weight"]) == layer["kept"]


def test_without_depth_every_block_stays(data: Data, trained: Model) -> None:
    context = make_context(data)
    run(chain(f"search(macs=0.4, depth=False, {SMALL})"), trained, context)
    [row] = [row for row in context.log.rows if row["kind"] == "search"]
    assert row["removed"] == []


def test_masked_weights_stay_masked(data: Data, trained: Model) -> None:
    text = f"prune_weights(sparsity=0.5) -> search(macs=0.6, epochs=1, {SMALL})"
    result = run(chain(text), trained, make_context(data))
    names = dict(result.module.named_parameters())
    assert result.sparse
    assert result.sparse <= names.keys()
    zeros = sum(int((names[name] == 0).sum()) for name in result.sparse)
    assert zeros > 0.2 * sum(names[name].numel() for name in result.sparse)


# --- the best ---------------------------------------------------------------------------------


def test_the_most_accurate_of_the_judged_comes_out(
    data: Data, trained: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accuracy is made up here: the more blocks, the better."""
    seen: list[int] = []

    def blocks(module: torch.nn.Module, *_: object) -> tuple[float, float]:
        seen.append(sum("conv1" in name for name, _ in module.named_modules()))
        return seen[-1] / 10, 1.0

    monkeypatch.setattr(search, "evaluate", blocks)
    text = "search(macs=0.4, round_to=2, candidates=40, population=8)"
    result = run(chain(text), trained, make_context(data))
    assert len(seen) == 40
    assert sum("conv1" in name for name, _ in result.module.named_modules()) == max(seen) == 7


def test_another_seed_draws_another_random_architecture(data: Data, trained: Model) -> None:
    step = chain("search(macs=0.4, strategy='random', round_to=1)")
    first, again, other = (run(step, trained, make_context(data, seed=seed)) for seed in (0, 0, 1))
    assert equal(first, again)
    assert not equal(first, other)


# --- training ---------------------------------------------------------------------------------


def test_the_loss_is_the_mean_of_the_wholes_and_the_subnets(data: Data, trained: Model) -> None:
    context = make_context(data)
    model = trained.copy()
    net = ElasticNet(model, context, L2(), 2, 0.25, True)
    sandwich = Sandwich(model.module, net, data.task, 2, seed=3)
    raw, targets = data.train.fetch(torch.arange(8))
    inputs = data.task.prepare(raw, torch.device("cpu"))
    module = model.module.train()
    module(*inputs)
    assert sandwich.answers == [], "it is not training yet"
    sandwich.begin(0)
    drawn = sandwich.drawn()
    outputs = module(*inputs)
    value = sandwich.loss(outputs, Batch(torch.arange(8), inputs, targets))
    assert sandwich.drawn() != drawn, "the next pass draws others"
    sandwich.remove()
    shares = outputs.detach().softmax(1)
    expected = [F.cross_entropy(outputs, targets)]
    for genes in (net.space.smallest, *drawn):
        logs = Subnet(net, genes)(module, inputs).log_softmax(1)
        expected.append(-(shares * logs).sum(1).mean())
    torch.testing.assert_close(value, torch.stack(expected).mean())


def test_training_the_supernet_makes_narrow_subnets_better(data: Data) -> None:
    begin = chain("train(epochs=12, learning_rate=0.01)")
    start = run(begin, fresh_model(data, NET), make_context(data))
    losses = []
    for epochs in (0, 8):
        context = make_context(data)
        text = f"search(macs=0.35, epochs={epochs}, learning_rate=0.005, {SMALL})"
        run(chain(text), start, context)
        [row] = [row for row in context.log.rows if row["kind"] == "search"]
        losses.append(-row["negative_loss"])
    # Without it, refitting does much of what it does.
    assert losses[1] < 0.85 * losses[0]


# --- stopped and resumed ----------------------------------------------------------------------


class Stop(BaseException):
    """What ends a process, here."""


def stopping(context: StepContext, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """End the process once so many generations have been judged."""
    judge = search._Search._scores
    count = 0

    def stopped(self: Any, some: Any) -> Any:
        nonlocal count
        if count == after:
            raise Stop
        count += 1
        return judge(self, some)

    monkeypatch.setattr(search._Search, "_scores", stopped)


@pytest.mark.parametrize("generations", [0, 1])
def test_a_stopped_search_goes_on_as_it_would_have(
    generations: int,
    data: Data,
    trained: Model,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loop, "WORTH_KEEPING", 0.0)
    step = chain(f"search(macs=0.4, epochs=2, {SMALL})")
    context = replace(make_context(data), scope="here")
    expected = run(step, trained, context)
    cache = Folder(tmp_path)
    with monkeypatch.context() as patch:
        stopping(context, patch, generations)
        with pytest.raises(Stop):
            run(step, trained, replace(context, cache=cache, log=StepLog()))
    trainings, judgements = [], []
    epoch, score = loop._Fit._epoch, search._Search._score
    monkeypatch.setattr(
        loop._Fit, "_epoch", lambda self, *a: (trainings.append(1), epoch(self, *a))[1]
    )
    monkeypatch.setattr(
        search._Search, "_score", lambda self, one: (judgements.append(1), score(self, one))[1]
    )
    torch.manual_seed(99)  # another process has other random numbers
    resumed = run(step, trained, replace(context, cache=cache, log=StepLog()))
    assert equal(resumed, expected)
    assert trainings == []
    assert len(judgements) == 6 - 3 * generations


# --- latency ----------------------------------------------------------------------------------


def as_file(model: Model) -> bytes:
    """Stand in for an export: all that a `Clock` looks at is how many weights there are."""
    return str(sum(one.numel() for one in model.module.parameters())).encode()


class Clock:
    """Says that a file takes as long as it has weights, and a fixed while."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(
        self, files: Mapping[str, bytes], samples: Sequence[np.ndarray], seconds: float
    ) -> dict[str, np.ndarray]:
        self.asked += 1
        return {name: np.asarray([int(file) + 1000.0] * 3) for name, file in files.items()}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(latency, "seconds_of", made)
    monkeypatch.setattr(latency, "export", as_file)
    return made


def test_latency_is_estimated_then_measured_whole(
    clock: Clock, data: Data, trained: Model, tmp_path: Path
) -> None:
    context = replace(make_context(data), cache=Folder(tmp_path))
    step = chain(f"search(latency=0.5, {SMALL})")
    result = run(step, trained, context)
    whole, part = (int(as_file(one)) + 1000 for one in (trained, result))
    assert part <= 0.51 * whole
    [note] = [note for note in context.log.notes if "of the latency" in note]
    assert f"asked for 0.50 of the latency, reached {part / whole:.2f}" in note
    before = clock.asked
    again = run(step, trained, replace(context, log=StepLog()))
    assert equal(again, result)
    assert clock.asked == before, "measured answers are kept"


def test_where_no_finalist_is_in_time_what_was_timed_before_comes_out(
    clock: Clock, data: Data, trained: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = search_budget.Measured._measured

    def slower(budget: search_budget.Measured, some: Sequence[Genes]) -> dict[Genes, float]:
        """Once the estimate is there, files are five times as slow as it says."""
        estimated = hasattr(budget, "fitted")
        found = real(budget, some)
        if estimated:
            found = {genes: 5 * share for genes, share in found.items()}
            budget.known |= found
        return found

    monkeypatch.setattr(search_budget.Measured, "_measured", slower)
    context = make_context(data)
    result = run(chain(f"search(latency=0.7, {SMALL})"), trained, context)
    whole, part = (int(as_file(one)) + 1000 for one in (trained, result))
    assert part <= 0.72 * whole
    [note] = [note for note in context.log.notes if "of the latency" in note]
    assert f"reached {5 * part / whole:.2f}" in note
    assert "OVER" not in note


def test_a_model_that_meets_the_target_is_left_alone_and_that_is_said(
    data: Data, trained: Model
) -> None:
    context = make_context(data)
    result = run(chain("search(macs=1.0, epochs=2)"), trained, context)
    assert equal(result, trained)
    [note] = context.log.notes
    assert "it meets macs=1" in note
    assert note.endswith("already, so nothing was trained")


def test_a_latency_out_of_reach_names_the_least(
    clock: Clock, data: Data, trained: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "fit", None)
    with pytest.raises(StepFailed, match=r"latency=0.05 cannot be reached"):
        run(chain("search(latency=0.05, epochs=3, round_to=4)"), trained, make_context(data))


def test_the_estimate_finds_what_seconds_are_made_of(data: Data, trained: Model) -> None:
    net = ElasticNet(trained.copy(), make_context(data), L2(), 2, 0.25, True)
    module, example = net.model.module, net.model.example
    macs, _ = macs_by_tensor(module, example)
    fitted = latency.Fitted(
        net.lengths, macs, {name: module.get_parameter(name)[0].numel() for name in macs}
    )

    def seconds(genes: Genes) -> float:
        subnet = net.subnet(genes)
        layers = sum(isinstance(part, nn.Conv2d | nn.Linear) for part in subnet.modules())
        return 2e-6 * counts.macs(subnet, example) + 0.1 * layers + 0.3

    rng = np.random.default_rng(0)
    some = [net.space.drawn(rng) for _ in range(20)]
    fitted.fit({genes: seconds(genes) for genes in some[:10]})
    for genes in some[10:]:
        assert fitted(genes) == pytest.approx(seconds(genes), rel=1e-6)


# --- families ---------------------------------------------------------------------------------

FAMILY = "search(macs=0.5, family='cnn-small', epochs=3, candidates=3)"


@pytest.fixture(scope="module")
def teacher(data: Data) -> Model:
    return run(
        chain("train(epochs=6)"), fresh_model(data, "cnn-small(width=32)"), make_context(data)
    )


def test_the_best_student_of_a_family_comes_out_trained(data: Data, teacher: Model) -> None:
    context = make_context(data)
    result = run(chain(FAMILY), teacher, context)
    assert result.blueprint is not None
    assert result.blueprint.factory.startswith("cnn-small(width=")
    assert kept(result, teacher, "macs") <= 0.5
    rows = [row for row in context.log.rows if row["kind"] == "student"]
    assert [row["rung"] for row in rows] == [1, 1, 1, 2, 2]
    assert max(row["accuracy"] for row in rows if row["rung"] == 2) == rows[3]["accuracy"]
    assert rows[3]["student"] == result.blueprint.factory
    epochs = [row for row in context.log.rows if row["kind"] == "epoch"]
    assert len(epochs) == 3 * 1 + 2 * 2


def test_a_family_that_was_stopped_goes_on(
    data: Data, teacher: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = replace(make_context(data), scope="here")
    expected = run(chain(FAMILY), teacher, context)
    cache, distilled = Folder(tmp_path), search_family.Distill.compress
    count = 0

    def stopped(self: Any, model: Model, its: StepContext) -> Model:
        nonlocal count
        count += 1
        if count == 4:
            raise Stop
        return distilled(self, model, its)

    monkeypatch.setattr(search_family.Distill, "compress", stopped)
    log = StepLog()
    with pytest.raises(Stop):
        run(chain(FAMILY), teacher, replace(context, cache=cache, log=log))
    resumed = run(chain(FAMILY), teacher, replace(context, cache=cache, log=StepLog()))
    assert equal(resumed, expected)
    assert count == 4 + 2, "the first rung was not trained again"


def test_a_random_student_trains_for_as_long(data: Data, teacher: Model) -> None:
    context = make_context(data)
    text = "search(macs=0.5, family='cnn-small', strategy='random', epochs=2, candidates=3)"
    result = run(chain(text), teacher, context)
    assert kept(result, teacher, "macs") <= 0.5
    assert len([row for row in context.log.rows if row["kind"] == "epoch"]) == 2


def test_students_are_timed_whole(clock: Clock, data: Data, teacher: Model) -> None:
    text = "search(latency=0.5, family='cnn-small', strategy='random', epochs=1, candidates=1)"
    result = run(chain(text), teacher, make_context(data))
    members = [f"cnn-small(width={width})" for width in (4, 6, 8, 12, 16, 24)]
    sizes = {name: int(as_file(fresh_model(data, name))) + 1000 for name in members}
    limit = 0.5 * (int(as_file(teacher)) + 1000)
    largest = max((name for name in members if sizes[name] <= limit), key=lambda one: sizes[one])
    assert result.blueprint is not None
    assert result.blueprint.factory == largest


def test_a_family_without_a_member_in_the_budget_names_its_smallest(
    data: Data, teacher: Model
) -> None:
    with pytest.raises(StepFailed, match=r"smallest of the family cnn-small, cnn-small\(width=4\)"):
        run(chain("search(macs=0.001, family='cnn-small', epochs=1)"), teacher, make_context(data))


# --- bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("search()", "exactly one of latency, macs, params"),
        ("search(macs=0.5, latency=0.5)", "exactly one of latency, macs, params"),
        ("search(macs=0)", "macs is the fraction that is kept"),
        ("search(macs=0.5, narrowest=0)", "narrowest is a share"),
        ("search(macs=0.5, strategy='grid')", "one of evolution, sampling, random"),
        ("search(macs=0.5, seconds=3.0)", "only latency"),
        ("search(macs=0.5, family='resnet')", "give epochs"),
        ("search(macs=0.5, family='mlp', epochs=1, depth=False)", "depth is about the model's own"),
        ("search(macs=0.5, family='mlp', epochs=1, strategy='sampling')", "successive halving"),
    ],
)
def test_what_cannot_work_is_refused_when_it_is_written(text: str, says: str) -> None:
    with pytest.raises(IllegalChain, match=says):
        chain(text)


def test_an_unknown_family_is_refused_before_work(data: Data, teacher: Model) -> None:
    with pytest.raises(UserError, match=r"unknown family 'resnets'\. Did you mean 'resnet'"):
        run(chain("search(macs=0.5, family='resnets', epochs=1)"), teacher, make_context(data))


def test_without_validation_items_nothing_can_be_judged(data: Data, trained: Model) -> None:
    context = replace(make_context(data), validation=None)
    with pytest.raises(IllegalChain, match="search needs validation"):
        run(chain("search(macs=0.5)"), trained, context)
    result = run(chain("search(macs=0.5, strategy='random')"), trained, context)
    assert forward(result.module, trained.items()).isfinite().all()
