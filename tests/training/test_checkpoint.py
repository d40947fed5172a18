"""A training that is stopped after any epoch and goes on is the same as one that was not."""

from __future__ import annotations

import random
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bench_fixtures import fresh_model, make_context, small_digits
from caches import Folder
from safetensors.torch import load_file, save_file
from torch import nn

from compress.benchmark.store.store import Store, StoredStepCache
from compress.compressor import run
from compress.context import StepContext, StepLog
from compress.model import Model
from compress.tasks.base import Data
from compress.techniques import chain
from compress.training import ExecutionMode, loop
from compress.training.checkpoint import TENSORS, Checkpoints, TrainingProgress, TrainingState
from compress.training.loop import _Fit


@pytest.fixture(scope="module")
def data() -> Data:
    return small_digits()


@pytest.fixture(autouse=True)
def every_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "WORTH_KEEPING", 0.0)


class Stop(BaseException):
    """What ends a process, here."""


def stop_after(epoch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the next training end, as by a kill, when it has kept the state of an epoch."""
    keep = _Fit._keep

    def keep_and_stop(self: Any) -> None:
        keep(self)
        if self.reached.epoch == epoch:
            raise Stop

    monkeypatch.setattr(_Fit, "_keep", keep_and_stop)


def equal(a: Model, b: Model) -> bool:
    ours, theirs = a.module.state_dict(), b.module.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def timeless(step_log: StepLog) -> list[dict[str, Any]]:
    names = {"seconds", "cpu_seconds", "earlier_seconds", "samples_per_second"}
    return [{k: v for k, v in row.items() if k not in names} for row in step_log.rows]


STEPS = [
    "finetune(epochs=4)",
    "finetune(epochs=4, keep='best', batch_size=48)",
    "train(epochs=4, optimizer='sgd', learning_rate=0.05)",
    "distill(student='same', epochs=4, views=2, annealing='cosine')",
    "distill(epochs=4, hints='fitnets')",
]


@pytest.fixture(scope="module")
def teacher(data: Data) -> Model:
    return run(chain("train(epochs=3)"), fresh_model(data), make_context(data))


@pytest.mark.parametrize("text", STEPS)
@pytest.mark.parametrize("epoch", [1, 3, 4])
def test_resumed_equals_undisturbed(
    text: str,
    epoch: int,
    data: Data,
    teacher: Model,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task = replace(data.task, augment="crop")
    context = replace(make_context(data, teacher), task=task, scope="here")
    plain = replace(context, log=StepLog())
    expected = run(chain(text), teacher, plain)
    cache = Folder(tmp_path)
    with monkeypatch.context() as patch:
        stop_after(epoch, patch)
        with pytest.raises(Stop):
            run(chain(text), teacher, replace(context, cache=cache, log=StepLog()))
    assert len(cache.temporary) == 1, "of the last epoch alone"
    torch.manual_seed(99)  # another process has other random numbers
    again = replace(context, cache=cache, log=StepLog())
    resumed = run(chain(text), teacher, again)
    assert equal(resumed, expected)
    left_out = ("soft_labels",)  # how often this process had to ask
    rows = [[r for r in timeless(b.log) if r["kind"] not in left_out] for b in (plain, again)]
    assert rows[0] == rows[1]


def test_the_optimizers_state_comes_back_in_the_strides_of_the_weights() -> None:
    """Fused optimizers refuse others."""

    def parts() -> tuple[TrainingState, nn.Conv2d]:
        layer = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        return TrainingState(
            {"module": layer}, torch.optim.SGD(layer.parameters(), 0.1, 0.9)
        ), layer

    (ours, layer), (theirs, other) = parts(), parts()
    layer(torch.ones(2, 3, 8, 8)).sum().backward()
    ours.optimizer.step()
    theirs.restore(ours.tensors())
    kept = theirs.optimizer.state[other.weight]["momentum_buffer"]
    assert kept.stride() == other.weight.stride() != torch.empty(4, 3, 3, 3).stride()
    assert torch.equal(kept, ours.optimizer.state[layer.weight]["momentum_buffer"])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
@pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS")
@pytest.mark.parametrize("text", ["finetune(epochs=4)", STEPS[2]])
def test_resumed_is_as_undisturbed_on_a_gpu(
    text: str, data: Data, teacher: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nearly: a GPU adds up in no fixed order. The optimizer's state lies there, and is fused."""
    context = replace(make_context(data, teacher), scope="here", device=torch.device("cuda"))
    expected = run(chain(text), teacher, replace(context, log=StepLog()))
    cache = Folder(tmp_path)
    with monkeypatch.context() as patch:
        stop_after(2, patch)
        with pytest.raises(Stop):
            run(chain(text), teacher, replace(context, cache=cache, log=StepLog()))
    resumed = run(chain(text), teacher, replace(context, cache=cache, log=StepLog()))

    def moved(a: Model, b: Model) -> float:
        pairs = zip(a.module.parameters(), b.module.parameters(), strict=True)
        return sum(float((x - y).detach().square().sum()) for x, y in pairs) ** 0.5

    assert moved(resumed, expected) < 0.05 * moved(expected, fresh_model(data))


def test_no_older_state_stays_behind(data: Data, tmp_path: Path) -> None:
    """A kill may come between keeping one and dropping the one before, of whatever epoch."""
    cache = Folder(tmp_path)
    layer = nn.Linear(2, 2)
    parts = TrainingState({"module": layer}, torch.optim.SGD(layer.parameters(), 0.1))
    for epoch, kept in zip((2, 5), [Checkpoints(cache, {}, 9) for _ in range(2)], strict=True):
        kept.keep(parts, TrainingProgress(epoch=epoch))
    before = len(cache.temporary)
    found = Checkpoints(cache, {}, 9)
    assert (before, found.reached.epoch, len(cache.temporary)) == (2, 5, 1)


def test_dropout_goes_on_with_its_own_random_numbers(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = fresh_model(data, "mlp(width=16)")
    model = replace(model, module=torch.nn.Sequential(torch.nn.Dropout(0.3), *model.module))
    context = replace(make_context(data), scope="here")
    expected = run(chain("finetune(epochs=3)"), model, context)
    cache = Folder(tmp_path)
    with monkeypatch.context() as patch:
        stop_after(2, patch)
        with pytest.raises(Stop):
            run(chain("finetune(epochs=3)"), model, replace(context, cache=cache))
    resumed = run(chain("finetune(epochs=3)"), model, replace(context, cache=cache))
    assert equal(resumed, expected)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The epochs that were trained."""
    epochs: list[int] = []
    epoch = _Fit._epoch

    def count(self: Any, number: int, shown: Any) -> Any:
        epochs.append(number)
        return epoch(self, number, shown)

    monkeypatch.setattr(_Fit, "_epoch", count)
    return epochs


def kept_context(data: Data, tmp_path: Path) -> StepContext:
    return replace(make_context(data), cache=Folder(tmp_path), scope="here")


def test_only_the_epochs_that_are_missing_are_trained(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, watched: list[int]
) -> None:
    context, model = kept_context(data, tmp_path), fresh_model(data)
    with monkeypatch.context() as patch:
        stop_after(2, patch)
        with pytest.raises(Stop):
            run(chain("finetune(epochs=5)"), model, context)
    run(chain("finetune(epochs=5)"), model, context)
    assert watched == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "other",
    ["finetune(epochs=4)", "finetune(epochs=5, batch_size=64)", "seed", "scope", "weights"],
)
def test_another_training_does_not_take_the_state(
    other: str, data: Data, tmp_path: Path, watched: list[int]
) -> None:
    context, model = kept_context(data, tmp_path), fresh_model(data)
    run(chain("finetune(epochs=5)"), model, context)
    watched.clear()
    text = other if other.startswith("finetune") else "finetune(epochs=5)"
    context = replace(context, seed=1) if other == "seed" else context
    context = replace(context, scope="there") if other == "scope" else context
    model = fresh_model(data, seed=1) if other == "weights" else model
    run(chain(text), model, context)
    assert watched[0] == 0


def test_a_full_disk_does_not_end_a_training(data: Data, tmp_path: Path) -> None:
    context = kept_context(data, tmp_path)
    assert isinstance(context.cache, Folder)
    context.cache.full = True
    made = run(chain("finetune(epochs=2)"), fresh_model(data), context)
    plain = run(chain("finetune(epochs=2)"), fresh_model(data), make_context(data))
    assert equal(made, plain)
    assert any("could not be kept along the way" in note for note in context.log.notes)


def test_seconds_count_what_a_stopped_process_spent(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, model = kept_context(data, tmp_path), fresh_model(data)
    epoch = _Fit._epoch

    def slow(self: Any, number: int, shown: Any) -> Any:
        time.sleep(0.2)
        return epoch(self, number, shown)

    monkeypatch.setattr(_Fit, "_epoch", slow)
    with monkeypatch.context() as patch:
        stop_after(2, patch)
        with pytest.raises(Stop):
            run(chain("finetune(epochs=3)"), model, context)
    context = replace(context, log=StepLog())
    run(chain("finetune(epochs=3)"), model, context)
    [step] = [row for row in context.log.rows if row["kind"] == "step"]
    assert step["seconds"] >= 0.6


def test_a_disk_that_fills_up_under_the_store_is_told(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real store and the real writer: what they raise on a full disk must be an OSError."""
    context = replace(
        make_context(data), cache=StoredStepCache(Store(tmp_path), "f" * 64), scope="here"
    )
    write = Path.write_bytes

    def full(self: Path, content: Any) -> int:
        if self.name == TENSORS:
            raise OSError(28, "No space left on device")
        return write(self, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    run(chain("finetune(epochs=2)"), fresh_model(data), context)
    assert any("No space left" in note for note in context.log.notes)


def test_a_training_goes_on_at_the_pace_it_began_with(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, model = kept_context(data, tmp_path), fresh_model(data)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "autotune", lambda *_: ExecutionMode("bfloat16", False))
        stop_after(1, patch)
        with pytest.raises(Stop):
            run(chain("finetune(epochs=2)"), model, context)
    context = replace(context, log=StepLog())
    run(chain("finetune(epochs=2)"), model, context)
    [fitted] = [row for row in context.log.rows if row["kind"] == "fit"]
    assert fitted["pace"] == "bfloat16"


def test_layers_may_draw_from_the_generators_of_python_and_numpy(tmp_path: Path) -> None:
    layer = torch.nn.Linear(1, 1)
    parts = TrainingState({"model": layer}, torch.optim.SGD(layer.parameters(), 0.1))

    def drawn() -> list[float]:
        return [random.gauss(0, 1), random.random(), np.random.normal(), np.random.rand()]

    random.seed(3)
    np.random.seed(4)
    drawn()  # of each Gaussian pair one is waiting now
    save_file(parts.tensors(), tmp_path / "state.safetensors")
    expected = [drawn() for _ in range(700)]
    random.seed(0)
    np.random.seed(0)
    parts.restore(load_file(tmp_path / "state.safetensors"))
    assert [drawn() for _ in range(700)] == expected
