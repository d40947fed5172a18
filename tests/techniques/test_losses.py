"""Losses of distillation against formulas written out, scipy, and identities of the papers."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from compress.errors import IllegalChain
from compress.techniques import chain
from compress.techniques.distill import Distill
from compress.techniques.losses import (
    BUILT_IN,
    Dist,
    Dkd,
    Kd,
    Logits,
    Loss,
    SoftenedLoss,
    correlation,
    losses,
    standardized,
)

HEATS = [0.5, 1.0, 4.0]


def pair(seed: int = 0, count: int = 7, classes: int = 5) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (3 * torch.randn(count, classes, generator=generator) for _ in range(2))
    return student, teacher, torch.randint(classes, (count,), generator=generator)


def by_hand(student: list[list[float]], teacher: list[list[float]], heat: float) -> float:
    """T² · sum p · log(p / q), averaged over the batch, in plain Python."""

    def softmax(row: list[float]) -> list[float]:
        powers = [math.exp(value / heat) for value in row]
        return [power / sum(powers) for power in powers]

    total = 0.0
    for ours, theirs in zip(student, teacher, strict=True):
        q, p = softmax(ours), softmax(theirs)
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return heat**2 * total / len(student)


@pytest.mark.parametrize("heat", HEATS)
def test_kd_is_hintons_formula(heat: float) -> None:
    student, teacher, targets = pair()
    loss = Kd(temperature=heat)
    value = loss(student, teacher, targets)
    assert float(value) == pytest.approx(
        by_hand(student.tolist(), teacher.tolist(), heat), rel=1e-4
    )
    assert float(loss(teacher, teacher, targets)) == pytest.approx(0, abs=1e-5)


def test_logits_is_summed_over_logits_and_averaged_over_the_batch() -> None:
    student = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    teacher = torch.tensor([[0.0, 0.0], [3.0, 0.0]])
    assert float(Logits()(student, teacher, torch.zeros(2))) == pytest.approx((1 + 4 + 9 + 0) / 2)


@pytest.mark.parametrize("heat", HEATS)
@pytest.mark.parametrize("seed", range(5))
def test_dkd_weighted_by_the_teachers_doubt_is_kd(heat: float, seed: int) -> None:
    """Equation 5 of the paper: KD = TCKD + (1 - p_t) · NCKD, item by item."""
    student, teacher, targets = pair(seed)
    for i in range(len(student)):
        one = slice(i, i + 1)
        doubt = 1 - F.softmax(teacher[one] / heat, dim=1)[0, targets[i]]
        loss = Dkd(temperature=heat, beta=float(doubt))
        value = loss(student[one], teacher[one], targets[one])
        plain = Kd(temperature=heat)(student[one], teacher[one], targets[one])
        torch.testing.assert_close(value, plain, rtol=1e-4, atol=1e-5)


def test_dkd_counts_the_other_classes_alike_however_sure_the_teacher_is() -> None:
    """The second part sees the non-target logits alone, so the target's logit has no part in it."""
    student, teacher, targets = pair()
    more, less = (Dkd(temperature=2.0, beta=beta) for beta in (3.0, 1.0))
    gap = more(student, teacher, targets) - less(student, teacher, targets)
    sure = teacher.clone()
    sure[torch.arange(len(sure)), targets] += 10
    again = more(student, sure, targets) - less(student, sure, targets)
    torch.testing.assert_close(gap, again, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("heat", HEATS)
def test_dist_is_one_minus_pearsons_correlations_by_scipy(heat: float) -> None:
    student, teacher, targets = pair()
    ours, theirs = (special.softmax(x.numpy() / heat, axis=1) for x in (student, teacher))
    inter = np.mean([1 - stats.pearsonr(a, b).statistic for a, b in zip(ours, theirs, strict=True)])
    intra = np.mean(
        [1 - stats.pearsonr(a, b).statistic for a, b in zip(ours.T, theirs.T, strict=True)]
    )
    value = float(Dist(temperature=heat)(student, teacher, targets))
    assert value == pytest.approx(heat**2 * (inter + intra), rel=1e-3)


def test_correlation_of_constant_rows_is_finite() -> None:
    assert correlation(torch.ones(2, 3), torch.rand(2, 3)).tolist() == [0, 0]


@settings(deadline=None)
@given(st.floats(0.1, 20), st.floats(-50, 50), st.integers(0, 50))
def test_standardized_logits_forget_scale_and_shift(scale: float, shift: float, seed: int) -> None:
    """What 2403.01427 is for: the student need not match the teacher's range of logits."""
    student, teacher, targets = pair(seed)
    z = standardized(student)
    torch.testing.assert_close(z.mean(1), torch.zeros(7), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.std(1), torch.ones(7), atol=1e-4, rtol=0)
    loss = Kd(temperature=2.0, standardize=True)
    plain = Kd(temperature=2.0)(z, standardized(teacher), targets)
    assert torch.equal(loss(student, teacher, targets), plain)
    moved = loss(scale * student + shift, teacher, targets)
    torch.testing.assert_close(moved, plain, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("cls", BUILT_IN)
def test_every_loss_is_least_at_the_teacher_and_descends_to_it(cls: type[Loss]) -> None:
    loss = cls(temperature=2.0) if issubclass(cls, SoftenedLoss) else cls()
    student, teacher, targets = pair()
    assert float(loss(teacher, teacher, targets)) == pytest.approx(0, abs=1e-4)
    moving = student.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([moving], 0.1)
    first = float(loss(student, teacher, targets))
    for _ in range(300):
        optimizer.zero_grad()
        value = loss(moving, teacher, targets)
        value.backward()
        optimizer.step()
    assert float(value.detach()) < 0.02 * first


@pytest.mark.parametrize("cls", BUILT_IN)
def test_every_loss_tells_the_truth_of_what_it_looks_at(cls: type[Loss]) -> None:
    student, teacher, targets = pair()
    loss = cls()
    assert cls.wants_single_classes <= cls.wants_labels
    other = loss(student, teacher, (targets + 1) % student.shape[1])
    assert torch.equal(loss(student, teacher, targets), other) != cls.wants_labels
    # The same probabilities, as averaged ones are given.
    shifted = loss(student, F.log_softmax(teacher, dim=1), targets)
    same = torch.allclose(shifted, loss(student, teacher, targets), rtol=1e-4, atol=1e-5)
    assert same != cls.wants_logits


@pytest.mark.parametrize("cls", [cls for cls in BUILT_IN if issubclass(cls, SoftenedLoss)])
def test_the_temperature_moves_along_its_schedule(cls: type[SoftenedLoss]) -> None:
    student, teacher, targets = pair()
    for schedule, early in (("linear", 6.5), ("cosine", 8 - 6 * 0.5 * (1 - math.cos(math.pi / 4)))):
        moving = cls(temperature=8, final_temperature=2, temperature_schedule=schedule)
        for done, heat in ((0.0, 8.0), (0.25, early), (0.5, 5.0), (1.0, 2.0)):
            value = moving(student, teacher, targets, done)
            still = cls(temperature=heat)(student, teacher, targets)
            assert float(value) == pytest.approx(float(still), rel=1e-5)


@pytest.mark.parametrize("cls", BUILT_IN)
def test_every_loss_has_a_name_a_text_and_a_source(cls: type[Loss]) -> None:
    assert losses()[cls.name()] is cls
    step = chain(f"distill(loss={cls.name()}(weight=0.25, standardize=True), epochs=1)")
    assert isinstance(step, Distill)
    assert step.loss == cls(weight=0.25, standardize=True)
    assert eval(repr(step.loss), {cls.name(): cls}) == step.loss
    assert chain(f"distill(loss={cls.name()!r})") == chain(f"distill(loss={cls.name()}())")
    first = (cls.__doc__ or "").strip().partition("\n\n")[0]
    assert re.search(r"(19|20)\d\d", first), "the paper, which `list losses` tells"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("kd(temperature=0)", "kd: temperature must be positive, not 0"),
        ("dist(temperature=-1.5)", "dist: temperature must be positive"),
        ("kd(temperature=True)", "temperature must be positive"),
        ("dkd(final_temperature=0)", "final_temperature must be positive"),
        ("kd(temperature_schedule='cosine')", "temperature_schedule needs a final_temperature"),
        (
            "kd(final_temperature=1.0, temperature_schedule='constant')",
            "temperature_schedule must be one of linear, cosine",
        ),
        ("dkd(beta=-1.0)", "beta must be >= 0"),
        ("logits(weight=0)", "weight must be positive, not 0"),
        ("kd(weight=-1)", "weight must be positive"),
        ("kd(weight='1')", "weight must be positive"),
        ("kd(standardize=1)", "standardize is True or False"),
    ],
)
def test_wrong_options(text: str, words: str) -> None:
    with pytest.raises(IllegalChain, match=re.escape(words)):
        chain(f"distill(loss={text})")
