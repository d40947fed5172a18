"""What other processes know of a run: the same plan comes of it, or a refusal that says why."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
from bench_fixtures import small_digits

from compress.benchmark.execute.run_spec import Limits, RunSpec, given_objects, spec_of
from compress.benchmark.plan.graph import make_graph
from compress.benchmark.plan.plan import Plan, make_plan
from compress.benchmark.plan.suite import Suite
from compress.errors import UserError

SUITE = Suite("small", "digits", "mlp(width=8)", ("train(epochs=1)", "quantize()"), seeds=(0, 3))


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan(SUITE, data=small_digits(), step_threads=1)


@pytest.fixture
def spec(plan: Plan, tmp_path: Path) -> RunSpec:
    setting = make_graph(plan).setting
    limits = Limits(seconds=7.0, memory=10**9)
    return spec_of(plan, setting, tmp_path / "store", tmp_path / "private", limits=limits)


def test_the_same_plan_comes_of_a_spec_in_another_process(plan: Plan, spec: RunSpec) -> None:
    again = pickle.loads(pickle.dumps(spec))
    assert again == spec
    made = again.make_plan(given_objects(plan))
    assert make_graph(made) == make_graph(replace(plan, cpu=spec.cpu))


def test_other_data_and_other_libraries_are_refused(plan: Plan, spec: RunSpec) -> None:
    given = given_objects(plan)
    with pytest.raises(UserError, match="the data is not that of the run"):
        replace(spec, fingerprint="other").make_plan(given)
    with pytest.raises(UserError, match="other code of this package"):
        replace(spec, setting="other").make_plan(given)
    other = replace(spec, setting="other", versions={**spec.versions, "torch": "1.0"})
    with pytest.raises(UserError, match=r"torch \S+ instead of 1.0: all machines of a run need"):
        other.make_plan(given)
