"""Who is next: shared steps once, failures told to all who share them, baselines first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bench_fixtures import fresh_model, small_digits
from safetensors.torch import save_file

from compress.benchmark.execute.executor import OVER_BUDGET, ChainJob, Outcome
from compress.benchmark.execute.run_spec import Stores
from compress.benchmark.execute.schedule import Schedule
from compress.benchmark.plan import graph as graph_module
from compress.benchmark.plan.graph import ChainRun, Graph, make_graph
from compress.benchmark.plan.plan import Plan, make_plan
from compress.benchmark.plan.rows import BASELINE
from compress.benchmark.plan.suite import Suite
from compress.benchmark.store.store import Store
from compress.system.environment import cpu_info
from compress.system.files import write_atomic
from compress.tasks.base import Data, Subset

TRAIN = "train(epochs=1)"
CHAINS = (
    f"{TRAIN} -> prune_weights(sparsity=0.5)",
    "prune_weights(sparsity=0.5) -> finetune(epochs=1)",
    "prune_weights(sparsity=0.5) -> finetune(epochs=1) -> quantize()",
    "quantize()",
    "train(student='mlp', epochs=1)",
    "distill(student='mlp', epochs=1)",
)
DATA = small_digits()


def plan_of(*chains: str, **more: object) -> Plan:
    suite = Suite("test", "digits", "mlp(width=8)", chains, controls=False, **more)  # type: ignore[arg-type]
    return make_plan(suite, data=DATA)


class Fake:
    """Writes what jobs would, at once; `answers` maps a step's text to how it ends."""

    about = "fake"

    def __init__(self, graph: Graph, stores: Stores, workers: int = 1, **answers: Outcome) -> None:
        self.graph, self.stores = graph, stores
        self.workers = workers
        self.answers = answers
        self.asked: list[str] = []
        self.most = 0
        self.pending: list[ChainJob] = []
        self.before: Callable[[str], None] = lambda text: None

    def submit(self, job: ChainJob, name: str) -> None:
        self.pending.append(job)
        self.most = max(self.most, len(self.pending))

    def wait(self) -> list[tuple[ChainJob, Outcome]]:
        job = self.pending.pop(0)
        chain_run = self.graph.chain_run(job.key)
        node = chain_run.nodes[job.until]
        self.asked.append(f"= {chain_run.row.text}" if node.measures else node.text)
        self.before(self.asked[-1])
        outcome = self.answers.get(node.text.partition("(")[0], Outcome())
        if outcome.ok:
            made = chain_run.nodes[-1] if outcome.unsaved else node
            self.stores.of(made).put(made.key, lambda folder: {"step_log": []})
        return [(job, outcome)]


def schedule(
    plan: Plan, folder: Path, workers: int = 1, deadline: float | None = None, **answers: Outcome
) -> tuple[Fake, dict[str, str]]:
    """Run a plan; return the executor and how every row ended."""
    graph = make_graph(plan)
    stores = Stores(Store(folder), Store(folder / "private"))
    fake, ends = Fake(graph, stores, workers, **answers), {}

    def end(chain_run: ChainRun, entry: object, outcome: Outcome) -> None:
        key = f"{chain_run.row.text}/{chain_run.seed}"
        ends[key] = outcome.error or ("ok" if entry else "nothing")

    Schedule(graph, stores, fake, end, lambda chain_run: "log", deadline).run()
    return fake, ends


def test_what_chains_share_runs_once(tmp_path: Path) -> None:
    fake, ends = schedule(plan_of(*CHAINS), tmp_path)
    assert set(ends.values()) == {"ok"}
    assert len(ends) == 7
    assert fake.asked[:2] == [TRAIN, f"= {BASELINE}"]
    steps = [text for text in fake.asked if not text.startswith("=")]
    assert sorted(steps) == sorted(
        [
            TRAIN,
            "prune_weights(sparsity=0.5)",
            "finetune(epochs=1)",
            "quantize()",
            "quantize()",
            "train(student='mlp', epochs=1)",
            "distill(student='mlp', epochs=1)",
        ]
    )
    again, ends = schedule(plan_of(*CHAINS), tmp_path)
    assert again.asked == []
    assert set(ends.values()) == {"ok"}


def test_a_changed_step_recomputes_only_what_follows_it(tmp_path: Path) -> None:
    schedule(plan_of(TRAIN, "prune_weights(sparsity=0.5) -> finetune(epochs=1)"), tmp_path)
    changed = "prune_weights(sparsity=0.5) -> finetune(epochs=2)"
    fake, _ = schedule(plan_of(TRAIN, changed), tmp_path)
    assert fake.asked == ["finetune(epochs=2)", f"= {changed}"]


def test_a_failure_ends_all_rows_that_share_the_step_and_no_other(tmp_path: Path) -> None:
    fake, ends = schedule(plan_of(*CHAINS), tmp_path, finetune=Outcome("boom"))
    assert [key for key, end in ends.items() if end == "boom"] == [
        "prune_weights(sparsity=0.5) -> finetune(epochs=1)/0",
        "prune_weights(sparsity=0.5) -> finetune(epochs=1) -> quantize()/0",
    ]
    assert sum(end == "ok" for end in ends.values()) == 5
    assert fake.asked.count("finetune(epochs=1)") == 1
    again, ends = schedule(plan_of(*CHAINS), tmp_path)
    assert set(ends.values()) == {"ok"}, "a failure is not kept: the next run tries again"
    assert "prune_weights(sparsity=0.5)" not in again.asked


def test_without_a_baseline_nothing_of_its_seed_starts(tmp_path: Path) -> None:
    plan = plan_of(TRAIN, "quantize()", seeds=(0, 1))
    fake, ends = schedule(plan, tmp_path, train=Outcome("diverged"))
    assert fake.asked == [TRAIN, TRAIN]
    assert ends["baseline/0"] == ends["baseline/1"] == "diverged"
    assert "the baseline failed" in ends["quantize()/0"]


def test_what_no_file_holds_is_measured_by_the_process_that_made_it(tmp_path: Path) -> None:
    fake, ends = schedule(plan_of(*CHAINS), tmp_path, prune_weights=Outcome(unsaved="odd"))
    assert set(ends.values()) == {"ok"}
    assert "= prune_weights(sparsity=0.5)" not in fake.asked
    # The two that share the step do it again, each to its own end.
    whole = [CHAINS[1], CHAINS[2]]
    assert [f"= {text}" for text in whole] == [t for t in fake.asked if t[2:] in whole]


def test_chains_run_side_by_side_where_there_are_workers(tmp_path: Path) -> None:
    fake, ends = schedule(plan_of(*CHAINS), tmp_path, workers=3)
    assert fake.most == 3
    assert set(ends.values()) == {"ok"}
    assert fake.asked.count("prune_weights(sparsity=0.5)") == 1


def test_what_another_run_computes_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from compress.benchmark.execute import schedule as module

    plan = plan_of(TRAIN, "quantize()")
    graph = make_graph(plan)
    node = graph.chain_run(("quantize()", 0)).nodes[0]
    store = Store(tmp_path)
    claim = store.claim(node.key)
    assert claim.__enter__()
    waits = []

    def other_run_goes_on(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            store.put(node.key, lambda folder: {"step_log": []})
            claim.__exit__(None, None, None)

    monkeypatch.setattr(module.time, "sleep", other_run_goes_on)
    fake, ends = schedule(plan, tmp_path)
    assert "quantize()" not in fake.asked
    assert len(waits) == 3
    assert set(ends.values()) == {"ok"}


def test_what_another_run_computes_is_waited_for_no_longer_than_the_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from compress.benchmark.execute import schedule as module

    plan = plan_of(TRAIN, "quantize()", "prune_weights(sparsity=0.5)")
    node = make_graph(plan).chain_run(("quantize()", 0)).nodes[0]
    clock = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(module.time, "sleep", lambda seconds: clock.append(clock.pop() + seconds))
    with Store(tmp_path).claim(node.key):
        fake, ends = schedule(plan, tmp_path, deadline=102.2)
    assert "quantize()" not in fake.asked
    assert clock == [102.5]
    assert ends["prune_weights(sparsity=0.5)/0"] == "ok", "what others do not compute is done"
    assert ends["quantize()/0"].startswith(f"StepEnded: {OVER_BUDGET}")
    again, ends = schedule(plan, tmp_path)
    assert "quantize()" in again.asked
    assert set(ends.values()) == {"ok"}


def test_claims_are_let_go_when_a_run_is_stopped(tmp_path: Path) -> None:
    plan = plan_of(TRAIN, "quantize()")
    graph, stores = make_graph(plan), Stores(Store(tmp_path), Store(tmp_path / "private"))
    fake = Fake(graph, stores)

    def stop(text: str) -> None:
        raise KeyboardInterrupt

    fake.before = stop
    with pytest.raises(KeyboardInterrupt):
        Schedule(graph, stores, fake, lambda *_: None, lambda chain_run: "log").run()
    with stores.shared.claim(graph.chain_runs[0].nodes[0].key) as mine:
        assert mine


def test_a_damaged_entry_is_computed_again(tmp_path: Path) -> None:
    schedule(plan_of(TRAIN, "quantize()"), tmp_path)
    graph = make_graph(plan_of(TRAIN, "quantize()"))
    key = graph.chain_run(("quantize()", 0)).measured.key
    write_atomic(tmp_path / key / "entry.json", b"{}")
    fake, ends = schedule(plan_of(TRAIN, "quantize()"), tmp_path)
    assert fake.asked == ["= quantize()"]
    assert set(ends.values()) == {"ok"}


def test_keys_tell_what_matters_apart() -> None:
    def keys(*chains: str, **more: object) -> set[str]:
        return set(make_graph(plan_of(TRAIN, *chains, **more)).nodes)

    base = keys("quantize()")
    assert keys("quantize()") == base
    assert not keys("quantize()", seeds=(1,)) & base
    assert not keys("quantize()", precision="bfloat16") & base
    trained = make_graph(plan_of(TRAIN, "quantize()")).baseline(0).nodes[0].key
    assert trained in keys("quantize(calibration=64)") & base


def test_a_test_item_less_is_measured_anew_and_no_step_repeated(tmp_path: Path) -> None:
    suite = Suite("test", "digits", "mlp(width=8)", (CHAINS[0], "quantize()"), controls=False)

    def asked(data: Data) -> list[str]:
        fake, ends = schedule(make_plan(suite, data=data), tmp_path)
        assert set(ends.values()) == {"ok"}
        return sorted(fake.asked)

    measured = ["= baseline", "= prune_weights(sparsity=0.5)", "= quantize()"]
    steps = ["prune_weights(sparsity=0.5)", "quantize()", "train(epochs=1)"]
    assert asked(DATA) == measured + steps
    fewer = replace(DATA, test=Subset(DATA.test, torch.arange(127)))
    assert asked(fewer) == measured
    assert asked(DATA) == []
    other = replace(DATA, train=Subset(DATA.train, torch.arange(319)))
    assert asked(other) == measured + steps


CODE = """
from torch import nn

def make(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))
"""


@pytest.fixture
def own(tmp_path: Path) -> tuple[Path, dict[str, object]]:
    """A model of an allowed file, with given weights."""
    torch.manual_seed(0)
    save_file(
        {"1.weight": torch.randn(10, 64), "1.bias": torch.zeros(10)}, tmp_path / "w.safetensors"
    )
    (tmp_path / "mine.py").write_text(CODE)
    more = {"weights": str(tmp_path / "w.safetensors")}
    return tmp_path / "mine.py", more


def own_keys(own: tuple[Path, dict[str, object]], **options: object) -> list[str]:
    """Return the keys of the baseline's measuring and of a chain's step."""
    code, more = own
    suite = Suite("test", "digits", f"{code}:make", ("quantize()",), controls=False, **more)  # type: ignore[arg-type]
    data = options.pop("data", DATA)
    graph = make_graph(make_plan(suite, data=data, allow_code=[code], **options))  # type: ignore[arg-type]
    return [graph.baseline(0).measured.key, graph.chain_run(("quantize()", 0)).nodes[0].key]


def test_what_is_measured_of_given_weights_depends_on_all_that_matters(
    own: tuple[Path, dict[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = own_keys(own)
    assert own_keys(own) == before
    assert not set(own_keys(own, step_threads=7)) & set(before)
    with monkeypatch.context() as patch:
        patch.setattr(graph_module, "versions", lambda: {"torch": "3.0"})
        assert not set(own_keys(own)) & set(before)
    with monkeypatch.context() as patch:
        patch.setattr(graph_module, "code_digest", lambda *_: "other")
        assert not set(own_keys(own)) & set(before)
    own[0].write_text(CODE.replace("nn.Flatten()", "nn.Flatten(1)"))
    assert not set(own_keys(own)) & set(before)


def test_a_measuring_depends_on_the_cpu_of_the_machine_that_asked(
    own: tuple[Path, dict[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(TRAIN)
    here = make_graph(plan).baseline(0).measured.key
    other = make_graph(replace(plan, cpu=("another", ())))
    assert other.baseline(0).measured.key != here
    assert make_graph(replace(plan, cpu=list(cpu_info()))).baseline(0).measured.key == here


def test_what_others_clean_away_meanwhile_is_computed_again(tmp_path: Path) -> None:
    plan = plan_of(TRAIN, "quantize()")
    graph, store = make_graph(plan), Store(tmp_path)
    stores = Stores(store, Store(tmp_path / "private"))
    schedule(plan, tmp_path)
    fake, ends = Fake(graph, stores), []

    def end(chain_run: ChainRun, entry: object, outcome: Outcome) -> None:
        ends.append((chain_run.row.text, outcome.error))
        if chain_run.row.text == BASELINE:
            with store.claim(chain_run.measured.key) as mine:
                assert not mine, "what is handed out is claimed"
            store.drop(graph.chain_run(("quantize()", 0)).measured.key)

    Schedule(graph, stores, fake, end, lambda chain_run: "log").run()
    assert ends == [(BASELINE, ""), ("quantize()", "")]
    assert fake.asked == ["= quantize()"]


def test_a_fresh_student_does_not_depend_on_the_baseline_unless_that_teaches() -> None:
    def keys(first: str) -> tuple[str, str]:
        graph = make_graph(plan_of(first, *CHAINS[4:]))
        return graph.chain_run((CHAINS[4], 0)).nodes[0].key, graph.chain_run((CHAINS[5], 0)).nodes[
            0
        ].key

    (alone, taught), (alone_too, taught_otherwise) = keys(TRAIN), keys("train(epochs=2)")
    assert alone == alone_too
    assert taught != taught_otherwise


def test_a_fresh_student_is_shared_by_all_chains_in_which_it_has_the_same_seed(
    tmp_path: Path,
) -> None:
    student = "train(student='mlp', epochs=1)"

    def first(chain: str, *chains: str, **more: object) -> tuple[str, int]:
        node = make_graph(plan_of(*chains, chain, **more)).chain_run((chain, 0)).nodes[0]
        return node.key, node.position

    second = first(student, TRAIN)
    assert second == first(f"{student} -> quantize()", TRAIN)
    # Where weights are given no step of the baseline comes before it.
    save_file(fresh_model(DATA, "mlp(width=8)").module.state_dict(), tmp_path / "w.safetensors")
    alone = first(student, weights=str(tmp_path / "w.safetensors"))
    assert (second[1], alone[1]) == (1, 0)
    assert second[0] != alone[0]
