"""A user's own metric: found, tried before any work, and never in the way of other figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bench_fixtures import small_digits
from sklearn.metrics import roc_auc_score

from compress.benchmark.plan.metric import Metric, find_metric
from compress.benchmark.plan.plan import make_plan
from compress.benchmark.plan.suite import parse_suite
from compress.errors import UserError

CODE = """
import numpy as np

LEVEL = 3

def share_of_threes(outputs, targets):
    return (outputs.argmax(1) == 3).mean()

def breaks(outputs, targets):
    return outputs[0, 99]

def shapeless(outputs, targets):
    return outputs.mean(1)
"""


@pytest.fixture
def code(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(CODE)
    return path


def test_it_is_called_with_outputs_and_targets(code: Path) -> None:
    metric = find_metric(f"{code}:share_of_threes", [code])
    assert metric is not None
    assert metric.name == "share_of_threes"
    outputs = np.eye(10, dtype=np.float16)[[3, 3, 1, 2]]
    assert metric.measure(outputs, np.arange(4)) == (0.5, "")
    metric.check(small_digits().task)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1, 1.0), (np.float32(0.5), 0.5), (torch.tensor(2.0), 2.0), (np.array(3), 3.0), (True, 1.0)],
)
def test_what_counts_as_a_number(value: Any, expected: float) -> None:
    assert Metric("m", lambda *_: value).measure(np.ones((2, 2)), np.ones(2)) == (expected, "")


@pytest.mark.parametrize("value", [None, "0.5", [1.0], np.ones(2), np.nan, float("inf"), 1j])
def test_what_does_not(value: Any) -> None:
    found, reason = Metric("m", lambda *_: value).measure(np.ones((2, 2)), np.ones(2))
    assert found is None
    assert reason == f"the metric m returned {value!r}, not one finite number"


def test_a_metric_that_needs_every_class_passes_the_trial() -> None:
    def auc(outputs: np.ndarray, targets: np.ndarray) -> float:
        shares = np.exp(outputs) / np.exp(outputs).sum(1, keepdims=True)
        return roc_auc_score(targets, shares.astype(np.float64), multi_class="ovr")

    Metric("auc", auc).check(small_digits().task)


def test_a_function_of_a_python_user_needs_no_file() -> None:
    metric = find_metric(np.vdot, [])
    assert metric == Metric("vdot", np.vdot)
    assert find_metric(None, []) is None


SUITE = "data = 'digits'\nmodel = 'mlp'\nchains = ['train() -> quantize()']\n"


@pytest.mark.parametrize(
    ("name", "allowed", "sentence"),
    [
        ("mine.py:share_of_threes", False, "allow it with --allow-code"),
        ("other.py:f", True, "there is no file"),
        ("mine.py:share_of_fours", True, "Did you mean 'share_of_threes'"),
        ("mine.py:LEVEL", True, "unknown metric in"),
        ("mine.py:breaks", True, "the metric breaks raised IndexError"),
        ("mine.py:breaks", True, "with numpy arrays of logits (N, 10) and of class numbers (N,)"),
        ("mine.py:shapeless", True, "not one finite number"),
        ("mine.py", True, "metric must be FILE.py:NAME"),
        ("accuracy", True, "metric must be FILE.py:NAME"),
    ],
)
def test_refused_before_any_work(code: Path, name: str, allowed: bool, sentence: str) -> None:
    suite = parse_suite("mine", f"{SUITE}metric = '{code.parent}/{name}'")
    with pytest.raises(UserError) as caught:
        make_plan(suite, allow_code=[code] if allowed else [])
    assert sentence in str(caught.value)


MODEL = """
from torch import nn

def make(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))

def half(outputs, targets):
    return 0.5
"""


def test_steps_are_kept_when_only_the_metric_changes(code: Path) -> None:
    """Another metric is no reason to train again; another model is."""

    def context(text: str) -> dict[str, object]:
        return make_plan(parse_suite("mine", text), allow_code=[code]).step_inputs

    plain = make_plan(parse_suite("mine", SUITE)).step_inputs
    assert context(f"{SUITE}metric = '{code}:share_of_threes'") == plain
    code.write_text(MODEL)
    assert context(f"{SUITE}metric = '{code}:half'") == plain
    with_model = SUITE.replace("'mlp'", f"'{code}:make'")
    first = context(f"{with_model}metric = '{code}:half'")
    code.write_text(MODEL.replace("0.5", "0.25"))
    assert context(f"{with_model}metric = '{code}:half'") != first
