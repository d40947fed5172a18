"""The text, what is refused, and what the log and the metadata say."""

from __future__ import annotations

from dataclasses import replace

import onnx
import pytest
import torch
from bench_fixtures import fresh_model, make_context, small_digits

from compress.compressor import run
from compress.deploy.export import export
from compress.errors import IllegalChain, StepFailed
from compress.techniques import Cast, chain


def test_the_text_is_positional_and_both_forms_are_read() -> None:
    assert repr(chain("cast(to='float16')")) == "cast('float16')"
    assert chain("cast(to='float16')") == chain("cast('float16')") == Cast("float16")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("cast()", "missing a required argument: 'to'"),
        ("cast('int8')", "to must be 'float16'.*, not 'int8'"),
        ("cast(16)", "to must be 'float16'.*, not 16"),
        ("cast('bfloat16')", "to must be 'float16'.*cannot run bfloat16"),
        ("cast('float16') -> quantize()", "no step may follow"),
        ("repeat(2, cast('float16'))", "cannot be repeated"),
    ],
)
def test_what_is_refused(text: str, reason: str) -> None:
    with pytest.raises(IllegalChain, match=reason.replace("(", r"\(")):
        chain(text)


def test_the_file_is_half_as_large_and_the_step_log_says_how_far_it_is_from_the_limit() -> None:
    data = small_digits()
    context = make_context(data)
    model = fresh_model(data)
    result = run(chain("cast('float16')"), model, context)
    assert result.onnx is not None
    weights = onnx.load_from_string(result.onnx).graph.initializer
    floats = list(onnx.load_from_string(export(model)).graph.initializer)
    sizes = [sum(len(w.raw_data) for w in of if w.data_type != 7) for of in (weights, floats)]
    assert sizes[0] * 2 == sizes[1]
    [row] = [row for row in context.log.rows if row["kind"] == "cast"]
    assert 0 < row["largest_activation"] < 100
    assert row["raised"] == 0
    assert context.log.notes == []


def test_a_network_that_overflows_float16_fails_with_a_sentence() -> None:
    data = small_digits()
    model = fresh_model(data, "mlp")
    with torch.no_grad():
        first, last = [m for m in model.module.modules() if isinstance(m, torch.nn.Linear)][:2]
        first.weight.mul_(2e5)
        first.bias.mul_(2e5)
        last.weight.mul_(5e-6)
    with pytest.raises(StepFailed, match=r"inside the network reaches .* would become infinite"):
        run(chain("cast('float16')"), model, make_context(data))


def test_it_needs_calibration_data() -> None:
    data = small_digits()
    context = replace(make_context(data), calibration=None)
    with pytest.raises(IllegalChain, match="cast needs calibration"):
        run(chain("cast('float16')"), fresh_model(data), context)
