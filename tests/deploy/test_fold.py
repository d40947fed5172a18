from __future__ import annotations

import deploy_models
import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from compress.deploy import export as deploy
from compress.deploy.export import export
from compress.deploy.fold import fold_batch_norms
from compress.deploy.session import predict, session
from compress.model import Model, forward


class NormAct(nn.BatchNorm2d):
    """As timm has it: more than a normalisation."""

    def forward(self, input: Tensor) -> Tensor:
        return torch.relu(super().forward(input))


class Twice(nn.Module):
    """A convolution whose output its batch norm takes, and another use of it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, input: Tensor) -> Tensor:
        once = self.conv(input)
        return torch.relu(self.norm(once)) + once


class SharedNorm(nn.Module):
    """One batch norm for two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.norm = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)

    def forward(self, input: Tensor) -> Tensor:
        return self.norm(self.two(torch.relu(self.norm(self.one(input)))))


class CalledTwice(nn.Module):
    """One convolution for two batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.one, self.two = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, input: Tensor) -> Tensor:
        return self.two(self.conv(torch.relu(self.one(self.conv(input)))))


class Reads(nn.Module):
    """Uses a weight of its convolution for something else."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, input: Tensor) -> Tensor:
        return self.norm(self.conv(input)) * self.conv.weight.sum()


class Writes(nn.Module):
    """Changes the statistics of its batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, input: Tensor) -> Tensor:
        self.norm.running_mean.mul_(2)
        return self.norm(self.conv(input))


class Preactivated(nn.Module):
    """A stem that is used with its batch norm and without, and one huge logit.

    Whoever compares outputs by their largest value alone takes anything else for the same.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv, self.last = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.register_buffer("mask", torch.tensor([False, False, False, True]))

    def forward(self, input: Tensor) -> Tensor:
        once = self.stem(input)
        once = once + self.last(self.conv(torch.relu(self.norm(once))))
        return once.mean((2, 3)).masked_fill(self.mask, -1e9)


class Shared(nn.Sequential):
    """A part that copies of a module share."""

    def __deepcopy__(self, memo: object) -> Shared:
        return self


def tied() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3))
    net[2].weight = net[0].weight
    return net


FOLDED = {
    "in two dimensions": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)),
    "without a bias, in groups": lambda: nn.Sequential(
        nn.Conv2d(3, 6, 3, groups=3, bias=False, padding=1), nn.BatchNorm2d(6)
    ),
    "without weights": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False), nn.ReLU(inplace=True)
    ),
    "without any bias": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False, padding="same"), nn.BatchNorm2d(4, affine=False)
    ),
    "with an activation in it": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), NormAct(4)),
    "of two convolutions": SharedNorm,
    "beside one that is left": Preactivated,
}
LEFT = {
    "no convolution before it": lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)),
    "an activation in place between": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.BatchNorm2d(4)
    ),
    "the statistics of its batch": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)
    ),
    "a weight that two layers have": tied,
    "a weight made anew for each call": lambda: nn.Sequential(
        parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4)
    ),
    "transposed": lambda: nn.Sequential(nn.ConvTranspose2d(3, 4, 3), nn.BatchNorm2d(4)),
    "a second use of the output": Twice,
    "a second use of the weight": Reads,
    "a convolution that is called twice": CalledTwice,
}


def built(build) -> nn.Module:
    return deploy_models.randomized(build())


def inputs_of(*shape: int) -> tuple[Tensor, ...]:
    return (torch.randn(2, *shape, generator=torch.Generator().manual_seed(1)),)


def norms_in(program: torch.export.ExportedProgram) -> int:
    return [node.target for node in program.graph.nodes].count(torch.ops.aten.batch_norm.default)


def traced(module: nn.Module, inputs: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    return torch.export.export(module, inputs)


def check_folded(module: nn.Module, inputs: tuple[Tensor, ...], left: int) -> None:
    """Check what is folded by a batch norm's definition, as torch computes it in the module."""
    expected = forward(module, inputs)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    program = traced(module, inputs)
    made = fold_batch_norms(program)
    assert norms_in(program) == left
    assert len(made) > 0
    found = program.module()(*inputs).detach()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize("name", FOLDED)
def test_a_batch_norm_is_folded_into_the_convolution_before_it(name):
    module = built(FOLDED[name])
    check_folded(module, inputs_of(3, 8, 8), left=int(name == "beside one that is left"))


@pytest.mark.parametrize(
    ("conv", "norm", "shape"),
    [(nn.Conv1d, nn.BatchNorm1d, (3, 9)), (nn.Conv3d, nn.BatchNorm3d, (3, 5, 5, 5))],
)
def test_other_dimensions_are_folded_too(conv, norm, shape):
    module = built(lambda: nn.Sequential(conv(3, 4, 3), norm(4)))
    module[1].running_mean += torch.arange(4.0)
    module[1].running_var += torch.arange(4.0)
    check_folded(module, inputs_of(*shape), left=0)


@pytest.mark.parametrize("name", LEFT)
def test_nothing_is_folded_where_the_function_would_change(name):
    module, inputs = built(LEFT[name]), inputs_of(3, 8, 8)
    program = traced(module, inputs)
    before = norms_in(program)
    assert before
    assert fold_batch_norms(program) == []
    assert norms_in(program) == before
    content = export(Model(module, inputs))
    expected = forward(module, inputs).numpy()
    np.testing.assert_allclose(predict(session(content), [inputs]), expected, rtol=1e-4, atol=1e-4)


def test_statistics_that_are_written_to_are_not_folded():
    program = traced(built(Writes), inputs_of(3, 8, 8))
    assert fold_batch_norms(program) == []


def test_one_huge_logit_hides_nothing():
    module, inputs = built(Preactivated), inputs_of(3, 8, 8)
    found = predict(session(export(Model(module, inputs))), [inputs])
    expected = forward(module, inputs).numpy()
    np.testing.assert_allclose(found[:, :3], expected[:, :3], rtol=1e-4, atol=1e-4)


def test_a_part_that_copies_share_is_left_as_it_is():
    part = built(lambda: Shared(nn.Conv2d(3, 4, 3), NormAct(4)))
    module, inputs = nn.Sequential(part, nn.Flatten()).eval(), inputs_of(3, 8, 8)
    expected = forward(module, inputs)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    found = predict(session(export(Model(module, inputs))), [inputs])
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-4)
    assert type(part[1]) is NormAct
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert torch.equal(forward(module, inputs), expected)


def test_the_exporter_is_given_what_is_folded(monkeypatch):
    left: list[int] = []

    def folding(program: torch.export.ExportedProgram) -> list[Tensor]:
        made = fold_batch_norms(program)
        left.append(norms_in(program))
        made_here.extend(made)
        return made

    made_here: list[Tensor] = []
    monkeypatch.setattr(deploy, "fold_batch_norms", folding)
    module, inputs = built(FOLDED["with an activation in it"]), inputs_of(3, 8, 8)
    content = export(Model(module, inputs))
    assert left == [0]
    assert [tensor.numel() for tensor in made_here] == [0, 0], "nothing holds them any longer"
    # Names are those of the weights: that of the batch norm's bias, where the convolution has none.
    names = {tensor.name for tensor in onnx.load_from_string(content).graph.initializer}
    assert names == {"0.weight", "0.bias"}
    bare = built(FOLDED["without a bias, in groups"])
    names = onnx.load_from_string(export(Model(bare, inputs))).graph.initializer
    assert {tensor.name for tensor in names} == {"0.weight", "1.bias"}


def test_weights_are_folded_in_double_precision():
    module = built(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    conv, norm = module
    norm.running_var[0] = 1e-12  # a dead channel
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    weight = (conv.weight.double() * scale.reshape(-1, 1, 1, 1)).float()
    bias = ((conv.bias.double() - norm.running_mean.double()) * scale + norm.bias.double()).float()
    new_weight, new_bias = fold_batch_norms(traced(module, inputs_of(3, 8, 8)))
    torch.testing.assert_close(new_weight, weight, rtol=1e-6, atol=0, check_stride=False)
    torch.testing.assert_close(new_bias, bias, rtol=1e-6, atol=1e-7)
