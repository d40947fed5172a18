"""Texts from before losses had options of their own mean what they meant, in today's form."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from bench_fixtures import fresh_model, make_context, small_digits
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats
from torch import Tensor

from compress.compressor import run
from compress.errors import UserError
from compress.model import Model
from compress.tasks.base import Data
from compress.techniques import chain
from compress.techniques.distill import Distill
from compress.techniques.flat_options import OF_HINT, OF_LOSS
from compress.training import Batch

PAIRS = [
    ("", ""),
    ("loss='kd'", ""),
    ("loss='dkd'", "loss=dkd()"),
    ("temperature=2.0", "loss=kd(temperature=2.0)"),
    ("temperature=4.0, soft_weight=0.9, standardize=False, logits_weight=0", ""),
    (
        "loss='logits', hint_weight=1.0, hints='fitnets'",
        "loss=logits(), hints='fitnets'",
    ),
    ("loss='logits', hard_weight=1.0, soft_weight=0.1", "loss=logits(weight=0.1), hard_weight=1.0"),
    ("loss='logits', standardize=True", "loss=logits(standardize=True)"),
    ("loss='dkd', beta=3.0, hard_weight=1.0", "loss=dkd(beta=3.0), hard_weight=1.0"),
    (
        "loss='dist', hard_weight=1.0, temperature=1.0, standardize=True",
        "loss=dist(temperature=1.0, standardize=True), hard_weight=1.0",
    ),
    (
        "standardize=True, temperature=2.0, soft_weight=9.0",
        "loss=kd(temperature=2.0, weight=9.0, standardize=True)",
    ),
    (
        "annealing='linear', final_temperature=1.0",
        "loss=kd(final_temperature=1.0), annealing='linear'",
    ),
    (
        "annealing='cosine', temperature=8, final_temperature=2, temperature_schedule='cosine'",
        "loss=kd(temperature=8, final_temperature=2, temperature_schedule='cosine'), "
        "annealing='cosine'",
    ),
    ("logits_weight=0.05", "loss=[kd(), logits(weight=0.05)]"),
    (
        "logits_weight=0.05, standardize=True",
        "loss=[kd(standardize=True), logits(weight=0.05, standardize=True)]",
    ),
    ("soft_weight=0, logits_weight=0.2", "loss=logits(weight=0.2)"),
    (
        "soft_weight=0, logits_weight=0.2, standardize=True, hard_weight=0",
        "loss=logits(weight=0.2, standardize=True), hard_weight=0",
    ),
    (
        "logits_weight=0.05, annealing='linear'",
        "loss=[kd(), logits(weight=0.05)], annealing='linear', final_hard_weight=1.0",
    ),
    (
        "soft_weight=0, logits_weight=0.2, annealing='linear'",
        "loss=logits(weight=0.2), annealing='linear', final_hard_weight=0.1",
    ),
    (
        "loss='logits', soft_weight=0.1, annealing='linear', hard_weight=0.3",
        "loss=logits(weight=0.1), annealing='linear', hard_weight=0.3",
    ),
    (
        "loss='dkd', logits_weight=0.1, beta=0.5, temperature=2, soft_weight=0.75, "
        "annealing='cosine', hard_weight=0.25",
        "loss=[dkd(beta=0.5, temperature=2, weight=0.75), logits(weight=0.1)], "
        "annealing='cosine', hard_weight=0.25, final_hard_weight=1.0",
    ),
    ("soft_weight=0, hints='fitnets'", "loss=[], hints=fitnets()"),
    ("hints='none'", ""),
    ("hints='attention', hint_weight=10.0", "hints=attention(weight=10.0)"),
    (
        "hints='fitnets', hint_layers=['a:b', 'c:d'], temperature=2",
        "hints=fitnets(layers=['a:b', 'c:d']), loss=kd(temperature=2)",
    ),
]
"""Options of earlier versions, and those of today."""
FLAT = re.compile("|".join([*(set(OF_LOSS) - {"temperature", "beta", "standardize"}), *OF_HINT]))


@pytest.mark.parametrize(("old", "new"), PAIRS)
def test_every_flat_text_has_todays_form_and_shows_it(old: str, new: str) -> None:
    step = chain(f"distill({old})")
    assert step == chain(f"distill({new})")
    assert repr(step) == repr(chain(f"distill({new})"))
    assert chain(repr(step)) == step


# --- the formulas of before, by numpy and scipy ----------------------------------------------


def softened(values: np.ndarray, heat: float) -> np.ndarray:
    return special.softmax(values / heat, axis=1)


def kullback(p: np.ndarray, q: np.ndarray) -> float:
    return float((p * np.log(p / q)).sum(1).mean())


def kd(ours: np.ndarray, theirs: np.ndarray, labels: np.ndarray, heat: float, beta: float) -> float:
    return kullback(softened(theirs, heat), softened(ours, heat))


def dkd(
    ours: np.ndarray, theirs: np.ndarray, labels: np.ndarray, heat: float, beta: float
) -> float:
    target = np.eye(ours.shape[1])[labels].astype(bool)
    binary, others = [], []
    for values in (theirs, ours):
        p = softened(values, heat)
        binary.append(np.stack([p[target], 1 - p[target]], axis=1))
        others.append(softened(values[~target].reshape(len(values), -1), heat))
    return kullback(*binary) + beta * kullback(*others)


def dist(
    ours: np.ndarray, theirs: np.ndarray, labels: np.ndarray, heat: float, beta: float
) -> float:
    p, q = softened(ours, heat), softened(theirs, heat)
    return sum(
        float(np.mean([1 - stats.pearsonr(a, b).statistic for a, b in zip(x, y, strict=True)]))
        for x, y in ((p, q), (p.T, q.T))
    )


def squared(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(((ours - theirs) ** 2).sum(1).mean())


def before(
    student: np.ndarray,
    teacher: np.ndarray,
    labels: np.ndarray,
    done: float,
    *,
    loss: str = "kd",
    temperature: float = 4.0,
    hard_weight: float = 0.1,
    soft_weight: float = 0.9,
    standardize: bool = False,
    final_temperature: float | None = None,
    temperature_schedule: str = "linear",
    annealing: str = "constant",
    beta: float = 2.0,
    logits_weight: float = 0.0,
) -> float:
    """Return what `distill` minimised with flat options, without hints."""
    gone = {"constant": 0.0, "linear": done, "cosine": (1 - math.cos(math.pi * done)) / 2}
    last = temperature if final_temperature is None else final_temperature
    heat = temperature + (last - temperature) * gone[temperature_schedule]
    left = 1 - gone[annealing]
    ours, theirs = student, teacher
    if standardize:
        ours, theirs = (stats.zscore(values, axis=1, ddof=1) for values in (ours, theirs))
    if loss == "logits":
        soft = squared(ours, theirs)
    else:
        soft = heat**2 * {"kd": kd, "dkd": dkd, "dist": dist}[loss](
            ours, theirs, labels, heat, beta
        )
    hard = -float(special.log_softmax(student, axis=1)[np.arange(len(labels)), labels].mean())
    outputs = soft_weight * soft + logits_weight * squared(ours, theirs)
    return (hard_weight + (1 - left) * soft_weight) * hard + left * outputs


WITHOUT_HINTS = [old for old, _ in PAIRS if "hint" not in old]


def total(text: str, student: Tensor, teacher: Tensor, labels: Tensor, done: float) -> float:
    """Return what a step minimises, for logits of both."""
    step, data = chain(text), small_digits()
    assert isinstance(step, Distill)
    answers: Any = lambda batch: teacher  # noqa: E731
    loss = step._loss(answers, None, make_context(data))
    return float(loss(student, Batch(torch.arange(len(labels)), (), labels, progress=done)))


@pytest.mark.parametrize("old", WITHOUT_HINTS)
def test_the_total_is_that_of_the_old_formulas(old: str) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(12, 10, generator=generator) for _ in range(2))
    labels = torch.randint(10, (12,), generator=generator)
    options = eval(f"dict({old})")
    arrays = [tensor.double().numpy() for tensor in (student, teacher)]
    for done in (0.0, 0.25, 1.0):
        expected = before(*arrays, labels.numpy(), done, **options)
        assert total(f"distill({old})", student, teacher, labels, done) == pytest.approx(
            expected, rel=1e-4
        )


# --- the same weights ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def taught() -> tuple[Data, Model]:
    data = small_digits()
    return data, run(chain("train(epochs=4, batch_size=32)"), fresh_model(data), make_context(data))


def flat_loss(soft: str, options: dict[str, Any]) -> Any:
    """Return `Distill._loss` as it was with flat options, with a plain loss of its own."""

    def divergence(ours: Tensor, theirs: Tensor) -> Tensor:
        logs = [F.log_softmax(values, dim=1) for values in (ours, theirs)]
        return F.kl_div(*logs, reduction="batchmean", log_target=True)

    def make(step: Distill, labels: Any, inside: Any, context: Any) -> Any:
        def loss(outputs: Tensor, batch: Batch) -> Tensor:
            ours, theirs = outputs, labels(batch)
            left = 1.0 + (0.0 - 1.0) * batch.progress if options.get("annealing") else 1.0
            first = options.get("temperature", 4.0)
            last = options.get("final_temperature", first)
            heat = first + (last - first) * batch.progress
            weight, hard = options.get("soft_weight", 0.9), options.get("hard_weight", 0.1)
            value = outputs.new_zeros(())
            if options.get("standardize"):
                ours, theirs = (
                    (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-7)
                    for x in (ours, theirs)
                )
            if soft == "kd":
                value = value + weight * left * (divergence(ours / heat, theirs / heat) * heat**2)
            else:
                value = value + weight * left * (ours - theirs).square().sum(1).mean()
            if "logits_weight" in options:
                squares = (ours - theirs).square().sum(1).mean()
                value = value + options["logits_weight"] * left * squares
            hard += (1 - left) * weight
            return value + hard * F.cross_entropy(outputs, batch.targets)

        return loss

    return make


@pytest.mark.parametrize(
    "old",
    [
        "",
        "final_temperature=1.0, annealing='linear'",
        "standardize=True, temperature=2.0, soft_weight=9.0",
        "logits_weight=0.05, annealing='linear'",
        "loss='logits', soft_weight=0.1, hard_weight=1.0",
    ],
)
def test_a_training_gives_the_very_weights_of_the_old_formulas(
    old: str, taught: tuple[Data, Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, teacher = taught
    options = eval(f"dict({old})")
    text = f"distill(student='mlp', epochs=2, batch_size=32{', ' if old else ''}{old})"
    made = run(chain(text), teacher, make_context(data, teacher)).module.state_dict()
    monkeypatch.setattr(Distill, "_loss", flat_loss(options.pop("loss", "kd"), options))
    once = run(chain(text), teacher, make_context(data, teacher)).module.state_dict()
    assert all(torch.equal(made[name], once[name]) for name in once)


# --- what cannot be read ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("temperature=0", "kd: temperature must be positive, not 0"),
        ("loss='logits', temperature=2.0", "unknown option of logits 'temperature'"),
        ("beta=3.0", "unknown option of kd 'beta'"),
        ("loss='dkd', beta=-1.0", "beta must be >= 0"),
        ("temperature_schedule='cosine'", "temperature_schedule needs a final_temperature"),
        ("standardize=1", "standardize is True or False"),
        ("soft_weight=-1", "weight must be positive"),
        ("soft_weight=0", "that is train() or finetune()"),
        ("loss='mse', temperature=2.0", "unknown loss 'mse'"),
        (
            "loss=kd(), temperature=2.0",
            "temperature belongs inside a loss's parentheses: kd(temperature=2.0)",
        ),
        (
            "loss=[logits(), 'dkd'], beta=3.0, soft_weight=0.5",
            "beta, soft_weight belong inside a loss's parentheses: dkd(beta=3.0, weight=0.5)",
        ),
        (
            "loss=logits(), temperature=3",
            "temperature belongs inside a loss's parentheses: kd(temperature=3)",
        ),
        (
            "hints=fitnets(), hint_weight=5.0",
            "hint_weight belongs inside a hint's parentheses: fitnets(weight=5.0)",
        ),
        (
            "loss=['kd'], logits_weight=2.0",
            "logits_weight belongs inside a loss's parentheses: logits(weight=2.0)",
        ),
        ("loss='logits', logits_weight=0.1", "differ in their weight alone"),
        ("logits_weight=-1", "weight must be positive"),
        (
            "logits_weight=0.1, soft_weight=0, temperature=2",
            "soft_weight is 0: leave out temperature",
        ),
        ("logits_weight=0.1, soft_weight=0, loss='dist'", "soft_weight is 0: leave out loss"),
        (
            "hints='fitnets', soft_weight=0, standardize=True",
            "soft_weight is 0: leave out standardize",
        ),
        ("logits_weight=0.1, teacher=['a', 'b']", "several teachers with average='logits'"),
        (
            "logits_weight=0.1, soft_weight=0, hard_weight=0, annealing='linear'",
            "fades out all there is",
        ),
        ("logits_weight=0.1, hard_weight='x', annealing='linear'", "hard_weight must be >= 0"),
        ("hint_weight=3.0", "belongs inside a hint's parentheses"),
        ("hints='none', hint_layers=['a:b']", "unknown hint 'none'"),
        (
            "hints=fitnets(), hint_layers=['a:b']",
            "belongs inside a hint's parentheses: fitnets(layers=['a:b'])",
        ),
        ("hints='fitnets', hint_weight=0", "weight must be positive"),
        ("hints='all', hint_weight=2", "unknown hint 'all'"),
    ],
)
def test_what_was_refused_is_refused(options: str, words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        chain(f"distill({options})")


NUMBERS = ["0", "1", "-1", "0.5", "True", "None", "nan", "1e999", "[]", "()", "{}", "{1}"]
TEXTS = [
    "'kd'",
    "'logits'",
    "'dkd'",
    "'none'",
    "'fitnets'",
    "'linear'",
    "['kd']",
    "['a:b']",
    "kd()",
]
VALUES = st.sampled_from([*NUMBERS, *TEXTS])
NAMES = [*OF_LOSS, *OF_HINT, "logits_weight", "loss", "hints", "annealing", "hard_weight"]
OPTIONS = st.dictionaries(
    st.sampled_from(sorted({*NAMES} - {"weight", "layers"})), VALUES, max_size=4
)


@settings(max_examples=400, deadline=None)
@given(OPTIONS)
def test_any_flat_options_are_read_or_refused(options: dict[str, str]) -> None:
    text = ", ".join(f"{name}={value}" for name, value in options.items())
    try:
        step = chain(f"distill({text})")
    except UserError:
        return
    assert chain(repr(step)) == step
    assert not FLAT.search(repr(step).replace("final_temperature", "").replace("schedule", ""))
