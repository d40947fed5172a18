"""A search of a module that was passed from Python: its steps count as long as it is the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_recommend import ARGUMENTS, computed
from torch import Tensor, nn

import compress
from compress.benchmark.plan.metric import Metric
from compress.benchmark.plan.plan import Plan, make_plan
from compress.benchmark.plan.suite import Suite
from compress.recommender.same_objects import keep_steps

SIGN = 1.0


class Net(nn.Module):
    """A net whose answers depend on something outside it, too."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return SIGN * y


def net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net()


def plan_of(module: nn.Module) -> Plan:
    return make_plan(Suite("own", "digits", "Net", ("quantize()",)), model=module)


def kept(plan: Plan, folder: Path) -> bool:
    """Return whether an entry of the store outlives that a search is taken up."""
    (folder / "entry").mkdir(parents=True, exist_ok=True)
    keep_steps(plan, folder)
    return (folder / "entry").exists()


def test_what_was_made_of_the_same_module_is_kept(tmp_path: Path) -> None:
    assert not kept(plan_of(net()), tmp_path), "of a search that wrote down nothing"
    assert kept(plan_of(net()), tmp_path)
    assert not kept(plan_of(net(1)), tmp_path), "other weights"
    assert kept(plan_of(net(1)), tmp_path)


def test_what_was_made_of_another_function_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept(plan_of(net()), tmp_path)
    monkeypatch.setattr("test_same_objects.SIGN", -1.0)
    assert not kept(plan_of(net()), tmp_path), "equal weights and classes, other answers"


def test_what_was_made_by_other_code_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept(plan_of(net()), tmp_path)
    monkeypatch.setattr("inspect.getsource", lambda kind: f"class {kind.__name__}: changed")
    assert not kept(plan_of(net()), tmp_path)
    assert kept(plan_of(net()), tmp_path)

    def none(kind: type) -> str:
        raise OSError("no source")

    monkeypatch.setattr("inspect.getsource", none)
    assert not kept(plan_of(net()), tmp_path)
    assert not kept(plan_of(net()), tmp_path), "without source it cannot be known"


def test_a_metric_that_is_a_function_is_never_taken_for_the_same(tmp_path: Path) -> None:
    metric = Metric("own", lambda outputs, targets: 0.0)
    plan = replace(plan_of(net()), metric=metric)
    assert not kept(plan, tmp_path)
    assert not kept(plan, tmp_path)


def test_a_search_of_a_module_goes_on_where_it_stopped(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {**ARGUMENTS, "model": net(), "baseline": None, "max_drop": 99.0}
    arguments["only"] = ("finetune", "prune_weights", "quantize")
    (tmp_path / "space.toml").write_text("[prune_weights]\nsparsity = [0.2, 0.3]\n")
    arguments["space"] = tmp_path / "space.toml"
    out = tmp_path / "best"
    compress.recommend(out, budget="20m", trials=2, **arguments)
    again = compress.recommend(out, budget="20m", trials=3, **{**arguments, "model": net()})
    assert len(again.trials) == 3
    began = computed(out)
    assert len(began) == len(set(began)), "no step is computed twice"
    assert any(line.endswith(" measure") for line in began)
