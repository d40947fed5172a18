"""Attention loses channels of each head, or whole heads: against masks of this file's own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pruned_nets import Net, cut_alone, of, prepared, pruned, share, step_context
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from compress.attention import Attention
from compress.compressor import run
from compress.deploy.export import export
from compress.deploy.session import predict, session
from compress.errors import UserError
from compress.model import Model, forward, load, save
from compress.techniques import chain, channel_proof
from compress.techniques.channel_attention import heads_of
from compress.techniques.channel_cut import cut
from compress.zoo.models import build_module

WIDTH, HEADS = 32, 4
SIDE = WIDTH // HEADS
ROUNDING = 1e-6
"""In float64, of queries that were multiplied in float32."""


def silenced(before: nn.Module, after: nn.Module) -> nn.Module:
    """Return a float64 copy in which the outputs that a pruned net lacks are zero.

    Which these are the biases say, all of which are different; those of queries that make up for
    narrower heads are not found, and all queries stay, which meet keys of zero.
    """
    result = copy.deepcopy(before).double()
    for path, layer in result.named_modules():
        if not isinstance(layer, (nn.Linear, nn.Conv2d)) or layer.bias is None:
            continue
        known = set(after.get_submodule(path).bias.tolist())
        gone = torch.tensor([one not in known for one in before.get_submodule(path).bias.tolist()])
        third = len(gone) // 3
        if gone.all():
            gone[:] = False
        elif gone[:third].all() and not gone[third:].all():
            gone[:third] = False
        with torch.no_grad():
            layer.weight[gone] = 0
            layer.bias[gone] = 0
    return result


def off(model: Model, after: nn.Module) -> float:
    """Return by how much of the largest output a pruned net differs from the silenced one."""
    inputs = tuple(x.double() for x in model.items(3))
    expected = forward(silenced(model.module, after), inputs)
    ours = forward(copy.deepcopy(after).double(), inputs)
    return float((ours - expected).abs().max() / expected.abs().max())


def separate(m: nn.Module, x: Tensor, of_model: bool = False) -> Tensor:
    """Attention of three projections; `of_model`: whose code takes the model's width for theirs."""
    n, length, width = x.shape
    side = width // m.num_heads if of_model else -1
    q, k, v = (
        one(x).reshape(n, length, m.num_heads, side).transpose(1, 2) for one in (m.q, m.k, m.v)
    )
    mixed = F.scaled_dot_product_attention(q, k, v)
    return m.proj(mixed.transpose(1, 2).reshape(n, length, width if of_model else -1))


def channel_attention(m: nn.Module, x: Tensor) -> Tensor:
    """XCiT's: softmax over the channels of a head, so that these cannot go one by one."""
    n, length, _ = x.shape
    q, k, v = (
        one(x).reshape(n, length, m.num_heads, -1).permute(0, 2, 3, 1) for one in (m.q, m.k, m.v)
    )
    mixed = ((q @ k.transpose(-2, -1)) * m.temperature).softmax(-1) @ v
    return m.proj(mixed.permute(0, 3, 1, 2).reshape(n, length, -1))


def turned(m: nn.Module, x: Tensor) -> Tensor:
    """Queries and keys are multiplied by a table that the code makes for this width alone."""
    n, length, _ = x.shape
    q, k, v = (
        one(x).reshape(n, length, m.num_heads, SIDE).transpose(1, 2) for one in (m.q, m.k, m.v)
    )
    angles = torch.outer(torch.arange(length), torch.arange(SIDE) + 1.0).cos().to(x)
    mixed = F.scaled_dot_product_attention(q * angles, k * angles, v)
    return m.proj(mixed.transpose(1, 2).reshape(n, length, -1))


def unequal(m: nn.Module, x: Tensor) -> Tensor:
    """LeViT's: queries and keys are narrower than values, and the layer says how wide they are."""
    n, length, _ = x.shape
    parts = m.qkv(x).view(n, length, m.num_heads, -1)
    q, k, v = parts.split([m.key_dim, m.key_dim, m.val_dim], dim=3)
    scores = q.permute(0, 2, 1, 3) @ k.permute(0, 2, 3, 1) * m.scale
    mixed = scores.softmax(-1) @ v.permute(0, 2, 1, 3)
    return m.proj(mixed.transpose(1, 2).reshape(n, length, m.val_dim * m.num_heads))


class Heads(Net):
    """An attention layer with a number of heads."""

    def __init__(self, forward: Callable[..., Tensor], **layers: nn.Module) -> None:
        super().__init__(forward, **layers)
        self.num_heads = HEADS


def three() -> dict[str, nn.Module]:
    return {name: nn.Linear(WIDTH, WIDTH) for name in ("q", "k", "v", "proj")}


def of_separate() -> nn.Module:
    return Heads(separate, **three())


def of_model() -> nn.Module:
    return Heads(lambda m, x: separate(m, x, of_model=True), **three())


def of_channels() -> nn.Module:
    layer = Heads(channel_attention, **three())
    layer.temperature = nn.Parameter(1 + 0.1 * torch.randn(HEADS, 1, 1))
    return layer


def of_a_table() -> nn.Module:
    return Heads(turned, **three())


def of_one_width() -> nn.Module:
    """The layer says how wide a head is, of queries, keys and values alike."""

    def attend(m: nn.Module, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        sizes = (n, length, m.num_heads, m.head_dim)
        q, k, v = (one(x).view(sizes).transpose(1, 2) for one in (m.q, m.k, m.v))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return m.proj(mixed.reshape(n, length, m.num_heads * m.head_dim))

    layer = Heads(attend, **three())
    layer.head_dim = SIDE
    return layer


def of_unequal() -> nn.Module:
    projections = {"qkv": nn.Linear(WIDTH, HEADS * 32), "proj": nn.Linear(HEADS * 16, WIDTH)}
    layer = Heads(unequal, **projections)
    layer.key_dim, layer.val_dim, layer.scale = 8, 16, 8**-0.5
    return layer


class Once(nn.Module):
    """`Attention` with one input."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Attention(WIDTH, HEADS)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, x, x)[0]


def net(attention: nn.Module) -> Model:
    """Return a model that adds what attention over four-pixel patches gives to these."""

    def read(m: nn.Module, x: Tensor) -> Tensor:
        x = m.patches(x).flatten(2).transpose(1, 2)
        return m.out((x + m.attention(x)).mean(1))

    torch.manual_seed(3)
    layers = {"patches": nn.Conv2d(3, WIDTH, 4, 4), "attention": attention}
    return of(Net(read, **layers, out=nn.Linear(WIDTH, 10)), 3, 16, 16)


KINDS: list[tuple[Callable[[], nn.Module], str, int, int]] = [
    # what it is, what is asked, heads and width of a head at half of the channels
    (Once, "narrower", HEADS, SIDE // 2),
    (Once, "fewer", HEADS // 2, SIDE),
    (of_separate, "narrower", HEADS, SIDE // 2),
    (of_separate, "fewer", HEADS // 2, SIDE),
    (of_model, "narrower", HEADS, SIDE // 2),
    (of_model, "fewer", HEADS // 2, SIDE),
    (of_channels, "narrower", HEADS // 2, SIDE),
    (of_channels, "fewer", HEADS // 2, SIDE),
    (of_a_table, "narrower", HEADS // 2, SIDE),
    (of_a_table, "fewer", HEADS // 2, SIDE),
]


@pytest.mark.parametrize(("kind", "heads", "count", "side"), KINDS)
def test_attention_without_some_of_its_heads_is_attention_with_these_silenced(
    kind: Callable[[], nn.Module], heads: str, count: int, side: int
) -> None:
    model = net(kind())
    after, context = pruned(f"prune_channels(channels=0.5, round_to=1, heads={heads!r})", model)
    layer: Any = after.attention.inner if kind is Once else after.attention
    values = layer.qkv.out_features // 3 if kind is Once else layer.v.out_features
    assert (layer.num_heads, values) == (count, count * side)
    assert after.patches.out_channels == WIDTH // 2
    assert {row["layer"] for row in context.log.rows if "left_alone" in row} == {"out"}
    assert off(model, after) < ROUNDING


@pytest.mark.parametrize("kind", [Once, of_separate, of_channels, of_a_table])
@pytest.mark.parametrize("heads", ["narrower", "fewer"])
def test_attention_is_cut_alone_where_its_code_allows(
    kind: Callable[[], nn.Module], heads: str
) -> None:
    model = net(kind())
    options = f"round_to=1, heads={heads!r}, ignored=['patches']"
    after, _ = pruned(f"prune_channels(channels=0.5, {options})", model)
    assert after.patches.out_channels == WIDTH
    projection = after.attention.inner.out_proj if kind is Once else after.attention.proj
    assert projection.in_features == WIDTH // 2
    assert off(model, after) < ROUNDING


@pytest.mark.parametrize("heads", ["narrower", "fewer"])
def test_keys_and_values_of_their_own_widths_follow_the_numbers_of_their_layer(heads: str) -> None:
    model = net(of_unequal())
    after, context = pruned(f"prune_channels(channels=0.5, round_to=1, heads={heads!r})", model)
    layer: Any = after.attention
    halved = (HEADS, 4, 8) if heads == "narrower" else (HEADS // 2, 8, 16)
    assert (layer.num_heads, layer.key_dim, layer.val_dim) == halved
    assert layer.scale == 8**-0.5
    assert {row["layer"] for row in context.log.rows if "left_alone" in row} == {"out"}
    assert off(model, after) < ROUNDING


@pytest.mark.parametrize("text", ["channels=0.5", "macs=0.8", "macs=0.8, scope='global'"])
def test_a_width_of_heads_that_the_layer_keeps_is_that_of_keys_and_of_values(text: str) -> None:
    model = net(of_one_width())
    after, _ = pruned(f"prune_channels({text}, round_to=1, ignored=['patches'])", model)
    layer: Any = after.attention
    assert layer.head_dim == layer.k.out_features // HEADS == layer.v.out_features // HEADS < SIDE
    assert off(model, after) < ROUNDING


def test_the_heads_of_least_worth_go() -> None:
    model = net(of_separate())
    with torch.no_grad():
        for layer in (model.module.attention.v, model.module.attention.proj):
            layer.weight.mul_(0.1)
        model.module.attention.v.weight[SIDE : 2 * SIDE] *= 100
    kept = model.module.attention.v.bias[SIDE : 2 * SIDE]
    after, _ = pruned("prune_channels(channels=0.25, round_to=1, heads='fewer')", model)
    torch.testing.assert_close(after.attention.v.bias, kept)


def test_a_single_head_becomes_narrower_whatever_is_asked() -> None:
    layer = of_separate()
    layer.num_heads = 1
    model = net(layer)
    after, _ = pruned("prune_channels(channels=0.5, round_to=1, heads='fewer')", model)
    assert (after.attention.num_heads, after.attention.v.out_features) == (1, WIDTH // 2)
    assert off(model, after) < ROUNDING


class Gpt(nn.Module):
    """The attention of minGPT and nanoGPT, without a mask."""

    def __init__(self, heads: str = "n_head", projection: str = "c_attn") -> None:
        super().__init__()
        self.n_embd, self.heads_name, self.projection = WIDTH, heads, projection
        setattr(self, heads, HEADS)
        self.add_module(projection, nn.Linear(WIDTH, 3 * WIDTH))
        self.c_proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        heads = getattr(self, self.heads_name)
        parts = getattr(self, self.projection)(x).split(self.n_embd, dim=2)
        q, k, v = (p.view(n, length, heads, width // heads).transpose(1, 2) for p in parts)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.c_proj(mixed.transpose(1, 2).reshape(n, length, width))


@pytest.mark.parametrize("heads", ["narrower", "fewer"])
@pytest.mark.parametrize(
    "names", [("n_head", "c_attn"), ("heads", "to_qkv"), ("h", "query_key_value")]
)
def test_heads_are_known_by_the_names_that_they_have(names: tuple[str, str], heads: str) -> None:
    model = net(Gpt(*names))
    after, context = pruned(f"prune_channels(channels=0.5, round_to=1, heads={heads!r})", model)
    layer: Any = after.attention
    assert getattr(layer, names[0]) == (HEADS if heads == "narrower" else HEADS // 2)
    assert getattr(layer, names[1]).weight.shape == (3 * WIDTH // 2, WIDTH // 2)
    assert layer.n_embd == WIDTH // 2
    assert {row["layer"] for row in context.log.rows if "left_alone" in row} == {"out"}
    assert off(model, after) < ROUNDING


def test_what_may_be_anything_is_a_number_of_heads_beside_a_projection_alone() -> None:
    layer = nn.Sequential(nn.Linear(4, 12))
    layer.h = 4
    assert heads_of(layer) == 0
    layer.add_module("qkv", nn.Linear(4, 12))
    assert heads_of(layer) == 4


VIT = (
    "torchvision:VisionTransformer(patch_size=8, num_layers=2, num_heads=4, hidden_dim=32, "
    "mlp_dim=64)"
)


@pytest.mark.parametrize("heads", ["narrower", "fewer"])
def test_vision_transformers_of_torchvision_keep_their_stream_and_are_saved(
    heads: str, tmp_path: Path
) -> None:
    model = prepared(VIT)
    text = f"prune_channels(macs=0.6, round_to=1, heads={heads!r})"
    result = run(cut_alone(text), model, step_context())
    inner: Any = result.module.encoder.layers[0].self_attention
    assert type(inner) is Attention
    assert inner.qkv.in_features == 32 > inner.out_proj.in_features
    assert inner.num_heads == (4 if heads == "narrower" else inner.out_proj.in_features // 8)
    assert share(result.module, model) <= 0.6
    again = _saved(result, tmp_path)
    assert torch.equal(forward(again.module, model.items()), forward(result.module, model.items()))
    _agrees(result)


def _saved(result: Model, folder: Path) -> Model:
    save(result, folder, build_module)
    return load(folder, build_module)


def _agrees(result: Model) -> None:
    inputs = result.items(4)
    ours = forward(result.module, inputs)
    theirs = torch.from_numpy(predict(session(export(result)), [inputs]))
    torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-4)


def test_attention_around_which_nothing_is_cut_stays_packed() -> None:
    model = prepared(VIT)
    paths = [
        f"encoder.layers.encoder_layer_{number}.{leaf}"
        for number in (0, 1)
        for leaf in ("self_attention", "mlp.0")
    ]
    context = step_context()
    result = run(cut_alone(f"prune_channels(channels=0.5, ignored={paths!r})"), model, context)
    attentions = [m for m in result.module.modules() if isinstance(m, nn.MultiheadAttention)]
    assert len(attentions) in (0, 2)
    whole = run(
        cut_alone(f"prune_channels(channels=0.5, ignored={[*paths, 'conv_proj']!r})"),
        model,
        context,
    )
    kept = [m for m in whole.module.modules() if isinstance(m, nn.MultiheadAttention)]
    assert len(kept) == 2


@pytest.mark.parametrize("heads", ["narrower", "fewer"])
def test_blocks_of_timm_lose_heads(heads: str) -> None:
    torch.manual_seed(1)
    layers = VisionTransformer(32, 8, num_classes=10, embed_dim=WIDTH, depth=2, num_heads=HEADS)
    for parameter in layers.parameters():
        nn.init.normal_(parameter, std=0.3)
    model = of(layers, 3, 32, 32)
    after, _ = pruned(
        f"prune_channels(channels=0.5, round_to=1, heads={heads!r}, ignored=['patch_embed.proj'])",
        model,
    )
    block: Any = after.blocks[0]
    assert block.attn.num_heads == (HEADS if heads == "narrower" else HEADS // 2)
    assert block.attn.attn_dim == block.attn.proj.in_features == WIDTH // 2
    assert block.attn.qkv.in_features == WIDTH
    assert off(model, after) < ROUNDING


def test_what_heads_become_is_one_of_two() -> None:
    with pytest.raises(UserError, match="narrower"):
        chain("prune_channels(channels=0.5, heads='none')")


def test_of_many_layers_of_one_kind_one_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the number of layers, the time is that of a few cuts."""
    torch.manual_seed(0)
    net_of_12 = Net(
        lambda m, x: m.out(m.body(m.patches(x).flatten(2).transpose(1, 2)).mean(1)),
        patches=nn.Conv2d(3, WIDTH, 4, 4),
        body=nn.Sequential(*(of_channels() for _ in range(12))),
        out=nn.Linear(WIDTH, 10),
    )
    model = of(net_of_12, 3, 16, 16)
    cuts = 0

    def counted(*given: Any) -> Any:
        nonlocal cuts
        cuts += 1
        return cut(*given)

    monkeypatch.setattr(channel_proof, "cut", counted)
    channels = channel_proof.sound_groups(model.module, model.items())
    assert cuts <= 10
    assert len([group for group in channels.groups if group.attentions]) == 12
