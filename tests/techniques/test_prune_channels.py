"""A pruned net equals the original with those channels zeroed; targets, rounding, protection."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from pruned_nets import NETS, Net, cut_alone, kept_rows, of, prepared, pruned, share, step_context
from torch import Tensor, nn

from compress import counts
from compress.compressor import run
from compress.errors import StepFailed, UserError
from compress.model import Model, forward, items_like
from compress.surgery import output_layers
from compress.techniques import chain
from compress.techniques.channel_cut import cut, zeroed
from compress.techniques.channel_proof import sound_groups


@pytest.mark.parametrize("name", NETS)
def test_cut_net_equals_the_original_with_zeroed_channels(name: str) -> None:
    model = prepared(name)
    channels = sound_groups(model.module, model.items())
    assert channels.groups
    gone = np.concatenate(
        [
            g.least([np.arange(len(pool)) for pool in g.pools], g.grains // 2)
            for g in channels.groups
        ]
    )
    done = cut(model.module, channels.plan, gone)
    assert done.removed
    inputs = model.items(4)
    if not channels.plan.trace.norms:
        expected = forward(zeroed(model.module, channels.plan, gone), inputs)
        torch.testing.assert_close(forward(done.module, inputs), expected, rtol=1e-4, atol=1e-4)
    sizes = [counts.count(module, model.example).params for module in (done.module, model.module)]
    assert sizes[0] < sizes[1]


@pytest.mark.parametrize("name", ["cnn-small", *NETS[1:5]])
@pytest.mark.parametrize("target", [0.7, 0.4])
def test_macs_target_is_met_from_below(name: str, target: float) -> None:
    model, context = prepared(name), step_context()
    result = run(cut_alone(f"prune_channels(macs={target}, round_to=1)"), model, context)
    reached = share(result.module, model)
    assert 0.98 * target <= reached <= target
    assert not any("asked for" in note for note in context.log.notes)


@pytest.mark.parametrize("target", [0.7, 0.5])
def test_a_target_of_parameters_is_met(target: float) -> None:
    model = prepared("resnet20")
    result = run(cut_alone(f"prune_channels(params={target}, round_to=1)"), model, step_context())
    sizes = [counts.count(m, model.example).params for m in (result.module, model.module)]
    assert 0.98 * target <= sizes[0] / sizes[1] <= target


def test_a_target_that_cannot_be_reached_is_refused_with_the_least() -> None:
    model = prepared("resnet20")
    with pytest.raises(StepFailed, match=r"macs=0.01 cannot be reached: .* at least 0\.\d\d of"):
        run(cut_alone("prune_channels(macs=0.01)"), model, step_context())


def test_the_least_that_is_named_can_be_reached() -> None:
    model = prepared("resnet20")
    with pytest.raises(StepFailed, match="at least") as raised:
        run(cut_alone("prune_channels(macs=0.01)"), model, step_context())
    least = str(raised.value).rpartition("Ask for macs=")[2].split()[0]
    result = run(cut_alone(f"prune_channels(macs={least})"), model, step_context())
    assert share(result.module, model) <= float(least)


def test_widths_are_multiples_of_round_to() -> None:
    model = prepared("torchvision:resnet18(stem='small')")
    result = run(cut_alone("prune_channels(macs=0.4, round_to=16)"), model, step_context())
    widths = {m.out_channels for m in result.module.modules() if isinstance(m, nn.Conv2d)}
    assert all(width % 16 == 0 for width in widths)


def test_channels_keeps_that_fraction_of_every_group() -> None:
    model = prepared("cnn-small")
    result = run(cut_alone("prune_channels(channels=0.25)"), model, step_context())
    widths = [m.out_channels for m in result.module.modules() if isinstance(m, nn.Conv2d)]
    assert widths == [16, 32]


def test_the_least_channels_go() -> None:
    model = prepared("cnn-small")
    first = next(m for m in model.module.modules() if isinstance(m, nn.Conv2d))
    with torch.no_grad():
        first.weight[::2] *= 1e-3
    result, _ = pruned("prune_channels(channels=0.5)", model)
    ours = next(m for m in result.modules() if isinstance(m, nn.Conv2d))
    # The consumers' weights count in the group's norm too, but not a thousandfold.
    kept = kept_rows(first.weight, ours.weight)
    assert sum(index % 2 == 1 for index in kept) >= len(kept) - 2


def test_an_option_a_residual_stream_is_cut_and_the_padding_follows() -> None:
    model = prepared("resnet20")
    result, context = pruned("prune_channels(channels=0.5)", model)
    assert result.conv1.out_channels == 8
    pads = [m for m in result.modules() if hasattr(m, "before")]
    widths = [m.before + m.after for m in pads]
    assert widths == [8, 16]
    assert {r["layer"] for r in context.log.rows if "left_alone" in r} == {"linear"}


def test_whatever_produces_the_output_is_protected() -> None:
    """SqueezeNet's classifier is a convolution with ReLU and pooling after it."""
    module = torchvision.models.squeezenet1_1(num_classes=10).eval()
    example = (torch.zeros(1, 3, 64, 64),)
    assert output_layers(module, example) == ["classifier.1"]
    context = step_context()
    result = run(cut_alone("prune_channels(channels=0.5)"), Model(module, example), context)
    assert forward(result.module, items_like(example)).shape == (2, 10)
    [row] = [row for row in context.log.rows if "left_alone" in row]
    assert row["layer"] == "classifier.1"
    assert "output" in row["left_alone"]


def test_two_heads_that_are_added_are_both_protected() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 3), nn.Linear(16, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden = self.stem(x).relu()
            return self.a(hidden) + self.b(hidden).sigmoid()

    assert sorted(output_layers(Two(), (torch.zeros(1, 6),))) == ["a", "b"]
    model = of(Two(), 6)
    result, _ = pruned("prune_channels(channels=0.5)", model)
    assert (result.stem.out_features, result.a.out_features, result.b.out_features) == (8, 3, 3)


def resnext(groups: int) -> Net:
    def block(c: int) -> nn.Sequential:
        return nn.Sequential(
            *(nn.Conv2d(c, c, 1, bias=False), nn.BatchNorm2d(c), nn.ReLU()),
            *(nn.Conv2d(c, c, 3, 1, 1, groups=groups, bias=False), nn.BatchNorm2d(c), nn.ReLU()),
            *(nn.Conv2d(c, c, 1, bias=False), nn.BatchNorm2d(c)),
        )

    def add(m: nn.Module, x: Tensor) -> Tensor:
        x = m.stem(x)
        x = F.relu(x + m.a(x))
        return m.out(F.relu(x + m.b(x)).mean((2, 3)))

    return Net(add, stem=nn.Conv2d(3, 64, 3, 2, 1), a=block(64), b=block(64), out=nn.Linear(64, 10))


@pytest.mark.parametrize("groups", [2, 8, 16, 32, 64])
@pytest.mark.parametrize("target", [0.8, 0.65])
def test_grouped_convolutions_reach_the_target(groups: int, target: float) -> None:
    model = of(resnext(groups), 3, 16, 16)
    result, _ = pruned(f"prune_channels(macs={target}, round_to=1)", model)
    assert 0.98 * target <= share(result, model) <= target
    for layer in result.modules():
        if isinstance(layer, nn.Conv2d) and layer.groups > 1:
            assert layer.in_channels % layer.groups == layer.out_channels % layer.groups == 0


def test_a_missed_target_is_said_whichever_way_it_is_missed() -> None:
    model = of(resnext(8), 3, 16, 16)
    result, context = pruned("prune_channels(macs=0.65, round_to=32)", model)
    reached = share(result, model)
    assert reached < 0.98 * 0.65
    assert f"asked for 0.65 of the MACs, reached {reached:.2f}" in context.log.notes[-1]


def test_nothing_removed_is_said_with_the_reason() -> None:
    layers = [nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    model = of(net, 1, 8, 8)
    result, context = pruned("prune_channels(channels=0.5)", model)
    assert share(result, model) == 1
    assert context.log.notes == [
        "prune_channels: asked for 0.50 of the channels, reached 1.00: widths are multiples of "
        "round_to=8 and of coupled channels, and 2 of 2 groups are no wider than one step"
    ]


def test_what_was_frozen_stays_frozen_and_the_input_is_untouched() -> None:
    model = prepared("cnn-small(width=16)")
    name = next(n for n, _ in model.module.named_parameters())
    model.module.get_parameter(name).requires_grad_(False)
    before = copy.deepcopy(model.module.state_dict())
    result, _ = pruned("prune_channels(channels=0.5)", model)
    assert [n for n, p in result.named_parameters() if not p.requires_grad] == [name]
    assert all(torch.equal(before[key], value) for key, value in model.module.state_dict().items())


def test_an_ignored_layer_keeps_its_width_and_an_unknown_one_is_refused() -> None:
    model = prepared("cnn-small(width=16)")
    paths = [n for n, m in model.module.named_modules() if isinstance(m, nn.Conv2d)]
    result, _ = pruned(f"prune_channels(channels=0.5, ignored=[{paths[0]!r}])", model)
    widths = [m.out_channels for m in result.modules() if isinstance(m, nn.Conv2d)]
    assert widths == [16, 16]
    outermost = f"The outermost layers: {next(model.module.named_children())[0]}"
    with pytest.raises(UserError, match=rf"no layer 'nothing' to ignore. {outermost}"):
        run(cut_alone("prune_channels(channels=0.5, ignored=['nothing'])"), model, step_context())


def test_fractions_in_repeat_refer_to_the_model_that_enters_it() -> None:
    model = prepared("cnn-small(width=16)")
    once = run(cut_alone("prune_channels(channels=0.5)"), model, step_context())
    rounds = chain("repeat(3, prune_channels(channels=0.5, calibration=0))")
    thrice = run(rounds, model, step_context())
    assert counts.macs(thrice.module, model.example) == counts.macs(once.module, model.example)


def test_a_target_that_is_met_already_leaves_the_model_without_a_note() -> None:
    model = prepared("cnn-small(width=16)")
    small = run(cut_alone("prune_channels(channels=0.5)"), model, step_context())
    context = replace(step_context(), origin=model)
    result = run(cut_alone("prune_channels(macs=0.6)"), small, context)
    assert counts.macs(result.module, model.example) == counts.macs(small.module, model.example)
    assert not any("asked for" in note for note in context.log.notes)


def test_masked_weights_survive_the_cut() -> None:
    model = run(
        chain("prune_weights(sparsity=0.5)"), prepared("cnn-small(width=16)"), step_context()
    )
    result = run(cut_alone("prune_channels(channels=0.5)"), model, step_context())
    assert result.sparse == model.sparse
    assert all((result.module.get_parameter(name) == 0).any() for name in result.sparse)


def test_streams_are_narrowed_last() -> None:
    """What they lose is lost to all blocks; where inner widths do not suffice, they go along."""

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 32, 3, padding=1)
            self.inner, self.back = nn.Conv2d(32, 64, 3, padding=1), nn.Conv2d(64, 32, 3, padding=1)
            self.out = nn.Linear(32, 10)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.stem(x))
            x = x + self.back(F.relu(self.inner(x)))
            return self.out(x.mean((2, 3)))

    model = Model(Residual().eval(), (torch.randn(4, 3, 8, 8),))
    widths = {}
    for text in ("macs=0.5", "macs=0.5, streams='alike'", "macs=0.3", "channels=0.5"):
        module = run(cut_alone(f"prune_channels({text}, round_to=1)"), model, step_context()).module
        widths[text] = (module.stem.out_channels, module.inner.out_channels)
    assert widths["macs=0.5"][0] == 32 > widths["macs=0.5, streams='alike'"][0]
    assert widths["macs=0.5"][1] < widths["macs=0.5, streams='alike'"][1]
    assert widths["macs=0.3"][0] == 32
    assert widths["channels=0.5"] == (16, 32)
    deeper = run(cut_alone("prune_channels(macs=0.02, round_to=1)"), model, step_context()).module
    assert deeper.stem.out_channels < 32, "inner widths alone do not give that"


def uneven(first: str = "parts") -> Net:
    """Return a net whose layers of 30 and 22 channels meet one of 52, in one order or the other."""

    def add(m: nn.Module, x: Tensor) -> Tensor:
        return m.out(F.relu(torch.cat([m.a(x), m.b(x)], 1) + m.c(x)).mean((2, 3)))

    layers = {"a": nn.Conv2d(3, 30, 3), "b": nn.Conv2d(3, 22, 3), "c": nn.Conv2d(3, 52, 3)}
    order = "abc" if first == "parts" else "cab"
    return Net(add, **{name: layers[name] for name in order}, out=nn.Linear(52, 10))


@pytest.mark.parametrize("first", ["parts", "sum"])
def test_parts_of_uneven_sizes_keep_the_same_share(first: str) -> None:
    for step in (1, 8):
        model = of(uneven(first), 3, 8, 8)
        result, context = pruned(f"prune_channels(channels=0.5, round_to={step})", model)
        a, b, c = (getattr(result, name).out_channels for name in "abc")
        assert a + b == c
        widest = a if first == "parts" else c
        exact = 15 if first == "parts" else 26
        assert widest == {1: exact, 8: round(exact / 8) * 8}[step]
        assert a / 30 == pytest.approx(b / 22, abs=1 / 22)
        assert step > 1 or not [note for note in context.log.notes if "asked for" in note]


@pytest.mark.parametrize("first", ["parts", "sum"])
@pytest.mark.parametrize("text", ["channels=0.5", "macs=0.5", "channels=0.1"])
def test_parts_of_uneven_sizes_are_ranked_in_all(first: str, text: str) -> None:
    model = of(uneven(first), 3, 8, 8)
    result, _ = pruned(f"prune_channels({text}, scope='global', round_to=1)", model)
    assert result.a.out_channels + result.b.out_channels == result.c.out_channels < 52
    assert share(result, model) == pytest.approx(float(text[-3:]), abs=0.03)


def test_parts_beside_an_ignored_one_keep_the_same_share() -> None:
    """The first layer of the three has no channels that can go, and so none to count in."""

    def add(m: nn.Module, x: Tensor) -> Tensor:
        parts = torch.cat([m.a(x), m.b(x), m.c(x)], 1)
        return m.out(F.relu(parts + m.d(x)).mean((2, 3)))

    sizes = {"a": 16, "b": 20, "c": 33, "d": 69}
    layers = {name: nn.Conv2d(3, size, 3) for name, size in sizes.items()}
    model = of(Net(add, **layers, out=nn.Linear(69, 10)), 3, 8, 8)
    result, context = pruned("prune_channels(channels=0.5, round_to=1, ignored=['a'])", model)
    a, b, c, d = (getattr(result, name).out_channels for name in sizes)
    assert (a, b, d) == (16, 10, a + b + c)
    assert c / 33 == pytest.approx(0.5, abs=1 / 33)
    assert not [note for note in context.log.notes if "asked for" in note]


@pytest.mark.parametrize("scope", ["local", "global"])
def test_fractions_of_channels_in_rounds_are_those_of_the_first(scope: str) -> None:
    text = f"prune_channels(channels=0.5, scope={scope!r}, round_to=1, calibration=0)"
    left = []
    for chain_text in (text, f"repeat(2, {text})", f"repeat(4, {text})"):
        model = prepared("cnn-small(width=16)")
        result, context = pruned(chain_text, model)
        left.append(sum(m.out_channels for m in result.modules() if isinstance(m, nn.Conv2d)))
        assert not [note for note in context.log.notes if "asked for" in note]
    whole = sum(m.out_channels for m in model.module.modules() if isinstance(m, nn.Conv2d))
    assert left == pytest.approx([whole / 2] * 3, abs=1)


@pytest.mark.parametrize(
    ("ignored", "widths"),
    [
        (["body"], (4, 8, 8)),
        (["body.0"], (4, 8, 4)),
        (["body", "stem"], (8, 8, 8)),
        ([""], (8, 8, 8)),
    ],
)
def test_what_is_inside_an_ignored_layer_keeps_its_width_too(
    ignored: list[str], widths: tuple[int, ...]
) -> None:
    body = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3))
    net = Net(
        lambda m, x: m.out(m.body(F.relu(m.stem(x))).mean((2, 3))),
        stem=nn.Conv2d(3, 8, 3),
        body=body,
        out=nn.Linear(8, 10),
    )
    model = of(net, 3, 10, 10)
    result, _ = pruned(f"prune_channels(channels=0.5, round_to=1, ignored={ignored!r})", model)
    layers = (result.stem, result.body[0], result.body[3])
    assert tuple(layer.out_channels for layer in layers) == widths
    with pytest.raises(UserError, match=r"to ignore 'body.1' protects nothing"):
        run(cut_alone("prune_channels(macs=0.5, ignored=['body.1'])"), model, step_context())


@pytest.mark.parametrize(("widths", "step"), [((64, 64, 128), 8), ((16, 16, 32), 4)])
def test_a_target_is_reached_in_steps_where_that_is_possible(
    widths: tuple[int, ...], step: int
) -> None:
    """As near as any combination of widths comes, or within 2 %."""
    layers: list[nn.Module] = []
    for reads, makes in pairwise((3, *widths)):
        layers += [nn.Conv2d(reads, makes, 3, padding=1), nn.ReLU()]
    ends = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 10))
    model = of(nn.Sequential(*layers, *ends), 3, 8, 8)
    result, _ = pruned(f"prune_channels(macs=0.5, round_to={step})", model)
    assert all(m.out_channels % step == 0 for m in result.modules() if isinstance(m, nn.Conv2d))
    ways = product(*(range(step, width + 1, step) for width in widths))
    whole = counts.macs(model.module, model.example)
    costs = [(9 * 64 * (3 * a + a * b + b * c) + 10 * c) / whole for a, b, c in ways]
    possible = max(cost for cost in costs if cost <= 0.5)
    assert min(0.98 * 0.5, possible) <= share(result, model) <= 0.5


def test_a_pattern_of_zeros_that_the_cut_breaks_is_said() -> None:
    model = prepared("cnn-small(width=16)")
    masked = run(chain("prune_weights(pattern='2:4')"), model, step_context())
    _, context = pruned("prune_channels(macs=0.5, round_to=1)", masked)
    assert any("with zeros in a pattern have lost it" in note for note in context.log.notes)
    random = run(chain("prune_weights(sparsity=0.5)"), model, step_context())
    for start in (model, random):
        _, context = pruned("prune_channels(macs=0.5, round_to=1)", start)
        assert not any("pattern" in note for note in context.log.notes)


def test_a_target_of_macs_over_uncounted_operators_is_refused() -> None:
    def deform(m: nn.Module, x: Tensor) -> Tensor:
        x = F.relu(m.stem(x))
        x = torchvision.ops.deform_conv2d(x, m.move(x), m.inner.weight)
        return m.out(F.relu(m.last(x)).mean((2, 3)))

    net = Net(
        deform,
        stem=nn.Conv2d(3, 16, 3, padding=1),
        move=nn.Conv2d(16, 18, 3),
        inner=nn.Conv2d(16, 16, 3),
        last=nn.Conv2d(16, 16, 3),
        out=nn.Linear(16, 10),
    )
    model = of(net, 3, 8, 8)
    with pytest.raises(UserError, match=r"MACs leave out 1 call of torchvision.deform_conv2d"):
        run(cut_alone("prune_channels(macs=0.7)"), model, step_context())
    run(cut_alone("prune_channels(channels=0.5)"), model, step_context())
