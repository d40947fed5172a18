"""Ensembles: the averages by hand, building by name, saving, and generations of a repeat."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bench_fixtures import build, fresh_model, make_context, small_digits

from compress import counts
from compress.chain_parser import model_sources
from compress.compressor import run
from compress.ensemble import AVERAGES, Ensemble, averaged, together
from compress.errors import CannotSave, IllegalChain, UserError
from compress.model import INSTANCE, Blueprint, forward, identity, load, save
from compress.stateless_rng import seed_of
from compress.tasks.base import Data
from compress.techniques import chain


@pytest.fixture(scope="module")
def data() -> Data:
    return small_digits()


def test_averages_by_hand() -> None:
    outputs = [torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, -1.0]])]
    assert torch.equal(averaged(outputs, "logits"), torch.tensor([[2.0, 0.5]]))
    weighted = averaged(outputs, "logits", (3, 1))
    assert torch.equal(weighted, torch.tensor([[1.5, 1.25]]))
    mean = (outputs[0].softmax(1) + 3 * outputs[1].softmax(1)) / 4
    torch.testing.assert_close(averaged(outputs, "probabilities", (1, 3)).softmax(1), mean)
    torch.testing.assert_close(averaged(outputs, "probabilities", (1, 3)).exp(), mean)
    assert averaged(outputs[:1], "probabilities") is outputs[0]


def test_the_generations_answer_together(data: Data, tmp_path: Path) -> None:
    context = make_context(data)
    trained = run(chain("train(epochs=2)"), fresh_model(data), context)
    text = "repeat(3, distill(student='same', teacher='input', epochs=1), result='ensemble')"
    made = run(chain(text), trained, replace(context, teacher=trained))
    assert isinstance(made.module, Ensemble)
    generation, inputs, outputs = trained, trained.items(5), []
    for seed in (0, seed_of("repeat", 0, 2), seed_of("repeat", 0, 3)):
        step = chain("distill(student='same', teacher='input', epochs=1)")
        generation = run(step, generation, replace(context, seed=seed, teacher=trained))
        outputs.append(forward(generation.module, inputs).softmax(1))
    expected = torch.stack(outputs).mean(0)
    torch.testing.assert_close(forward(made.module, inputs).softmax(1), expected)
    sizes = [counts.count(model.module, model.example).params for model in (made, trained)]
    assert sizes[0] == 3 * sizes[1]
    save(made, tmp_path, build)
    again = load(tmp_path, build)
    assert torch.equal(forward(again.module, inputs), forward(made.module, inputs))


def test_pruned_members_are_saved_with_their_masks(data: Data, tmp_path: Path) -> None:
    context = make_context(data)
    trained = run(chain("train(epochs=1)"), fresh_model(data), context)
    members = "prune_channels(channels=0.5) -> prune_weights(sparsity=0.5) -> finetune(epochs=1)"
    first = run(chain(members), trained, context)
    second = run(chain("finetune(epochs=1)"), first, context)
    made = together([first, second])
    assert made.sparse == {f"members.{i}.{name}" for i in (0, 1) for name in first.sparse}
    save(made, tmp_path, build)
    again = load(tmp_path, build)
    inputs = trained.items()
    torch.testing.assert_close(
        forward(again.module, inputs).softmax(1),
        (forward(first.module, inputs).softmax(1) + forward(second.module, inputs).softmax(1)) / 2,
    )


def test_by_name(data: Data) -> None:
    made = fresh_model(data, "ensemble(of='cnn-small(width=4)', members=3)")
    assert isinstance(made.module, Ensemble)
    assert len(made.module.members) == 3
    assert made.module.average == "probabilities"
    for name, words in (
        ("ensemble()", "an ensemble is written"),
        ("ensemble(of='mlp', average='mode')", "probabilities, logits"),
        ("ensemble(of='mlp', members=0)", "1 to 64 members, not 0"),
        ("ensemble(of='mlp', members=1000000)", "1 to 64 members"),
        ("ensemble(of='mlp', member=3)", "unknown option of ensemble 'member'"),
        ("ensemble(of=\"ensemble(of='mlp', members=60)\", members=60)", "more than 256 members"),
        ("ensemble(of='nothing')", "unknown model 'nothing'"),
    ):
        with pytest.raises(UserError, match=words.replace("(", r"\(")):
            fresh_model(data, name)


def test_members_come_from_one_factory(data: Data) -> None:
    with pytest.raises(IllegalChain, match="members of one factory"):
        together([fresh_model(data, "mlp"), fresh_model(data, "cnn-small")])


def test_what_no_factory_builds_cannot_be_saved(data: Data, tmp_path: Path) -> None:
    one = fresh_model(data, "mlp(width=8)")
    made = together([replace(one, blueprint=Blueprint(INSTANCE)) for _ in range(2)])
    with pytest.raises(CannotSave, match="no factory builds this module"):
        save(made, tmp_path / "none", build)
    assert not (tmp_path / "none").exists()


def test_the_average_is_part_of_what_a_model_is(data: Data, tmp_path: Path) -> None:
    both = [fresh_model(data, f"ensemble(of='mlp', average={a!r})") for a in AVERAGES]
    assert identity(both[0]) != identity(both[1])
    for made, average in zip(both, AVERAGES, strict=True):
        save(made, tmp_path / average, build)
        again = load(tmp_path / average, build)
        inputs = made.items()
        outputs = [forward(member, inputs) for member in made.module.members]
        torch.testing.assert_close(forward(again.module, inputs), averaged(outputs, average))


def test_an_ensemble_of_ensembles_is_built(data: Data) -> None:
    inner = "ensemble(of='mlp(width=4)', members=2)"
    made = fresh_model(data, f"ensemble(of={inner!r}, members=3)")
    assert len([m for m in made.module.modules() if isinstance(m, Ensemble)]) == 4


def test_too_many_members_are_refused_before_any_training() -> None:
    with pytest.raises(IllegalChain, match="at most 64 members"):
        chain("repeat(65, distill(student='same', teacher='input'), result='ensemble')")


def test_the_files_that_an_ensembles_members_come_from_are_found() -> None:
    assert model_sources("ensemble(of='mine.py:make(width=2)', members=3)") == {"mine.py"}
    assert model_sources("torchvision:resnet18") == {"torchvision"}
    assert model_sources("mlp") == set()
