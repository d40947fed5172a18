"""Models by name: their shapes, their weights, what is refused."""

from __future__ import annotations

import builtins
import hashlib
import http.server
import importlib.util
import pickle
import py_compile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from compress.errors import UserError
from compress.model import Blueprint, forward
from compress.tasks.base import prepared_batches
from compress.tasks.image_classification import ImageClassification, Preprocessing
from compress.zoo.data import from_arrays
from compress.zoo.libraries import from_timm
from compress.zoo.models import MODELS, build_module, fresh
from compress.zoo.resnet import Block, CifarResNet, Shortcut
from compress.zoo.stem import shrink_stem
from compress.zoo.weights import load_weights

TINY_VIT = (
    "torchvision:VisionTransformer(patch_size=4, num_layers=2, num_heads=2, hidden_dim=16, "
    "mlp_dim=24)"
)


def images(side: int = 32, channels: int = 3, classes: int = 10) -> ImageClassification:
    preprocessing = Preprocessing(channels, (side, side), (0.5,) * channels, (0.2,) * channels)
    return ImageClassification("made", tuple(map(str, range(classes))), preprocessing)


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
        ("keras:resnet50", "unknown model 'keras:resnet50'"),
        ("resnet20(depth=3)", "unknown option of resnet20 'depth'"),
        ("resnet20(width='wide')", "positive whole number"),
        ("cnn-small(num_classes=3)", "unknown option"),
        ("torchvision:resnet19", "Did you mean"),
        ("torchvision:resnet18(depth=3)", "cannot be built.*depth"),
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
    with pytest.raises(UserError, match="cannot be built"):
        fresh("timm:resnet10t(dept=1)", task)


def test_without_timm_the_error_says_how_to_get_it(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "timm":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match="pip install 'compress-models\\[timm\\]'"):
        from_timm("resnet10t", {}, 2, 3, (32, 32))


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


# --- weights ------------------------------------------------------------------------------


def small() -> nn.Module:
    return fresh("resnet20(width=2)", images(8)).module


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, b.state_dict()[name]) for name, x in a.state_dict().items())


@pytest.mark.parametrize("wrap", ["plain", "state_dict", "model", "parallel", "compiled", "old"])
def test_checkpoints_of_many_kinds_load(wrap, tmp_path):
    source, target = small(), small()
    state = dict(source.state_dict())
    wrapped = {
        "plain": state,
        "state_dict": {"epoch": 3, "state_dict": state, "best": 0.9},
        "model": {"model": {"model_state_dict": state}},
        "parallel": {f"module.{name}": tensor for name, tensor in state.items()},
        "compiled": {f"_orig_mod.module.{name}": tensor for name, tensor in state.items()},
        "old": {n: t for n, t in state.items() if not n.endswith("num_batches_tracked")},
    }[wrap]
    torch.save(wrapped, tmp_path / "net.pth")
    assert not same(source, target)
    assert load_weights(target, tmp_path / "net.pth", "resnet20") == "net.pth"
    assert same(source, target)


def test_weights_that_do_not_fit_are_named_and_change_nothing(tmp_path):
    source, target = small(), small()
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    state = dict(source.state_dict())
    state["linear.weight"] = torch.zeros(3, 8)
    state["extra.weight"] = state.pop("conv1.weight")
    torch.save(state, tmp_path / "net.pt")
    with pytest.raises(UserError) as caught:
        load_weights(target, tmp_path / "net.pt", "resnet20")
    text = str(caught.value)
    assert "1 missing in the file: conv1.weight" in text
    assert "1 unknown to the model: extra.weight" in text
    assert "linear.weight (file (3, 8), model (10, 8))" in text
    assert all(torch.equal(before[n], t) for n, t in target.state_dict().items())


class Malicious:
    def __reduce__(self):
        return (Path.touch, (Path("pwned"),))


def bad_files(folder: Path) -> list[tuple[Path, str]]:
    torch.save({"weights": Malicious()}, folder / "evil.pt")
    (folder / "raw.pt").write_bytes(pickle.dumps(Malicious()))
    torch.save(small().state_dict(), folder / "whole.pt")
    (folder / "torn.pt").write_bytes((folder / "whole.pt").read_bytes()[:3000])
    (folder / "empty.pt").write_bytes(b"")
    (folder / "text.safetensors").write_text("no tensors")
    torch.save({"epoch": 3}, folder / "nothing.pt")
    torch.save(torch.zeros(3), folder / "tensor.pt")
    state = small().state_dict()
    state["linear.bias"][0] = float("nan")
    torch.save(state, folder / "nan.pt")
    (folder / "net.h5").touch()
    return [
        (folder / "evil.pt", "is refused"),
        (folder / "raw.pt", "is refused"),
        (folder / "torn.pt", "damaged"),
        (folder / "empty.pt", "damaged"),
        (folder / "text.safetensors", "damaged"),
        (folder / "nothing.pt", "holds no weights by name"),
        (folder / "tensor.pt", "holds no weights by name"),
        (folder / "nan.pt", "not finite numbers, in 'linear.bias'"),
        (folder / "net.h5", "cannot tell what"),
        (folder / "absent.pt", "there is no file"),
    ]


def test_bad_files_of_weights_are_refused_in_words(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path, words in bad_files(tmp_path):
        with pytest.raises(UserError, match=words):
            load_weights(small(), path, "resnet20")
    assert not Path("pwned").exists()


def test_default_weights_are_torchvisions_and_want_its_classes(monkeypatch):
    import torchvision.models

    with pytest.raises(UserError, match="only models of torchvision and timm"):
        load_weights(small(), "DEFAULT", "resnet20")
    name = "torchvision:squeezenet1_1"

    def offline(*_args, **_kwargs):
        raise OSError("no network")

    cls = type(torchvision.models.get_model_weights("squeezenet1_1").DEFAULT)
    thousand, other = (fresh(name, images(64, classes=1000)).module for _ in range(2))
    monkeypatch.setattr(cls, "get_state_dict", offline)
    with pytest.raises(UserError, match="could not be downloaded: no network"):
        load_weights(thousand, "DEFAULT", name)
    monkeypatch.setattr(cls, "get_state_dict", lambda *_args, **_kw: other.state_dict())
    assert "torchvision" in load_weights(thousand, "DEFAULT", name)
    assert same(thousand, other)
    ten = fresh(name, images(64)).module
    with pytest.raises(UserError, match=r"are for 1,000 classes, and .* has 10 for these data"):
        load_weights(ten, "DEFAULT", name)
    head = ten.classifier[1].weight.clone()
    words = load_weights(ten, "DEFAULT", name, new_head=True)
    assert words.endswith("its head for 1,000 classes replaced by an untrained one for 10")
    assert torch.equal(ten.classifier[1].weight, head)
    assert torch.equal(ten.features[0].weight, other.features[0].weight)


def test_which_of_several_weights_were_taken_is_said(tmp_path):
    raw, averaged, target = small(), small(), small()
    path = tmp_path / "net.pt"
    torch.save({"state_dict": raw.state_dict(), "state_dict_ema": averaged.state_dict()}, path)
    words = load_weights(target, path, "resnet20")
    assert words == "net.pt:state_dict_ema (the file has net.pt:state_dict too)"
    assert same(target, averaged)
    assert load_weights(target, f"{path}:state_dict", "resnet20") == "net.pt:state_dict"
    assert same(target, raw)
    with pytest.raises(UserError, match=r"unknown set of weights in .* 'sate_dict'\. Did you mean"):
        load_weights(target, f"{path}:sate_dict", "resnet20")
    save_file(dict(raw.state_dict()), tmp_path / "net.safetensors")
    with pytest.raises(UserError, match="holds one set of weights"):
        load_weights(target, f"{tmp_path / 'net.safetensors'}:x", "resnet20")


def test_what_a_wrapper_adds_is_said_and_what_a_model_lacks_is_refused(tmp_path):
    source, target = small(), small()
    state = {f"backbone.{name}": tensor.half() for name, tensor in source.state_dict().items()}
    state |= {"projector.weight": torch.ones(2), "backbone.total_ops": torch.ones(1)}
    torch.save(state, tmp_path / "net.pt")
    words = load_weights(target, tmp_path / "net.pt", "resnet20")
    assert words == "net.pt; without projector.weight, which the model has no place for"
    assert torch.equal(target.conv1.weight, source.conv1.weight.half().float())
    deeper = fresh("resnet32(width=2)", images(8)).module  # has all that the smaller one has
    torch.save(deeper.state_dict(), tmp_path / "deep.pt")
    with pytest.raises(UserError, match=r"do not fit resnet20: 60 unknown to the model: layer1\.3"):
        load_weights(target, tmp_path / "deep.pt", "resnet20")


def test_published_weights_are_right_on_cifar10(shared_data):
    """README of the weights: 91.73 % and 93.39 % of all 10,000; here the first 200."""
    imagenet = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    folder = shared_data / "cifar10"
    with np.load(folder / "test.npz") as file:
        x, y = file["x"][:200], file["y"][:200]
    data = from_arrays(x[:100], y[:100], x, y, **imagenet)
    for name in ("resnet20", "resnet56"):
        model = fresh(name, data.task)
        load_weights(model.module, shared_data / "weights" / f"{name}-cifar10.safetensors", name)
        right = [
            data.task.correct(forward(model.module, inputs), labels).float()
            for inputs, labels in prepared_batches(data.task, data.test, 200)
        ]
        assert 0.9 < float(torch.cat(right).mean()) < 0.96


class Shelf(http.server.BaseHTTPRequestHandler):
    """Serves one file, whatever is asked for, and keeps no log."""

    content = b""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        self.wfile.write(self.content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def shelf():
    class Own(Shelf):
        pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Own) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield Own, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_default_weights_are_downloaded_once_and_their_hash_is_checked(
    shelf, tmp_path, monkeypatch
):
    import torchvision.models

    served, address = shelf
    name = "torchvision:squeezenet1_1"
    source, target = (fresh(name, images(64, classes=1000)).module for _ in range(2))
    torch.save(source.state_dict(), tmp_path / "file")
    served.content = (tmp_path / "file").read_bytes()
    stem = f"squeezenet-{hashlib.sha256(served.content).hexdigest()[:8]}.pth"
    weights = torchvision.models.get_model_weights("squeezenet1_1").DEFAULT
    monkeypatch.setattr(weights.value, "url", f"{address}/{stem}")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    assert load_weights(target, "DEFAULT", name) == f"{weights} of torchvision"
    assert same(source, target)
    served.content = b"not asked for again"
    assert "torchvision" in load_weights(target, "DEFAULT", name)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "other"))
    with pytest.raises(UserError, match=r"could not be downloaded: invalid hash value"):
        load_weights(target, "DEFAULT", name)
    assert same(source, target)
    monkeypatch.setattr(weights.value, "url", f"http://127.0.0.1:1/{stem}")
    with pytest.raises(UserError, match=r"could not be downloaded: .*Connect to the network, or"):
        load_weights(target, "DEFAULT", name)
