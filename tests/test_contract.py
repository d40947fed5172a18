"""What holds for every technique, whatever it does (the table is `cases.py`)."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bench_fixtures import build, fresh_model, make_context, small_digits
from cases import NEUTRAL, TEXTS

from compress import counts
from compress.compressor import Chain, Compressor, leaves, run
from compress.deploy.export import export
from compress.deploy.verify import verify
from compress.errors import IllegalChain
from compress.model import Model, forward, items_like, load, save
from compress.stateless_rng import seed_of
from compress.tasks.base import Data, stacked_inputs
from compress.techniques import chain


@pytest.fixture(scope="module")
def data() -> Data:
    return small_digits()


@pytest.fixture(scope="module")
def trained(data: Data) -> Model:
    return run(chain("train(epochs=3)"), fresh_model(data), make_context(data))


def state(model: Model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.module.state_dict().items()}


def same(a: Model, b: Model) -> bool:
    ours, theirs = a.module.state_dict(), b.module.state_dict()
    return (
        ours.keys() == theirs.keys()
        and all(torch.equal(ours[key], theirs[key]) for key in ours)
        and a.onnx == b.onnx
        and a.sparse == b.sparse
    )


@pytest.fixture(scope="module")
def results(data: Data, trained: Model) -> dict[str, Model]:
    """Every technique applied once to the same trained model."""
    before = state(trained)
    made = {}
    for text in TEXTS:
        made[text] = run(chain(text), trained, make_context(data, teacher=trained))
        after = trained.module.state_dict()
        assert all(torch.equal(before[key], after[key]) for key in before), f"{text} changed it"
    return made


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_repr_and_parses_back(text: str) -> None:
    parsed = chain(text)
    assert chain(repr(parsed)) == parsed
    assert repr(chain(repr(parsed))) == repr(parsed)


@pytest.mark.parametrize("text", TEXTS)
def test_result_is_sound(text: str, results: dict[str, Model], trained: Model) -> None:
    result = results[text]
    assert isinstance(result, Model)
    assert not result.module.training
    assert result.lowered == chain(text).lowers
    outputs = forward(result.module, trained.items(3))
    assert outputs.shape == (3, 10)
    assert outputs.isfinite().all()
    assert all(parameter.dtype == torch.float32 for parameter in result.module.parameters())


@pytest.mark.parametrize("text", TEXTS)
def test_same_seed_same_weights(
    text: str, results: dict[str, Model], data: Data, trained: Model
) -> None:
    again = run(chain(text), trained, make_context(data, teacher=trained))
    assert same(again, results[text])


@pytest.mark.parametrize("text", [text for text in TEXTS if "epochs" in text])
def test_another_seed_gives_other_weights(
    text: str, results: dict[str, Model], data: Data, trained: Model
) -> None:
    other = run(chain(text), trained, make_context(data, teacher=trained, seed=1))
    assert not same(other, results[text])


@pytest.mark.parametrize("text", NEUTRAL)
def test_neutral_setting_changes_nothing(text: str, data: Data, trained: Model) -> None:
    assert same(run(chain(text), trained, make_context(data, teacher=trained)), trained)


@pytest.mark.parametrize("text", TEXTS)
def test_save_and_load_gives_equal_model(
    text: str, results: dict[str, Model], tmp_path: Path
) -> None:
    result = results[text]
    save(result, tmp_path, build)
    again = load(tmp_path, build)
    assert state(again).keys() == state(result).keys()
    assert all(torch.equal(a, b) for a, b in zip(*map(_tensors, (again, result)), strict=True))
    assert again.sparse == result.sparse
    inputs = result.items(5)
    torch.testing.assert_close(forward(again.module, inputs), forward(result.module, inputs))
    assert counts.macs(again.module, again.example) == counts.macs(result.module, result.example)


def _tensors(model: Model) -> list[torch.Tensor]:
    return [tensor for _, tensor in sorted(model.module.state_dict().items())]


def test_save_and_load_in_another_process(results: dict[str, Model], tmp_path: Path) -> None:
    texts = ["prune_channels(macs=0.5)", "factorize(rank=0.3)"]
    inputs = items_like(results[texts[0]].probe, 4)
    for number, text in enumerate(texts):
        save(results[text], tmp_path / str(number), build)
    script = (
        "import json, sys, torch, compress\n"
        "from compress.model import forward, items_like\n"
        "made = [compress.load(folder) for folder in sys.argv[1:]]\n"
        "print(json.dumps([forward(m.module, items_like(m.probe, 4)).tolist() for m in made]))"
    )
    folders = [str(tmp_path / str(number)) for number in range(len(texts))]
    answer = subprocess.run(
        [sys.executable, "-c", script, *folders], capture_output=True, text=True, check=True
    )
    for text, outputs in zip(texts, json.loads(answer.stdout), strict=True):
        torch.testing.assert_close(torch.tensor(outputs), forward(results[text].module, inputs))


@pytest.mark.parametrize("text", TEXTS)
def test_deploys_as_a_verified_file(text: str, results: dict[str, Model], data: Data) -> None:
    result = results[text]
    onnx = result.onnx or export(result)
    inputs = stacked_inputs(data.task, data.test, 128)
    verdict = verify(onnx, result, inputs, lowered=result.lowered)
    assert verdict.ok, verdict.reason


def legal(first: str, second: str) -> bool:
    """Say by the rules in words whether a pair may chain (an oracle apart from the code's)."""
    if first.startswith(("quantize", "cast")):
        return False
    restarts = second.startswith(("train", "untrained")) or (
        second.startswith("distill(student") and "'input'" not in second and "'same'" not in second
    )
    starts_fresh = first.startswith("train(epochs")
    return not restarts or (starts_fresh and "student" in second)


@pytest.mark.parametrize("first", TEXTS)
def test_every_ordered_pair_chains_or_refuses_with_a_reason(first: str) -> None:
    for second in TEXTS:
        text = f"{first} -> {second}"
        if legal(first, second):
            pair = chain(text)
            assert isinstance(pair, Chain), text
            assert [repr(step) for step in pair.steps] == [repr(chain(first)), repr(chain(second))]
        else:
            with pytest.raises(IllegalChain, match=r"deployed|fresh weights"):
                chain(text)


SAMPLE = [
    *(
        pair
        for pair in itertools.product(
            [
                "train(epochs=1)",
                "distill(epochs=1)",
                "prune_weights(sparsity=0.5)",
                "prune_channels(macs=0.5)",
                "factorize(rank=0.3)",
            ],
            [
                "train(student='mlp', epochs=1)",
                "finetune(epochs=1)",
                "distill(student='mlp', epochs=1, teacher='input')",
                "prune_weights(sparsity=0.5)",
                "prune_channels(macs=0.5)",
                "factorize(macs=0.6)",
            ],
        )
        if legal(*pair)
    ),
    # Steps that write the file take seconds each: one start is enough.
    ("prune_channels(macs=0.5)", "quantize(calibration=64)"),
    ("factorize(rank=0.3)", "cast('float16')"),
]


@pytest.mark.parametrize(("first", "second"), SAMPLE)
def test_chain_equals_its_steps_by_hand(
    first: str, second: str, data: Data, trained: Model
) -> None:
    context = make_context(data, teacher=trained)
    together = run(chain(f"{first} -> {second}"), trained, context)
    after = replace(context, position=len(leaves(chain(first))))
    by_hand = run(chain(second), run(chain(first), trained, context), after)
    assert same(together, by_hand)


def test_repeat_equals_its_steps_by_hand(data: Data, trained: Model) -> None:
    together = run(
        chain("repeat(2, prune_weights(sparsity=0.6) -> finetune(epochs=1))"),
        trained,
        make_context(data, teacher=trained),
    )
    by_hand = trained
    for seed, sparsity in ((0, 0.3), (seed_of("repeat", 0, 2), 0.6)):
        step: Compressor = chain(f"prune_weights(sparsity={sparsity}) -> finetune(epochs=1)")
        by_hand = run(step, by_hand, make_context(data, teacher=trained, seed=seed))
    assert same(together, by_hand)
    counted = counts.count(together.module, together.example)
    assert counted.nonzero_params < 0.5 * counted.params
