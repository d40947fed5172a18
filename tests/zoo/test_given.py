"""Modules as people give them: baked weights give the same outputs, random ones are refused."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from bench_fixtures import images
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm
from torch.nn.utils.weight_norm import WeightNorm

from compress.benchmark.plan.plan import make_plan
from compress.benchmark.plan.suite import Suite
from compress.errors import UserError
from compress.model import copied
from compress.zoo.data import from_arrays
from compress.zoo.given import bake, refuse_random, reparametrized
from compress.zoo.models import build_module, fresh
from compress.zoo.weights import load_weights

NET = """
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

def net(num_classes):
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), weight_norm(nn.Conv2d(8, 16, 3)), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes))
"""


def old_weight_norm(layer: nn.Module) -> nn.Module:
    """As `torch.nn.utils.weight_norm` does, which warns that it is deprecated."""
    name, weight = "weight", layer.weight
    hook = WeightNorm(name, 0)
    del layer._parameters[name]
    layer.register_parameter("weight_g", nn.Parameter(torch.norm_except_dim(weight, 2, 0).data))
    layer.register_parameter("weight_v", nn.Parameter(weight.data))
    setattr(layer, name, hook.compute_weight(layer))
    layer.register_forward_pre_hook(hook)
    return layer


WAYS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weight_norm": old_weight_norm,
    "_WeightNorm": parametrizations.weight_norm,
    "spectral_norm": spectral_norm,
    "_SpectralNorm": parametrizations.spectral_norm,
    "_Orthogonal": parametrizations.orthogonal,
    "pruning mask": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
}


def module(way: Callable[[nn.Module], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), way(nn.Conv2d(8, 16, 3)), nn.ReLU()]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)]
    net = nn.Sequential(*layers)
    net(torch.rand(2, 3, 8, 8))  # some leave a tensor with a graph behind
    return net.eval()


@pytest.mark.parametrize("kind", WAYS)
def test_reparametrized_weights_are_baked_in(kind: str) -> None:
    given, inputs = module(WAYS[kind]), torch.rand(4, 3, 8, 8)
    assert reparametrized(given) == [("2", "weight", kind)]
    with torch.no_grad():
        expected = given(inputs)
    baked = copied(given)
    assert bake(baked) == ({"2.weight"} if kind == "pruning mask" else set())
    with torch.no_grad():
        torch.testing.assert_close(baked(inputs), expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(given(inputs), expected, rtol=0, atol=0)
    assert not reparametrized(baked)
    assert sorted(baked.state_dict()) == sorted(
        f"{layer}.{name}" for layer in "026" for name in ("weight", "bias")
    )
    assert all(p.requires_grad for p in baked.parameters())
    copy.deepcopy(baked)


@pytest.mark.parametrize("kind", WAYS)
def test_baked_weights_are_frozen_if_what_they_come_from_is(kind: str) -> None:
    given = copied(module(WAYS[kind]))
    for name, parameter in given.named_parameters():
        parameter.requires_grad_(not name.startswith("2.") or name == "2.bias")
    bake(given)
    assert [name for name, p in given.named_parameters() if not p.requires_grad] == ["2.weight"]


def test_masked_weights_stay_masked_in_training_and_the_run_says_what_was_baked() -> None:
    pixels, labels = torch.randint(0, 256, (40, 8, 8, 3), dtype=torch.uint8), torch.arange(40) % 5
    arrays = (pixels.numpy(), labels.numpy())
    plan = make_plan(
        Suite("s", "x", "x", ("finetune(epochs=1)",)),
        data=from_arrays(*arrays, *arrays),
        model=module(WAYS["pruning mask"]),
    )
    assert plan.start.sparse == {"2.weight"}
    assert plan.weights[""] == "baked into plain weights: pruning mask of 2"
    assert float((plan.start.module.get_parameter("2.weight") == 0).float().mean()) == 0.5


def test_weights_are_loaded_before_or_after_they_are_baked(tmp_path: Path) -> None:
    """Those of the net as its factory makes it, and those of a model that we saved."""
    place = tmp_path / "own.py"
    place.write_text(NET)
    task = images(16, classes=5)
    name = f"{place}:net"
    reference = fresh(name, task, [place])
    assert "2.weight" in reference.module.state_dict()
    assert reference.blueprint is not None
    rebuilt = build_module(reference.blueprint, [place])
    assert sorted(rebuilt.state_dict()) == sorted(reference.module.state_dict())
    scope: dict[str, Callable[[int], nn.Module]] = {}
    exec(NET, scope)
    raw = scope["net"](5)
    assert "2.parametrizations.weight.original0" in raw.state_dict()
    for number, state in enumerate([raw.state_dict(), reference.module.state_dict()]):
        file = tmp_path / f"{number}.safetensors"
        save_file(state, file)
        loaded = fresh(
            name, task, [place], load=lambda m, file=file: load_weights(m, str(file), name)
        )
        expected = (raw if number == 0 else reference.module).eval()
        with torch.no_grad():
            torch.testing.assert_close(loaded.module(*task.probe()), expected(*task.probe()))
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError):
        fresh(
            name,
            task,
            [place],
            load=lambda m: load_weights(m, str(tmp_path / "other.safetensors"), name),
        )


class Noisy(nn.Module):
    def __init__(self, how: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)
        self.how = how

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor | None]:
        return {"logits": self.head(self.how(x)), "none": None}


def remembering() -> Callable[[torch.Tensor], torch.Tensor]:
    count = itertools.count(1)
    return lambda x: x * next(count)


RANDOM: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    r"by dropout\(\) in <lambda> \(test_given.py, line \d+\)": lambda x: F.dropout(x, 0.3),
    r"by rand_like\(\) in": lambda x: x + torch.rand_like(x),
    "it remembers earlier inputs, or draws": remembering(),
}


@pytest.mark.parametrize("cause", RANDOM)
def test_a_net_that_answers_at_random_is_refused(cause: str) -> None:
    with pytest.raises(UserError, match=f"^mine gives other outputs .*{cause}"):
        refuse_random(Noisy(RANDOM[cause]).eval(), (torch.ones(2, 4),), "mine")


def test_answers_that_are_no_numbers_are_no_random_ones() -> None:
    masked = torch.tensor([1.0, -torch.inf, torch.nan, 2.0])
    refuse_random(Noisy(lambda x: x + masked).eval(), (torch.ones(2, 4),), "mine")

    class Infinite(nn.Module):
        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            return [x, x / 0]

    refuse_random(Infinite().eval(), (torch.ones(2, 4),), "mine")


def test_dropout_that_is_off_in_eval_mode_is_fine() -> None:
    net = Noisy(lambda x: F.dropout(nn.Dropout(0.5).eval()(x), 0.5, training=False)).eval()
    refuse_random(net, (torch.ones(2, 4),), "mine")
