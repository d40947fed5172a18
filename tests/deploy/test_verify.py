"""Every kind of damage must be found, and named."""

from __future__ import annotations

import re
import threading
from dataclasses import replace

import deploy_models
import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from scipy.stats import binom

from compress.deploy.export import export
from compress.deploy.session import predict, session, split
from compress.deploy.verify import (
    AGREEMENT,
    AT_FIRST,
    LOWERED_ITEMS,
    _tied,
    pass_batch,
    same_answer,
    verify,
)
from compress.model import Model

INPUTS = (deploy_models.images(64),)


@pytest.fixture(scope="module")
def good() -> tuple[Model, bytes]:
    model = deploy_models.built("cnn")
    return model, deploy_models.float_file("cnn")


def edited(content: bytes, edit) -> bytes:
    proto = onnx.load_from_string(content)
    edit(proto)
    return proto.SerializeToString()


def scale_weights(factor: float):
    def edit(proto: onnx.ModelProto) -> None:
        for tensor in proto.graph.initializer:
            if tensor.data_type == onnx.TensorProto.FLOAT:
                value = (numpy_helper.to_array(tensor) * factor).astype(np.float32)
                tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))

    return edit


def fix_batch(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2


def rename_output(proto: onnx.ModelProto) -> None:
    for node in proto.graph.node:
        node.output[:] = ["scores" if name == "logits" else name for name in node.output]
    proto.graph.output[0].name = "scores"


def move_outside(proto: onnx.ModelProto) -> None:
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")


def drop_node(proto: onnx.ModelProto) -> None:
    del proto.graph.node[0]


def make_unknown(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].op_type = "Frobnicate"
    proto.graph.node[0].domain = "nowhere"
    proto.opset_import.add(domain="nowhere", version=1)


DAMAGE = [
    (scale_weights(float("nan")), "not finite"),
    (fix_batch, "fixed or missing"),
    (rename_output, r"named \['scores'\]"),
    (move_outside, "external data"),
    (drop_node, "checker refuses"),
    (make_unknown, "cannot load"),
]


@pytest.mark.parametrize(
    ("edit", "reason"), DAMAGE, ids=lambda value: getattr(value, "__name__", None)
)
@pytest.mark.parametrize("lowered", [False, True])
@pytest.mark.parametrize("macs", [0, 1e12], ids=["small", "large"])
def test_damage_is_found_and_named(good, edit, reason, lowered, macs):
    result = verify(edited(good[1], edit), good[0], INPUTS, lowered, macs=macs)
    assert not result.ok
    assert torch.tensor(result.largest_logit).isfinite()
    assert re.search(reason, result.reason), result.reason


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x00" * 100])
def test_rubbish_is_a_reason_not_an_exception(good, content):
    result = verify(content, good[0], INPUTS, lowered=False)
    assert not result.ok
    assert result.reason


def test_a_truncated_file_is_refused(good):
    for keep in (0.3, 0.9, 0.999):
        assert not verify(good[1][: int(keep * len(good[1]))], good[0], INPUTS, False).ok


def test_a_constant_file_is_refused_though_its_answers_are_stable(good):
    result = verify(edited(good[1], scale_weights(0)), good[0], INPUTS, lowered=True)
    assert (
        result.reason
        == "the file gives (nearly) the same outputs for every item, and the module does not"
    )


def test_scaled_weights_fail_a_float_file_but_only_show_on_a_lowered_one(good):
    content = edited(good[1], scale_weights(1.01))
    assert "off by" in verify(content, good[0], INPUTS, lowered=False).reason
    result = verify(content, good[0], INPUTS, lowered=True)
    assert result.ok, result.reason
    assert result.max_abs_error > 1e-3 * result.largest_logit


def test_the_gate_is_a_thousandth_of_the_largest_logit(good):
    def shift(error: float):
        def edit(proto: onnx.ModelProto) -> None:
            name = next(n for n in proto.graph.node if "logits" in n.output).input[2]
            for tensor in proto.graph.initializer:
                if tensor.name == name:
                    value = numpy_helper.to_array(tensor) + np.float32(error)
                    tensor.CopyFrom(numpy_helper.from_array(value, name))

        return edit

    largest = verify(good[1], good[0], INPUTS, False).largest_logit
    inside = verify(edited(good[1], shift(0.95e-3 * largest)), good[0], INPUTS, False)
    outside = verify(edited(good[1], shift(1.05e-3 * largest)), good[0], INPUTS, False)
    assert inside.ok, inside.reason
    assert inside.max_abs_error == pytest.approx(0.95e-3 * largest, rel=1e-2)
    assert not outside.ok
    # A shift of all logits changes no answer; the error alone is what fails it.
    assert outside.top1_agreement == 1


def test_the_module_may_be_channels_last(good):
    model = good[0].copy()
    model.module.to(memory_format=torch.channels_last)
    assert verify(good[1], model, INPUTS, lowered=False).ok


def test_a_tie_is_less_than_one_step_apart():
    logits = np.array([[0.0, 0.5, 0.5], [0.0, 0.4, 0.5], [0.0, 0.1, 0.5]], np.float32)
    assert _tied(logits, step=0.1).tolist() == [True, False, False]
    assert _tied(logits, step=0.2).tolist() == [True, True, False]


def test_answers_differ_only_where_neither_has_a_tie():
    first = np.array([[1.0, 0.0], [1.0, 0.0], [0.5, 0.5]], np.float32)
    second = np.array([[0.0, 1.0], [0.9, 0.0], [0.0, 1.0]], np.float32)
    assert same_answer(first, second, step=0.1).tolist() == [False, True, True]


class Caching(torch.nn.Module):
    """Answers the first batch of a length, and gives that answer to every later one."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner, self.known = inner, {}

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if len(images) not in self.known:
            self.known[len(images)] = self.inner(images)
        return self.known[len(images)]


class Mixing(Caching):
    """Lets an item's answer depend on the batch that it came in."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.inner(images) - self.inner(images).mean(0)


@pytest.mark.parametrize("cheat", [Caching, Mixing])
@pytest.mark.parametrize("macs", [0, 1e12], ids=["small", "large"])
def test_a_module_that_remembers_or_mixes_items_is_not_verified(good, cheat, macs):
    model, content = good
    cheating = replace(model, module=cheat(model.module))
    found = verify(content, cheating, INPUTS, lowered=True, macs=macs)
    assert not found.ok
    assert "depend on earlier items or on its batch" in found.reason


class Counting(torch.nn.Module):
    """Counts the items that it answers."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner, self.items = inner, [0]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.items[0] += len(images)
        return self.inner(images)

    def __deepcopy__(self, memo: object) -> Counting:
        return self


@pytest.mark.parametrize(("macs", "items"), [(0, 300 + 64), (1e12, 64 + 14 + 2 * 2)])
def test_a_large_module_answers_fewer_items(good, macs, items):
    model, content = good
    module = Counting(model.module)
    inputs = (deploy_models.images(300),)
    answers = predict(session(content), split(inputs, pass_batch(macs)))
    counting = replace(model, module=module)
    assert verify(content, counting, inputs, False, macs=macs, answers=lambda: answers).ok
    assert module.items == [items]
    wrong = answers.copy()
    wrong[0] += 1  # the first of the evenly spaced ones
    found = verify(content, counting, inputs, False, macs=macs, answers=lambda: wrong)
    assert found.reason.startswith(f"at batch size {pass_batch(macs)} an output is off by 1")


class Indifferent(torch.nn.Module):
    """Notes whether channels came last."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = torch.nn.Conv2d(3, 8, 3), torch.nn.Linear(8 * 14 * 14, 10)
        self.last: list[bool] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = self.body(images)
        self.last.append(not hidden.is_contiguous())
        return self.head(self.flat(hidden))

    def flat(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden.flatten(1)

    def __deepcopy__(self, memo: object) -> Indifferent:
        made = type(self)()
        made.load_state_dict(self.state_dict())
        made.last = self.last
        return made


class Viewing(Indifferent):
    """Flattens by a view, which is an error where channels come last."""

    def flat(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden.view(len(hidden), -1)


class Strided(Indifferent):
    """Reads memory as it lies there, so its answers depend on the order of dimensions."""

    def flat(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden.as_strided((len(hidden), 8 * 14 * 14), (8 * 14 * 14, 1))


@pytest.mark.parametrize("kind", [Viewing, Strided, Indifferent])
def test_channels_come_last_only_where_that_changes_nothing(kind):
    torch.manual_seed(0)
    module = kind().eval()
    model = Model(module, (INPUTS[0][:2],))
    plain = Indifferent().eval()
    plain.load_state_dict(module.state_dict())
    content = export(replace(model, module=plain))
    module.last.clear()
    found = verify(content, model, INPUTS, False, macs=1e12)
    assert found.ok, found.reason
    # Two items in either order, then eight batches of 8, and two of 7.
    assert module.last == [False, True] + 10 * [kind is Indifferent]


class Unoptimized:
    """A session that counts its items, and whose first answers are other ones."""

    def __init__(self, runner, wrong: int) -> None:
        self.runner, self.names, self.wrong, self.items = runner, runner.names, wrong, 0
        self.lock = threading.Lock()

    def run(self, feed):
        outputs = self.runner.run(feed)
        with self.lock:
            for row in outputs[: max(0, self.wrong - self.items)]:
                row[:] = np.roll(row, 1) * 2
            self.items += len(outputs)
        return outputs


@pytest.mark.parametrize(
    ("macs", "wrong", "items", "ok"),
    [(0, 0, 272, True), (1e12, 0, 160, True), (1e12, 2, 272, True), (1e12, 3, 272, False)],
)
def test_answers_that_all_agree_are_enough_sooner(good, monkeypatch, macs, wrong, items, ok):
    made = []

    def opened(content, threads=0, optimize=True):
        runner = session(content, threads, optimize)
        made.append(Unoptimized(runner, wrong))
        return runner if optimize else made[-1]

    monkeypatch.setattr("compress.deploy.verify.session", opened)
    images = (deploy_models.images(272),)
    found = verify(good[1], good[0], images, lowered=True, macs=macs)
    assert made[-1].items == items
    assert found.ok == ok
    assert ok or found.reason.startswith("only 98.9% of the answers (269 of 272) are the same")


def test_a_file_of_too_few_equal_answers_passes_no_more_often_than_with_256_items():
    def passes(share: float, count: int, at_first: int) -> float:
        within = [k for k in range(count) if (count - k) / count >= AGREEMENT]
        both = [
            binom.pmf(early, at_first, 1 - share)
            * binom.cdf(within[-1] - early, count - at_first, 1 - share)
            for early in within[1:]
        ]
        return binom.pmf(0, at_first, 1 - share) + sum(both)

    for share in (0.97, 0.98, 0.985):
        assert passes(share, LOWERED_ITEMS, AT_FIRST) < binom.cdf(2, 256, 1 - share)
    assert passes(0.98, LOWERED_ITEMS, AT_FIRST) < 1 / 9
