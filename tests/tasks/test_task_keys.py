"""The code of a task and of its data is part of the keys of what it takes part in."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from bench_fixtures import small_digits
from token_task import TokenClassification, Tokens, counted

from compress.benchmark.plan.graph import make_graph
from compress.benchmark.plan.keys import _package_digest, sources_of_data
from compress.benchmark.plan.plan import make_plan
from compress.benchmark.plan.suite import Suite

TASK = """
from token_task import TokenClassification

class Own(TokenClassification):
    factor = {factor}

    def loss(self, outputs, targets):
        return self.factor * super().loss(outputs, targets)
"""


def keys_with(task: type) -> list[str]:
    """Return the key of every node of a small run on a task's data."""
    data = counted(items=90)
    old = data.task
    data = replace(data, task=task(old.name, old.classes, old.vocabulary))  # type: ignore[attr-defined]
    suite = Suite("test", "counted", "Tokens", ("quantize()",), controls=False)
    suite = replace(suite, baseline="train(epochs=1)")
    graph = make_graph(make_plan(suite, data=data, model=Tokens(12, 3)))
    return [one.key for one in graph.chain_run(("quantize()", 0)).nodes]


def loaded(text: str, name: str, file: Path | None) -> type:
    """Return the class `Own` of a module of this name, from a file or from no file."""
    module = ModuleType(name)
    code = compile(text, name if file is None else str(file), "exec")
    if file is not None:
        file.write_text(text)
        module.__file__ = str(file)
        sys.modules[name] = module
    exec(code, vars(module))
    made: type = module.Own
    return made


@pytest.mark.parametrize("place", ["own_task", "__main__"])
def test_other_code_of_a_task_changes_all_keys(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a module by its file; of a script, which other processes get by value, by its code."""
    torch.manual_seed(0)
    monkeypatch.delitem(sys.modules, "own_task", raising=False)
    found = []
    for factor in (1, 1, -1):
        _package_digest.cache_clear()
        torch.manual_seed(0)
        file = tmp_path / "own_task.py" if place == "own_task" else None
        own = loaded(TASK.format(factor=factor), place, file)
        found.append(keys_with(own))
    sys.modules.pop("own_task", None)
    same, again, other = found
    assert same == again
    assert not set(same) & set(other)


def test_a_module_of_ours_that_only_a_task_needs_changes_keys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Within(TokenClassification):
        pass

    Within.__module__ = "compress.report.table"  # whatever no step imports
    data = counted(items=90)
    old = data.task
    made = Within(old.name, old.classes, old.vocabulary)  # type: ignore[attr-defined]
    assert sources_of_data(replace(data, task=made)).keys() >= {"compress.report.table"}
    assert not sources_of_data(small_digits())


def test_the_figure_of_a_task_leaves_its_measurements_to_all() -> None:
    suite = Suite("test", "counted", "Tokens", ("quantize()",), controls=False)
    data = counted(items=90)
    given = {"data": data, "model": Tokens(12, 3)}
    alone = make_plan(suite, **given)
    assert alone.metric is not None
    assert alone.metric.of_task
    shared = make_graph(replace(alone, instance=None)).chain_run(("quantize()", 0)).nodes[-1]
    assert not shared.private
    own = make_plan(suite, **given, metric=lambda outputs, targets: 0.5)
    assert make_graph(replace(own, instance=None)).chain_run(("quantize()", 0)).nodes[-1].private
