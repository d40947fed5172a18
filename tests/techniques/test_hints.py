"""Hints between layers: what is matched, the losses by hand, and that learning follows them."""

from __future__ import annotations

import pytest
import torch
from bench_fixtures import fresh_model, make_context, small_digits
from torch import nn

from compress.compressor import run
from compress.errors import IllegalChain
from compress.model import Model
from compress.techniques import chain
from compress.techniques.feature_pairs import channels_first, matched, recorded
from compress.techniques.hints import Attention, Fitnets, HintLoss, attention
from compress.techniques.hints import hints as known_hints

DATA = small_digits()


def model(name: str, seed: int = 0) -> Model:
    return fresh_model(DATA, name, seed)


def test_convolutional_nets_are_matched_at_the_end_of_every_stage() -> None:
    pairs = matched(model("resnet56(width=8)"), model("resnet20(width=4)"))
    assert pairs == [(f"layer{i}", f"layer{i}") for i in (1, 2, 3)]


def test_blocks_that_make_the_picture_smaller_late_do_not_count_for_the_stage_before() -> None:
    """torchvision's ResNet-50 has its stride in the second layer of a block, MobileNet likewise."""
    from torchvision.models import mobilenet_v2, resnet50

    example = (torch.zeros(1, 3, 64, 64),)
    nets = [Model(net(num_classes=10).eval(), example) for net in (resnet50, mobilenet_v2)]
    pairs = matched(*nets)
    assert [theirs for theirs, _ in pairs] == ["layer1", "layer2", "layer3", "layer4"]
    assert [ours for _, ours in pairs] == ["features.3", "features.6", "features.13", "features"]


def test_what_later_layers_do_in_place_is_not_seen() -> None:
    def net() -> Model:
        torch.manual_seed(0)
        layers = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(144, 10)
        )
        return Model(layers, (torch.zeros(1, 3, 8, 8),))

    teacher, student = net(), net()
    hints = HintLoss(Fitnets(layers=("0:0",)), teacher, student)
    inputs = torch.randn(2, 3, 8, 8)
    teacher.module(inputs)
    student.module(inputs)
    seen = hints.of_teacher["0"]
    hints.remove()
    torch.testing.assert_close(seen, teacher.module[0](inputs))
    assert (seen < 0).any()


def test_transformers_are_matched_by_depth() -> None:
    vits = [_vit(6), _vit(3)]
    pairs = matched(*vits)
    assert [theirs.rpartition("_")[2] for theirs, _ in pairs] == ["1", "3", "5"]
    assert [ours.rpartition("_")[2] for _, ours in pairs] == ["0", "1", "2"]
    hints = HintLoss(Fitnets(), *vits)
    vits[0].module(*vits[0].items())
    vits[1].module(*vits[1].items())
    assert hints.value() > 0


def _vit(layers: int) -> Model:
    from torchvision.models import VisionTransformer

    torch.manual_seed(0)
    module = VisionTransformer(
        image_size=8, patch_size=2, num_layers=layers, num_heads=2, hidden_dim=16, mlp_dim=16
    )
    return Model(module.eval(), (torch.zeros(1, 3, 8, 8),))


def test_channels_that_come_last_are_moved_to_the_front() -> None:
    from torchvision.models import SwinTransformer

    torch.manual_seed(0)
    swin = SwinTransformer([2, 2], 16, [1, 1], [2, 2], [2, 2], num_classes=10)
    teacher = Model(swin.eval(), (torch.zeros(1, 3, 8, 8),))
    student = Model(_conv_net(), (torch.zeros(1, 3, 8, 8),))
    pairs = matched(teacher, student)
    # Swin itself permutes what comes after its last norm.
    assert pairs == [("features.1", "0"), ("permute", "1")]
    assert recorded(swin, teacher.items())["features.1"].shape == (2, 16, 4, 4)
    hints = HintLoss(Attention(), teacher, student)
    inputs = teacher.items()
    with torch.no_grad():
        theirs = swin.features[:2](inputs[0])
        ours = student.module[0](inputs[0])
        maps = attention(theirs.permute(0, 3, 1, 2)), attention(ours)
        last = swin.norm(swin.features[2:](theirs)).permute(0, 3, 1, 2)
        ends = attention(last), attention(student.module[1](ours))
        by_hand = sum((one - other).square().sum(1).mean() for one, other in (maps, ends)) / 2
        swin(*inputs)
        student.module(*inputs)
        assert float(hints.value()) == pytest.approx(float(by_hand), rel=1e-5)
    learnt = HintLoss(Fitnets(), teacher, student)
    assert [list(p.weight.shape[:2]) for p in learnt.projections] == [[16, 6], [32, 5]]


def _conv_net() -> nn.Sequential:
    layers = nn.Conv2d(3, 6, 2, 2), nn.Conv2d(6, 5, 2, 2)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(20, 10)).eval()


@pytest.mark.parametrize(
    ("shape", "size", "moved"),
    [
        ((2, 7, 4, 4), (8, 8), False),
        ((2, 4, 4, 7), (8, 8), True),
        ((2, 4, 4, 4), (8, 8), False),
        ((2, 1, 1, 9), (8, 8), True),
        ((2, 9, 1, 1), (8, 8), False),
        ((2, 6, 4, 8), (32, 64), False),
        ((2, 4, 8, 6), (32, 64), True),
        ((2, 8, 5, 10), (33, 70), False),
        ((2, 5, 9, 3), (8, 8), False),
        ((2, 4, 4, 7), None, False),
    ],
)
def test_where_the_channels_are(shape, size, moved) -> None:
    found = channels_first(torch.zeros(shape), size)
    assert found.shape == ((shape[0], shape[3], *shape[1:3]) if moved else shape)


def test_attention_by_hand() -> None:
    features = torch.randn(3, 5, 2, 4)
    maps = attention(features)
    for i in range(3):
        energy = [
            sum(float(features[i, c, y, x]) ** 2 for c in range(5)) / 5
            for y in range(2)
            for x in range(4)
        ]
        length = sum(value**2 for value in energy) ** 0.5
        assert maps[i].tolist() == pytest.approx([value / length for value in energy], rel=1e-5)


def test_the_losses_by_hand() -> None:
    teacher, student = model("resnet20(width=8)"), model("resnet20(width=4)", seed=1)
    inputs = teacher.items(4)
    pairs = matched(teacher, student)
    theirs, ours = recorded(teacher.module, inputs), recorded(student.module, inputs)
    for kind in ("fitnets", "attention"):
        hints = HintLoss(known_hints()[kind](), teacher, student)
        teacher.module(*inputs)
        student.module(*inputs)
        value = float(hints.value().detach())
        parts = []
        for (one, other), projection in zip(pairs, hints.projections, strict=True):
            if kind == "fitnets":
                with torch.no_grad():
                    parts.append(float((projection(ours[other]) - theirs[one]).square().mean()))
            else:
                gap = attention(ours[other]) - attention(theirs[one])
                parts.append(float(gap.square().sum(1).mean()))
        assert value == pytest.approx(sum(parts) / len(parts), rel=1e-4)
        hints.remove()
    assert not any(m._forward_hooks for net in (teacher, student) for m in net.module.modules())


@pytest.fixture(scope="module")
def trained() -> Model:
    return run(chain("train(epochs=4)"), model("cnn-small(width=16)"), make_context(DATA))


@pytest.mark.parametrize("kind", ["fitnets", "attention"])
def test_learning_brings_the_features_nearer(kind: str, trained: Model) -> None:
    context = make_context(DATA, trained)
    start = "distill(student='cnn-small(width=8)', epochs=8, batch_size=32, loss=[], hard_weight=0"
    made = run(chain(f"{start}, hints={kind}(weight=10.0))"), trained, context)
    losses = [row["loss"] for row in context.log.rows if row["kind"] == "epoch"]
    assert losses[-1] < 0.6 * losses[0]
    assert not any("projection" in name for name in made.module.state_dict())


def test_named_layers() -> None:
    teacher = model("resnet20(width=8)")
    context = make_context(DATA, teacher)
    start = "distill(student='resnet20(width=4)', epochs=1, hints=attention(layers="
    run(chain(f"{start}['layer2.0:layer2']))"), teacher, context)
    assert {"kind": "hints", "pairs": [["layer2.0", "layer2"]]} in context.log.rows
    for layers, words in (
        ("['layer9:layer1']", "the teacher has no layer 'layer9'. Did you mean 'layer"),
        ("['layer1:lair1']", "the student has no layer 'lair1'"),
        ("['layer1:layer3']", "different grids"),
        ("['linear:layer3']", "no single tensor of features"),
    ):
        with pytest.raises(IllegalChain, match=words):
            run(chain(f"{start}{layers}))"), teacher, context)
    for layers in ("['layer1']", "['layer1:']", "[3]", "['a:b:c']"):
        with pytest.raises(IllegalChain, match="layers is a list of texts"):
            chain(f"{start}{layers}))")


def test_what_cannot_give_hints() -> None:
    teacher = model("resnet20(width=8)")
    context = make_context(DATA, teacher)
    with pytest.raises(IllegalChain, match="no layer of the student has features"):
        run(chain("distill(student='mlp', epochs=1, hints='fitnets')"), teacher, context)
    with pytest.raises(IllegalChain, match="not from an ensemble"):
        chain("distill(epochs=1, hints='fitnets', teacher=['baseline', 'other'])")


def test_a_layer_that_is_called_twice_is_left_out() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)
            self.end = nn.Conv2d(3, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.end(self.conv(self.conv(x))).mean((2, 3))

    assert list(recorded(Twice(), (torch.zeros(1, 3, 4, 4),))) == ["end"]
