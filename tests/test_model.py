"""Saving a model and building it again, without a pickle."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from compress.errors import CannotSave, UserError
from compress.model import Blueprint, Model, forward, items_like, load, pack, save, unpack
from compress.system.files import write_json
from compress.tasks.base import InputSpec
from compress.tasks.image_classification import ImageClassification, Preprocessing
from compress.zoo.models import build_module, fresh


def task(side: int = 8, channels: int = 1, classes: int = 3) -> ImageClassification:
    preprocessing = Preprocessing(channels, (side, side), (0.5,) * channels, (0.2,) * channels)
    return ImageClassification("original", tuple(map(str, range(classes))), preprocessing)


def stirred(module: nn.Module) -> nn.Module:
    """Give every tensor a value that no fresh build has."""
    generator = torch.Generator().manual_seed(5)
    for tensor in [*module.parameters(), *module.buffers()]:
        if tensor.is_floating_point():
            with torch.no_grad():
                tensor.add_(torch.rand(tensor.shape, generator=generator) * 0.1)
    return module


def model(name: str = "resnet20(width=2)", **changes) -> Model:
    original = fresh(name, task())
    stirred(original.module)
    return replace(original, **changes)


def outputs(original: Model) -> torch.Tensor:
    return forward(original.module, items_like(original.probe, 3))


def there_and_back(original: Model, folder) -> Model:
    save(original, folder, build_module, {"why": "test"})
    again = load(folder, build_module)
    assert torch.equal(outputs(original), outputs(again))
    assert not again.module.training
    return again


VIT = (
    "torchvision:VisionTransformer(patch_size=4, num_layers=1, num_heads=2, hidden_dim=8, "
    "mlp_dim=8)"
)


@pytest.mark.parametrize(
    "name", ["resnet20(width=2)", "cnn-small(width=4)", "mlp", "torchvision:squeezenet1_1", VIT]
)
def test_what_is_loaded_gives_the_same_outputs(name, tmp_path):
    original = fresh(name, task(32 if "torchvision" in name else 8))
    stirred(original.module)
    again = there_and_back(original, tmp_path)
    assert again.blueprint == original.blueprint
    assert again.probe[0].shape == original.probe[0].shape
    assert again.probe[0].std() > 0, "different items, not zeros"


def test_notes_of_the_steps_come_back(tmp_path):
    original = model(sparse=frozenset({"conv1.weight"}), hints={"ranges": {"conv1": [0.0, 2.5]}})
    again = there_and_back(original, tmp_path)
    assert again.sparse == {"conv1.weight"}
    assert again.hints == {"ranges": {"conv1": [0.0, 2.5]}}
    assert json.loads((tmp_path / "blueprint.json").read_text())["about"] == {"why": "test"}


def test_narrower_layers_come_back(tmp_path):
    original = model()
    block = original.module.layer2[1]
    block.conv1 = nn.Conv2d(4, 3, 3, padding=1, bias=False)
    block.bn1 = nn.BatchNorm2d(3)
    block.conv2 = nn.Conv2d(3, 4, 3, padding=1, bias=False)
    original.module.eval()
    again = there_and_back(original, tmp_path)
    assert again.module.layer2[1].conv1.out_channels == 3
    assert again.module.layer2[1].bn1.num_features == 3


def test_layers_narrowed_in_place_come_back(tmp_path):
    """As torch-pruning does it: slices of the tensors, and new numbers in the attributes."""
    original = model()
    block = original.module.layer1[0]
    block.conv1.weight = nn.Parameter(block.conv1.weight[:1].detach())
    block.conv1.out_channels = block.bn1.num_features = block.conv2.in_channels = 1
    for name in ("weight", "bias"):
        setattr(block.bn1, name, nn.Parameter(getattr(block.bn1, name)[:1].detach()))
    block.bn1.running_mean, block.bn1.running_var = block.bn1.running_mean[:1], torch.ones(1)
    block.conv2.weight = nn.Parameter(block.conv2.weight[:, :1].detach())
    there_and_back(original, tmp_path)


def test_replaced_and_removed_modules_come_back(tmp_path):
    original = model("cnn-small(width=4)")
    net = original.module
    net[3] = nn.Sequential(nn.Conv2d(4, 2, (3, 1), padding=(1, 0)), nn.Conv2d(2, 8, (1, 3), 1))
    net[3][1].padding = (0, 1)
    net[1] = nn.Identity()
    there_and_back(original, tmp_path)
    shorter = model("mlp")
    del shorter.module[5]
    again = there_and_back(shorter, tmp_path / "shorter")
    assert len(again.module) == 5


def test_a_norm_folded_away_comes_back(tmp_path):
    original = model()
    original.module.conv1 = nn.Conv2d(1, 2, 3, padding=1, bias=True)
    original.module.bn1 = nn.Identity()
    there_and_back(original, tmp_path)


def test_a_bias_taken_away_comes_back(tmp_path):
    original = model()
    original.module.linear.bias = None
    again = there_and_back(original, tmp_path)
    assert again.module.linear.bias is None


def test_tied_tensors_stay_tied(tmp_path):
    original = model()
    original.module.layer1[1].conv1.weight = original.module.layer1[0].conv1.weight
    again = there_and_back(original, tmp_path).module
    assert again.layer1[1].conv1.weight is again.layer1[0].conv1.weight
    assert "layer1.1.conv1.weight" in json.loads((tmp_path / "blueprint.json").read_text())["tied"]


def test_a_changed_plain_attribute_comes_back(tmp_path):
    original = model()
    original.module.layer2[0].shortcut.before = 0
    original.module.layer2[0].shortcut.after = 2
    original.module.bn1.eps = 0.5
    again = there_and_back(original, tmp_path).module
    assert (again.layer2[0].shortcut.before, again.bn1.eps) == (0, 0.5)


def test_channels_last_weights_are_saved(tmp_path):
    original = model()
    original.module.to(memory_format=torch.channels_last)
    save(original, tmp_path, build_module)
    again = load(tmp_path, build_module)
    torch.testing.assert_close(outputs(again), outputs(original))


def test_what_the_format_cannot_hold_is_refused(tmp_path):
    layer = model()
    layer.module.relu = nn.Hardtanh()
    with pytest.raises(ValueError, match="'relu' is a Hardtanh, which is not in the vocabulary"):
        save(layer, tmp_path, build_module)
    attribute = model()
    attribute.module.linear.mask = {1, 2}
    with pytest.raises(ValueError, match="'mask' of layer 'linear' differs"):
        save(attribute, tmp_path, build_module)
    hooked = model()
    hooked.module.conv1.register_forward_hook(lambda _m, _i, output: output * 2)
    with pytest.raises(ValueError, match="same outputs"):
        save(hooked, tmp_path, build_module)
    with pytest.raises(ValueError, match="no factory"):
        pack(replace(model(), blueprint=None), build_module)
    assert not (tmp_path / "blueprint.json").exists()


def test_a_lowered_model_brings_its_onnx(tmp_path):
    lowered = model(onnx=b"graph")
    save(lowered, tmp_path, build_module, {"lowered": True})
    assert load(tmp_path, build_module).onnx == b"graph"


def test_a_lowered_module_that_no_factory_builds_is_not_half_saved(tmp_path):
    """Its ONNX file alone could not be read back as a model."""
    instance = model(onnx=b"graph", blueprint=None)
    with pytest.raises(CannotSave, match="no factory builds this module"):
        save(instance, tmp_path / "instance", build_module)
    assert not (tmp_path / "instance").exists()


def saved(folder) -> dict:
    save(model(), folder, build_module)
    return json.loads((folder / "blueprint.json").read_text())


def edited(**changes):
    return lambda folder, blueprint: write_json(folder / "blueprint.json", {**blueprint, **changes})


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f, _b: (f / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda f, _b: (f / "blueprint.json").unlink(), "blueprint.json is missing"),
        (lambda f, _b: (f / "model.safetensors").write_bytes(b"x" * 50), "damaged"),
        (lambda f, _b: (f / "blueprint.json").write_text("{"), "damaged"),
        (lambda f, _b: (f / "blueprint.json").write_text("[]"), "damaged"),
        (edited(format=99), "format 99"),
        (edited(factory="resnet21"), "unknown model"),
        (edited(shapes={}), "different tensors"),
        (edited(removed=["no.such.layer"]), "damaged"),
        (edited(attributes={"no.such": {"eps": 1}}), "damaged"),
        (edited(modules={"relu": {"type": "Evil", "arguments": {"dict": {}}}}), "unknown type"),
        (
            edited(modules={"relu": {"type": "ReLU", "arguments": {"dict": {"evil": 1}}}}),
            "unknown arguments",
        ),
    ],
)
def test_damaged_files_are_refused_in_words(damage, words, tmp_path):
    damage(tmp_path, saved(tmp_path))
    with pytest.raises(UserError, match=words):
        load(tmp_path, build_module)


def test_weights_of_another_shape_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    saved(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["linear.weight"] = torch.zeros(3, 5)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"linear\.weight"):
        load(tmp_path, build_module)


READER = """
import sys
from pathlib import Path
import numpy as np
from compress.model import forward, items_like, load
from compress.zoo.models import build_module
model = load(Path(sys.argv[1]), build_module)
np.save(Path(sys.argv[1]) / "out.npy", forward(model.module, items_like(model.probe)).numpy())
"""


def test_another_process_gets_the_same_outputs(tmp_path):
    original = model()
    original.module.layer2[1].bn1 = nn.Identity()
    save(original, tmp_path, build_module)
    subprocess.run([sys.executable, "-c", READER, str(tmp_path)], check=True, timeout=120)
    ours = forward(original.module, items_like(original.probe)).numpy()
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), ours, rtol=1e-5, atol=1e-6)


def test_a_copy_shares_no_tensor():
    original = model()
    copy = original.copy()
    ours = {tensor.data_ptr() for tensor in original.module.state_dict().values()}
    assert not ours & {tensor.data_ptr() for tensor in copy.module.state_dict().values()}


def test_items_like_others_have_the_kind_of_each_input():
    floats, whole = items_like((torch.zeros(1, 2, 3), torch.tensor([[4], [7]])), 5)
    assert floats.shape == (5, 2, 3)
    assert floats.std() > 0
    assert whole.tolist() == [[4], [7], [4], [7], [4]], "no number is an id that nobody gave"


def test_real_items_are_taken_where_there_are_enough():
    original = Model(nn.Identity(), (torch.arange(6.0).view(3, 2),))
    assert original.items(2)[0].tolist() == [[0, 1], [2, 3]]
    assert original.example[0].tolist() == [[0, 1]]
    assert original.items(4)[0].shape == (4, 2)


def test_integer_inputs_come_back_as_they_were():
    ids, lengths = torch.tensor([[3, 1, 4], [1, 5, 9]]), torch.tensor([[3], [2]])
    named = (InputSpec("ids", {0: "batch", 1: "length"}), InputSpec("lengths"))
    original = replace(model(), probe=(ids, lengths), inputs=named)
    back = unpack(*pack(original, build_module), build_module)
    assert [tensor.tolist() for tensor in back.probe] == [ids.tolist(), lengths.tolist()]
    assert back.inputs == named
    assert [one.name for one in back.signature] == ["ids", "lengths"]


def test_a_blueprint_is_compared_by_value():
    assert Blueprint("mlp", {"a": (1, 2)}) == Blueprint("mlp", {"a": (1, 2)})


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_come_back(layer, tmp_path):
    """They keep a list of their parameters besides; so do narrower ones."""

    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.read, self.out = layer(8, 6, 2, batch_first=True), nn.Linear(6, 3)

        def forward(self, x):
            return self.out(self.read(x)[0][:, -1])

    original = Model(stirred(Last()).eval(), (torch.randn(2, 5, 8),), blueprint=Blueprint("last"))
    narrow = original.copy()
    narrow.module.read.weight_ih_l0 = nn.Parameter(narrow.module.read.weight_ih_l0[:, :5].clone())
    narrow.module.read.input_size = 5
    narrow = replace(narrow, probe=(torch.randn(2, 5, 5),))
    for number, one in enumerate((original, narrow)):
        save(one, tmp_path / str(number), lambda _: Last())
        again = load(tmp_path / str(number), lambda _: Last())
        assert torch.equal(forward(again.module, one.probe), forward(one.module, one.probe))
        names = dict(again.module.read.named_parameters())
        assert all(
            weight is names[name]
            for name, weight in zip(names, again.module.read._flat_weights, strict=True)
        )
