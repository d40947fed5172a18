"""Losses against formulas written out, and what the student learns from."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from bench_fixtures import fresh_model, make_bench, small_digits

from compress.compressor import Journal, run
from compress.errors import IllegalChain, UserError
from compress.task import TensorSplit
from compress.techniques import chain
from compress.techniques.losses import kd, logits
from compress.training import accuracy


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


@pytest.mark.parametrize("heat", [0.5, 1.0, 4.0])
def test_kd_is_hintons_formula(heat: float) -> None:
    student, teacher = [[1.0, 2.0, -1.0], [0.0, 0.5, 3.0]], [[2.0, 0.0, 1.0], [1.0, 1.0, -2.0]]
    value = kd(torch.tensor(student), torch.tensor(teacher), heat)
    assert float(value) == pytest.approx(by_hand(student, teacher, heat), rel=1e-5)
    assert float(kd(torch.tensor(teacher), torch.tensor(teacher), heat)) == pytest.approx(
        0, abs=1e-6
    )


def test_logits_is_summed_over_logits_and_averaged_over_the_batch() -> None:
    student, teacher = (
        torch.tensor([[1.0, 2.0], [0.0, 0.0]]),
        torch.tensor([[0.0, 0.0], [3.0, 0.0]]),
    )
    assert float(logits(student, teacher, 4.0)) == pytest.approx((1 + 4 + 9 + 0) / 2)


def test_without_labels_the_student_still_learns_the_teachers_answers() -> None:
    """With hard_weight 0 and shuffled labels, only the teacher can be the source."""
    data = small_digits()
    bench = make_bench(data)
    teacher = run(chain("train(epochs=12, batch_size=32)"), fresh_model(data), bench)
    raw, targets = data.train.fetch(torch.arange(len(data.train)))
    liars = TensorSplit(raw, targets.roll(1))
    bench = replace(bench, teacher=teacher, train=liars, journal=Journal())
    step = chain("distill(student='mlp', epochs=15, batch_size=32, hard_weight=0)")
    assert "labels" not in step.needs
    student = run(step, teacher, bench)
    assert accuracy(student.module, data.task, data.test) > 0.75


def test_teachers() -> None:
    data = small_digits()
    bench = make_bench(data)
    model = run(chain("train(epochs=2)"), fresh_model(data), bench)
    with pytest.raises(IllegalChain, match="teacher"):
        run(chain("distill(epochs=1)"), model, bench)
    with pytest.raises(UserError, match="unknown teacher 'aunt'"):
        run(chain("distill(epochs=1, teacher='aunt')"), model, bench)
    named = replace(bench, models={"aunt": model}, teacher=model)
    by_name = run(chain("distill(epochs=1, teacher='aunt')"), model, named)
    by_default = run(chain("distill(epochs=1)"), model, named)
    for ours, theirs in zip(
        by_name.module.parameters(), by_default.module.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_journal_counts_samples_seen() -> None:
    data = small_digits()
    bench = make_bench(data)
    run(chain("train(epochs=2, batch_size=64) -> finetune(epochs=1)"), fresh_model(data), bench)
    assert bench.journal.samples == 3 * len(data.train)
