"""Training of nets with auxiliary heads: what is learnt from what, and what is said of it."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path

import heads_nets
import pytest
import torch
import torch.nn.functional as F
from bench_fixtures import make_context, small_digits
from torch import Tensor, nn

from compress.compressor import Compressor, run, seed_everything
from compress.context import StepContext
from compress.counts import count
from compress.errors import StepFailed
from compress.heads import Heads, heads_by_path, heads_of, set_heads
from compress.model import Model, forward, load, save
from compress.techniques import chain
from compress.techniques.distill import Distill
from compress.techniques.losses import Kd
from compress.training import Batch, ExecutionMode, evaluate
from compress.training.execution_mode import runner
from compress.training.graphs import Replayed
from compress.training.stepper import AUXILIARY, Stepper
from compress.zoo.models import build_module, fresh

NETS = Path(heads_nets.__file__)
DATA = small_digits()
TRAINED = f"auxiliary heads were trained along: each adds {AUXILIARY} of the labels' loss"


def model(factory: str = "trained_apart", seed: int = 0) -> Model:
    seed_everything(seed)
    return fresh(f"{NETS}:{factory}", DATA.task, [NETS])


def step_context(teacher: Model | None = None) -> StepContext:
    def build(name: str) -> Model:
        return fresh(name, DATA.task, [NETS])

    return replace(make_context(DATA, teacher), build=build)


def moved(before: nn.Module, after: nn.Module, head: str) -> bool:
    weights = (before.get_parameter(f"{head}.weight"), after.get_parameter(f"{head}.weight"))
    return not torch.equal(*weights)


@pytest.mark.parametrize("label_weight", [1.0, 0.25, 0.0])
def test_a_step_descends_the_sum_of_both_losses(label_weight: float) -> None:
    """L(main) + 0.3 * w * CE(aux), Szegedy et al. 2014, section 5."""
    made, context = model(), step_context()
    module, by_hand = made.module.train(), copy.deepcopy(made.module).train()
    images = torch.randn(16, *made.example[0].shape[1:])
    targets = torch.arange(16) % 10
    loss = lambda outputs, batch: outputs.square().mean()  # noqa: E731
    parameters = list(module.parameters())
    stepper = Stepper(
        *(runner(module, ExecutionMode(), None), parameters, torch.optim.SGD(parameters, 0.0)),
        *(loss, context, ExecutionMode(), lambda progress: label_weight * progress),
    )
    torch.manual_seed(1)
    value, right = stepper.step(Batch(torch.arange(16), (images,), targets, progress=1.0))

    torch.manual_seed(1)
    aux, main = by_hand(images)
    expected = main.square().mean() + 0.3 * label_weight * F.cross_entropy(aux, targets)
    expected.backward()
    norm = nn.utils.clip_grad_norm_(by_hand.parameters(), 5.0)
    assert norm > 0
    torch.testing.assert_close(value, expected)
    assert int(right) == int((main.argmax(1) == targets).sum())
    for name, parameter in by_hand.named_parameters():
        found = module.get_parameter(name).grad
        assert (found is None) == (label_weight == 0 and "aux" in name)
        wanted = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(wanted if found is None else found, wanted)


@pytest.mark.parametrize("factory", ["trained_apart", "net"])
def test_the_deployed_head_is_the_one_that_learns(factory: str) -> None:
    before, context = model(factory), step_context()
    after = run(chain("train(epochs=20, batch_size=32, learning_rate=0.01)"), before, context)
    score, _ = evaluate(after.module, DATA.task, DATA.test)
    assert score > 0.7  # with a head that is never trained it is 0.1
    epochs = [row for row in context.log.rows if row["kind"] == "epoch"]
    assert epochs[-1]["train_accuracy"] > 0.7
    assert context.log.notes == [f"{TRAINED}; they are not deployed"]


@pytest.mark.parametrize(
    ("text", "learns"),
    [
        ("distill(epochs=1)", True),
        ("distill(epochs=1, hard_weight=0.0)", False),
        ("distill(epochs=1, hard_weight=0.0, annealing='linear')", True),
    ],
)
def test_in_distillation_auxiliary_heads_learn_from_labels_alone(text: str, learns: bool) -> None:
    before = model()
    context = step_context(teacher=model(seed=1))
    after = run(chain(text), before, context)
    assert moved(before.module, after.module, "out")
    assert moved(before.module, after.module, "aux") == learns
    said = TRAINED if learns else "auxiliary heads were not trained"
    assert context.log.notes[0].startswith(said)


def test_the_labels_weight_is_that_of_the_hard_loss() -> None:
    weight = Distill(hard_weight=0.1, loss=Kd(weight=0.8), annealing="linear")._hard_weight
    assert [weight(done) for done in (0.0, 0.5, 1.0)] == pytest.approx([0.1, 0.5, 0.9])
    assert Distill(hard_weight=0.1)._hard_weight(0.7) == pytest.approx(0.1)


def test_what_cannot_be_trained_is_refused_before_any_step() -> None:
    made = model()
    set_heads(made.module, Heads(untrainable="in training mode the model returns two things"))
    with pytest.raises(StepFailed, match="returns two things"):
        run(chain("finetune()"), made, step_context())


def test_all_heads_are_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The outputs and gradients of a recording are compared for every head."""
    from training.test_graphs import record_on_the_cpu

    made = model("net")
    made.module.give = lambda main, aux, hidden, training: {"aux": aux, "logits": main}
    monkeypatch.setattr(F, "dropout", lambda values, *_: values)
    run_plain = runner(made.module, ExecutionMode(), None)
    images = torch.randn(8, *made.example[0].shape[1:])

    def replay(module: nn.Module, *inputs: Tensor) -> tuple[Tensor, ...]:
        main, aux = module(*inputs)
        return main, 2 * aux

    record_on_the_cpu(monkeypatch, lambda module, *inputs: module(*inputs))
    recorded = Replayed(made.module, run_plain, (images,), "float32")
    assert [head.shape for head in recorded(images)] == [(8, 10), (8, 10)]
    record_on_the_cpu(monkeypatch, replay)
    with pytest.raises(Exception, match="replayed outputs are off"):
        Replayed(made.module, run_plain, (images,), "float32")


# --- before and after other steps -------------------------------------------------------------


@pytest.mark.parametrize("factory", ["trained_apart", "net"])
@pytest.mark.parametrize(
    "text",
    [
        "prune_channels(channels=0.5, round_to=4)",
        "factorize(rank=0.5)",
        "prune_weights(sparsity=0.5)",
    ],
)
def test_a_compressed_net_trains_on_with_its_auxiliary_heads(factory: str, text: str) -> None:
    before, context = model(factory), step_context()
    after = run(chain(text), before, context)
    assert heads_of(after.module) == heads_of(before.module)
    if text.startswith("prune_channels"):
        assert after.module.a.out_channels == 8
        assert after.module.aux.in_features == 8
        assert after.module.aux.out_features == 10
    assert forward(after.module, after.items()).shape == (2, 10)
    trained = run(chain("finetune(epochs=1)"), after, context)
    assert moved_anywhere(after.module.aux, trained.module.aux)


def moved_anywhere(before: nn.Module, after: nn.Module) -> bool:
    theirs = dict(after.named_parameters())
    return any(not torch.equal(value, theirs[name]) for name, value in before.named_parameters())


def test_only_what_is_deployed_is_pruned_and_counted() -> None:
    before = model()
    after = run(chain("prune_weights(sparsity=0.5)"), before, step_context())
    assert after.sparse == {"a.weight", "b.weight", "out.weight"}
    assert int(after.module.aux.weight.count_nonzero()) == 160
    found = count(after.module, after.example)
    weights = 16 * 9 + 32 * 16 * 9 + 320
    rest = 16 + 2 * 16 + 32 + 10
    assert (found.params, found.unused_params) == (weights + rest, 160 + 10)
    kept = [value for name, value in after.module.named_parameters() if "aux" not in name]
    assert found.nonzero_params == sum(int(value.count_nonzero()) for value in kept)


@pytest.mark.parametrize("factory", ["trained_apart", "net"])
@pytest.mark.parametrize(
    "text", ["finetune(epochs=1)", "repeat(2, finetune(epochs=1), result='ensemble')"]
)
def test_a_saved_model_knows_its_heads(factory: str, text: str, tmp_path: Path) -> None:
    def build(blueprint: object) -> nn.Module:
        return build_module(blueprint, [NETS])  # type: ignore[arg-type]

    made = run(chain(text), model(factory), step_context())
    save(made, tmp_path, build)
    again = load(tmp_path, build)
    heads = heads_by_path(made.module)
    assert len(heads) == (2 if "repeat" in text else 1)
    assert heads_by_path(again.module) == heads
    inputs = made.items()
    torch.testing.assert_close(forward(again.module, inputs), forward(made.module, inputs))


def test_a_step_that_builds_the_module_anew_is_looked_at_again() -> None:
    @dataclass(frozen=True, repr=False)
    class Anew(Compressor):
        def compress(self, model: Model, context: StepContext) -> Model:
            set_heads(model.module, None)
            model.module.give = lambda main, aux, hidden, training: (main, hidden)
            return model

    after = run(Anew(), model(), step_context())
    assert heads_of(after.module) == Heads((0,), (0,))
