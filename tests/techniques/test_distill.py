"""What the student learns from: teachers, schedules, views, transfer sets."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from bench_fixtures import fresh_model, make_context, small_digits
from torch import nn

from compress.benchmark.plan.plan import make_plan
from compress.benchmark.plan.suite import Suite
from compress.compressor import Compressor, Repeat, run
from compress.context import StepContext, StepLog
from compress.errors import IllegalChain, StepFailed, UserError
from compress.model import Model
from compress.tasks.base import Data, TensorSplit
from compress.techniques import chain
from compress.techniques.distill import Distill
from compress.techniques.losses import Kd, between
from compress.techniques.teachers import Teacher
from compress.training import Batch, accuracy
from compress.zoo.transfer import load_transfer


@pytest.fixture(scope="module")
def taught() -> tuple[Data, Model]:
    data = small_digits()
    return data, run(
        chain("train(epochs=12, batch_size=32)"), fresh_model(data), make_context(data)
    )


def test_without_labels_the_student_still_learns_the_teachers_answers(
    taught: tuple[Data, Model],
) -> None:
    """With hard_weight 0 and shuffled labels, only the teacher can be the source."""
    data, teacher = taught
    raw, targets = data.train.fetch(torch.arange(len(data.train)))
    liars = TensorSplit(raw, targets.roll(1))
    context = replace(make_context(data, teacher), train=liars)
    step = chain("distill(student='mlp', epochs=15, batch_size=32, hard_weight=0)")
    assert "labels" not in step.needs
    student = run(step, teacher, context)
    assert accuracy(student.module, data.task, data.test) > 0.75


def test_teachers() -> None:
    data = small_digits()
    context = make_context(data)
    model = run(chain("train(epochs=2)"), fresh_model(data), context)
    with pytest.raises(IllegalChain, match="teacher"):
        run(chain("distill(epochs=1)"), model, context)
    with pytest.raises(UserError, match="unknown teacher 'aunt'"):
        run(chain("distill(epochs=1, teacher='aunt')"), model, context)
    named = replace(context, models={"aunt": model}, teacher=model)
    by_name = run(chain("distill(epochs=1, teacher='aunt')"), model, named)
    by_default = run(chain("distill(epochs=1)"), model, named)
    for ours, theirs in zip(
        by_name.module.parameters(), by_default.module.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_the_step_log_counts_samples_seen() -> None:
    data = small_digits()
    context = make_context(data)
    run(chain("train(epochs=2, batch_size=64) -> finetune(epochs=1)"), fresh_model(data), context)
    assert context.log.samples == 3 * len(data.train)


def student_of(text: str, taught: tuple[Data, Model], **more: Any) -> tuple[Model, StepLog]:
    data, teacher = taught
    context = replace(make_context(data, teacher), **more)
    return run(chain(text), teacher, context), context.log


def equal(a: Model, b: Model) -> bool:
    ours, theirs = a.module.state_dict(), b.module.state_dict()
    return all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_an_ensemble_of_copies_teaches_as_the_one_does(taught: tuple[Data, Model]) -> None:
    _, teacher = taught
    models = {"a": teacher, "b": teacher}
    alone, _ = student_of("distill(student='mlp', epochs=2, views=0)", taught, models=models)
    for more in ("", ", average='logits'", ", teacher_weights=[1, 5]"):
        text = f"distill(student='mlp', epochs=2, views=0, teacher=['a', 'b']{more})"
        together, _ = student_of(text, taught, models=models)
        for ours, theirs in zip(
            together.module.parameters(), alone.module.parameters(), strict=True
        ):
            torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=1e-2)


def test_the_weights_of_teachers_matter(taught: tuple[Data, Model]) -> None:
    data, teacher = taught
    other = run(chain("finetune(epochs=1)"), fresh_model(data, seed=3), make_context(data))
    models = {"a": teacher, "b": other}
    start = "distill(student='mlp', epochs=1, teacher=['a', 'b'], teacher_weights="
    first, second = (
        student_of(f"{start}{weights})", taught, models=models)[0]
        for weights in ("[9, 1]", "[1, 9]")
    )
    assert not equal(first, second)


def test_born_again_has_fresh_weights_of_the_same_shapes(taught: tuple[Data, Model]) -> None:
    data, teacher = taught
    small = run(chain("prune_channels(channels=0.5)"), teacher, make_context(data))
    step = "distill(student='same', teacher='input', epochs=1, learning_rate=1e-9)"
    made, _ = student_of(step, (data, small))
    shapes = [{k: v.shape for k, v in m.module.state_dict().items()} for m in (made, small)]
    assert shapes[0] == shapes[1], "of the pruned one, not of its blueprint"
    for name, ours in made.module.named_parameters():
        if ours.ndim > 1:
            theirs = small.module.get_parameter(name)
            pair = torch.stack([ours.detach().flatten(), theirs.detach().flatten()])
            assert abs(float(torch.corrcoef(pair)[0, 1])) < 0.3, "nothing is left of its weights"


def test_born_again_does_not_begin_where_its_teacher_began(taught: tuple[Data, Model]) -> None:
    data, _ = taught
    still = "epochs=1, learning_rate=1e-12"
    teacher = run(chain(f"train({still})"), fresh_model(data), make_context(data))
    made, _ = student_of(f"distill(student='same', teacher='input', {still})", (data, teacher))
    for name, ours in made.module.named_parameters():
        if ours.ndim > 1:
            theirs = teacher.module.get_parameter(name)
            pair = torch.stack([ours.detach().flatten(), theirs.detach().flatten()])
            assert abs(float(torch.corrcoef(pair)[0, 1])) < 0.3


def test_born_again_works_on_a_transformer_whose_layers_were_cut() -> None:
    data = small_digits()
    name = (
        "torchvision:VisionTransformer(image_size=8, patch_size=4, num_layers=2, num_heads=2, "
        "hidden_dim=16, mlp_dim=32)"
    )
    context, model = make_context(data), fresh_model(data, name)
    with torch.no_grad():
        model.module.get_parameter("class_token").fill_(7.0)
    small = run(chain("prune_channels(channels=0.5)"), model, context)
    step = "distill(student='same', teacher='input', epochs=1, learning_rate=1e-12)"
    made = run(chain(step), small, context)
    shapes = [{k: v.shape for k, v in m.module.state_dict().items()} for m in (made, small)]
    assert shapes[0] == shapes[1] != {k: v.shape for k, v in model.module.state_dict().items()}
    assert made.module.get_parameter("class_token").abs().max() < 1, "as the factory draws it"


def test_the_times_of_one_seed_are_not_those_of_another(taught: tuple[Data, Model]) -> None:
    data, teacher = taught
    noted: list[int] = []

    @dataclass(frozen=True, repr=False)
    class Note(Compressor):
        def compress(self, model: Model, context: StepContext) -> Model:
            noted.append(context.seed)
            return model

    for seed in (0, 1):
        run(Repeat(3, Note()), teacher, replace(make_context(data), seed=seed))
    assert noted[::3] == [0, 1], "the first is as without repeat"
    assert len(set(noted)) == 6


def test_a_whole_recipe(taught: tuple[Data, Model]) -> None:
    data, teacher = taught
    context = make_context(data, teacher)
    student = "distill(student='cnn-small(width=16)', epochs=12, batch_size=32)"
    made = run(chain(f"{student} -> finetune(epochs=2) -> quantize()"), teacher, context)
    assert made.lowered
    steps = [row["step"] for row in context.log.rows if row["kind"] == "step"]
    assert [step.partition("(")[0] for step in steps] == ["distill", "finetune", "quantize"]
    assert accuracy(made.module, data.task, data.validation) > 0.7


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("loss=logits(temperature=2.0)", "unknown option of logits 'temperature'"),
        ("loss=kd(beta=3.0)", "unknown option of kd 'beta'"),
        ("hints=fitnets(weight=0)", "weight must be positive, not 0"),
        ("hints=fitnets(weight=-1)", "weight must be positive"),
        ("hints='fitnets', loss=[], annealing='linear'", "fades out losses, and there are none"),
        ("loss=[]", "nothing is learnt from the teacher"),
        ("final_hard_weight=1.0", "final_hard_weight needs annealing"),
        ("annealing='linear', final_hard_weight=-1", "final_hard_weight must be >= 0"),
        ("annealing='linear', final_hard_weight=0", "fades out all there is to learn"),
        ("loss=[kd(weight=0.2), kd(weight=0.3)]", "differ in their weight alone"),
        ("loss=3", "loss: a loss such as kd(), or a list of them, not 3"),
        ("loss=None", "loss: a loss such as kd(), or a list of them, not None"),
        ("loss=[['kd']]", "loss: a loss such as kd(), or a list of them, not ['kd']"),
        ("hints=['fitnets']", "hints: a hint such as fitnets(), not ['fitnets']"),
        ("hints=3", "hints: a hint such as fitnets(), not 3"),
        ("teacher_weights=[2]", "teacher_weights needs several teachers"),
        ("average='logits'", "average needs several teachers"),
        ("loss='logits', teacher=['a', 'b']", "several teachers with average='logits'"),
        ("loss=[kd(), logits()], teacher=['a', 'b']", "several teachers with average='logits'"),
    ],
)
def test_options_without_effect_are_refused(options: str, words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        chain(f"distill({options})")


def test_beta_weighs_what_is_said_of_the_other_classes(taught: tuple[Data, Model]) -> None:
    data, teacher = taught
    context = make_context(data, teacher)
    calls = Teacher([teacher], context, "probabilities", ())
    raw, targets = data.train.fetch(torch.arange(16))
    inputs = data.task.prepare(raw, context.device)
    batch, outputs = Batch(torch.arange(16), inputs, targets), torch.randn(16, 10)
    values = []
    for beta in (0.0, 1.0, 4.0):
        step = chain(f"distill(loss=dkd(beta={beta}, weight=1), hard_weight=0)")
        assert isinstance(step, Distill)
        loss = step._loss(step._labels(calls, context, data.train), None, context)
        values.append(float(loss(outputs, batch)))
    alone, once, fourfold = values
    assert once > alone
    assert fourfold - alone == pytest.approx(4 * (once - alone), rel=1e-4)


def test_hints_that_cannot_be_are_refused_before_any_work(taught: tuple[Data, Model]) -> None:
    data, teacher = taught
    context = make_context(data, teacher)
    first = next(name for name, _ in teacher.module.named_modules() if name)
    step = chain(f"distill(student='mlp', hints=fitnets(layers=['{first}:nothing']))")
    with pytest.raises(IllegalChain, match="the student has no layer 'nothing'"):
        step.check(context)
    before = torch.get_rng_state()
    chain("distill(student='cnn-small(width=16)', hints='fitnets')").check(context)
    assert torch.equal(torch.get_rng_state(), before)
    assert not teacher.module._forward_pre_hooks


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("distill(hints=fitnets(layers=['nope:0']))", "the teacher has no layer 'nope'"),
        ("distill(hints=fitnets(layers=['0:nope']))", "the student has no layer 'nope'"),
        (
            "distill(student='mlp', teacher='input', hints=fitnets(layers=['nope:0']))",
            "the teacher has no layer 'nope'",
        ),
        (
            "distill(student='same', teacher='input', hints=fitnets(layers=['0:nope']))",
            "the student has no layer 'nope'",
        ),
        (
            "prune_weights(sparsity=0.5) -> distill(hints=fitnets(layers=['nope:0']))",
            "the teacher has no layer 'nope'",
        ),
        ("carve(blocks=['nope'])", "there is no block 'nope'"),
    ],
)
def test_layers_that_are_not_there_are_told_before_the_baseline_is_trained(
    text: str, words: str
) -> None:
    suite = Suite("test", "digits", "cnn-small(width=8)", ("train(epochs=1)", text), controls=False)
    with pytest.raises(IllegalChain, match=words):
        make_plan(suite, data=small_digits())


def test_layers_that_an_earlier_step_makes_are_no_error() -> None:
    """What factorizing makes of layer 0 cannot be known beforehand."""
    text = "factorize(rank=0.5) -> distill(hints=fitnets(layers=['3:3.1']))"
    suite = Suite("test", "digits", "cnn-small(width=8)", ("train(epochs=1)", text), controls=False)
    [_, row] = make_plan(suite, data=small_digits()).rows
    assert repr(row.chain) == repr(chain(text))


def test_a_teacher_that_gives_no_numbers_is_told_as_the_cause(taught: tuple[Data, Model]) -> None:
    data, teacher = taught
    broken = teacher.copy()
    with torch.no_grad():
        list(broken.module.parameters())[-1].fill_(float("nan"))
    with pytest.raises(StepFailed, match="the teacher's answers are not numbers"):
        run(chain("distill(student='mlp', epochs=1)"), teacher, make_context(data, broken))


def test_annealing_ends_at_the_labels_alone(taught: tuple[Data, Model]) -> None:
    """Where the soft loss has faded out, what is left is the cross-entropy at full weight."""
    data, teacher = taught
    context = make_context(data, teacher)
    step = chain("distill(epochs=1, annealing='linear', hard_weight=0.1, loss=kd(weight=0.9))")
    assert isinstance(step, Distill)
    assert "labels" in chain("distill(annealing='linear', hard_weight=0)").needs
    calls = Teacher([teacher], context, "logits", ())
    labels = step._labels(calls, context, data.train)
    loss = step._loss(labels, None, context)
    raw, targets = data.train.fetch(torch.arange(16))
    inputs = data.task.prepare(raw, context.device)
    outputs = torch.randn(16, 10)
    for done in (0.0, 0.25, 1.0):
        batch = Batch(torch.arange(16), inputs, targets, progress=done)
        hard = float(data.task.loss(outputs, targets))
        soft = float(Kd()(outputs, calls.ask(inputs), targets))
        expected = (0.1 + 0.9 * done) * hard + 0.9 * (1 - done) * soft
        assert float(loss(outputs, batch)) == pytest.approx(expected, rel=1e-3)


def test_annealing_looks_at_labels_where_their_weight_grows() -> None:
    growing = "distill(hard_weight=0, annealing='linear')"
    fading = "distill(hard_weight=0, annealing='linear', final_hard_weight=0, hints='fitnets')"
    assert "labels" in chain(growing).needs
    assert "labels" not in chain(fading).needs
    assert "labels" in chain("distill(hard_weight=0, loss=[kd(), dkd()])").needs


@pytest.mark.parametrize("soft", [0.0, 0.7])
def test_all_three_targets_at_once_each_with_its_weight(
    taught: tuple[Data, Model], soft: float
) -> None:
    data, teacher = taught
    context = make_context(data, teacher)
    losses = f"[kd(weight={soft}), logits(weight=0.05)]" if soft else "logits(weight=0.05)"
    options = f"hard_weight=0.3, annealing='linear', final_hard_weight={0.3 + soft}"
    step = chain(f"distill(loss={losses}, {options})")
    assert isinstance(step, Distill)
    calls = Teacher([teacher], context, "logits", ())
    loss = step._loss(step._labels(calls, context, data.train), None, context)
    raw, targets = data.train.fetch(torch.arange(16))
    inputs = data.task.prepare(raw, context.device)
    outputs = torch.randn(16, 10, generator=torch.Generator().manual_seed(0))
    answers = calls.ask(inputs)
    squared = float((outputs - answers).pow(2).sum()) / 16
    for done in (0.0, 0.25, 1.0):
        batch = Batch(torch.arange(16), inputs, targets, progress=done)
        hard = float(data.task.loss(outputs, targets))
        taught_part = soft * float(Kd()(outputs, answers, targets)) + 0.05 * squared
        expected = (0.3 + soft * done) * hard + (1 - done) * taught_part
        assert float(loss(outputs, batch)) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(("shape", "middle"), [("linear", 2.5), ("cosine", 2.5), ("constant", 4.0)])
def test_schedules(shape: str, middle: float) -> None:
    assert between(4.0, 1.0, shape, 0.0) == 4.0
    assert between(4.0, 1.0, shape, 0.5) == pytest.approx(middle)
    assert between(4.0, 1.0, shape, 1.0) == (4.0 if shape == "constant" else pytest.approx(1.0))


def test_the_temperature_falls_along_its_schedule(taught: tuple[Data, Model]) -> None:
    data, teacher = taught
    context = make_context(data, teacher)
    step = chain("distill(loss=kd(temperature=8, final_temperature=2, weight=1), hard_weight=0)")
    assert isinstance(step, Distill)
    calls = Teacher([teacher], context, "logits", ())
    loss = step._loss(step._labels(calls, context, data.train), None, context)
    raw, targets = data.train.fetch(torch.arange(16))
    inputs = data.task.prepare(raw, context.device)
    outputs = torch.randn(16, 10)
    for done, heat in ((0.0, 8.0), (0.5, 5.0), (1.0, 2.0)):
        batch = Batch(torch.arange(16), inputs, targets, progress=done)
        expected = float(Kd(temperature=heat)(outputs, calls.ask(inputs), targets))
        assert float(loss(outputs, batch)) == pytest.approx(expected, rel=1e-3)


def test_a_transfer_set_takes_the_place_of_the_data(taught: tuple[Data, Model]) -> None:
    data, _ = taught
    whole = load_transfer("digits", data)
    sets = {"digits": replace(whole, items=data.train)}
    text = "distill(student='mlp', epochs=12, batch_size=32, hard_weight=0, transfer='digits')"
    step = chain(text)
    assert not step.needs & {"train", "labels"}
    made, step_log = student_of(text, taught, transfers=sets, train=None)
    assert step_log.samples == 12 * len(data.train)
    assert accuracy(made.module, data.task, data.test) > 0.7
    labelled = "distill(student='mlp', epochs=1, transfer='digits')"
    student_of(labelled, taught, transfers=sets, train=None)
    blank = {"digits": replace(whole, labelled=False)}
    for wrong in (labelled, f"{text[:-1]}, annealing='linear')", f"{text[:-1]}, loss='dkd')"):
        with pytest.raises(IllegalChain, match=r"has no labels of this task's classes.*hard_weig"):
            student_of(wrong, taught, transfers=blank)
    student_of(text.replace("12", "1"), taught, transfers=blank)
    with pytest.raises(UserError, match="unknown transfer set 'digits'"):
        student_of(text, taught)


def test_pairs_that_do_not_fit(taught: tuple[Data, Model]) -> None:
    data, teacher = taught
    wide = replace(teacher.copy(), module=nn.Sequential(nn.Flatten(), nn.Linear(64, 12)))
    with pytest.raises(IllegalChain, match="the student has 10 outputs and the teacher 12"):
        run(chain("distill(epochs=1, student='mlp')"), teacher, make_context(data, wide))
    large = replace(wide, probe=(torch.zeros(1, 1, 16, 16),))
    with pytest.raises(IllegalChain, match=r"inputs of shape \[\(1, 16, 16\)\] and the student"):
        run(chain("distill(epochs=1, student='mlp')"), teacher, make_context(data, large))


def test_dkd_is_refused_where_items_are_mixed(taught: tuple[Data, Model]) -> None:
    data, teacher = taught
    mixed = replace(data.task, augment="mixup")
    context = replace(make_context(data, teacher), task=mixed)
    with pytest.raises(IllegalChain, match="mixup gives mixtures"):
        run(chain("distill(epochs=1, loss='dkd')"), teacher, context)
    run(chain("distill(epochs=1, loss='dist')"), teacher, context)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("teacher=[]", "a name or a list of names"),
        ("teacher=['a', 3]", "a name or a list of names"),
        ("teacher=5", "a name or a list of names, not 5"),
        ("teacher={'a', 'b'}", "a name or a list of names"),
        ("teacher_weights=0.5", "teacher_weights is a list of numbers, not 0.5"),
        ("hints=fitnets(layers='a:b')", "layers is a list"),
        ("teacher=['baseline', 'input'], teacher_weights=[1]", "2 positive numbers"),
        ("teacher=['a', 'b'], teacher_weights=[1, 0]", "2 positive numbers"),
        ("teacher=['a', 'b'], teacher_weights=[1, 'x']", "teacher_weights is a list of numbers"),
        ("teacher_weights=[0]", "teacher_weights needs several teachers"),
        ("annealing='step'", "constant, linear, cosine"),
        ("hard_weight=-1", "hard_weight must be >= 0, not -1"),
        ("average='median'", "probabilities, logits"),
        ("views=-1", "views must be a whole number of at least 0"),
        ("views=1.5", "views must be a whole number"),
        ("transfer=3", "transfer is a name"),
        ("patience=0", "patience must be a whole number of at least 1"),
    ],
)
def test_wrong_options(options: str, words: str) -> None:
    with pytest.raises(IllegalChain, match=words):
        chain(f"distill({options})")


def test_lists_of_names_have_a_text() -> None:
    step = chain("distill(teacher=['baseline', 'aunt'], teacher_weights=[1, 2.5])")
    assert repr(step) == (
        "distill(teacher=('baseline', 'aunt'), teacher_weights=(1, 2.5), epochs=1)"
    )
    assert chain(repr(step)) == step
    assert step.teachers == {"baseline", "aunt"}
