"""Carving: which blocks can go, which do, and that those that stay keep their weights."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import onnx
import pytest
import torch
from bench_fixtures import build, fresh_model, make_context, small_digits
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torchvision import models
from torchvision.models.convnext import CNBlockConfig

from compress.compressor import run, seed_everything
from compress.deploy.export import export
from compress.errors import IllegalChain
from compress.model import Model, forward, load, save
from compress.techniques import carve, chain
from compress.techniques.blocks import Stage, stages, without
from compress.techniques.losses import divergence
from compress.zoo.models import fresh

DATA = small_digits()


@given(
    st.integers(1, 30).flatmap(
        lambda n: st.tuples(st.just(n), st.integers(0, 31), st.sets(st.integers(0, n - 1)))
    )
)
def test_evenly(case: tuple[int, int, set[int]]) -> None:
    total, count, fixed = case
    blocks = tuple(f"b.{i}" for i in range(total))
    stage = Stage(blocks, frozenset(blocks[i] for i in range(total) if i not in fixed))
    kept = stage.evenly(count)
    assert len(kept) == min(total, max(count, len(fixed), 1))
    assert set(kept) >= {blocks[i] for i in fixed}
    assert list(kept) == sorted(kept, key=blocks.index)
    if not fixed:
        places = [blocks.index(path) for path in kept]
        gaps = {b - a for a, b in itertools.pairwise(places)}
        assert len(gaps) <= 2, "as even as whole numbers allow"


def test_the_blocks_of_a_resnet() -> None:
    model = fresh_model(DATA, "resnet32(width=4)")
    found = stages(model.module, model.items())
    assert [len(stage.blocks) for stage in found] == [5, 5, 5]
    fixed = [path for stage in found for path in stage.blocks if path not in stage.removable]
    assert fixed == ["layer2.0", "layer3.0"], "they halve the picture"


TORCHVISION: dict[str, tuple[Callable[..., nn.Module], list[int]]] = {
    "resnet18": (models.resnet18, [2, 2, 2, 2]),
    "mobilenet_v2": (models.mobilenet_v2, [17]),
    "vit_b_32, narrower": (
        partial(models.VisionTransformer, 64, 32, num_layers=12, num_heads=2, hidden_dim=16,
                mlp_dim=32),
        [12],
    ),
    "convnext_tiny, narrower": (
        partial(models.ConvNeXt, [
            CNBlockConfig(8, 16, 3), CNBlockConfig(16, 24, 3), CNBlockConfig(24, 32, 9),
            CNBlockConfig(32, None, 3),
        ]),
        [3, 3, 9, 3],
    ),
    "swin_t, narrower": (
        partial(models.SwinTransformer, [4, 4], 8, [2, 2, 6, 2], [1, 2, 4, 8], [7, 7]),
        [2, 2, 6, 2],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TORCHVISION)
def test_the_blocks_of_torchvision(name: str) -> None:
    make, expected = TORCHVISION[name]
    module = make(num_classes=4).eval()
    found = stages(module, (torch.zeros(1, 3, 64, 64),))
    assert [len(stage.blocks) for stage in found] == expected
    paths = [path for stage in found for path in stage.removable]
    with torch.no_grad():
        assert without(module, paths)(torch.rand(2, 3, 64, 64)).shape == (2, 4)


def test_plain_layers_of_equal_shape_are_no_blocks() -> None:
    """Without a way past it, a layer cannot go without a hole in the chain of features."""
    module = nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(4)), nn.Flatten())
    assert stages(module, (torch.zeros(1, 3, 4, 4),)) == []


@pytest.fixture(scope="module")
def trained() -> Model:
    return run(chain("train(epochs=1)"), fresh_model(DATA, "resnet32(width=4)"), make_context(DATA))


def test_what_stays_keeps_its_weights(trained: Model, tmp_path: Path) -> None:
    context = make_context(DATA, trained)
    made = run(chain("carve(ratio=0.6)"), trained, context)
    [row] = [row for row in context.log.rows if row["kind"] == "carve"]
    assert row["kept"] == [f"layer{s}.{i}" for s in (1, 2, 3) for i in (0, 1, 3)]
    before, after = trained.module.state_dict(), made.module.state_dict()
    assert set(after) < set(before)
    assert all(torch.equal(before[name], after[name]) for name in after)
    by_hand = without(trained.copy().module, row["removed"])
    inputs = trained.items(4)
    assert torch.equal(forward(made.module, inputs), forward(by_hand, inputs))
    save(made, tmp_path, build)
    assert torch.equal(forward(load(tmp_path, build).module, inputs), forward(by_hand, inputs))


def test_blocks_by_name(trained: Model) -> None:
    context = make_context(DATA, trained)
    made = run(chain("carve(blocks=['layer1.2', 'layer3.4'])"), trained, context)
    [row] = [row for row in context.log.rows if row["kind"] == "carve"]
    assert row["kept"] == ["layer1.2", "layer2.0", "layer3.0", "layer3.4"]
    assert forward(made.module, trained.items()).shape == (2, 10)
    with pytest.raises(IllegalChain, match=r"no block 'layer1.9'. Did you mean 'layer1"):
        run(chain("carve(blocks=['layer1.9'])"), trained, context)


def test_by_effect_removes_first_what_changes_the_answers_least(trained: Model) -> None:
    context = make_context(DATA, trained)
    run(chain("carve(ratio=0.9, by='effect')"), trained, context)
    [row] = [row for row in context.log.rows if row["kind"] == "carve"]
    [gone] = row["removed"]
    assert context.calibration is not None
    raw, _ = context.calibration.fetch(torch.arange(128))
    inputs = context.task.prepare(raw, context.device)
    expected = forward(trained.module, inputs)
    effects = {}
    for stage in stages(trained.module, trained.items()):
        for path in stage.removable:
            cut = without(trained.copy().module, [path])
            effects[path] = float(
                divergence(forward(cut, inputs).log_softmax(1), expected.log_softmax(1))
            )
    assert gone == min(effects, key=lambda path: effects[path])
    [told] = [row for row in context.log.rows if row["kind"] == "removal"]
    assert told["divergence"] == [pytest.approx(effects[gone], abs=1e-5)]


def test_a_block_of_no_effect_goes_first(trained: Model) -> None:
    model = trained.copy()
    block = model.module.get_submodule("layer2.3")
    with torch.no_grad():
        block.bn2.weight.zero_()
        block.bn2.bias.zero_()  # what goes past it was made by a ReLU, so the last one keeps it
    context = make_context(DATA, model)
    made = run(chain("carve(ratio=0.93, by='effect')"), model, context)
    [row] = [row for row in context.log.rows if row["kind"] == "carve"]
    assert row["removed"] == ["layer2.3"]
    inputs = model.items()
    torch.testing.assert_close(forward(made.module, inputs), forward(model.module, inputs))


def test_the_depth_is_that_of_the_smaller_net(trained: Model) -> None:
    from compress import counts

    made = run(chain("carve(ratio=0.6)"), trained, make_context(DATA, trained))
    smaller = fresh_model(DATA, "resnet20(width=4)")
    found, expected = (counts.count(m.module, m.example) for m in (made, smaller))
    assert (found.params, found.macs) == (expected.params, expected.macs)


def test_masks_go_with_their_blocks(trained: Model) -> None:
    context = make_context(DATA, trained)
    made = run(chain("prune_weights(sparsity=0.5) -> carve(ratio=0.6)"), trained, context)
    assert made.sparse
    assert made.sparse <= dict(made.module.named_parameters()).keys()


def test_in_steps_it_comes_to_the_same_number(trained: Model) -> None:
    context = make_context(DATA, trained)
    gradual = run(chain("repeat(2, carve(ratio=0.6) -> finetune(epochs=1))"), trained, context)
    count = [len(stage.blocks) for stage in stages(gradual.module, gradual.items())]
    assert count == [3, 3, 3]


def test_by_effect_in_steps_comes_to_the_same_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages that have nothing left to remove still count."""
    monkeypatch.setattr(carve, "MEASURED_ON", 16)
    model = fresh_model(DATA, "resnet20(width=4)")
    context = make_context(DATA, model)
    made = run(chain("repeat(3, carve(ratio=0.3, by='effect'))"), model, context)
    kept = [row["kept"] for row in context.log.rows if row["kind"] == "carve"]
    assert [len(paths) for paths in kept] == [7, 5, 3]  # 0.767, 0.533 and 0.3 of 9
    blocks = [p for p, m in made.module.named_modules() if type(m).__name__ == "Block"]
    assert blocks == kept[-1]


def test_blocks_that_must_stay_are_told() -> None:
    model = fresh_model(DATA, "resnet20(width=4)")
    context = make_context(DATA, model)
    run(chain("carve(ratio=0.01)"), model, context)
    assert "3 of 9 blocks stay (0.33 of them)" in context.log.notes[0]


def test_born_again_after_carving_has_the_factorys_fresh_weights(trained: Model) -> None:
    context = make_context(DATA, trained)
    student = "distill(student='same', epochs=1, learning_rate=1e-9, batch_size=32)"
    text = f"carve(ratio=0.6) -> {student}"
    made = run(chain(text), trained, context)
    assert [len(stage.blocks) for stage in stages(made.module, made.items())] == [3, 3, 3]
    assert not context.log.notes
    spread = float(made.module.get_parameter("layer3.0.conv2.weight").detach().std())
    assert spread == pytest.approx((2 / (16 * 9)) ** 0.5, rel=0.1), "He's, of CifarResNet"


def test_a_transformer_keeps_the_weights_of_the_layers_that_stay() -> None:
    name = (
        "torchvision:VisionTransformer(image_size=8, patch_size=4, num_layers=4, num_heads=2, "
        "hidden_dim=16, mlp_dim=32)"
    )
    model = fresh_model(DATA, name)
    made = run(chain("carve(ratio=0.5)"), model, make_context(DATA, model))
    whole, left = model.module.state_dict(), made.module.state_dict()
    layers = sorted({key.split(".")[2] for key in left if key.startswith("encoder.layers.")})
    assert layers == ["encoder_layer_0", "encoder_layer_2"]
    assert all(torch.equal(value, whole[key]) for key, value in left.items())
    # Attention and its residual by hand: what is left is the two layers after one another.
    encoder, inputs = model.module.encoder, torch.randn(2, 5, 16)
    expected = encoder.layers[2](encoder.layers[0](inputs + encoder.pos_embedding))
    found = made.module.encoder(inputs)
    torch.testing.assert_close(found, encoder.ln(expected))


TUTORIAL = """
import torch
from torch import nn

class Vision(nn.Module):
    def __init__(self, num_classes, norm_first):
        super().__init__()
        self.patches = nn.Conv2d(1, 16, 2, 2)
        self.places = nn.Parameter(torch.randn(1, 16, 16) / 4)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.head = nn.Linear(16, num_classes)

    def forward(self, x):
        tokens = self.patches(x).flatten(2).mT + self.places
        return self.head(self.encoder(tokens).mean(1))

def make(num_classes, in_channels, norm_first=False):
    return Vision(num_classes, norm_first)
"""


@pytest.mark.parametrize("norm_first", [False, True])
def test_a_transformer_of_torchs_own_layers(norm_first: bool, tmp_path: Path) -> None:
    """They are called with masks that are None, and in their first form end with a norm."""
    code = tmp_path / "tutorial.py"
    code.write_text(TUTORIAL)
    seed_everything(0)
    model = fresh(f"{code}:make(norm_first={norm_first})", DATA.task, [code])
    [stage] = stages(model.module, model.items())
    places = tuple(f"encoder.layers.{number}" for number in range(4))
    assert stage.blocks == places
    assert stage.removable >= set(places[1:])
    made = run(chain("carve(ratio=0.5)"), model, make_context(DATA, model))
    inputs = torch.randn(3, 1, 8, 8)
    # By hand: the layers that stay, one after the other.
    tokens = model.module.patches(inputs).flatten(2).mT + model.module.places
    for number in (0, 2):
        tokens = model.module.encoder.layers[number](tokens)
    torch.testing.assert_close(made.module(inputs), model.module.head(tokens.mean(1)))
    save(made, tmp_path / "kept", partial(build, allow_code=[code]))
    again = load(tmp_path / "kept", partial(build, allow_code=[code]))
    assert torch.equal(forward(again.module, (inputs,)), forward(made.module, (inputs,)))
    onnx.checker.check_model(onnx.load_model_from_string(export(made)))


def test_blocks_that_need_what_they_are_given_stay() -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
            return x + self.linear(x)

    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(Layer() for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                x = layer(x, None)
            return x

    assert stages(Stack(), (torch.zeros(1, 8),)) == []


def test_norms_of_their_own_are_no_blocks() -> None:
    layers = [nn.Flatten(), nn.Linear(64, 32), nn.LayerNorm(32), nn.LayerNorm(32), nn.Linear(32, 2)]
    assert stages(nn.Sequential(*layers), (torch.zeros(1, 1, 8, 8),)) == []


def test_width_is_that_of_pruned_channels(trained: Model) -> None:
    both = run(chain("carve(ratio=0.6, width=0.5)"), trained, make_context(DATA, trained))
    steps = chain("carve(ratio=0.6) -> prune_channels(channels=0.5, calibration=0)")
    one_by_one = run(steps, trained, make_context(DATA, trained))
    ours, theirs = both.module.state_dict(), one_by_one.module.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    whole = trained.module.state_dict()
    narrower = [key for key in ours if ours[key].shape != whole[key].shape]
    assert any(key.endswith("conv1.weight") for key in narrower)
    for key in narrower:
        if key.endswith("conv1.weight"):
            assert 2 * len(ours[key]) == len(whole[key])


def test_nothing_to_take_out_is_told() -> None:
    model = fresh_model(DATA, "mlp")
    context = make_context(DATA, model)
    made = run(chain("carve(ratio=0.5)"), model, context)
    assert made.module.state_dict().keys() == model.module.state_dict().keys()
    assert "the model has no stack of blocks" in context.log.notes[0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("carve()", "give ratio, blocks or width"),
        ("carve(ratio=0)", "ratio is the fraction that is kept"),
        ("carve(ratio=0.5, blocks=['a'])", "not both"),
        ("carve(ratio=0.5, by='luck')", "even, effect"),
        ("carve(blocks=[1])", "list of names"),
        ("carve(blocks=['a'], by='effect')", "there is no ratio"),
        ("carve(width=0.5, by='effect')", "there is no ratio"),
        ("carve(blocks='layer1.0')", "list of names"),
    ],
)
def test_refused(text: str, words: str) -> None:
    with pytest.raises(IllegalChain, match=words):
        chain(text)


def test_needs_calibration_only_to_judge(trained: Model) -> None:
    context = replace(make_context(DATA, trained), calibration=None)
    run(chain("carve(ratio=0.5)"), trained, context)
    with pytest.raises(IllegalChain, match="needs calibration"):
        run(chain("carve(ratio=0.5, by='effect')"), trained, context)
