"""What steps keep beside their results: shared within a run, gone when it is temporary, fresh."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from itertools import chain as chain_of
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bench_fixtures import small_digits
from PIL import Image
from torch import nn

from compress import compressor
from compress.benchmark.execute import job as job_module
from compress.benchmark.execute.executor import ChainJob
from compress.benchmark.execute.job import perform, record_of
from compress.benchmark.execute.run_spec import Stores
from compress.benchmark.plan.graph import make_graph
from compress.benchmark.plan.plan import Plan, make_plan
from compress.benchmark.plan.suite import Named, Suite
from compress.benchmark.store.store import Entry, Store, StoredStepCache
from compress.compressor import run
from compress.errors import CannotSave, IllegalChain, UserError
from compress.model import Model, weights_hash
from compress.tasks.base import Subset
from compress.techniques import chain
from compress.training import Batch, loop
from compress.training.batch_loader import BatchLoader

DATA = small_digits()
TRAIN = "train(epochs=1)"
TAUGHT = "distill(teacher='big', epochs=1)"
KEY, OWNER = "1" * 64, "f" * 64


def write(folder: Path) -> dict[str, str]:
    (folder / "file").write_text("content")
    return {"what": "words"}


def test_what_is_passing_goes_with_the_result(tmp_path: Path) -> None:
    cache = StoredStepCache(Store(tmp_path), OWNER)
    cache.put("1" * 64, write)
    made = cache.put("2" * 64, write, temporary=True)
    assert (made.folder / "file").read_text() == "content"
    assert made.about["what"] == "words"
    later = StoredStepCache(Store(tmp_path), OWNER)
    assert later.get("2" * 64, temporary=True) is not None
    later.clear()
    assert later.get("1" * 64) is not None
    assert later.get("2" * 64) is None


def test_what_a_killed_step_was_writing_goes_when_the_step_is_claimed_again(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def die(folder: Path) -> dict[str, str]:
        write(folder)
        shutil.copytree(folder, tmp_path / f"{folder.name}x")  # what no `finally` of ours removes
        return {}

    StoredStepCache(store, OWNER).put(KEY, die)
    left = [path for path in tmp_path.iterdir() if path.name.startswith(f".writing-{OWNER}-")]
    assert len(left) == 1
    with store.claim(OWNER) as mine:
        assert mine
        assert not left[0].exists()


def test_a_fresh_run_takes_nothing_from_before_it(tmp_path: Path) -> None:
    StoredStepCache(Store(tmp_path), OWNER).put(KEY, write)
    fresh = StoredStepCache(Store(tmp_path), OWNER, since=time.time())
    assert fresh.get(KEY) is None
    fresh.put(KEY, write)
    assert fresh.get(KEY) is not None
    assert StoredStepCache(Store(tmp_path), OWNER).get(KEY) is not None


def plan_of(*chains: str, root: Path | None = None) -> Plan:
    suite = Suite("test", "digits", "mlp(width=8)", (TRAIN, *chains), controls=False)
    return make_plan(suite, data=DATA, data_root=root)


def steps_done(plan: Plan, stores: Stores, *texts: str) -> list[Entry]:
    """Do the last step of some rows, in this process."""
    graph, entries = make_graph(plan), []
    for text in texts:
        chain_run = graph.chain_run((text, 0))
        until = len(chain_run.nodes) - 2
        outcome = perform(ChainJob(text, 0, until), plan, stores)
        assert outcome.ok, outcome.error
        entry = stores.get(chain_run.nodes[until])
        assert entry is not None
        entries.append(entry)
    return entries


def soft_labels_of(entry: Entry) -> tuple[int, int]:
    [row] = [row for row in entry.step_log if row["kind"] == "soft_labels"]
    return row["asked"], row["reused"]


def test_a_chain_run_makes_what_its_chain_makes_by_hand(tmp_path: Path) -> None:
    text = "prune_weights(sparsity=0.5) -> finetune(epochs=2)"
    stores = Stores(Store(tmp_path / "store"), Store(tmp_path / "private"))
    plan = plan_of(text)
    steps_done(plan, stores, "baseline")
    [entry] = steps_done(plan, stores, text)
    by_hand = run(chain(f"{TRAIN} -> {text}"), plan.start, plan.step_context(0, False))
    assert weights_hash(entry.model(plan.build).module) == weights_hash(by_hand.module)


@pytest.mark.parametrize("derived", [True, False])
def test_a_second_training_sees_the_items_in_another_order(
    derived: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one seed for every step, as it was, it would be the first one's order again."""
    if not derived:
        monkeypatch.setattr(compressor, "step_seed", lambda seed, position: seed)
    plan = plan_of(f"{TRAIN} -> finetune(epochs=1)")
    batch, seen = BatchLoader.batch, []

    def watched(self: BatchLoader, index: torch.Tensor, *rest: Any) -> Batch:
        seen.append(index.tolist())
        return batch(self, index, *rest)

    monkeypatch.setattr(BatchLoader, "batch", watched)
    run(chain(f"{TRAIN} -> finetune(epochs=1)"), plan.start, plan.step_context(0, False))
    orders = [index for index in seen if index != list(range(len(index)))]  # but for trials
    half = len(orders) // 2
    assert half == 3, "320 items in batches of 128"
    first, second = list(chain_of(*orders[:half])), list(chain_of(*orders[half:]))
    assert sorted(first) == sorted(second) == list(range(320))
    assert (first == second) != derived


def test_students_of_one_teacher_share_what_it_says(tmp_path: Path) -> None:
    chains = [f"distill(student='mlp(width={w})', epochs=2)" for w in (8, 16)]
    stores = Stores(Store(tmp_path / "store"), Store(tmp_path / "private"))
    plan = plan_of(*chains)
    steps_done(plan, stores, "baseline")
    first, second = steps_done(plan, stores, *chains)
    assert soft_labels_of(first) == (320, 320), (
        "digits are not augmented: one view serves both epochs"
    )
    assert soft_labels_of(second) == (0, 640)


def test_a_further_teacher_matters_to_what_learns_from_it_alone(tmp_path: Path) -> None:
    chains = ["finetune(epochs=1)", TAUGHT, f"{TAUGHT} -> finetune(epochs=1)"]
    keys = []
    for seed in (None, 0, 1):
        suite = Suite("test", "digits", "mlp(width=8)", (TRAIN, *chains), controls=False)
        if seed is None:
            suite = replace(suite, chains=(TRAIN, chains[0]))
            graph = make_graph(make_plan(suite, data=DATA))
        else:
            torch.manual_seed(seed)
            own = {"big": nn.Sequential(nn.Flatten(), nn.Linear(64, 10))}
            suite = replace(suite, teachers={"big": Named("Sequential")})
            graph = make_graph(make_plan(suite, data=DATA, teachers=own))
        keys.append(
            {
                chain_run.row.text: [(n.key, n.private) for n in chain_run.nodes]
                for chain_run in graph.chain_runs
            }
        )
    bare, first, second = keys
    for text in ("baseline", chains[0]):
        assert first[text] == second[text] == bare[text]
        assert not any(private for _, private in first[text])
    for text in chains[1:]:
        ours, theirs = first[text], second[text]
        assert not {key for key, _ in ours} & {key for key, _ in theirs}
        assert all(private for _, private in ours), "a module means nothing to another run"


def test_which_items_a_split_holds_matters() -> None:
    data = replace(DATA, train=Subset(DATA.train, torch.arange(len(DATA.train)).flip(0)))
    suite = Suite("test", "digits", "mlp(width=8)", (TRAIN,), controls=False)
    ours, theirs = (
        make_graph(make_plan(suite, data=d)).chain_runs[0].nodes[0].key for d in (DATA, data)
    )
    assert ours != theirs


def test_a_stopped_step_goes_on_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "WORTH_KEEPING", 0.0)
    stores = Stores(Store(tmp_path / "store"), Store(tmp_path / "private"))
    text = "finetune(epochs=4)"
    plan = plan_of(text)
    steps_done(plan, stores, "baseline")
    before = {path.name for path in Store(tmp_path / "store").entries()}
    keep, epochs = loop._Fit._keep, []

    def stop(self: Any) -> None:
        keep(self)
        epochs.append(self.reached.epoch)
        if epochs == [1, 2]:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop._Fit, "_keep", stop)
    with pytest.raises(KeyboardInterrupt):
        steps_done(plan, stores, text)
    left = {path.name for path in Store(tmp_path / "store").entries()} - before
    assert len(left) == 1, "the state after the second epoch"
    [entry] = steps_done(plan, stores, text)
    assert epochs == [1, 2, 3, 4]
    after = {path.name for path in Store(tmp_path / "store").entries()} - before
    assert after == {entry.key}
    undisturbed = Stores(Store(tmp_path / "other"), Store(tmp_path / "private"))
    steps_done(plan, undisturbed, "baseline")
    [expected] = steps_done(plan, undisturbed, text)
    assert entry.files["model.safetensors"] == expected.files["model.safetensors"]


def test_a_step_that_no_file_can_hold_is_not_trained_from_the_start_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each row that needs it makes it anew, from the state after its last epoch."""
    monkeypatch.setattr(loop, "WORTH_KEEPING", 0.0)
    stores = Stores(Store(tmp_path / "store"), Store(tmp_path / "private"))
    text = "finetune(epochs=3)"
    plan = plan_of(text)
    steps_done(plan, stores, "baseline")
    whole, trained = loop._Fit._epoch, []

    def counted(self: Any, epoch: int, shown: Any) -> dict[str, Any]:
        trained.append(epoch)
        return whole(self, epoch, shown)

    def refuse(*_: Any) -> None:
        raise CannotSave("odd")

    monkeypatch.setattr(loop._Fit, "_epoch", counted)
    monkeypatch.setattr(Store, "put_model", refuse)
    chain_run = make_graph(plan).chain_run((text, 0))
    job = ChainJob(text, 0, until=len(chain_run.nodes) - 1)
    found = []
    for _ in range(2):
        assert perform(job, plan, stores).unsaved == "odd"
        measured = stores.get(chain_run.measured)
        assert measured is not None
        found.append(measured.files["model.onnx"])
        stores.of(chain_run.measured).drop(chain_run.measured.key)
    assert trained == [0, 1, 2]
    assert found[0] == found[1]


def test_a_lowered_module_that_no_factory_builds_is_measured_in_the_process_that_made_it(
    tmp_path: Path,
) -> None:
    """An ensemble of a user's own modules: what is kept of it must be readable by the next job."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    twice = "repeat(2, distill(student='same', teacher='input', epochs=1), result='ensemble')"
    text = f"{twice} -> quantize()"
    suite = Suite("test", "digits", "Sequential", (text,), controls=False)
    plan = make_plan(suite, data=DATA, model=module)
    stores = Stores(Store(tmp_path / "store"), Store(tmp_path / "private"))
    chain_run = make_graph(plan).chain_run((text, 0))
    outcome = perform(ChainJob(text, 0, 1), plan, stores)
    assert outcome.error == ""
    assert "no factory builds this module" in outcome.unsaved
    kept = [node for node in chain_run.nodes[:-1] if stores.get(node) is not None]
    assert not kept, "neither step can be read back"
    measured = stores.get(chain_run.measured)
    assert measured is not None
    assert record_of(measured).status == "ok"
    assert record_of(measured).measured["params"] == 2 * 650


def test_transfer_sets_are_looked_up_before_any_work(tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / "loose").mkdir(exist_ok=True)
        pixels = np.full((9, 9, 3), 50 * number, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "loose" / f"{number}.png")
    name = f"imagefolder:{tmp_path}/loose"
    text = f"distill(student='mlp', epochs=1, hard_weight=0, transfer={name!r})"
    with pytest.raises(IllegalChain, match="has no labels of this task's classes"):
        plan_of(text.replace("hard_weight=0, ", ""))
    with pytest.raises(UserError, match="no folder"):
        plan_of(text.replace("loose", "nowhere"))
    plan = plan_of(text)
    [row] = [row for row in plan.rows if row.chain is not None]
    key = make_graph(plan).chain_run((row.text, 0)).nodes[0].key
    assert make_graph(plan_of(text)).chain_run((row.text, 0)).nodes[0].key == key
    stores = Stores(Store(tmp_path / "store"), Store(tmp_path / "private"))
    steps_done(plan, stores, "baseline")
    [entry] = steps_done(plan, stores, row.text)
    assert [line["samples"] for line in entry.step_log if line["kind"] == "fit"] == [4]
    (tmp_path / "loose" / "0.png").unlink()
    assert make_graph(plan_of(text)).chain_run((row.text, 0)).nodes[0].key != key


def test_jobs_tell_their_step_cache_when_the_run_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    class Watched(StoredStepCache):
        def __init__(self, store: Store, owner: str, since: float = 0.0) -> None:
            seen.append(since)
            super().__init__(store, owner, since)

    monkeypatch.setattr(job_module, "StoredStepCache", Watched)
    plan = plan_of("prune_weights(sparsity=0.5)")
    steps_done(plan, Stores(Store(tmp_path), Store(tmp_path / "p"), since=7.0), "baseline")
    assert seen == [7.0]


def test_a_later_step_tries_things_out_on_real_items(tmp_path: Path, monkeypatch) -> None:
    text = "prune_weights(sparsity=0.5) -> finetune(epochs=1)"
    stores = Stores(Store(tmp_path / "store"), Store(tmp_path / "private"))
    plan = plan_of(text)
    steps_done(plan, stores, "baseline")
    seen = []

    def watched(compressor: object, model: Model, context: object) -> Model:
        seen.append(model.probe[0])
        return run(compressor, model, context)  # type: ignore[arg-type]

    monkeypatch.setattr(job_module, "run", watched)
    steps_done(plan, stores, text)
    assert len(seen) == 2, "from the stored baseline, one step after the other"
    for probe in seen:
        assert torch.equal(probe, plan.data.task.probe()[0])
