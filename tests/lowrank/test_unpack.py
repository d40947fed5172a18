"""Attention as plain layers computes the same; it is put back where nothing of it was replaced."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pruned_nets import Net
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from compress.attention import Attention
from compress.compressor import run
from compress.context import StepContext, StepLog
from compress.lowrank.layers import PACKED, PAST, target_layers
from compress.lowrank.unpack import packed_again, renamed, unpacked
from compress.model import Blueprint, Model, forward, load, save
from compress.tasks.image_classification import ImageClassification, Preprocessing
from compress.techniques import chain

TASK = ImageClassification("x", ("a", "b"), Preprocessing(3, (8, 8), (0.5,) * 3, (0.25,) * 3))


def randomized(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3 if parameter.ndim > 1 else 0.1)
    return module.eval()


def encoder(width: int = 32, **options: bool) -> nn.Module:
    layer = nn.TransformerEncoderLayer(width, 4, 64, dropout=0.0, batch_first=True, **options)
    return randomized(
        Net(
            lambda m, x: m.out(m.layer(m.patches(x).flatten(2).transpose(1, 2)).mean(1)),
            patches=nn.Conv2d(3, width, 2, 2),
            layer=layer,
            out=nn.Linear(width, 5),
        )
    )


def images(count: int = 4) -> tuple[Tensor]:
    return (torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1)),)


@settings(max_examples=20, deadline=None)
@given(
    heads=st.integers(1, 4),
    width=st.integers(1, 6),
    bias=st.booleans(),
    batch_first=st.booleans(),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 5)),
)
def test_it_computes_what_multi_head_attention_does(
    heads: int, width: int, bias: bool, batch_first: bool, shape: tuple[int, int]
) -> None:
    packed = nn.MultiheadAttention(heads * width, heads, bias=bias, batch_first=batch_first)
    randomized(packed)
    x = torch.randn(*shape, heads * width)
    expected, _ = packed(x, x, x, need_weights=False)
    ours, weights = Attention.of(packed)(x, x, x)
    assert weights is None
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_what_was_frozen_stays_frozen_and_masks_are_refused() -> None:
    packed = nn.MultiheadAttention(8, 2, batch_first=True)
    packed.in_proj_weight.requires_grad_(False)
    packed.out_proj.bias.requires_grad_(False)
    made = Attention.of(packed)
    frozen = [name for name, one in made.named_parameters() if not one.requires_grad]
    assert frozen == ["qkv.weight", "out_proj.bias"]
    x = torch.randn(1, 3, 8)
    with pytest.raises(ValueError, match="takes no mask"):
        made(x, x, x, attn_mask=torch.zeros(3, 3))
    with pytest.raises(ValueError, match="for one sequence"):
        made(x, x.clone(), x)
    with pytest.raises(ValueError, match="with a batch dimension"):
        made(x[0], x[0], x[0])


@pytest.mark.parametrize("norm_first", [False, True])
def test_the_layers_around_can_be_replaced_too(norm_first: bool) -> None:
    """torch's fused kernel reads their weights past their forward: not any more."""
    net = encoder(norm_first=norm_first)
    result, before = unpacked(net, images())
    assert list(before) == ["layer.self_attn"]
    torch.testing.assert_close(forward(result, images()), forward(net, images()))
    found, left = target_layers(result, images())
    assert not left
    assert [target.path.removeprefix("layer.") for target in found] == [
        *("patches", "self_attn.qkv", "self_attn.out_proj", "linear1", "linear2", "out")
    ]
    assert isinstance(net.get_submodule("layer.self_attn"), nn.MultiheadAttention)


def test_attention_is_put_back_where_nothing_around_it_was_replaced() -> None:
    net = randomized(VisionTransformer(8, 2, 2, 2, 16, 32, num_classes=5))
    result, before = unpacked(net, images())
    first, second = before
    stays = packed_again(result, before, [f"{first.rpartition('.')[0]}.mlp.0"])
    assert stays == [first]
    assert isinstance(result.get_submodule(first), Attention)
    assert isinstance(result.get_submodule(second), nn.MultiheadAttention)
    names = renamed({f"{first}.in_proj_weight", f"{second}.in_proj_weight"}, stays)
    assert names == {f"{first}.qkv.weight", f"{second}.in_proj_weight"}
    assert names <= dict(result.named_parameters()).keys()
    torch.testing.assert_close(forward(result, images()), forward(net, images()))


def test_other_attention_stays_and_is_named() -> None:
    """Of two sequences, with a mask, or by a subclass."""

    class Own(nn.MultiheadAttention):
        pass

    def give(m: nn.Module, x: Tensor) -> Tensor:
        x = m.patches(x).flatten(2).transpose(1, 2)
        crossed = m.crossed(x, 2 * x, 2 * x)[0]
        masked = m.masked(x, x, x, attn_mask=torch.zeros(16, 16))[0]
        return m.out((crossed + masked + m.own(x, x, x)[0]).mean(1))

    kinds = {"crossed": nn.MultiheadAttention, "masked": nn.MultiheadAttention, "own": Own}
    layers = {name: kind(8, 2, batch_first=True) for name, kind in kinds.items()}
    net = Net(give, patches=nn.Conv2d(3, 8, 2, 2), **layers, out=nn.Linear(8, 5))
    randomized(net)
    result, before = unpacked(net, images())
    assert result is net
    assert not before
    found, left = target_layers(net, images())
    assert [target.path for target in found] == ["patches", "out"]
    assert {left[name] for name in kinds} == {PACKED}


@pytest.mark.parametrize("fraction", [0.8, 0.5])
def test_an_encoder_is_factorized_and_comes_back_equal(fraction: float, tmp_path: Path) -> None:
    net = encoder()
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim == 2:
                low = torch.linalg.svd(parameter, full_matrices=False)
                decaying = low.S * torch.exp(-6 * torch.arange(len(low.S)) / len(low.S))
                parameter.copy_(low.U * decaying @ low.Vh)
    model = Model(net, images(), blueprint=Blueprint("encoder"))
    context = StepContext(TASK, log=StepLog())
    result = run(chain(f"factorize(macs={fraction}, calibration=0)"), model, context)
    taken = {row["layer"] for row in context.log.rows if "form" in row}
    assert any("self_attn" in path for path in taken)
    assert isinstance(result.module.get_submodule("layer.self_attn"), Attention)
    save(result, tmp_path, lambda _: encoder())
    again = load(tmp_path, lambda _: encoder())
    assert torch.equal(forward(again.module, images()), forward(result.module, images()))


def test_weights_of_torchvision_s_swin_stay_for_they_are_read_past_their_forward() -> None:
    from torchvision.models import SwinTransformer

    net = SwinTransformer([4, 4], 24, [1, 1], [2, 4], [4, 4], num_classes=5).eval()
    x = (torch.randn(2, 3, 32, 32),)
    result, before = unpacked(net, x)
    assert result is net
    assert not before
    _, left = target_layers(net, x)
    assert {path.rpartition(".")[2] for path in left} == {"qkv", "proj"}
    assert all(reason.startswith(PAST) for reason in left.values())


@pytest.mark.parametrize(
    "text",
    [
        "factorize(macs=0.6, calibration=0) -> prune_channels(channels=0.5, calibration=0)",
        "prune_channels(channels=0.5, calibration=0) -> factorize(macs=0.6, calibration=0)",
    ],
)
def test_it_can_be_pruned_before_and_after(text: str, tmp_path: Path) -> None:
    model = Model(encoder(64), images(), blueprint=Blueprint("encoder"))
    result = run(chain(text), model, StepContext(TASK, log=StepLog()))
    sizes = [sum(p.numel() for p in one.module.parameters()) for one in (result, model)]
    assert sizes[0] < 0.5 * sizes[1]
    save(result, tmp_path, lambda _: encoder(64))
    again = load(tmp_path, lambda _: encoder(64))
    assert torch.equal(forward(again.module, images()), forward(result.module, images()))
