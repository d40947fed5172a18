"""Weights that are not a model's: what the error says is meant."""

from __future__ import annotations

import pytest
import torch
from bench_fixtures import images
from safetensors.torch import save_file
from torch import nn

from compress.benchmark.plan.plan import make_plan
from compress.benchmark.plan.suite import Suite
from compress.errors import UserError
from compress.zoo.models import fresh
from compress.zoo.weights import load_weights


def small() -> nn.Module:
    return fresh("resnet20(width=2)", images(8)).module


def test_weights_of_another_architecture_are_said_to_be_so(tmp_path):
    wide = fresh("resnet20(width=4)", images(8, classes=7)).module
    torch.save(wide.state_dict(), tmp_path / "wide.pt")

    def said(new_head: bool) -> str:
        with pytest.raises(UserError) as caught:
            load_weights(small(), tmp_path / "wide.pt", "resnet20", new_head, 10)
        return str(caught.value)

    begins = "the weights wide.pt look like those of another architecture, and do not fit "
    first = "conv1.weight (file (4, 3, 3, 3), model (2, 3, 3, 3)), "
    count = sum(not n.endswith("num_batches_tracked") for n in wide.state_dict())
    assert said(True).startswith(f"{begins}resnet20: {count - 2} of another shape: {first}")
    assert said(False).startswith(f"{begins}resnet20: {count} of another shape: {first}")


def test_a_head_that_is_replaced_is_no_reason_against_weights(tmp_path):
    state = fresh("resnet20(width=2)", images(8, classes=7)).module.state_dict()
    state["conv1.weight"] = torch.zeros(2, 3, 5, 5)
    torch.save(state, tmp_path / "net.pt")
    with pytest.raises(UserError, match=r"the weights net\.pt do not fit .* 1 of .* conv1\.w"):
        load_weights(small(), tmp_path / "net.pt", "resnet20", new_head=True, classes=10)
    state |= {"conv1.weight": small().conv1.weight.detach(), "linear.weight": torch.zeros(7, 9)}
    torch.save(state, tmp_path / "net.pt")
    with pytest.raises(UserError, match=r"do not fit .*: 2 of another shape: linear\.weight"):
        load_weights(small(), tmp_path / "net.pt", "resnet20", new_head=True, classes=10)


def test_a_file_beside_one_that_is_not_there_may_be_meant(tmp_path, monkeypatch):
    torch.save(small().state_dict(), tmp_path / "best.pt")
    (tmp_path / "best.md").touch()
    meant = rf"Did you mean '{tmp_path}/best\.pt'\?$"
    with pytest.raises(UserError, match=rf"there is no file of weights .*/bset\.pt'\. {meant}"):
        load_weights(small(), tmp_path / "bset.pt", "resnet20")
    suite = Suite("s", "digits", "resnet20", ("quantize()",), weights="bset.pt")
    with pytest.raises(UserError, match=rf"name it with --weights FILE\. {meant}"):
        make_plan(suite, data_root=tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"Did you mean 'best\.pt'\?$"):
        make_plan(suite)


def test_a_small_net_of_another_width_is_not_called_another_architecture(tmp_path):
    """Most of its few tensors differ, which tells nothing."""
    save_file(fresh("mlp(width=16)", images(8)).module.state_dict(), tmp_path / "net.safetensors")
    target = fresh("mlp(width=8)", images(8)).module
    with pytest.raises(UserError, match=r"the weights net\.safetensors do not fit mlp: "):
        load_weights(target, tmp_path / "net.safetensors", "mlp")
