"""Values that are concatenated share a range where none loses much by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import deploy_models
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from compress.deploy.export import export
from compress.deploy.graphs import parsed
from compress.deploy.session import predict, session
from compress.int8.joined import LOSS
from compress.int8.lower import Draft, draft
from compress.int8.settings import Settings
from compress.model import Model

ITEMS = [(deploy_models.images(20, seed),) for seed in (1, 2)]


class Fire(nn.Module):
    """Two branches whose outputs are clipped, or are not, side by side; one is scaled."""

    def __init__(
        self, first: nn.Module, second: nn.Module, by: Sequence[float] = (1, 1), then: str = ""
    ) -> None:
        super().__init__()
        self.one, self.other = nn.Conv2d(3, 8, 3, 2), nn.Conv2d(3, 8, 3, 2)
        self.first, self.second, self.by = first, second, by
        self.then = nn.ReLU() if then else nn.Identity()
        self.head = nn.Sequential(
            nn.MaxPool2d(3), nn.Conv2d(16, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )

    def forward(self, x: Tensor) -> Tensor:
        both = [self.first(self.one(x)), self.second(self.other(x))]
        return self.head(self.then(torch.cat(both, 1)))


def made(net: Fire, settings: Settings | None = None) -> tuple[bytes, Draft]:
    torch.manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=(2 / module.weight[0].numel()) ** 0.5)
            nn.init.normal_(module.bias)  # type: ignore[arg-type]
    with torch.no_grad():
        for conv, by in zip((net.one, net.other), net.by, strict=True):
            assert conv.bias is not None
            conv.weight.mul_(by)
            conv.bias.mul_(by)
    content = export(Model(net.eval(), (torch.zeros(1, 3, 16, 16),)))
    settings = settings or Settings(equalize=False, compensate=False, correct=False)
    return content, draft(parsed(content), ITEMS, settings)


def scales(content: bytes) -> list[set[tuple[float, int]]]:
    """Return of each concatenation the scales and zero points around it."""
    graph = onnx.load_from_string(content).graph
    values = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    nodes = {output: node for node in graph.node for output in node.output}
    readers = {name: node for node in graph.node for name in node.input}
    found = []
    for node in graph.node:
        if node.op_type == "Concat":
            around = [nodes[name] for name in node.input] + [readers[node.output[0]]]
            found.append({(float(values[o.input[1]]), int(values[o.input[2]])) for o in around})
    return found


def own(drafted: Draft) -> Mapping[str, float]:
    return {name: one.scale for name, one in drafted.ranges.items()}


def like(content: bytes, lowered: bytes, items: Tensor) -> float:
    """Return the signal to noise ratio of a file's answers to others' items, in dB."""
    reference, answers = (predict(session(one), [(items,)]) for one in (content, lowered))
    return float(10 * np.log10((reference**2).sum() / ((answers - reference) ** 2).sum()))


def test_alike_branches_share_one_range_and_integers_are_copied():
    content, drafted = made(Fire(nn.ReLU(), nn.ReLU()))
    lowered = drafted.lowered()
    [around] = scales(lowered.content)
    assert len(around) == 1
    methods = {row["range"] for row in lowered.nodes if row["type"] in ("Concat", "MaxPool")}
    assert methods == {"shared by concatenation"}
    assert like(content, lowered.content, deploy_models.images(50, 9)) > 25


def test_no_value_loses_more_than_it_may(monkeypatch: pytest.MonkeyPatch):
    for by in (1.2, 1.5, 3.0, 100.0):
        net = Fire(nn.ReLU(), nn.ReLU(), (1, by))
        content, drafted = made(net)
        with monkeypatch.context() as patch:
            patch.setattr("compress.int8.lower.joined", lambda *_: {})
            alone = draft(parsed(content), ITEMS, drafted.settings)
        assert drafted.ranges.keys() == alone.ranges.keys()
        lost = [alone.ranges[name].sqnr - one.sqnr for name, one in drafted.ranges.items()]
        assert max(lost) <= LOSS
        changed = own(drafted) != own(alone)
        assert changed, "the output has that of the larger branch, at least"
        [around] = scales(drafted.lowered().content)
        assert len(around) == (1 if by < 1.3 else 2)


@pytest.mark.parametrize("then", ["", "relu"])
@pytest.mark.parametrize(
    "branches",
    [(nn.ReLU6(), nn.Identity()), (nn.Hardswish(), nn.ReLU()), (nn.ReLU6(), nn.ReLU())],
    ids=["clipped-signed", "swished-rectified", "clipped-rectified"],
)
def test_a_range_that_clips_for_its_node_still_does(branches: tuple[nn.Module, ...], then: str):
    """Of items with larger values than any that it was calibrated on, too."""
    _, drafted = made(Fire(*branches, by=(1.4, 1.05), then=then))
    model = onnx.load_from_string(drafted.lowered().content)
    assert "Relu" not in {node.op_type for node in model.graph.node}, "ranges do it"
    [concat] = [node for node in model.graph.node if node.op_type == "Concat"]
    [pool] = [node for node in model.graph.node if node.op_type == "MaxPool"]
    for name in (*concat.input, pool.input[0]):
        model.graph.output.append(onnx.ValueInfoProto(name=name))
    runner = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    large = 4 * deploy_models.images(50, 9).numpy()
    _, *inside, whole = runner.run(None, {"input": large})
    for branch, values in zip(branches, inside, strict=True):
        least = {nn.Identity: -1.0, nn.Hardswish: -0.3}
        assert (values.min() < least[type(branch)]) if type(branch) in least else not values.min()
        assert values.max() > 5
        assert not isinstance(branch, nn.ReLU6) or values.max() < 6.001
    assert whole.min() == (0 if then else min(values.min() for values in inside))


def test_a_range_that_is_settled_stays_and_a_pooled_value_shares_that_of_its_source():
    _, drafted = made(Fire(nn.Sigmoid(), nn.Hardtanh(0, 1)))
    [around] = scales(drafted.lowered().content)
    assert (1 / 256, 0) in around
    pooled = nn.Sequential(nn.ReLU(), nn.MaxPool2d(3, 1, 1))
    content, drafted = made(Fire(pooled, nn.ReLU()))
    lowered = drafted.lowered().content
    [around] = scales(lowered)
    assert len(around) == 1
    assert drafted.ranges["relu"].scale == drafted.ranges["relu_1"].scale
    assert like(content, lowered, deploy_models.images(50, 9)) > 25
