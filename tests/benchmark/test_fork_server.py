"""What a fork server must not do: start CUDA, which makes it useless in every child."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch
from bench_fixtures import small_digits
from torch import nn

from compress.benchmark.execute import fork_server
from compress.benchmark.plan.graph import make_graph
from compress.benchmark.plan.plan import make_plan
from compress.benchmark.plan.suite import Suite
from compress.deploy.export import export
from compress.errors import UserError
from compress.model import Model

SMALL = Suite(
    name="small",
    data="digits",
    model="cnn-small(width=16)",
    baseline="train(epochs=1)",
    chains=("finetune(epochs=1)",),
    precision="bfloat16",
    timing_seconds=1.0,
)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Pretend that there is a GPU, and list what would start CUDA."""
    found: list[str] = []

    def note(name: str) -> None:
        monkeypatch.setattr(torch.cuda, name, lambda *_, **__: found.append(name))

    note("_lazy_init")
    note("set_rng_state")
    state = torch.zeros(16, dtype=torch.uint8)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "get_rng_state", lambda *_: found.append("get_rng_state") or state
    )
    return found


def test_a_server_for_a_gpu_does_not_start_cuda(started: list[str]) -> None:
    fork_server.warm_export.__wrapped__()
    suite = replace(SMALL, chains=("prune_channels(macs=0.5)", "quantize()"))
    plan = make_plan(suite, data=small_digits(), device=torch.device("cuda"))
    make_graph(plan)
    fork_server.warm(plan)
    assert plan.device.type == "cuda"
    assert started == []


def test_an_export_beside_a_gpu_leaves_it_alone(started: list[str]) -> None:
    export(Model(nn.Linear(2, 2).eval(), (torch.zeros(1, 2),)))
    assert started == []
    torch.cuda.get_rng_state()
    assert started == ["get_rng_state"], "as it was"


def test_a_device_by_name_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="torch finds no CUDA device here"):
        make_plan(SMALL, data=small_digits(), device="cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
def test_steps_use_the_gpu(tmp_path: os.PathLike[str]) -> None:
    from compress import bench

    found = bench(SMALL, data=small_digits(), device="cuda", out=tmp_path)
    assert list(found.frame["status"]) == ["ok"] * len(found.rows)
