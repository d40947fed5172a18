"""What a model's author froze stays frozen, whatever happens to the model."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from bench_fixtures import make_context, small_digits
from torch import Tensor, nn

from compress.benchmark.plan.plan import make_plan
from compress.benchmark.plan.suite import Suite
from compress.compressor import run, seed_everything
from compress.context import StepContext
from compress.errors import IllegalChain, StepFailed, UserError
from compress.model import Blueprint, Model, frozen_names, load, save, weights_hash
from compress.surgery import output_layers
from compress.system.files import digest, sha256, write_json
from compress.tasks.base import Data
from compress.techniques import chain
from compress.techniques.channel_proof import sound_groups
from compress.techniques.train import reset
from compress.zoo.code import from_file
from compress.zoo.weights import load_weights


class Residual(nn.Module):
    """A block that can be taken out."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(16, 16, 3, 1, 1), nn.BatchNorm2d(16)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.norm(self.conv(x)))


def net() -> nn.Sequential:
    """A body that is frozen, of whose last layer the bias is not, and a head."""
    body = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, 1, 1), nn.BatchNorm2d(16), nn.ReLU()),
        nn.Sequential(Residual(), Residual()),
        *(nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()),
    ).requires_grad_(False)
    body[4].bias.requires_grad_(True)
    return nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


FROZEN = {name for name, _ in net()[0].named_parameters(prefix="0")} - {"0.4.bias"}


def build(blueprint: Blueprint) -> nn.Module:
    made = net()
    return made.requires_grad_(False) if blueprint.factory == "stone" else made


@pytest.fixture(scope="module")
def data() -> Data:
    return small_digits()


def fresh(data: Data, name: str = "made") -> Model:
    return Model(build(Blueprint(name)).eval(), data.task.probe(), blueprint=Blueprint(name))


@pytest.fixture
def bench(data: Data) -> StepContext:
    return replace(make_context(data, fresh(data)), build=partial(fresh, data))


def values(model: Model) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.module.named_parameters()}


def moved(before: dict[str, Tensor], after: Model) -> set[str]:
    """Return the names of the parameters with other values than before."""
    return {n for n, value in after.module.named_parameters() if not torch.equal(before[n], value)}


def reloaded(model: Model, folder: Path) -> Model:
    save(model, folder, build)
    return load(folder, build)


# --- saving -----------------------------------------------------------------------------


def test_it_stays_frozen_when_saved_copied_and_saved_again(data: Data, tmp_path: Path) -> None:
    again = reloaded(reloaded(fresh(data), tmp_path / "a").copy(), tmp_path / "b")
    assert frozen_names(again.module) == FROZEN
    assert {n for n, p in again.module.named_parameters() if p.requires_grad} == {
        *("0.4.bias", "3.weight", "3.bias")
    }


@pytest.mark.parametrize("names", [{"3.weight"}, FROZEN | {"3.weight"}, set()])
def test_a_file_holds_what_another_hand_froze_or_thawed(
    names: set[str], data: Data, tmp_path: Path
) -> None:
    model = fresh(data)
    for name, parameter in model.module.named_parameters():
        parameter.requires_grad_(name not in names)
    assert frozen_names(reloaded(model, tmp_path).module) == names


def test_in_a_file_of_before_the_factory_says_what_is_frozen(data: Data, tmp_path: Path) -> None:
    model = fresh(data)
    model.module[0][4] = nn.Identity()
    model.module[3] = nn.Linear(16, 10)
    save(model, tmp_path, build)
    blueprint = json.loads((tmp_path / "blueprint.json").read_text())
    assert set(blueprint.pop("frozen")) == FROZEN - {"0.4.weight"}
    write_json(tmp_path / "blueprint.json", blueprint)
    assert frozen_names(load(tmp_path, build).module) == FROZEN - {"0.4.weight"}
    write_json(tmp_path / "blueprint.json", {**blueprint, "frozen": ["0.9.weight"]})
    with pytest.raises(UserError, match=r"freezes 0\.9\.weight, and there is no such"):
        load(tmp_path, build)


def test_the_hash_of_the_weights_tells_what_is_frozen(data: Data) -> None:
    """Two modules of a Python user may differ in nothing else."""
    module = fresh(data).module
    thawed = {
        name: [str(tensor.dtype), list(tensor.shape), sha256(tensor.numpy().tobytes())]
        for name, tensor in module.state_dict().items()
    }
    frozen = weights_hash(module)
    module.requires_grad_(True)
    assert weights_hash(module) == digest(thawed) != frozen


# --- steps ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "finetune(epochs=2, weight_decay=0.5, learning_rate=0.05)",
        "finetune(epochs=1, optimizer='sgd', weight_decay=0.5)",
        "distill(epochs=1, weight_decay=0.5)",
        "distill(epochs=1, hints='fitnets')",
        "prune_weights(sparsity=0.5) -> finetune(epochs=1, weight_decay=0.5)",
    ],
)
def test_no_training_moves_it(text: str, data: Data, bench: StepContext, tmp_path: Path) -> None:
    model = reloaded(fresh(data), tmp_path)
    *before, training = chain(text).steps
    for step in before:
        model = run(step, model, bench)
        assert frozen_names(model.module) == FROZEN
    trained = run(training, model, bench)
    assert moved(values(model), trained) == {"0.4.bias", "3.weight", "3.bias"}
    assert frozen_names(trained.module) == FROZEN
    statistics = [module.module.get_buffer("0.1.running_mean") for module in (model, trained)]
    assert not torch.equal(*statistics), "as anywhere in torch"


def test_trained_from_fresh_weights_it_is_as_its_author_made_it(
    data: Data, bench: StepContext, tmp_path: Path
) -> None:
    seed_everything(bench.seed)
    expected = values(fresh(data))
    model = fresh(data)
    for text in ("train(epochs=1)", "finetune(epochs=1)"):
        model = reloaded(run(chain(text), model, bench), tmp_path / text[:5])
        assert moved(expected, model) == {"0.4.bias", "3.weight", "3.bias"}


@pytest.mark.parametrize("text", ["train(student='made')", "distill(student='same')"])
def test_students_are_frozen_as_their_authors_made_them(
    text: str, data: Data, bench: StepContext
) -> None:
    assert frozen_names(run(chain(text), fresh(data), bench).module) == FROZEN


def test_fresh_weights_of_an_instance_leave_it_alone(data: Data) -> None:
    """Nothing would train it again, so what is frozen is what the instance came with."""
    model = fresh(data)
    for buffer in model.module.buffers():
        buffer.add_(1)
    before = model.copy()
    reset(model.module)
    assert moved(values(before), model) == {"0.4.bias", "3.weight", "3.bias"}
    pairs = zip(before.module.buffers(), model.module.buffers(), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)


def test_a_layer_cut_narrower_is_frozen_as_it_was(
    data: Data, bench: StepContext, tmp_path: Path
) -> None:
    model = fresh(data)
    cut = run(chain("prune_channels(macs=0.5)"), model, bench)
    assert sum(map(Tensor.numel, cut.module.parameters())) < sum(
        map(Tensor.numel, model.module.parameters())
    )
    assert frozen_names(reloaded(cut, tmp_path).module) == FROZEN
    trained = run(chain("finetune(epochs=1, weight_decay=0.5)"), cut, bench)
    assert moved(values(cut), trained) == {"0.4.bias", "3.weight", "3.bias"}


def test_both_factors_of_a_frozen_layer_are_frozen(
    data: Data, bench: StepContext, tmp_path: Path
) -> None:
    text = "factorize(rank=0.25, form='channel', round_to=1)"
    made = reloaded(run(chain(text), fresh(data), bench), tmp_path)
    factors = {f"0.4.{number}.weight" for number in (0, 1)}
    assert isinstance(made.module[0][4], nn.Sequential)
    assert factors < frozen_names(made.module)
    assert {n for n, p in made.module.named_parameters() if p.requires_grad} == {
        *("0.4.1.bias", "3.0.weight", "3.1.weight", "3.1.bias")
    }


def test_carving_leaves_what_stays_frozen(data: Data, bench: StepContext, tmp_path: Path) -> None:
    made = run(chain("carve(ratio=0.5, width=0.5)"), fresh(data), bench)
    [kept] = {name.split(".")[2] for name in frozen_names(made.module) if name.startswith("0.3.")}
    expected = {n for n in FROZEN if not n.startswith("0.3.") or n.startswith(f"0.3.{kept}.")}
    assert frozen_names(reloaded(made, tmp_path).module) == expected


def test_looking_at_a_module_changes_nothing_in_it(data: Data) -> None:
    model = fresh(data)
    assert output_layers(model.module, model.example) == ["3"]
    assert sound_groups(model.module, model.example).groups
    assert frozen_names(model.module) == FROZEN


def test_where_a_frozen_body_runs_without_gradients_the_head_is_trained(
    data: Data, bench: StepContext
) -> None:
    class Body(nn.Sequential):
        @torch.no_grad()
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    model = fresh(data)
    model.module[0] = Body(*model.module[0]).requires_grad_(False)
    trained = run(chain("finetune(epochs=1)"), model, bench)
    assert moved(values(model), trained) == {"3.weight", "3.bias"}


# --- where nothing is left to train -----------------------------------------------------

TRAININGS = [
    "train(epochs=1)",
    "finetune(epochs=1)",
    "distill(epochs=1)",
    "distill(student='same')",
]
ALL = "all weights of the model are frozen"


@pytest.mark.parametrize("text", TRAININGS)
def test_a_net_frozen_as_a_whole_is_refused(text: str, data: Data, bench: StepContext) -> None:
    stone, step = fresh(data, "stone"), chain(text)
    with pytest.raises(IllegalChain, match=f"^{step.name()}: {ALL}"):
        step.check(replace(bench, enters=stone))
    with pytest.raises(IllegalChain, match=f"^{step.name()}: {ALL}"):
        run(step, stone, bench)
    assert not [row for row in bench.log.rows if row["kind"] in ("epoch", "soft_labels")]


@pytest.mark.parametrize("text", ["train(student='stone')", "distill(student='stone')"])
def test_a_student_frozen_as_a_whole_is_refused(text: str, data: Data, bench: StepContext) -> None:
    state = torch.get_rng_state()
    with pytest.raises(IllegalChain, match=ALL):
        chain(f"train(epochs=1) -> {text}").check(bench)
    assert torch.equal(torch.get_rng_state(), state)
    chain("train(student='made')").check(replace(bench, enters=fresh(data, "stone")))


@pytest.mark.parametrize(
    "text", ["finetune()", "repeat(2, distill())", "train(epochs=1) -> quantize()"]
)
def test_the_plan_refuses_it_before_any_work(text: str, data: Data) -> None:
    suite = Suite("made", "digits", "cnn-small", (text,), controls=False)
    with pytest.raises(IllegalChain, match=ALL):
        make_plan(suite, data=data, model=build(Blueprint("stone")))
    make_plan(suite, data=data, model=net())


def test_outputs_without_a_weight_that_may_be_trained_are_told(
    data: Data, bench: StepContext
) -> None:
    model = fresh(data, "stone")
    model.module.register_parameter("unused", nn.Parameter(torch.zeros(3)))
    with pytest.raises(StepFailed, match="depend on no weight that may be trained"):
        run(chain("finetune(epochs=1)"), model, bench)


def test_only_biases_may_be_trained(data: Data, bench: StepContext) -> None:
    model = fresh(data, "stone")
    model.module[3].bias.requires_grad_(True)
    for optimizer in ("adamw", "sgd"):
        step = chain(f"finetune(epochs=1, optimizer={optimizer!r})")
        assert moved(values(model), run(step, model, bench)) == {"3.bias"}


# --- weights that were made in inference mode -------------------------------------------

FACTORY = """
import torch
from torch import nn

@torch.inference_mode()
def make(num_classes, in_channels=1):
    layers = nn.Conv2d(in_channels, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(128, num_classes))
"""


def test_weights_made_in_inference_mode_can_be_loaded_and_trained(
    data: Data, bench: StepContext, tmp_path: Path
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(FACTORY)
    module = from_file(str(file), "make", {}, {"num_classes": 10}, (file,))
    torch.save(module.state_dict(), tmp_path / "weights.pt")
    load_weights(module, tmp_path / "weights.pt", "mine")
    model = Model(module.eval(), data.task.probe())
    trained = run(chain("finetune(epochs=1)"), model, bench)
    assert moved(values(model), trained) == dict(module.named_parameters()).keys()
    again = replace(bench, build=lambda _: replace(model, blueprint=None))
    assert moved(values(model), run(chain("train(student='mine')"), model, again))


def test_so_can_an_instance(data: Data, bench: StepContext) -> None:
    with torch.inference_mode():
        module = net()
    suite = Suite("made", "digits", "cnn-small", ("finetune()",), controls=False)
    model = make_plan(suite, data=data, model=module).start
    trained = run(chain("finetune(epochs=1)"), model, bench)
    assert moved(values(model), trained) == {"0.4.bias", "3.weight", "3.bias"}
