"""Losses of distillation against formulas written out, scipy, and identities of the papers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from compress.techniques.losses import correlation, dist, dkd, kd, logits, standardized

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
    student, teacher, _ = pair()
    value = kd(student, teacher, heat)
    assert float(value) == pytest.approx(
        by_hand(student.tolist(), teacher.tolist(), heat), rel=1e-4
    )
    assert float(kd(teacher, teacher, heat)) == pytest.approx(0, abs=1e-5)


def test_logits_is_summed_over_logits_and_averaged_over_the_batch() -> None:
    student = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    teacher = torch.tensor([[0.0, 0.0], [3.0, 0.0]])
    assert float(logits(student, teacher, 4.0)) == pytest.approx((1 + 4 + 9 + 0) / 2)


@pytest.mark.parametrize("heat", HEATS)
@pytest.mark.parametrize("seed", range(5))
def test_dkd_weighted_by_the_teachers_doubt_is_kd(heat: float, seed: int) -> None:
    """Equation 5 of the paper: KD = TCKD + (1 - p_t) · NCKD, item by item."""
    student, teacher, targets = pair(seed)
    for i in range(len(student)):
        one = slice(i, i + 1)
        doubt = 1 - F.softmax(teacher[one] / heat, dim=1)[0, targets[i]]
        value = dkd(student[one], teacher[one], heat, targets[one], beta=float(doubt))
        torch.testing.assert_close(
            value, kd(student[one], teacher[one], heat), rtol=1e-4, atol=1e-5
        )


def test_dkd_counts_the_other_classes_alike_however_sure_the_teacher_is() -> None:
    """The second part sees the non-target logits alone, so the target's logit has no part in it."""
    student, teacher, targets = pair()
    gap = dkd(student, teacher, 2.0, targets, beta=3.0) - dkd(
        student, teacher, 2.0, targets, beta=1.0
    )
    sure = teacher.clone()
    sure[torch.arange(len(sure)), targets] += 10
    again = dkd(student, sure, 2.0, targets, beta=3.0) - dkd(student, sure, 2.0, targets, beta=1.0)
    torch.testing.assert_close(gap, again, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("heat", HEATS)
def test_dist_is_one_minus_pearsons_correlations_by_scipy(heat: float) -> None:
    student, teacher, _ = pair()
    ours, theirs = (special.softmax(x.numpy() / heat, axis=1) for x in (student, teacher))
    inter = np.mean([1 - stats.pearsonr(a, b).statistic for a, b in zip(ours, theirs, strict=True)])
    intra = np.mean(
        [1 - stats.pearsonr(a, b).statistic for a, b in zip(ours.T, theirs.T, strict=True)]
    )
    assert float(dist(student, teacher, heat)) == pytest.approx(heat**2 * (inter + intra), rel=1e-3)


def test_correlation_of_constant_rows_is_finite() -> None:
    assert correlation(torch.ones(2, 3), torch.rand(2, 3)).tolist() == [0, 0]


@given(st.floats(0.1, 20), st.floats(-50, 50), st.integers(0, 50))
def test_standardized_logits_forget_scale_and_shift(scale: float, shift: float, seed: int) -> None:
    """What 2403.01427 is for: the student need not match the teacher's range of logits."""
    student, teacher, _ = pair(seed)
    z = standardized(student)
    torch.testing.assert_close(z.mean(1), torch.zeros(7), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.std(1), torch.ones(7), atol=1e-4, rtol=0)
    plain = kd(z, standardized(teacher), 2.0)
    moved = kd(standardized(scale * student + shift), standardized(teacher), 2.0)
    torch.testing.assert_close(moved, plain, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", ["kd", "logits", "dkd", "dist"])
def test_every_loss_is_least_at_the_teacher_and_descends_to_it(name: str) -> None:
    loss = {"kd": kd, "logits": logits, "dkd": dkd, "dist": dist}[name]
    student, teacher, targets = pair()
    assert float(loss(teacher, teacher, 2.0, targets)) == pytest.approx(0, abs=1e-4)
    moving = student.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([moving], 0.1)
    first = float(loss(student, teacher, 2.0, targets))
    for _ in range(300):
        optimizer.zero_grad()
        value = loss(moving, teacher, 2.0, targets)
        value.backward()
        optimizer.step()
    assert float(value.detach()) < 0.02 * first
