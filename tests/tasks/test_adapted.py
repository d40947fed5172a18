"""Inputs of one preprocessing as a teacher's own, against preparing the images for it at once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from bench_fixtures import images
from safetensors.torch import save_file
from torch import nn

import compress
from compress.benchmark.plan.models import _seen_by
from compress.benchmark.plan.plan import make_plan
from compress.benchmark.plan.suite import NamedTeacher, Suite, parse_suite
from compress.compressor import seed_everything
from compress.errors import UserError
from compress.model import identity
from compress.tasks.preprocessing import Preprocessing, Settings
from compress.training.graphs import NotReplayable, refuse_hooks
from compress.zoo.models import fresh
from compress.zoo.pretrained import pretrained

OWN = Settings(mean=(120.0, 100.0, 80.0), std=(60.0, 50.0, 70.0), scale=1.0, colors="BGR")


def levels(count: int = 6, side: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8)


def test_a_teacher_sees_its_own_levels_and_channels() -> None:
    task, change = images().seen_by(OWN)
    assert change is not None
    [seen] = change(nn.Identity(), images().prepare((levels(),), torch.device("cpu")))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (OWN.mean, OWN.std))
    torch.testing.assert_close(seen, (levels().flip(1).float() - mean) / std, rtol=0, atol=2e-5)
    assert change.words == "32x32, BGR, levels times 1, mean 120/100/80, std 60/50/70"
    assert task.arguments()["input_size"] == (32, 32)


def test_a_teacher_of_other_colors_alone_sees_the_same_levels_in_its_order() -> None:
    spec = Preprocessing(3, (32, 32), (0.1, 0.5, 0.3), (0.2, 0.3, 0.4))
    task = replace(images(), preprocessing=spec)
    [given] = task.prepare((levels(),), torch.device("cpu"))
    _, change = task.seen_by(Settings(colors="BGR"))
    assert change is not None
    torch.testing.assert_close(change(nn.Identity(), (given,))[0], given.flip(1))


def test_a_teacher_sees_images_of_its_own_size() -> None:
    task, change = images().seen_by(Settings(size=(48, 40)))
    assert change is not None
    [given] = images().prepare((levels(),), torch.device("cpu"))
    expected = F.interpolate(given, (48, 40), mode="bilinear", antialias=True)
    torch.testing.assert_close(change(nn.Identity(), (given,))[0], expected)
    assert task.arguments()["input_size"] == (48, 40)
    assert task.probe()[0].shape == (4, 3, 32, 32), "what it is given has the data's size"
    assert images().seen_by(Settings(mean=(0.5,) * 3, size=(32, 32)))[1] is None, "the same"
    with pytest.raises(ValueError, match="mean has 1 values, but the images have 3"):
        images().seen_by(Settings(mean=(0.5,), std=(0.5,)))


def data(side: int = 32) -> compress.Data:
    pixels, labels = levels(60, side).permute(0, 2, 3, 1).numpy(), torch.arange(60).numpy() % 3
    return compress.from_arrays(
        pixels, labels, pixels, labels, mean=(0.5,) * 3, std=(0.25,) * 3, augment="none"
    )


def test_the_plan_builds_a_teacher_for_its_own_inputs(tmp_path: Path) -> None:
    """A net that takes 24 pixels alone, trained with other levels, beside images of 32."""
    seed_everything(3)
    options = "patch_size=8, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=8"
    model = f"torchvision:VisionTransformer({options})"
    own = Preprocessing(3, (24, 24), (0.3,) * 3, (0.6,) * 3)
    module = fresh(model, images(24, classes=3)).module.eval()
    with torch.no_grad():
        module.get_parameter("heads.head.weight").normal_()
    save_file(module.state_dict(), tmp_path / "vit.safetensors")
    text = f"""
data = "x"
model = "cnn-small(width=16)"
chains = ["train(epochs=1) -> distill(teacher='big', epochs=1)"]
[teachers.big]
model = "{model}"
weights = "{tmp_path / "vit.safetensors"}"
size = 24
mean = [0.3, 0.3, 0.3]
std = [0.6, 0.6, 0.6]
"""
    plan = make_plan(parse_suite("s", text), data=data())
    teacher, given = plan.teachers["big"], plan.data.task
    small = F.interpolate(levels().float(), (24, 24), mode="bilinear", antialias=True)
    [seen] = given.prepare((levels(),), torch.device("cpu"))
    with torch.no_grad():
        expected = module((small / 255 - 0.3) / 0.6)
        torch.testing.assert_close(teacher.module(seen), expected, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(module(own.normalize(levels(side=24))), expected)
    assert plan.weights["teacher 'big'"].startswith("sees 24x24, mean 0.3, std 0.6; ")
    refuse_hooks(teacher.module)  # what it does to tensors is recorded along
    plain = fresh(model, images(24, classes=3))
    plain.module.load_state_dict(module.state_dict())
    assert set(identity(teacher)) - set(identity(plain)), "the store tells them apart"
    teacher.module.register_forward_pre_hook(lambda *_: None)
    with pytest.raises(NotReplayable):
        refuse_hooks(teacher.module)


def test_a_librarys_teacher_sees_what_the_library_says_whatever_the_data_do(
    tmp_path: Path,
) -> None:
    name = "torchvision:squeezenet1_1"
    save_file(fresh(name, images(64, classes=1000)).module.state_dict(), tmp_path / "w.safetensors")
    teacher = NamedTeacher(name, str(tmp_path / "w.safetensors"))
    given = Preprocessing(3, (64, 64), (120.0, 110.0, 100.0), (60.0,) * 3, scale=1.0, colors="BGR")
    data = replace(images(64, classes=1000), preprocessing=given)
    _, change, words = _seen_by(teacher, "teacher 't'", data, pretrained(name, teacher.weights))
    assert change is not None
    raw = levels(side=64)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (raw.float() / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    expected = F.interpolate(expected, (224, 224), mode="bilinear", antialias=True)
    [seen] = change(nn.Identity(), data.prepare((raw,), torch.device("cpu")))
    torch.testing.assert_close(seen, expected, rtol=0, atol=5e-5)
    assert words.startswith("sees 224x224, mean 0.485/0.456/0.406")


def test_a_teachers_keys_are_checked() -> None:
    chain = ("distill(teacher='big')",)
    suite = Suite("s", "digits", "cnn-small", chain, teachers={"big": NamedTeacher("x", "y")})
    assert suite.teachers["big"].settings() == Settings()
    head = 'data = "digits"\nmodel = "cnn-small"\nchains = ["train()"]\n'
    for table, message in {
        "[teachers.big]\nmodel='x'\nmean=[0.5]": "teacher 'big': give mean and std together",
        "[teachers.big]\nmodel='x'\nscale=1.0": "scale needs mean and std beside it",
        "[teachers.big]\nmodel='x'\ncolors='HSV'": "unknown colors 'HSV'",
        "[teachers.big]\nmodel='x'\nresize='best'": "unknown resize 'best'",
        "[teachers.big]\nmodel='x'\ninterpolation='cubic'": "unknown interpolation 'cubic'",
        "[teachers.big]\nmodel='x'\ncrop_pct=9.0": "crop_pct must be from 0.25 to 4",
        "[teachers.big]\nmodel='x'\nantialias='no'": "Expected `bool | null`, got `str`",
        "[teachers.big]\nmodel='x'\nexif=1": "Expected `bool | null`, got `int`",
        "[students.small]\nmodel='x'\nexif=true": "unknown key of student 'small' 'exif'",
        "[teachers.big]\nmodel='x'\nsize=0": "size must be one or two positive whole numbers",
        "[students.small]\nmodel='x'\nsize=24": "unknown key of student 'small' 'size'",
        "[teachers.big]\nmodel='x'\nfit=24": "unknown key of teacher 'big' 'fit'",
    }.items():
        with pytest.raises(UserError, match=message):
            parse_suite("s", head + table)
