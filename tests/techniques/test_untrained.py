"""A student as it is built: the shapes of the trained one."""

from __future__ import annotations

import torch
from bench_fixtures import fresh_model, make_context, small_digits

from compress.compressor import run, seed_everything, step_seed
from compress.techniques import chain


def test_it_is_the_student_that_a_training_would_begin_with() -> None:
    data = small_digits()
    context = make_context(data, seed=3)
    made = run(chain("untrained(student='mlp(width=8)')"), fresh_model(data), context)
    seed_everything(step_seed(3, 0))
    expected = context.student("mlp(width=8)")
    for name, value in expected.module.state_dict().items():
        assert torch.equal(value, made.module.state_dict()[name])
    trained = run(chain("train(student='mlp(width=8)', epochs=1)"), fresh_model(data), context)
    shapes = {name: value.shape for name, value in trained.module.state_dict().items()}
    assert {name: value.shape for name, value in made.module.state_dict().items()} == shapes
