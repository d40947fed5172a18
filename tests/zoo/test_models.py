"""Models by name: their shapes, their weights, what is refused."""

from __future__ import annotations

import builtins
import importlib.util
import py_compile
from pathlib import Path

import pytest
import torch
from bench_fixtures import images
from torch import nn

from compress.errors import UserError
from compress.model import Blueprint, forward
from compress.tasks.image_classification import ImageClassification, Preprocessing
from compress.zoo.libraries import from_timm
from compress.zoo.models import MODELS, build_module, fresh
from compress.zoo.resnet import Block, CifarResNet, Shortcut
from compress.zoo.stem import shrink_stem

TINY_VIT = (
    "torchvision:VisionTransformer(patch_size=4, num_layers=2, num_heads=2, hidden_dim=16, "
    "mlp_dim=24)"
)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# --- our own ------------------------------------------------------------------------------


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85)])
def test_resnets_have_the_published_number_of_parameters(depth, millions):
    """He et al. 2015, table 6."""
    assert count(fresh(f"resnet{depth}", images()).module) / 1e6 == pytest.approx(
        millions, abs=0.01
    )


def test_a_resnet_has_as_many_layers_as_it_says():
    module = build_module(Blueprint("resnet110", given(images())))
    layers = [m for m in module.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(layers) == 110


def given(task: ImageClassification) -> dict:
    preprocessing = task.preprocessing
    return {
        "num_classes": len(task.classes),
        "in_channels": preprocessing.channels,
        "input_size": preprocessing.size,
    }


def test_a_shortcut_picks_every_second_pixel_and_pads_with_zeros():
    x = torch.randn(2, 3, 5, 4)
    y = Shortcut(2, 1, 2)(x)
    assert y.shape == (2, 6, 3, 2)
    assert torch.equal(y[:, 1:4], x[:, :, [0, 2, 4]][..., [0, 2]])
    assert y[:, [0, 4, 5]].abs().sum() == 0


def test_a_block_with_a_silent_branch_is_its_shortcut():
    block = Block(4, 8, 2).eval()
    nn.init.zeros_(block.bn2.weight)
    x = torch.randn(1, 4, 6, 6)
    assert torch.equal(block(x), block.shortcut(x).relu())


def test_small_nets_have_the_parameters_of_their_layers():
    cnn = fresh("cnn-small", images(8, 1)).module
    assert count(cnn) == (9 * 64 + 64) + (9 * 64 * 128 + 128) + (128 * 2 * 2 * 10 + 10)
    mlp = fresh("mlp(width=10)", images(8, 1)).module
    assert count(mlp) == (64 * 10 + 10) + (10 * 5 + 5) + (5 * 10 + 10)


def test_the_blueprint_builds_the_same_net_again():
    model = fresh("resnet20(width=4)", images(16, 1, 3))
    again = build_module(model.blueprint).eval()
    again.load_state_dict(model.module.state_dict())
    inputs = model.items()
    assert torch.equal(forward(model.module, inputs), forward(again, inputs))
    assert not model.module.training


def test_a_resnet_exports_with_a_dynamic_batch():
    module = CifarResNet(8, 10, 3, (16, 16), width=4).eval()
    batch = torch.export.Dim("batch")
    program = torch.export.export(
        module, (torch.randn(2, 3, 16, 16),), dynamic_shapes=({0: batch},), strict=False
    )
    inputs = (torch.randn(5, 3, 16, 16),)
    assert torch.allclose(program.module()(*inputs), forward(module, inputs), atol=1e-5)


# --- torchvision --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("torchvision:resnet18(stem='small')", 16),
        ("torchvision:mobilenet_v2(width_mult=0.25)", 64),
        ("torchvision:googlenet", 64),
        ("torchvision:squeezenet1_1", 64),
        (TINY_VIT, 32),
    ],
)
def test_torchvision_takes_any_channels_and_classes(name, side):
    model = fresh(name, images(side, channels=2, classes=7))
    assert forward(model.module, model.items()).shape == (2, 7)


def test_a_fresh_net_with_three_channels_is_torchvisions_own():
    import torchvision

    torch.manual_seed(0)
    ours = fresh("torchvision:resnet18", images(64)).module
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18(num_classes=10).eval()
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(ours(x), theirs(x))


def test_a_small_stem_keeps_the_resolution():
    def last(name: str) -> torch.Size:
        module, seen = fresh(name, images(32)).module, []
        convs = [m for m in module.modules() if isinstance(m, nn.Conv2d)]
        convs[-1].register_forward_hook(lambda _m, _i, output: seen.append(output.shape[2:]))
        forward(module, (torch.zeros(1, 3, 32, 32),))
        return seen[0]

    assert last("torchvision:resnet18") == (1, 1)
    assert last("torchvision:resnet18(stem='small')") == (4, 4)
    assert last("torchvision:mobilenet_v2") == (1, 1)
    assert last("torchvision:mobilenet_v2(stem='small')") == (2, 2)
    dense = "block_config=[1, 1, 1, 1], growth_rate=4, num_init_features=8"
    assert last(f"torchvision:DenseNet({dense}, stem='small')") == (4, 4)


def test_a_stem_that_is_small_already_is_refused():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.MaxPool2d(2))
    with pytest.raises(UserError, match="keep the resolution already"):
        shrink_stem(net, "net")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet21", "unknown model 'resnet21'. Did you mean .*'resnet20'"),
        ("keras:resnet50", r"unknown model 'keras:resnet50'\. Did you mean 'torchvision:resnet50'"),
        ("search", r"'search' is no model but a step.*search\(params=0.3, family='resnet'"),
        ("alexnet", r"unknown model 'alexnet'\. Did you mean 'torchvision:alexnet'\?"),
        ("resnet20(depth=3)", "unknown option of resnet20 'depth'"),
        ("resnet20(width='wide')", "positive whole number"),
        ("cnn-small(num_classes=3)", "unknown option"),
        ("torchvision:resnet19", "Did you mean"),
        ("torchvision:resnet18(depth=3)", "cannot be built.*depth"),
        (
            "torchvision:resnet18(zero_init=True)",
            "no option 'zero_init'. Did you mean 'zero_init_res",
        ),
        ("torchvision:VisionTransformer(patchsize=4)", "no option 'patchsize'"),
        (TINY_VIT[:-1] + ", image_size=64)", "built for image_size=64: .*--size 64"),
        ("torchvision:resnet18(weights='DEFAULT')", "weights are named beside"),
        ("torchvision:resnet18(num_classes=3)", "the task decides it"),
        ("torchvision:resnet18(stem='tiny')", "can only be 'small'"),
        ("torchvision:convnext_tiny(stem='small')", "patches"),
        ("torchvision:alexnet", "cannot take inputs of 3x32x32.*Use larger images"),
        ("resnet18(", "cannot read"),
    ],
)
def test_wrong_models_are_refused_in_words(name, words):
    with pytest.raises(UserError, match=words):
        fresh(name, images())


def test_vit_wants_square_images():
    task = ImageClassification("made", ("a", "b"), Preprocessing(1, (32, 16), (0.5,), (0.5,)))
    with pytest.raises(UserError, match="only square images, not 32x16"):
        fresh(TINY_VIT, task)


def test_every_listed_model_has_a_description():
    assert {"cnn-small", "mlp", "resnet20", "resnet110"} <= MODELS.keys()
    assert all(MODELS.values())


# --- timm ---------------------------------------------------------------------------------


def test_timm_gets_the_size_only_where_it_knows_it():
    pytest.importorskip("timm", reason="timm is an extra")
    task = images(32, channels=1, classes=5)
    for name in ("timm:resnet10t", "timm:vit_tiny_patch16_224(depth=1, patch_size=8)"):
        assert forward(fresh(name, task).module, task.probe(1)).shape == (1, 5)
    with pytest.raises(UserError, match="unknown timm model 'resnet10q'"):
        fresh("timm:resnet10q", task)
    for name in ("tf_efficientnet_lite0", "torchvision:tf_efficientnet_lite0"):
        with pytest.raises(UserError, match=r"Did you mean 'timm:tf_efficientnet_lite0'\? Known"):
            fresh(name, task)
    with pytest.raises(UserError, match="cannot be built: it has no option 'dept'"):
        fresh("timm:resnet10t(dept=1)", task)
    for option, words in [("drop_rat=0.1", "'drop_rate'"), ("img_sze=64", "Known: ")]:
        with pytest.raises(UserError, match=f"has no option .*{words}"):
            fresh(f"timm:resnet10t({option})", task)
    with pytest.raises(UserError, match=r"no option 'img_sze'\. Did you mean .*'img_size'"):
        fresh("timm:vit_tiny_patch16_224(depth=1, img_sze=64)", task)


def test_a_size_that_a_model_is_built_for_and_the_data_lack_is_said():
    pytest.importorskip("timm", reason="timm is an extra")
    name = "timm:vit_tiny_patch16_224(depth=1, img_size=64)"
    with pytest.raises(UserError, match=r"built for img_size=64: .* \(--size 64\)") as caught:
        fresh(name, images(32))
    assert "larger images" not in str(caught.value)
    assert fresh(name, images(64))


def test_without_timm_the_error_says_how_to_get_it(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "timm":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match="pip install 'compress-models\\[timm\\]'"):
        from_timm("resnet10t", {}, 2, 3, (32, 32))
    with pytest.raises(UserError, match=r"Did you mean 'torchvision:resnet18'\? Known"):
        fresh("resnet18", images())


# --- a user's own file --------------------------------------------------------------------

CODE = """
from torch import nn

class Net(nn.Sequential):
    pass

def net(num_classes, in_channels, hidden=4):
    return Net(nn.Conv2d(in_channels, hidden, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
               nn.Linear(hidden, num_classes))

def wrong(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(192, num_classes + 1))

def text(num_classes):
    return "net"

def broken(num_classes):
    raise OSError("the disk is on fire")
"""


@pytest.fixture
def code(tmp_path) -> Path:
    (tmp_path / "mine.py").write_text(CODE)
    return tmp_path / "mine.py"


def test_a_file_runs_only_if_it_is_allowed(code, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="--allow-code"):
        fresh(f"{code}:net", images(8))
    monkeypatch.chdir(tmp_path)
    model = fresh("mine.py:net(hidden=6)", images(8, 2), allow_code=[code])
    assert count(model.module) == (2 * 9 * 6 + 6) + (6 * 10 + 10)
    again = build_module(model.blueprint, [Path("mine.py")])
    assert type(again) is type(model.module)


def test_bytecode_beside_an_allowed_file_does_not_run(code, tmp_path):
    evil = tmp_path / "evil.py"
    evil.write_text(f"open({str(tmp_path / 'trace')!r}, 'w').close()\n{CODE}")
    cached = importlib.util.cache_from_source(str(code))
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH  # never compared with its source
    py_compile.compile(str(evil), cfile=cached, invalidation_mode=mode)
    fresh(f"{code}:net", images(8), allow_code=[code])
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        ("nest", "unknown factory .*'nest'. Did you mean 'net'"),
        (
            "wrong",
            r"returns outputs of shape \(1, 11\) .* needs \(1, 10\): one logit for each class",
        ),
        ("text", "returned str, not an nn.Module"),
        ("broken", "the disk is on fire"),
        ("net(wide=1)", "wide"),
    ],
)
def test_wrong_factories_are_refused_in_words(code, factory, words):
    with pytest.raises(UserError, match=words):
        fresh(f"{code}:{factory}", images(8), allow_code=[code])


def test_a_file_that_cannot_be_imported_is_refused(tmp_path):
    path = tmp_path / "bad.py"
    path.write_text("import no_such_module_anywhere")
    with pytest.raises(UserError, match=r"cannot be imported.*no_such_module_anywhere"):
        fresh(f"{path}:net", images(8), allow_code=[path])
