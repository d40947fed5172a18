from __future__ import annotations

import contextlib
import logging

import deploy_models
import numpy as np
import onnx
import pytest
import torch
from onnxscript.values import TracedOnnxFunction
from torch import nn
from torch.onnx._internal.exporter import _registration

from compress.deploy import export as deploy
from compress.deploy.export import export, read_metadata, stamp
from compress.deploy.session import predict, session, split
from compress.deploy.verify import verify
from compress.errors import StepFailed, UserError
from compress.model import Model, forward


@pytest.fixture(scope="module", params=sorted(deploy_models.BUILDERS))
def exported(request: pytest.FixtureRequest) -> tuple[Model, bytes]:
    return deploy_models.built(request.param), deploy_models.float_file(request.param)


def test_the_file_gives_the_modules_logits_at_every_batch_size(exported):
    model, content = exported
    inputs = (deploy_models.images(23),)
    expected = forward(model.module, inputs).numpy()
    for batch in (1, 2, 7, 23):
        given = predict(session(content), split(inputs, batch))
        np.testing.assert_allclose(given, expected, atol=1e-4 * np.abs(expected).max())


def test_a_float_file_is_verified(exported):
    model, content = exported
    result = verify(content, model, (deploy_models.images(64),), lowered=False)
    assert result.ok, result.reason
    assert result.top1_agreement == 1
    assert result.max_abs_error <= 1e-3 * result.largest_logit


def test_names_and_the_batch_dimension_are_stable(exported):
    graph = onnx.load_from_string(exported[1]).graph
    assert [value.name for value in graph.input] == ["input"]
    assert [value.name for value in graph.output] == ["logits"]
    for value in (*graph.input, *graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"


def test_the_file_holds_no_paths_of_this_machine(exported):
    assert b"site-packages" not in exported[1]
    assert b".py" not in exported[1]


def test_weights_keep_their_names_also_behind_auxiliary_heads():
    module = deploy_models.randomized(deploy_models.TwoHeads())
    model = Model(module, (torch.zeros(1, 3, 16, 16),))
    content = export(model)
    names = {tensor.name for tensor in onnx.load_from_string(content).graph.initializer}
    assert {"body.weight", "main.weight"} <= names
    assert "aux.weight" not in names
    result = verify(content, model, (deploy_models.images(64),), lowered=False)
    assert result.ok, result.reason


def test_channels_last_and_training_mode_are_left_on_the_module_but_not_in_the_file():
    model = deploy_models.built("cnn")
    plain = deploy_models.float_file("cnn")
    model.module.to(memory_format=torch.channels_last)
    model.module.train()
    assert export(model) == plain
    assert model.module.training
    weight = model.module[3].weight
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_several_inputs_are_numbered():
    model = Model(deploy_models.TwoInputs().eval(), (torch.zeros(1, 6), torch.zeros(1, 4)))
    content = export(model)
    names = [value.name for value in onnx.load_from_string(content).graph.input]
    assert names == ["input_0", "input_1"]
    result = verify(content, model, (torch.randn(64, 6), torch.randn(64, 4)), lowered=False)
    assert result.ok, result.reason


def test_the_exporter_is_silent(capfd, caplog):
    with caplog.at_level(logging.INFO):
        export(deploy_models.built("mlp"))
    assert capfd.readouterr() == ("", "")
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.fixture(scope="module")
def table() -> _registration.ONNXRegistry:
    """The exporter's table of operators, which takes seconds to build."""
    return _registration.ONNXRegistry.from_torchlib()


def test_the_exporters_table_is_built_once_and_changes_nothing(monkeypatch, table):
    registry = _registration.ONNXRegistry
    before = registry.__dict__["from_torchlib"]
    model = deploy_models.built("mlp")
    built = []

    class Counted(registry):
        @classmethod
        def from_torchlib(cls, *args, **options):
            built.append(args)
            return registry.from_torchlib(*args, **options) if built[1:] else table

    monkeypatch.setattr(_registration, "ONNXRegistry", Counted)
    files = [export(model) for _ in range(3)]
    assert len(built) == 1
    # Without it: what torch does where nothing is patched.
    monkeypatch.setattr(deploy, "_one_registry", contextlib.nullcontext)
    assert export(model) == files[0] == files[1] == files[2]
    assert len(built) == 2
    assert registry.__dict__["from_torchlib"] is before


def test_the_table_is_the_exporters_own_although_no_source_is_parsed(monkeypatch, table):
    def content(registry):
        return {
            str(target): [(each.onnx_function, str(each.signature)) for each in functions]
            for target, functions in registry.functions.items()
        }

    function = TracedOnnxFunction.function_ir
    parsed = []
    counting = property(lambda one: parsed.append(one) or function.fget(one))
    monkeypatch.setattr(TracedOnnxFunction, "function_ir", counting)
    deploy._build_registry.cache_clear()
    built = deploy._build_registry(_registration.ONNXRegistry.from_torchlib)
    assert not parsed
    assert content(built) == content(table)
    assert TracedOnnxFunction.function_ir is counting
    # A version of the exporter that uses more gets more.
    functions = [each.onnx_function for found in table.functions.values() for each in found]
    one = next(each for each in functions if isinstance(each, TracedOnnxFunction))
    lazy = deploy._Signature(lambda: one.function_ir, "domain")
    assert (lazy.domain, lazy.name, len(parsed)) == ("domain", one.name, 1)


def test_an_exporter_that_keeps_its_table_elsewhere_still_exports(monkeypatch, table):
    class Base(_registration.ONNXRegistry):
        @classmethod
        def from_torchlib(cls, *args, **options):
            return table

    class Elsewhere(Base):
        """Has the method by inheritance only, so it is not found where it is looked for."""

    model = deploy_models.built("mlp")
    file = export(model)
    monkeypatch.setattr(_registration, "ONNXRegistry", Elsewhere)
    misses = deploy._build_registry.cache_info().misses
    assert export(model) == file
    assert deploy._build_registry.cache_info().misses == misses
    assert "from_torchlib" not in vars(Elsewhere)


def test_what_torch_cannot_export_is_an_error_with_a_sentence():
    class Branching(nn.Module):
        def forward(self, images):
            return images.flatten(1)[:, :10] if images.sum() > 0 else images.flatten(1)[:, 10:20]

    with pytest.raises(StepFailed, match=r"torch cannot export this model to ONNX: .+"):
        export(Model(Branching().eval(), (torch.zeros(1, 3, 16, 16),)))


def test_more_than_two_gigabytes_are_refused_before_any_work():
    with torch.device("meta"):
        module = nn.Linear(25_000, 25_000)
    with pytest.raises(UserError, match=r"2\.5 GB"):
        export(Model(module, (torch.zeros(1, 25_000),)))


def test_stamping_replaces_keys_and_changes_no_answer():
    content = deploy_models.float_file("mlp")
    once = stamp(content, {"labels": '["a"]', "chain": "baseline"})
    twice = stamp(once, {"labels": '["b"]'})
    assert read_metadata(twice) == {"labels": '["b"]', "chain": "baseline"}
    assert onnx.load_from_string(twice).producer_name == "compress-models"
    inputs = [(deploy_models.images(8),)]
    assert (predict(session(twice), inputs) == predict(session(content), inputs)).all()


class Attending(nn.Module):
    """Attention over inputs of some shape (batch, ..., tokens, width), masked or not."""

    def __init__(self, shape: tuple[int, ...], mask: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.shape = shape
        self.key, self.head = nn.Linear(shape[-1], shape[-1]), nn.Linear(3 * 16 * 16, 4)
        seen = torch.rand(mask, generator=torch.Generator().manual_seed(1)) > 0.3
        self.register_buffer("mask", seen if mask else None)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        query = images.reshape(len(images), *self.shape)
        key = self.key(query)
        found = nn.functional.scaled_dot_product_attention(query, key, key, self.mask)
        return self.head(found.flatten(1))


@pytest.mark.parametrize(
    ("shape", "mask"),
    [
        ((96, 8), ()),
        ((4, 2, 12, 8), ()),
        ((4, 2, 12, 8), (12, 12)),
        ((4, 2, 12, 8), (2, 1, 12)),
        ((2, 2, 2, 12, 8), (2, 1, 12, 12)),
    ],
)
def test_attention_of_any_number_of_dimensions_is_exported(shape, mask):
    module = deploy_models.randomized(Attending(shape, mask)).eval()
    model = Model(module, (torch.zeros(1, 3, 16, 16),))
    images = deploy_models.images(8)
    expected = forward(module, (images,)).numpy()
    found = predict(session(export(model)), [(images,)])
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
