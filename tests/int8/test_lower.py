"""The int8 file as a whole: what it computes, what stays float, and what survives."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import deploy_models
import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from compress.deploy.export import export, read_metadata, stamp
from compress.deploy.graphs import parsed, serialized
from compress.deploy.observe import observe
from compress.deploy.saturation import PAIR
from compress.deploy.session import predict, session
from compress.deploy.stored import stored
from compress.deploy.verify import verify
from compress.int8.equalize import equalized, links
from compress.int8.lower import Lowered, lower
from compress.int8.rewrite import rewritten
from compress.int8.settings import Settings
from compress.model import Model
from compress.timing.executed import executed

CALIBRATION = [(deploy_models.images(20, seed),) for seed in (1, 2, 3)]
PLAIN = Settings(method="minmax", equalize=False, compensate=False, correct=False)


@pytest.fixture(scope="module", params=sorted(deploy_models.BUILDERS))
def made(request: pytest.FixtureRequest) -> tuple[Model, bytes, Lowered]:
    content = stamp(deploy_models.float_file(request.param), {"labels": "[]"})
    return deploy_models.built(request.param), content, lower(content, CALIBRATION)


def test_a_lowered_file_is_verified(made):
    model, _, lowered = made
    result = verify(lowered.content, model, (deploy_models.images(256, seed=9),), lowered=True)
    assert result.ok, result.reason
    assert result.top1_agreement > 0.9
    assert lowered.notes == []


def test_names_batch_and_metadata_survive(made):
    _, source, lowered = made
    graph = onnx.load_from_string(lowered.content).graph
    assert [value.name for value in graph.input] == ["input"]
    assert [value.name for value in graph.output] == ["logits"]
    for value in (*graph.input, *graph.output):
        assert not value.type.tensor_type.shape.dim[0].HasField("dim_value")
    assert read_metadata(lowered.content) == read_metadata(source) == {"labels": "[]"}


def test_the_file_is_a_quarter_and_saturates_nowhere(made):
    _, source, lowered = made
    assert stored(lowered.content)["precision"] == "int8"
    assert 0 < stored(lowered.content)["int8_pair"] <= PAIR
    weights = [t for t in onnx.load_from_string(source).graph.initializer if len(t.dims) > 1]
    floats = sum(numpy_helper.to_array(tensor).nbytes for tensor in weights)
    integers = sum(
        numpy_helper.to_array(tensor).nbytes
        for tensor in onnx.load_from_string(lowered.content).graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) > 1
    )
    assert integers >= 0.9 * floats / 4


def operators(content: bytes) -> Counter[str]:
    """Return the operators of the graph that onnxruntime executes."""
    import tempfile

    from compress.runtimes.onnxruntime_cpu import open_session, session_options

    with tempfile.TemporaryDirectory() as folder:
        options = session_options()
        options.optimized_model_filepath = str(Path(folder) / "run.onnx")
        open_session(content, options)
        return Counter(
            node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node
        )


class Squeezing(nn.Module):
    """A stem, a block of a MobileNetV3 (depthwise, squeeze-excite, hard-swish), a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.deep = nn.Conv2d(16, 16, 3, 1, 1, groups=16)
        self.down, self.up = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 16, 1)
        self.out, self.head = nn.Conv2d(16, 16, 1), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.stem(x))
        y = F.hardswish(self.deep(x))
        gate = F.hardsigmoid(self.up(F.relu(self.down(y.mean((2, 3), keepdim=True)))))
        return self.head((x + self.out(y * gate)).mean((2, 3)))


def of(module: nn.Module, settings: Settings | None = None) -> tuple[Model, bytes, Lowered]:
    model = Model(deploy_models.randomized(module), (torch.zeros(1, 3, 16, 16),))
    content = export(model)
    return model, content, lower(content, CALIBRATION, settings)


def test_a_mobile_net_runs_in_integers_from_end_to_end():
    model, _, lowered = of(Squeezing())
    found = operators(lowered.content)
    assert found["Conv"] == found["FusedConv"] == found["HardSwish"] == found["Mul"] == 0
    assert (found["QLinearConv"], found["QGemm"]) == (5, 1)
    assert found["QLinearGlobalAveragePool"] == 2
    # Two hard-swishes are a clip of integers and a product each; the block adds, and its gate
    # multiplies.
    assert (found["Clip"], found["QLinearAdd"], found["QLinearMul"]) == (2, 1, 3)
    assert found["Transpose"] == 2, "that of the input, and that of what has one pixel"
    result = verify(lowered.content, model, (deploy_models.images(256, 9),), lowered=True)
    assert result.ok, result.reason


@pytest.mark.parametrize(
    ("factor", "how"),
    [(4.0, ["Clip"]), (0.7, []), (0.1, ["Add"])],
    ids=["clipped", "as is", "near 0"],
)
def test_hard_swish_in_integers_is_exact_within_a_step(factor: float, how: list[str]):
    class Only(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return F.hardswish(self.conv(x)).flatten(1)

    module = Only()
    with torch.no_grad():
        module.conv.weight.copy_(factor * torch.eye(3)[:, :, None, None])
    content = export(Model(module.eval(), (torch.zeros(1, 3, 16, 16),)))
    lowered = lower(content, CALIBRATION, PLAIN)
    kinds = {node.op_type for node in onnx.load_from_string(lowered.content).graph.node}
    assert kinds & {"Clip", "Add"} == set(how)
    inputs = deploy_models.images(8, 1)
    before = predict(session(content), [(inputs,)])
    after = predict(session(lowered.content), [(inputs,)])
    [row] = [row for row in lowered.nodes if row["type"] == "HardSwish"]
    assert row["int8"]
    step = np.ptp(before) / 255
    # One step of its own, and what the steps of its input (-17 to 17 times a quarter of the factor)
    # become.
    wide = max(34 * factor / 4, 17 * factor / 4 + 3)
    assert np.abs(before - after).max() <= 0.5 * step + 1.5 * wide / 255 / 2 + 6 / 255


def simulated(module: nn.Sequential, content: bytes, inputs: Tensor) -> Tensor:
    """A convolution, its ReLU and a linear layer under torch's own fake quantization."""
    graph = onnx.load_from_string(content).graph
    tensors = {t.name: torch.tensor(numpy_helper.to_array(t)) for t in graph.initializer}
    steps = [node for node in graph.node if node.op_type == "QuantizeLinear"]

    def activation(values: Tensor, step: onnx.NodeProto) -> Tensor:
        scale, zero = (tensors[name] for name in step.input[1:])
        return torch.fake_quantize_per_tensor_affine(values, float(scale), int(zero), 0, 255)

    def weight(layer: nn.Module, name: str) -> Tensor:
        scale = tensors[f"{name}_scale"]
        zeros = torch.zeros(len(scale), dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(layer.weight, scale, zeros, 0, -127, 127)

    conv, linear = module[0], module[3]
    x = activation(inputs, steps[0])
    x = F.conv2d(x, weight(conv, "0.weight"), conv.bias, padding=1).relu()
    x = activation(x, steps[1])
    return F.linear(x.flatten(1), weight(linear, "3.weight"), linear.bias)


def test_the_file_computes_what_torchs_fake_quantization_computes():
    module = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(1536, 10)
    )
    model, _, lowered = of(module, PLAIN)
    inputs = deploy_models.images(16, 5)
    with torch.no_grad():
        expected = simulated(model.module, lowered.content, inputs).numpy()
    for optimize in (True, False):
        got = predict(session(lowered.content, optimize=optimize), [(inputs,)])
        # A sum that lies between two levels may be rounded either way: one step of one value.
        assert np.abs(got - expected).max() < 0.02 * np.abs(expected).max()
        assert np.abs(got - expected).mean() < 0.001 * np.abs(expected).max()


def test_a_transposed_convolution_stays_float_and_says_why():
    class Up(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, 2, 1)
            self.up = nn.ConvTranspose2d(8, 4, 2, 2, groups=2)
            self.head = nn.Linear(4, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.up(self.conv(x).relu()).relu().mean((2, 3)))

    model, _, lowered = of(Up())
    [row] = [row for row in lowered.nodes if row["type"] == "ConvTranspose"]
    assert row["why"] == "no integer kernel for ConvTranspose is used"
    result = verify(lowered.content, model, (deploy_models.images(256, 9),), lowered=True)
    assert result.ok, result.reason


def test_what_is_fused_in_a_float_transformer_is_fused_in_the_int8_file():
    net = deploy_models.transformer()
    _, content, lowered = of(net)
    before, after = operators(content), operators(lowered.content)
    fused = ("BiasGelu", "FusedMatMul", "LayerNormalization", "SkipLayerNormalization", "Softmax")
    assert {name: after[name] for name in fused} == {name: before[name] for name in fused}
    assert min(before[name] for name in ("BiasGelu", "LayerNormalization", "Softmax")) > 0
    assert after["MatMulIntegerToFloat"], "the projections are int8"
    whys = {row["type"]: row["why"] for row in lowered.nodes if "why" in row}
    assert whys["Softmax"] == "its integer kernel is slower than its float one"
    assert whys["MatMul"] == "both its factors are activations"


class Reasons(nn.Module):
    """A pooling that only a float kernel reads, and a product whose first factor is constant."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv2d(3, 8, 3, 1, 1), nn.MaxPool2d(2)
        self.mix, self.head = nn.Parameter(torch.randn(8, 8)), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.conv(x)).softmax(1).flatten(2)
        return self.head(torch.matmul(self.mix, x).relu().mean(2))


def test_each_float_node_has_its_own_reason():
    _, _, lowered = of(Reasons())
    whys = {row["type"]: row["why"] for row in lowered.nodes if "why" in row}
    assert whys["MaxPool"] == "no integer kernel reads what it moves"
    assert whys["MatMul"].startswith("its constant is the first factor")
    _, content, _ = of(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1568, 10))
    )
    left = lower(content, CALIBRATION, Settings(exclude=("Conv",)))
    whys = {row["type"]: row["why"] for row in left.nodes if "why" in row}
    assert (whys["Conv"], whys["Relu"]) == ("it was excluded", "it reads floats")


def test_what_reads_constants_alone_says_so():
    helper, rng = onnx.helper, np.random.default_rng(0)
    constants = {"w": (8, 4), "b": (4,), "c": (4, 1)}
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["x", "w", "b"], ["y"], "product"),
            helper.make_node("Transpose", ["c"], ["row"], "turned", perm=[1, 0]),
            helper.make_node("Add", ["y", "row"], ["z"], "sum"),
        ],
        "small",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, ["batch", 4])],
        [
            numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name)
            for name, shape in constants.items()
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    content = onnx.shape_inference.infer_shapes(model).SerializeToString()
    lowered = lower(content, [(torch.randn(32, 8),)])
    whys = {row["node"]: row.get("why") for row in lowered.nodes}
    assert whys["turned"] == "it reads constants alone"


@pytest.mark.parametrize("activation", [nn.Identity(), nn.ReLU(), nn.ReLU6()])
@pytest.mark.parametrize("transposed", [True, False])
def test_a_float_product_between_integers_is_computed_in_float(
    transposed: bool, activation: nn.Module
):
    """onnxruntime would give its weights one scale for all channels."""
    torch.manual_seed(0)
    kind = nn.ConvTranspose2d(16, 16, 1) if transposed else nn.Conv2d(16, 16, 1)
    net = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, 1, 1), nn.ReLU(), kind, activation, nn.Conv2d(16, 16, 3, 1, 1)),
        *(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)),
    )
    model = Model(net.eval(), (torch.zeros(1, 3, 16, 16),))
    content = export(model)
    lowered = lower(content, CALIBRATION, Settings(exclude=() if transposed else ("2",)))
    inputs = deploy_models.images(8, 3)
    run = executed(lowered.content, [inputs.numpy()])
    assert (run.int8_convs, run.float_convs) == (2, 1)
    plain = predict(session(lowered.content, optimize=False), [(inputs,)])
    assert np.allclose(predict(session(lowered.content), [(inputs,)]), plain, atol=1e-4)


class Looping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.again = nn.Conv2d(3, 16, 3, 1, 1), nn.Conv2d(16, 16, 3, 1, 1)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(3):
            x = self.again(x.relu())
        return self.head(x.mean((2, 3)))


def test_a_weight_that_is_used_three_times_is_stored_once():
    model, _, lowered = of(Looping())
    found = onnx.load_from_string(lowered.content).graph.initializer
    integers = [t for t in found if t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 4]
    assert [list(tensor.dims) for tensor in integers] == [[16, 3, 3, 3], [16, 16, 3, 3]]
    assert operators(lowered.content)["QLinearConv"] == 4
    result = verify(lowered.content, model, (deploy_models.images(256, 9),), lowered=True)
    assert result.ok, result.reason


def test_dead_channels_tiny_weights_and_large_biases_are_exact():
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    )
    model = Model(deploy_models.randomized(module), (torch.zeros(1, 3, 16, 16),))
    with torch.no_grad():
        module[0].weight[0], module[0].bias[0] = 0, 2.5
        module[0].weight[1], module[0].bias[1] = 1e-9, 4.0
        module[0].weight[2], module[0].bias[2] = 0, 0
    content = export(model)
    lowered = lower(content, CALIBRATION)
    inputs = [(deploy_models.images(32, 9),)]
    before, after = predict(session(content), inputs), predict(session(lowered.content), inputs)
    assert np.abs(before - after).max() < 0.02 * np.abs(before).max()


class Branch(nn.Module):
    """Its last norm begins at zero, as timm and Goyal et al. (2017) begin: folded, all is zero."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.branch = nn.Sequential(
            *(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)),
        )
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        x = self.stem(x).relu()
        return self.head((x + self.branch(x)).relu().mean((2, 3)))


def test_a_layer_of_nothing_but_zeros_is_exact():
    model = Model(deploy_models.randomized(Branch()), (torch.zeros(1, 3, 16, 16),))
    nn.init.zeros_(model.module.branch[3].weight)
    content = export(model)
    lowered = lower(content, CALIBRATION)
    inputs = [(deploy_models.images(32, 9),)]
    before, after = predict(session(content), inputs), predict(session(lowered.content), inputs)
    assert np.abs(before - after).max() < 0.02 * np.abs(before).max()


@pytest.mark.parametrize("sigma", [1.5, 2.0])
def test_equalization_undoes_a_rescaling_that_changes_nothing(sigma):
    """Channels before a ReLU times s, the weights that read them by 1/s: a hardened twin."""
    plain = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)),
    )
    model = Model(deploy_models.randomized(plain), (torch.zeros(1, 3, 16, 16),))
    before = predict(session(export(model)), CALIBRATION)
    factor = torch.exp(sigma * torch.randn(16, generator=torch.Generator().manual_seed(0)))
    with torch.no_grad():
        plain[0].weight.mul_(factor[:, None, None, None])
        plain[0].bias.mul_(factor)
        plain[2].weight.div_(factor[None, :, None, None])
    twin = export(model)
    assert predict(session(twin), CALIBRATION) == pytest.approx(before, abs=1e-4)

    def error(settings: Settings) -> float:
        made = predict(session(lower(twin, CALIBRATION, settings).content), CALIBRATION)
        return float(np.abs(made - before).mean())

    # Rounding and biases make up for much of it, so they are left out.
    with_, without = (replace(PLAIN, equalize=one) for one in (True, False))
    assert error(with_) < error(without) / 2


@pytest.mark.parametrize("positions", [1, 4])
@pytest.mark.parametrize("pool", [nn.MaxPool2d, nn.AvgPool2d])
def test_equalization_reaches_through_flattening(pool, positions):
    """Of images that are flattened for a linear layer, a channel is `positions` of its inputs."""
    side = 16 // int(positions**0.5)
    plain = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), pool(side)),
        *(nn.Flatten(), nn.Linear(16 * positions, 10)),
    )
    model = Model(deploy_models.randomized(plain), (torch.zeros(1, 3, 16, 16),))
    before = predict(session(export(model)), CALIBRATION)
    factor = torch.exp(2 * torch.randn(16, generator=torch.Generator().manual_seed(0)))
    with torch.no_grad():
        plain[0].weight.mul_(factor[:, None, None, None])
        plain[0].bias.mul_(factor)
        plain[4].weight.div_(factor.repeat_interleave(positions))
    twin = export(model)
    assert predict(session(twin), CALIBRATION) == pytest.approx(before, abs=1e-4)
    graph = rewritten(parsed(twin))
    axes = {link.name: link.axis for link in links(graph.graph)}
    same, count = equalized(graph, observe(graph, CALIBRATION, axes))
    assert count == 1
    assert predict(session(serialized(same)), CALIBRATION) == pytest.approx(before, abs=1e-3)

    def error(settings: Settings) -> float:
        made = predict(session(lower(twin, CALIBRATION, settings).content), CALIBRATION)
        return float(np.abs(made - before).mean())

    with_, without = (replace(PLAIN, equalize=one) for one in (True, False))
    assert error(with_) < error(without) / 2


def test_bytes_do_not_depend_on_the_hash_seed(tmp_path: Path):
    (tmp_path / "float.onnx").write_bytes(deploy_models.float_file("residual"))
    code = (
        "import sys, torch, hashlib, pathlib; from compress.int8.lower import lower\n"
        "data = torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(0))\n"
        "made = lower(pathlib.Path(sys.argv[1]).read_bytes(), [(data,)])\n"
        "print(hashlib.sha256(made.content).hexdigest())"
    )
    other = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "float.onnx")],
        env={**os.environ, "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    inputs = torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    ours = lower(deploy_models.float_file("residual"), [(inputs,)])
    assert hashlib.sha256(ours.content).hexdigest() == other.strip()
