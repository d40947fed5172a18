"""Suites: the schema, and that every built-in one is legal."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from compress.benchmark.plan.plan import make_plan
from compress.benchmark.plan.rows import rows_of
from compress.benchmark.plan.suite import load_suite, parse_suite, suite_names
from compress.errors import UserError

GOOD = "data = 'digits'\nmodel = 'mlp'\nchains = ['train() -> quantize()']\n"


def test_defaults() -> None:
    suite = parse_suite("mine", GOOD)
    assert suite.seeds == (0,)
    assert suite.chains == ("train() -> quantize()",)
    assert suite.controls is True
    assert suite.metric is None


def test_true_and_false_are_no_numbers_but_switch_the_controls() -> None:
    assert parse_suite("mine", GOOD + "controls = false").controls is False


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (GOOD + "chain = ['a']", "unknown key in suite mine 'chain'. Did you mean 'chains'"),
        ("data = 'digits'\nmodel = 'mlp'", "the key 'chains' is missing"),
        (
            GOOD + "seeds = ['a']",
            "suite mine: seeds = ['a']: Expected `int`, got `str` - at `$[0]`",
        ),
        (GOOD + "seeds = [1, 1]", "different whole numbers"),
        (GOOD + "mean = [0.5]", "give mean and std together"),
        (GOOD + "threads = 0", "threads must be at least 1"),
        (GOOD + "size = 'big'", "size = 'big': Expected `int`, got `str`"),
        (GOOD + "precision = 'half'", "precision must be one of"),
        (GOOD + "controls = 1", "controls = 1: Expected `bool`, got `int`"),
        (GOOD + "threads = true", "threads = True: Expected `int | null`, got `bool`"),
        (GOOD + "seeds = [true]", "seeds = [True]: Expected `int`, got `bool`"),
        (GOOD + "margin = 0", "margin must be above 0 and at most 100, in points"),
        (GOOD + "margin = 100.5", "not 100.5: it is the loss that a row must be shown"),
        (GOOD + "margin = nan", "margin must be above 0"),
        (GOOD + "margin = '1 %'", "margin = '1 %': Expected `float`, got `str`"),
        (GOOD + "metric = 5", "metric = 5: Expected `str | null`, got `int`"),
        (GOOD + "timing_seconds = 0", "timing_seconds must be positive"),
        ("data = 'digits'\nmodel = 'mlp'\nchains = []", "it has no chains"),
        ("data = ", "not valid TOML"),
        (GOOD + "[teachers.big]\nweights = 'x'", "Object missing required field `model`"),
        (GOOD + "[teachers.input]\nmodel = 'mlp'", "cannot be called 'input'"),
        (GOOD + "[teachers.big]\nmodel = 'mlp'\nwidth = 3", "unknown key of teacher 'big' 'width'"),
    ],
)
def test_refused_with_a_sentence(text: str, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_suite("mine", text)
    assert sentence in str(caught.value)


@pytest.mark.parametrize("name", ["digits", "mnist", "cifar10"])
def test_built_in_suites_are_legal_and_described(name: str) -> None:
    suite = load_suite(name)
    _, rows = rows_of(suite, has_weights=suite.weights is not None)
    asked = [row for row in rows if not row.role]
    assert len(asked) == len(suite.chains) + 1
    assert rows[: len(asked)] == tuple(asked)
    assert len(suite_names()[name]) > 20


def test_digits_has_what_the_demo_promises() -> None:
    text = " ; ".join(load_suite("digits").chains)
    for name in ("distill", "prune_weights", "prune_channels", "factorize", "quantize", "finetune"):
        assert name in text
    assert len(load_suite("digits").chains) >= 12


def test_a_suite_states_its_baseline_once() -> None:
    suite = parse_suite(
        "mine",
        "data = 'digits'\nmodel = 'mlp'\n"
        "chains = ['train(epochs=2) -> quantize()', 'train(epochs=3) -> quantize()']",
    )
    with pytest.raises(UserError, match="a suite has one"):
        make_plan(suite)


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ("chains = ['quantize()']", "the model has no weights"),
        ("chains = ['quantize()']\nbaseline = 'quantize()'", "the baseline must be one step"),
        ("chains = ['quantize()']\nbaseline = 'finetune()'", "trains weights on, and none are"),
        ("chains = ['train() -> quantize()', 'train() -> quantize()']", "stands twice"),
        ("chains = ['train() -> distill(student=\"cnn\")']", "unknown model 'cnn'"),
        ("chains = ['train() -> distill(teacher=\"aunt\")']", "unknown teacher 'aunt'"),
        ("chains = ['train() -> quantize()']\nweights = 'no.pt'", "or the weights"),
    ],
)
def test_plans_that_cannot_work(keys: str, sentence: str) -> None:
    text = f"data = 'digits'\nmodel = 'mlp'\n{keys}"
    with pytest.raises(UserError) as caught:
        make_plan(parse_suite("mine", text))
    assert sentence in str(caught.value)


def test_weights_are_looked_for_below_the_data_root(shared_data: Path, tmp_path: Path) -> None:
    (tmp_path / "weights").symlink_to(shared_data / "weights")
    (tmp_path / "cifar10").mkdir()
    shutil.copy(shared_data / "cifar10" / "classes.json", tmp_path / "cifar10")
    for name in ("train-0.npz", "test.npz"):  # some photographs are enough for a plan
        with np.load(shared_data / "cifar10" / name) as arrays:
            np.savez(tmp_path / "cifar10" / name, x=arrays["x"][:500], y=arrays["y"][:500])
    plan = make_plan(load_suite("cifar10"), data_root=tmp_path)
    assert plan.baseline is None
    assert "resnet56-cifar10" in plan.origin
    assert plan.data.task.preprocessing.mean == (0.485, 0.456, 0.406)


PROOFS = sorted((Path(__file__).resolve().parents[2] / "benchmarks").rglob("*.toml"))


@pytest.mark.parametrize("path", PROOFS, ids=lambda path: path.stem)
def test_the_suites_of_our_proofs_are_suites(path: Path) -> None:
    suite = load_suite(str(path))
    _, rows = rows_of(suite, has_weights=suite.weights is not None)
    assert len(rows) > len(suite.chains)
