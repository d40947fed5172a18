"""A pruned net equals the original with those channels zeroed; targets, rounding, protection."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from compress import counts
from compress.compressor import run
from compress.context import StepContext, StepLog
from compress.model import Model, forward, items_like
from compress.surgery import output_layers
from compress.tasks.image_classification import ImageClassification, Preprocessing
from compress.techniques import chain
from compress.techniques.channel_groups import cut_channels, sound_roots, zeroed
from compress.zoo.models import fresh

TASK = ImageClassification(
    "test", tuple("0123456789"), Preprocessing(3, (32, 32), (0.5,) * 3, (0.25,) * 3)
)


def prepared(name: str) -> Model:
    """Return a model whose every tensor is random, batch-norm statistics included."""
    torch.manual_seed(0)
    model = fresh(name, TASK)
    for module in model.module.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


def step_context() -> StepContext:
    return StepContext(TASK, log=StepLog())


NETS = [
    "cnn-small(width=16)",
    "mlp",
    "resnet20",
    "torchvision:resnet18(stem='small')",
    "torchvision:mobilenet_v2(stem='small', width_mult=0.5)",
    "torchvision:VisionTransformer(patch_size=8, num_layers=2, num_heads=2, hidden_dim=32, "
    "mlp_dim=64)",
]


@pytest.mark.parametrize("name", NETS)
def test_cut_net_equals_the_original_with_zeroed_channels(name: str) -> None:
    model = prepared(name)
    roots, _ = sound_roots(model.module, model.items())
    assert roots
    cut = cut_channels(
        model.module, model.items(), {path: width / 2 for path, width in roots.items()}, round_to=8
    )
    assert cut.removed
    inputs = model.items(4)
    expected = forward(zeroed(model.module, cut.removed), inputs)
    torch.testing.assert_close(forward(cut.module, inputs), expected, rtol=1e-4, atol=1e-4)
    sizes = [counts.count(module, model.example).params for module in (cut.module, model.module)]
    assert sizes[0] < sizes[1]


@pytest.mark.parametrize("name", NETS[:5])
@pytest.mark.parametrize("target", [0.7, 0.4])
def test_macs_target_is_met_from_below(name: str, target: float) -> None:
    model, context = prepared(name), step_context()
    result = run(chain(f"prune_channels(macs={target}, round_to=1)"), model, context)
    reached = counts.macs(result.module, model.example) / counts.macs(model.module, model.example)
    assert target - 0.1 < reached <= target
    assert not any("the least possible is" in note for note in context.log.notes)


def test_unreachable_target_keeps_the_best_and_says_so() -> None:
    model, context = prepared("resnet20"), step_context()
    result = run(chain("prune_channels(macs=0.01)"), model, context)
    assert counts.macs(result.module, model.example) < counts.macs(model.module, model.example)
    assert "the least possible is" in context.log.notes[-1]
    assert "1 of 10 groups of channels left whole" in context.log.notes[0]


def test_widths_are_multiples_of_round_to() -> None:
    model = prepared("torchvision:resnet18(stem='small')")
    result = run(chain("prune_channels(macs=0.4, round_to=16)"), model, step_context())
    widths = {m.out_channels for m in result.module.modules() if isinstance(m, nn.Conv2d)}
    assert all(width % 16 == 0 for width in widths)


def test_channels_keeps_that_fraction_of_every_group() -> None:
    model = prepared("cnn-small")
    result = run(chain("prune_channels(channels=0.25)"), model, step_context())
    widths = [m.out_channels for m in result.module.modules() if isinstance(m, nn.Conv2d)]
    assert widths == [16, 32]


def test_the_least_channels_go() -> None:
    model = prepared("cnn-small")
    first = next(m for m in model.module.modules() if isinstance(m, nn.Conv2d))
    with torch.no_grad():
        first.weight[::2] *= 1e-3
    roots, _ = sound_roots(model.module, model.items())
    name = next(iter(roots))
    cut = cut_channels(model.module, model.items(), {name: 32}, round_to=8)
    # The consumers' weights count in the group's norm too, but not a thousandfold.
    assert sum(index % 2 == 0 for index in cut.removed[name]) >= 30


def test_option_a_residual_stream_is_protected() -> None:
    """Zero-padded shortcuts fix which channel is which: cutting the stream would permute them."""
    model = prepared("resnet20")
    roots, protected = sound_roots(model.module, model.items())
    assert all(path.endswith("conv1") and path != "conv1" for path in roots)
    assert "linear" in protected


def test_whatever_produces_the_output_is_protected() -> None:
    """SqueezeNet's classifier is a convolution with ReLU and pooling after it."""
    module = torchvision.models.squeezenet1_1(num_classes=10).eval()
    example = (torch.zeros(1, 3, 64, 64),)
    assert output_layers(module, example) == ["classifier.1"]
    result = run(chain("prune_channels(channels=0.5)"), Model(module, example), step_context())
    assert forward(result.module, items_like(example)).shape == (2, 10)


def test_two_heads_that_are_added_are_both_protected() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 3), nn.Linear(16, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden = self.stem(x).relu()
            return self.a(hidden) + self.b(hidden).sigmoid()

    assert sorted(output_layers(Two(), (torch.zeros(1, 6),))) == ["a", "b"]


def test_a_net_that_the_graph_cannot_cut_is_left_whole_with_a_note() -> None:
    torch.manual_seed(0)
    module = torchvision.models.shufflenet_v2_x0_5(num_classes=10).eval()
    model, context = Model(module, (torch.zeros(1, 3, 64, 64),)), step_context()
    result = run(chain("prune_channels(macs=0.5)"), model, context)
    sizes = [counts.count(m, model.example).params for m in (result.module, module)]
    assert sizes[0] == sizes[1]
    assert "left the model whole" in context.log.notes[0]


def test_fractions_in_repeat_refer_to_the_model_that_enters_it() -> None:
    model = prepared("cnn-small(width=16)")
    once = run(chain("prune_channels(channels=0.5)"), model, step_context())
    thrice = run(chain("repeat(3, prune_channels(channels=0.5))"), model, step_context())
    assert counts.macs(thrice.module, model.example) == counts.macs(once.module, model.example)


def test_masked_weights_survive_the_cut() -> None:
    model = run(
        chain("prune_weights(sparsity=0.5)"), prepared("cnn-small(width=16)"), step_context()
    )
    result = run(chain("prune_channels(channels=0.5)"), model, step_context())
    assert result.sparse == model.sparse
    assert all((result.module.get_parameter(name) == 0).any() for name in result.sparse)
