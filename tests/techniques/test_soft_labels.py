"""What teachers say is asked once, kept by item and view, and never taken for another's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from bench_fixtures import fresh_model, make_context, small_digits
from caches import Folder

from compress.compressor import run
from compress.context import StepContext, StepLog
from compress.errors import StepFailed
from compress.model import Model
from compress.tasks.base import Data, Subset, Tensors
from compress.techniques import chain, soft_labels
from compress.techniques.soft_labels import FILE
from compress.techniques.teachers import Teacher


@pytest.fixture(scope="module")
def data() -> Data:
    plain = small_digits()
    return replace(plain, task=replace(plain.task, augment="crop"))


@pytest.fixture(scope="module")
def teacher(data: Data) -> Model:
    return run(chain("train(epochs=3)"), fresh_model(data), make_context(data))


@pytest.fixture
def context(data: Data, teacher: Model, tmp_path: Path) -> StepContext:
    return replace(make_context(data, teacher), cache=Folder(tmp_path), setting="digits")


def distill(context: StepContext, teacher: Model, text: str) -> tuple[Model, dict[str, int]]:
    """Return the student, and how many answers were asked for and reused."""
    fresh = replace(context, log=StepLog())
    made = run(chain(text), teacher, fresh)
    [told] = [row for row in fresh.log.rows if row["kind"] == "soft_labels"]
    return made, {key: told[key] for key in ("asked", "reused")}


def equal(a: Model, b: Model) -> bool:
    ours, theirs = a.module.state_dict(), b.module.state_dict()
    return all(torch.equal(ours[key], theirs[key]) for key in ours)


N = 320
MLP = "distill(student='mlp', epochs=4"


def test_every_epoch_has_its_own_view_and_another_student_reuses_them(
    context: StepContext, teacher: Model
) -> None:
    first, told = distill(context, teacher, f"{MLP})")
    assert told == {"asked": 4 * N, "reused": 0}
    again, told = distill(context, teacher, f"{MLP})")
    assert told == {"asked": 0, "reused": 4 * N}
    assert equal(first, again), "reusing changes nothing"
    _, told = distill(
        context, teacher, "distill(student='cnn-small', epochs=6, loss=[dist(), dkd()])"
    )
    assert told == {"asked": 2 * N, "reused": 4 * N}


def test_views_are_shown_in_turns(context: StepContext, teacher: Model) -> None:
    _, told = distill(context, teacher, f"{MLP}, views=2)")
    assert told == {"asked": 2 * N, "reused": 2 * N}
    _, told = distill(replace(context, cache=None), teacher, f"{MLP}, views=2)")
    assert told == {"asked": 2 * N, "reused": 2 * N}, "in memory where there is no cache"


def test_the_teacher_is_asked_each_time_if_that_is_wanted(
    context: StepContext, teacher: Model
) -> None:
    online, told = distill(context, teacher, f"{MLP}, views=0)")
    assert told == {"asked": 4 * N, "reused": 0}
    assert isinstance(context.cache, Folder)
    assert context.cache.puts == 0
    kept, _ = distill(context, teacher, f"{MLP})")
    for name, value in online.module.state_dict().items():
        # The same views; what differs is that answers were kept with eleven bits.
        torch.testing.assert_close(kept.module.state_dict()[name], value, atol=0.02, rtol=0.02)


def test_without_augmentation_one_view_serves_all_epochs(
    context: StepContext, teacher: Model, data: Data
) -> None:
    plain = replace(context, task=replace(data.task, augment="none"))
    _, told = distill(plain, teacher, f"{MLP})")
    assert told == {"asked": N, "reused": 3 * N}
    run(chain(f"{MLP}, views=3)"), teacher, plain)
    assert "views=3: without augmentation all views look the same" in plain.log.notes


def test_kept_answers_are_the_teachers_own(context: StepContext, teacher: Model) -> None:
    """The file's rows are the teacher's logits for the items of that number, as float16."""
    plain = replace(context, task=replace(context.task, augment="none"))
    distill(plain, teacher, "distill(student='mlp', epochs=1)")
    assert isinstance(context.cache, Folder)
    [file] = context.cache.folder.rglob(FILE)
    kept = np.load(file)
    assert context.train is not None
    raw, _ = context.train.fetch(torch.arange(N))
    with torch.no_grad():
        expected = teacher.module(*plain.task.prepare(raw, torch.device("cpu")))
    torch.testing.assert_close(torch.from_numpy(kept).float(), expected, atol=1e-2, rtol=2e-3)


OTHERS: dict[str, Callable[[StepContext, Data], StepContext]] = {
    "data": lambda context, data: replace(context, setting="other"),
    "order of the items": lambda context, data: replace(
        context, train=Subset(data.train, torch.arange(N).flip(0))
    ),
    "seed": lambda context, data: replace(context, seed=1),
    "precision": lambda context, data: replace(context, precision="bfloat16"),
    "teacher": lambda context, data: replace(
        context, teacher=run(chain("finetune(epochs=1)"), fresh_model(data), make_context(data))
    ),
}


@pytest.mark.parametrize("other", OTHERS)
def test_what_matters_gives_another_key(
    other: str, context: StepContext, teacher: Model, data: Data
) -> None:
    distill(context, teacher, "distill(student='mlp', epochs=1)")
    changed = OTHERS[other](context, data)
    _, told = distill(changed, teacher, "distill(student='mlp', epochs=1)")
    assert told == {"asked": N, "reused": 0}


def test_an_item_that_was_left_out_is_asked_for(context: StepContext, teacher: Model) -> None:
    """A last batch of one item is not trained on, so its answer is not there in the next epoch."""
    assert context.train is not None
    odd = replace(
        context,
        train=Subset(context.train, torch.arange(65)),
        task=replace(context.task, augment="none"),
    )
    made, told = distill(odd, teacher, "distill(student='mlp', epochs=6, batch_size=64)")
    assert told["asked"] + told["reused"] == 6 * 64
    assert 64 < told["asked"] < 6 * 64
    again, _ = distill(odd, teacher, "distill(student='mlp', epochs=6, batch_size=64)")
    assert equal(made, again)


def test_a_full_disk_is_told_and_costs_nothing(context: StepContext, teacher: Model) -> None:
    expected, _ = distill(context, teacher, f"{MLP}, views=2)")
    assert isinstance(context.cache, Folder)
    context.cache.entries.clear()
    context.cache.full = True
    made = run(chain(f"{MLP}, views=2)"), teacher, context)
    assert equal(made, expected)
    [note] = [text for text in context.log.notes if "answers were not kept" in text]
    assert "No space left on device" in note
    [told] = [row for row in context.log.rows if row["kind"] == "soft_labels"]
    assert (told["asked"], told["reused"]) == (2 * N, 2 * N), "from memory"


def test_too_much_to_keep_is_told(
    context: StepContext, teacher: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = distill(context, teacher, f"{MLP})")
    monkeypatch.setattr(soft_labels, "KEPT_BYTES", 2 * 320 * 10 * 3)
    assert isinstance(context.cache, Folder)
    context.cache.entries.clear()
    made = run(chain(f"{MLP})"), teacher, context)
    [note] = [text for text in context.log.notes if "were not kept" in text]
    assert "the answers of 4 epochs take 25.6 kB. With views=K" in note
    assert not context.cache.entries
    assert equal(made, expected), "whatever is kept, answers are rounded alike"
    distill(context, teacher, f"{MLP}, views=4)")
    assert len(context.cache.entries) == 4, "what is asked for is kept"


def test_memory_that_does_not_suffice_for_a_view_changes_nothing(
    context: StepContext, teacher: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = distill(context, teacher, f"{MLP})")
    monkeypatch.setattr(soft_labels, "free_memory", lambda: 1000)
    small = replace(context, cache=Folder(context.cache.folder / "small"))  # type: ignore[union-attr]
    made, told = distill(small, teacher, f"{MLP})")
    assert equal(made, expected)
    assert told == {"asked": 4 * N, "reused": 0}
    assert small.cache.puts == 0  # type: ignore[union-attr]
    run(chain(f"{MLP})"), teacher, small)
    [note] = [text for text in small.log.notes if "were not kept" in text]
    assert "more than a quarter of the memory" in note


def test_a_store_that_cannot_be_read_costs_only_time(context: StepContext, teacher: Model) -> None:
    expected, _ = distill(context, teacher, f"{MLP}, views=2)")
    assert isinstance(context.cache, Folder)
    context.cache.away = True
    without = replace(context, scope="")  # checkpoints have their own tests
    made = run(chain(f"{MLP}, views=2)"), teacher, without)
    assert equal(made, expected)
    [note] = [text for text in context.log.notes if "were not kept" in text]
    assert "the store could not be read" in note
    assert "Connection timed out" in note


def test_a_training_that_diverges_leaves_no_half_of_a_view(
    context: StepContext, teacher: Model, data: Data
) -> None:
    plain = replace(context, task=replace(data.task, augment="none"))
    wild = "distill(student='mlp', loss='logits', optimizer='sgd', learning_rate=1e9, epochs=1)"
    with pytest.raises(StepFailed, match="in epoch 1"):
        run(chain(wild), teacher, plain)
    _, told = distill(plain, teacher, f"{MLP})")
    assert told == {"asked": N, "reused": 3 * N}


def test_a_teacher_that_later_gives_no_numbers_is_told_as_the_cause(
    context: StepContext, teacher: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask, asked = Teacher.ask, []

    def failing(self: Teacher, inputs: Tensors) -> torch.Tensor:
        asked.append(1)
        answers = ask(self, inputs)
        return answers * float("nan") if len(asked) > 7 else answers

    monkeypatch.setattr(Teacher, "ask", failing)
    run(chain(f"{MLP}, batch_size=64)"), teacher, context)
    [note] = [text for text in context.log.notes if "training was stopped" in text]
    assert "in epoch 2 of 4" in note
    assert "the teacher's answers are not numbers" in note
    assert "learning_rate" not in note


def test_without_a_setting_nothing_is_put_in_the_step_cache(
    context: StepContext, teacher: Model
) -> None:
    """Nothing would tell these answers from those for other data."""
    bare = replace(context, setting="")
    _, told = distill(bare, teacher, f"{MLP}, views=2)")
    assert told == {"asked": 2 * N, "reused": 2 * N}
    assert bare.cache.puts == 0  # type: ignore[union-attr]


@pytest.mark.parametrize("augment", ["crop-mixup", "flip-crop-cutout"])
def test_mixed_and_cut_views_are_kept_as_well(
    augment: str, context: StepContext, teacher: Model, data: Data
) -> None:
    mixing = replace(context, task=replace(data.task, augment=augment))
    first, told = distill(mixing, teacher, f"{MLP}, views=2)")
    assert told == {"asked": 2 * N, "reused": 2 * N}
    again, told = distill(mixing, teacher, f"{MLP}, views=2)")
    assert told["asked"] == 0
    assert equal(first, again)
