"""Weights of models: files of many kinds, downloads, and what does not fit or is not safe."""

from __future__ import annotations

import hashlib
import http.server
import logging
import os
import pickle
import re
import subprocess
import sys
import threading
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from bench_fixtures import images
from safetensors.torch import save_file
from torch import nn

from compress.errors import UserError
from compress.model import forward
from compress.tasks.base import prepared_batches
from compress.zoo.data import from_arrays
from compress.zoo.models import fresh
from compress.zoo.pretrained import pretrained
from compress.zoo.published import PUBLISHED
from compress.zoo.weights import load_weights


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
    assert load_weights(target, tmp_path / "net.pth", "resnet20").words == "net.pth"
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


def test_default_weights_are_torchvisions_and_want_its_classes(monkeypatch, tmp_path):
    import torchvision.models

    with pytest.raises(UserError, match="only models of torchvision and timm"):
        load_weights(small(), "DEFAULT", "resnet20(width=2)")
    name = "torchvision:squeezenet1_1"

    def offline(*_args, **_kwargs):
        raise OSError("no network")

    cls = type(torchvision.models.get_model_weights("squeezenet1_1").DEFAULT)
    thousand, other = (fresh(name, images(64, classes=1000)).module for _ in range(2))
    monkeypatch.setattr(cls, "get_state_dict", offline)
    with pytest.raises(UserError, match="could not be downloaded: no network"):
        load_weights(thousand, "DEFAULT", name)
    monkeypatch.setattr(cls, "get_state_dict", lambda *_args, **_kw: other.state_dict())
    assert "torchvision" in load_weights(thousand, "DEFAULT", name).words
    assert same(thousand, other)
    ten = fresh(name, images(64)).module
    with pytest.raises(UserError, match=r"are for 1,000 classes, and .* has 10 for these data"):
        load_weights(ten, "DEFAULT", name)
    head = ten.classifier[1].weight.detach().clone()
    words = load_weights(ten, "DEFAULT", name, new_head=True).words
    assert words.endswith("its head for 1,000 classes replaced by an untrained one for 10")
    found = ten.classifier[1].weight.detach()
    torch.testing.assert_close(found, head * 0.01 / max(0.01, float(head.std())))
    assert not ten.classifier[1].bias.detach().any()
    wide = nn.Sequential(nn.Linear(4, 10))
    with torch.no_grad():
        wide[0].weight.normal_(std=0.5)
    save_file({"0.weight": torch.ones(7, 4), "0.bias": torch.ones(7)}, tmp_path / "seven")
    (tmp_path / "seven").rename(tmp_path / "seven.safetensors")
    load_weights(wide, str(tmp_path / "seven.safetensors"), "wide", new_head=True)
    assert float(wide[0].weight.detach().std()) == pytest.approx(0.01, rel=1e-4)
    assert torch.equal(ten.features[0].weight, other.features[0].weight)


def test_which_of_several_weights_were_taken_is_said(tmp_path):
    raw, averaged, target = small(), small(), small()
    path = tmp_path / "net.pt"
    torch.save({"state_dict": raw.state_dict(), "state_dict_ema": averaged.state_dict()}, path)
    words = load_weights(target, path, "resnet20").words
    assert (
        words
        == "net.pt:state_dict_ema (the file has net.pt:state_dict too, which can be named instead)"
    )
    assert same(target, averaged)
    assert load_weights(target, f"{path}:state_dict", "resnet20").words == "net.pt:state_dict"
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
    words = load_weights(target, tmp_path / "net.pt", "resnet20").words
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
    assert load_weights(target, "DEFAULT", name).words == f"{weights} of torchvision"
    assert same(source, target)
    served.content = b"not asked for again"
    assert "torchvision" in load_weights(target, "DEFAULT", name).words
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "other"))
    with pytest.raises(UserError, match=r"could not be downloaded: invalid hash value"):
        load_weights(target, "DEFAULT", name)
    assert same(source, target)
    monkeypatch.setattr(weights.value, "url", f"http://127.0.0.1:1/{stem}")
    with pytest.raises(UserError, match=r"could not be downloaded: .*Connect to the network, or"):
        load_weights(target, "DEFAULT", name)


def test_published_weights_of_a_built_in_model_are_downloaded_and_checked(
    shelf, tmp_path, monkeypatch
):
    served, address = shelf
    task = images(32, classes=10)
    source, target = (fresh("resnet20", task).module for _ in range(2))
    # As the file is: of a wrapped model, in the format before archives, among other things.
    wrapped = {f"module.{name}": tensor for name, tensor in source.state_dict().items()}
    held = {"state_dict": wrapped, "best_prec1": 91.73}
    torch.save(held, tmp_path / "file", _use_new_zipfile_serialization=False)
    served.content = (tmp_path / "file").read_bytes()
    file = f"resnet20-{hashlib.sha256(served.content).hexdigest()[:8]}.th"
    monkeypatch.setattr("compress.zoo.published.PLACE", address)
    monkeypatch.setitem(PUBLISHED, "resnet20", replace(PUBLISHED["resnet20"], file=file))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    words = load_weights(target, "DEFAULT", "resnet20").words
    assert words == f"{file} of akamaster/pytorch_resnet_cifar10"
    assert same(source, target)
    served.content = b"other"
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "other"))
    with pytest.raises(UserError, match=r"could not be downloaded: invalid hash value"):
        load_weights(target, "DEFAULT", "resnet20")
    monkeypatch.setattr("compress.zoo.published.PLACE", "http://127.0.0.1:1")
    with pytest.raises(UserError, match=r"cifar10's weights of resnet20 could not be .*Connect to"):
        load_weights(target, "DEFAULT", "resnet20")
    with pytest.raises(UserError, match=r"resnet20, .* without options; resnet20\(width=8\) is"):
        load_weights(fresh("resnet20(width=8)", task).module, "DEFAULT", "resnet20(width=8)")


@pytest.mark.parametrize("weights", ["DEFAULT", "nets/resnet56-4bfd9763.th"])
def test_published_weights_come_with_their_preprocessing(weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = fresh("resnet56", images(32, classes=10)).module
    Path("nets").mkdir()
    torch.save({"state_dict": module.state_dict()}, "nets/resnet56-4bfd9763.th")
    known = pretrained("resnet56", weights)
    assert known is not None
    assert known.settings.mean == (0.485, 0.456, 0.406)
    assert (known.classes, known.accuracy) == (10, 0.9339)
    assert pretrained("resnet56(width=8)", "DEFAULT") is None
    Path("nets/resnet56-4bfd9763.th").rename("nets/own.th")
    assert pretrained("resnet56", "nets/own.th") is None, "trained by others, nobody knows how"


HUB = """
import sys, time
time.sleep = lambda seconds: None  # the hub tries again, and waits in between
from pathlib import Path
from compress.tasks.image_classification import ImageClassification, Preprocessing
from compress.zoo.models import fresh
from compress.zoo.weights import load_weights
spec = Preprocessing(3, (64, 64), (0.5,) * 3, (0.25,) * 3)
task = ImageClassification("x", tuple(map(str, range(1000))), spec)
model = fresh("timm:test_efficientnet", task)
try:
    print(load_weights(model.module, "DEFAULT", "timm:test_efficientnet").words)
    print(float(model.module.get_parameter("classifier.bias").detach()[7]))
except Exception as error:
    print(type(error).__name__, error)
"""


class Hub(Shelf):
    """Serves a file of weights as a hub of models does."""

    etag = ""

    def do_HEAD(self) -> None:
        known = self.path.endswith("/resolve/main/model.safetensors")
        self.send_response(200 if known else 404)
        self.send_header("Content-Length", str(len(self.content)))
        self.send_header("ETag", f'"{self.etag}"')
        self.send_header("X-Repo-Commit", "c" * 40)
        self.end_headers()


def test_timms_default_weights_are_downloaded_once_and_their_hash_is_checked(tmp_path):
    timm = pytest.importorskip("timm")
    module = timm.create_model("test_efficientnet", pretrained=False)
    with torch.no_grad():
        module.classifier.bias[7] = 42.5
    save_file(module.state_dict(), tmp_path / "file")

    class Own(Hub):
        content = (tmp_path / "file").read_bytes()
        etag = hashlib.sha256(content).hexdigest()

    def loaded(address: str, home: str) -> str:
        env = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / home)}
        done = subprocess.run([sys.executable, "-c", HUB], env=env, capture_output=True, text=True)
        return done.stdout

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Own) as closed:
        nowhere = f"http://127.0.0.1:{closed.server_port}"
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Own) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}"
        expected = "timm's weights of test_efficientnet.r160_in1k\n42.5\n"
        assert loaded(address, "home") == expected
        Own.etag = "0" * 64
        assert loaded(address, "other").startswith("UserError the downloaded weights of timm/test")
        server.shutdown()
        thread.join()
    assert loaded(nowhere, "home") == expected, "from the cache, without the server"
    assert re.match(
        r"UserError timm's weights of test_efficientnet could not be downloaded: .*[^.]\. Connect",
        loaded(nowhere, "none"),
        re.DOTALL,
    )


def densenet() -> nn.Module:
    import torchvision.models

    return torchvision.models.DenseNet(4, (2, 2), 8, bn_size=2, num_classes=10)


def vit() -> nn.Module:
    import torchvision.models

    return torchvision.models.VisionTransformer(16, 8, 1, 2, 8, 16, num_classes=10)


@pytest.mark.parametrize("make", [densenet, vit])
def test_old_names_of_torchvisions_files_are_replaced(make, tmp_path):
    source, target = make(), make()
    old = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", name)
        .replace("mlp.0", "mlp.linear_1")
        .replace("mlp.3", "mlp.linear_2"): tensor
        for name, tensor in source.state_dict().items()
    }
    assert old.keys() - source.state_dict().keys()
    torch.save({"state_dict": old}, tmp_path / "net.pth")
    load_weights(target, tmp_path / "net.pth", "net")
    assert same(source, target)


@pytest.mark.parametrize("name", ["net.pth", "net.safetensors"])
def test_modules_that_ask_for_a_version_get_theirs(name, tmp_path):
    import torchvision.models

    source, target = (torchvision.models.MNASNet(0.35, num_classes=10) for _ in range(2))
    if name == "net.pth":
        torch.save(source.state_dict(), tmp_path / name)
    else:
        save_file(source.state_dict(), tmp_path / name)
    load_weights(target, tmp_path / name, "mnasnet")
    assert same(source, target)


def test_what_a_modules_own_loading_raises_is_said_and_changes_nothing(tmp_path):
    class Picky(nn.Linear):
        def _load_from_state_dict(self, state_dict, prefix, *rest):
            super()._load_from_state_dict(state_dict, prefix, *rest)
            if state_dict[prefix + "weight"].sum() == 0:
                raise KeyError("it is zero")

    module = nn.Sequential(nn.Linear(2, 2), Picky(2, 2))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    zeros = {name: torch.zeros_like(tensor) for name, tensor in before.items()}
    torch.save(zeros, tmp_path / "net.pt")
    with pytest.raises(UserError, match=r"mine does not take the weights net\.pt: 'it is zero'"):
        load_weights(module, tmp_path / "net.pt", "mine")
    assert all(torch.equal(before[n], t) for n, t in module.state_dict().items())


def test_weights_without_a_head_are_trained_on_with_a_fresh_one(tmp_path):
    source, target = small(), small()
    state = {n: t for n, t in source.state_dict().items() if not n.startswith("linear.")}
    state["projector.weight"] = torch.ones(2)
    torch.save(state, tmp_path / "net.pt")
    with pytest.raises(UserError, match=r"without its head \(linear.weight, linear.bias\)\. To"):
        load_weights(target, tmp_path / "net.pt", "resnet20", classes=10)
    words = load_weights(target, tmp_path / "net.pt", "resnet20", new_head=True, classes=10).words
    assert words == (
        "net.pt; without a head: it has an untrained one for 10 classes; without "
        "projector.weight, which the model has no place for"
    )
    assert torch.equal(target.conv1.weight, source.conv1.weight)
    assert not target.linear.bias.detach().any()
    del state["conv1.weight"]
    torch.save(state, tmp_path / "net.pt")
    with pytest.raises(UserError, match=r"1 missing in the file: conv1\.weight; 1 unknown"):
        load_weights(target, tmp_path / "net.pt", "resnet20", new_head=True, classes=10)


def test_a_head_of_several_layers_is_missing_as_a_whole(tmp_path):
    def net() -> nn.Module:
        parts = {"body": nn.Linear(4, 6), "head": nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 3))}
        return nn.Sequential(OrderedDict(parts))

    source, target = net(), net()
    state = {name: tensor for name, tensor in source.state_dict().items() if "body" in name}
    save_file(state, tmp_path / "net.safetensors")
    words = load_weights(
        target, tmp_path / "net.safetensors", "net", new_head=True, classes=3
    ).words
    assert words == "net.safetensors; without a head: it has an untrained one for 3 classes"
    assert torch.equal(target.body.weight, source.body.weight)
    assert float(target.head[0].weight.detach().mean()) == 1, "a norm stays as it is made"
    with pytest.raises(UserError, match="6 missing in the file"):
        load_weights(net(), tmp_path / "net.safetensors", "net", new_head=True, classes=5)


def test_timms_weights_by_url_are_checked_by_the_hash_in_their_name(monkeypatch):
    timm = pytest.importorskip("timm")
    from timm.models import _builder

    seen = []

    def create_model(name, **_options):
        seen.append(_builder._CHECK_HASH)
        logging.getLogger("huggingface_hub.utils").warning("Retrying in 1s")
        return small()

    monkeypatch.setattr(timm, "create_model", create_model)
    said = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", said.append)
    logging.getLogger("huggingface_hub").addHandler(handler)
    for url in ("https://x.org/gcvit-d1d86009.pth", "https://x.org/gcvit.pth"):
        config = timm.models.PretrainedCfg(url=url, architecture="gcvit", tag="in1k")
        monkeypatch.setattr(timm, "get_pretrained_cfg", lambda _name, config=config: config)
        words = load_weights(small(), "DEFAULT", "timm:gcvit").words
        assert ("no hash is known to check" in words) == url.endswith("gcvit.pth")
    logging.getLogger("huggingface_hub").removeHandler(handler)
    assert seen == [True, False]
    assert not said
    assert _builder._CHECK_HASH is False


@pytest.mark.parametrize("width", [16, 3])
def test_what_comes_before_the_layers_of_a_file_is_no_head(tmp_path, width):
    """Its outputs may be as many as there are classes, and all the rest would be random."""
    module = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, width))
    state = {name: tensor for name, tensor in module.state_dict().items() if name[0] == "2"}
    torch.save(state, tmp_path / "net.pt")
    with pytest.raises(UserError, match=r"2 missing in the file: 0\.weight, 0\.bias"):
        load_weights(module, tmp_path / "net.pt", "net", new_head=True, classes=width)


class Positions(nn.Module):
    """Adds a table of positions; `classes` are in another layer."""

    def __init__(self, tokens: int, classes: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(tokens, 4))
        self.head = nn.Linear(4, classes)


@pytest.mark.parametrize("new_head", [False, True])
def test_what_is_longer_and_has_no_class_for_each_entry_is_no_head(tmp_path, new_head):
    torch.save(Positions(49, 3).state_dict(), tmp_path / "net.pt")
    module = Positions(16, 3)
    before = module.table.clone()
    with pytest.raises(UserError, match=r"table \(file \(49, 4\), model \(16, 4\)\)"):
        load_weights(module, tmp_path / "net.pt", "net", new_head=new_head, classes=3)
    assert torch.equal(module.table, before)
    torch.save(Positions(16, 7).state_dict(), tmp_path / "net.pt")
    if new_head:
        words = load_weights(module, tmp_path / "net.pt", "net", new_head=True, classes=3).words
        assert "its head for 7 classes replaced by an untrained one for 3" in words
    else:
        with pytest.raises(UserError, match=r"are for 7 classes, and net has 3 .* class_order"):
            load_weights(module, tmp_path / "net.pt", "net", classes=3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.to_sparse(), "torch.sparse_coo values of torch.float32"),
        (lambda t: t.to("meta"), "no values"),
        (lambda t: t.to(torch.complex64), "torch.strided values of torch.complex64"),
    ],
)
def test_tensors_without_plain_values_are_refused(tmp_path, change, words):
    module = nn.Linear(2, 2)
    state = module.state_dict() | {"weight": change(module.weight.detach())}
    torch.save(state, tmp_path / "net.pt")
    with pytest.raises(UserError, match=f"hold {words} in 'weight'"):
        load_weights(module, tmp_path / "net.pt", "net")
