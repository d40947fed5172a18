"""Graphs in memory: the same function, weights in one place."""

from __future__ import annotations

import deploy_models
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn

from compress.deploy.export import export
from compress.deploy.graphs import LEAST, opened, parsed, serialized
from compress.deploy.session import predict, session
from compress.model import Model

IMAGES = [(deploy_models.images(12, 1),)]


@pytest.mark.parametrize("name", sorted(deploy_models.BUILDERS))
def test_a_graph_answers_as_its_file_before_and_after(name):
    content = deploy_models.float_file(name)
    model = parsed(content)
    expected = predict(session(content), IMAGES)
    assert predict(opened(model), IMAGES) == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert predict(session(serialized(model)), IMAGES) == pytest.approx(expected, abs=0)


def test_values_inside_can_be_asked_for_and_the_graph_stays_as_it_is():
    model = parsed(deploy_models.float_file("cnn"))
    before = serialized(model)
    inside = next(node.outputs[0].name for node in model.graph if node.op_type == "Relu")
    runner = opened(model, [inside, "input", "logits", inside])
    images = IMAGES[0][0].numpy()
    found = runner.session.run([inside, "input", "logits"], {"input": images})
    assert found[0].min() == 0 < found[0].max()
    assert np.array_equal(found[1], images)
    assert np.array_equal(found[2], predict(runner, IMAGES))
    assert serialized(model) == before


def test_weights_are_held_once_by_graphs_and_their_clones():
    model = parsed(deploy_models.float_file("cnn"))
    clone = model.clone()
    pairs = [
        (value.const_value.numpy(), clone.graph.initializers[name].const_value.numpy())
        for name, value in model.graph.initializers.items()
    ]
    assert pairs
    assert all(np.shares_memory(one, other) for one, other in pairs)
    again = [value.const_value.numpy() for value in model.graph.initializers.values()]
    assert all(one is pair[0] for one, pair in zip(again, pairs, strict=True))


class Masked(nn.Module):
    """Holds constants of other types beside a large weight."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(768, 64)
        self.register_buffer("mask", torch.arange(64) % 2 == 0)
        self.register_buffer("places", torch.arange(64, dtype=torch.int32).flip(0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        up = self.up(x.flatten(1)).index_select(1, self.places)
        return torch.where(self.mask, up, torch.zeros_like(up))[:, :10]


def test_nothing_of_the_message_is_kept():
    """One part of it would keep all of it alive."""
    model = parsed(export(Model(Masked().eval(), (torch.zeros(1, 3, 16, 16),))))
    kinds = {value.const_value.dtype for value in model.graph.initializers.values()}
    assert ir.DataType.BOOL in kinds
    constants = [value.const_value for value in model.graph.initializers.values()]
    constants += [
        attribute.value
        for node in model.graph
        for attribute in node.attributes.values()
        if attribute.type == ir.AttributeType.TENSOR
    ]
    assert all(type(one) is ir.Tensor for one in constants)
    expected = predict(session(serialized(model)), IMAGES)
    assert predict(opened(model), IMAGES) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_a_session_is_lent_its_weights(monkeypatch):
    from compress.deploy import graphs

    module = nn.Sequential(nn.Flatten(), nn.Linear(768, 64), nn.ReLU(), nn.Linear(64, 10))
    model = parsed(export(Model(module.eval(), (torch.zeros(1, 3, 16, 16),))))
    opened_files = []
    real = graphs.open_session
    monkeypatch.setattr(
        graphs, "open_session", lambda one, options: opened_files.append(one) or real(one, options)
    )
    opened(model)
    [file] = opened_files
    sizes = [len(tensor.raw_data) for tensor in onnx.load_from_string(file).graph.initializer]
    assert sizes.count(0) == 2, "the two matrices"
    assert max(sizes) < LEAST


class Frozen(nn.Linear):
    def __deepcopy__(self, memo: object) -> Frozen:
        return self


def test_an_export_leaves_what_copies_share():
    module = nn.Sequential(nn.Flatten(), nn.Linear(768, 8), Frozen(8, 10)).eval()
    before = module[2].weight.clone()
    export(Model(module, (torch.zeros(1, 3, 16, 16),)))
    assert torch.equal(module[2].weight, before)


def test_an_export_leaves_the_module_as_it_was():
    model = deploy_models.built("cnn")
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    once, again = export(model), export(model)
    assert predict(session(once), IMAGES) == pytest.approx(predict(session(again), IMAGES), abs=0)
    after = model.module.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
