"""Students of a model's own family."""

from __future__ import annotations

import pytest
import torch
from bench_fixtures import images

from compress.zoo.models import fresh
from compress.zoo.students import LADDERS, PLAIN, plain_students, students_of


@pytest.mark.parametrize("model", ["resnet32", "resnet20(width=8)", "cnn-small", "mlp(width=64)"])
def test_students_are_smaller(model: str) -> None:
    def parameters(name: str) -> int:
        return sum(p.numel() for p in fresh(name, images(side=16)).module.parameters())

    students = students_of(model)
    assert students
    assert all(parameters(name) < parameters(model) for name in students)


@pytest.mark.parametrize(
    ("model", "students"),
    [
        ("cnn-small(width=16)", ("cnn-small(width=8)", "cnn-small(width=4)")),
        (
            "resnet56",
            ("resnet56(width=8)", "resnet56(width=4)", "resnet44", "resnet32", "resnet20"),
        ),
        (
            "torchvision:resnet50(stem='small')",
            ("torchvision:resnet34(stem='small')", "torchvision:resnet18(stem='small')"),
        ),
        ("torchvision:resnet18", ()),
        ("timm:resnet50", ()),
        ("mine.py:make", ()),
    ],
)
def test_families(model: str, students: tuple[str, ...]) -> None:
    assert students_of(model) == students


def test_plain_students_have_fewer_macs_and_are_for_small_images() -> None:
    small, large = images(side=28), images(side=96)
    resnet = fresh("torchvision:resnet18", small)
    assert plain_students(resnet, "torchvision:resnet18", small) == PLAIN
    ours = fresh("resnet20", small)
    assert plain_students(ours, "resnet20", small) == ("cnn-small",), "not one of its own family"
    foreign = plain_students(resnet, "nets.py:resnet20", small)
    assert foreign == PLAIN, "another net of that name"
    photos = fresh("torchvision:resnet18", large)
    assert plain_students(photos, "torchvision:resnet18", large) == ()


def test_plain_students_that_cannot_be_built_are_left_out() -> None:
    tiny = images(side=3)
    mlp = fresh("mlp(width=4096)", tiny)
    before = torch.random.get_rng_state()
    assert "cnn-small" not in plain_students(mlp, "mlp(width=4096)", tiny)
    assert torch.equal(torch.random.get_rng_state(), before), "a search draws as it did without"


def test_the_names_of_torchvision_exist_and_grow() -> None:
    from torchvision.models import get_model_weights, list_models

    known = set(list_models())
    for ladder in LADDERS[1:]:
        assert set(ladder) <= known
        weights = [get_model_weights(name) for name in ladder]
        counts = [next(iter(one)).meta["num_params"] for one in weights]
        if ladder[0] != "vit_b_32":  # patches of 32 pixels need a larger first layer
            assert counts == sorted(counts)
