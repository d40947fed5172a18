"""The members of families are models that can be built."""

from __future__ import annotations

import pytest
import torch
from bench_fixtures import images

from compress.errors import UserError
from compress.model import forward
from compress.zoo.families import FAMILIES, members
from compress.zoo.models import fresh

OWN = [name for name in FAMILIES if ":" not in name]


@pytest.mark.parametrize("family", OWN)
def test_members_can_be_built_and_differ(family: str) -> None:
    task = images(classes=7)
    names = members(family, task)
    assert len(set(names)) == len(names) > 5
    sizes = []
    for name in (names[0], names[-1]):
        model = fresh(name, task)
        assert forward(model.module, model.items(3)).shape == (3, 7)
        sizes.append(sum(one.numel() for one in model.module.parameters()))
    assert sizes[0] < sizes[1]


def test_large_images_get_the_usual_stem() -> None:
    small, large = (members("mobilenet_v2", images(side)) for side in (32, 224))
    assert all("stem='small'" in name for name in small)
    assert not any("stem" in name for name in large)


def test_timms_models_are_found_by_a_pattern() -> None:
    pytest.importorskip("timm")
    names = members("timm:efficientnet_lite*", images())
    assert "timm:efficientnet_lite0" in names
    with pytest.raises(UserError, match="no model of timm is called 'nothing'"):
        members("timm:nothing", images())
    with pytest.raises(UserError, match="narrower pattern"):
        members("timm:*", images())


def test_unknown_families_are_refused() -> None:
    with pytest.raises(UserError, match="unknown family 'vgg'"):
        members("vgg", images())


def test_shallow_resnets_have_a_block_in_each_stage() -> None:
    model = fresh("resnet8(width=4)", images())
    convolutions = [one for one in model.module.modules() if isinstance(one, torch.nn.Conv2d)]
    assert len(convolutions) == 7
