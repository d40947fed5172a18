"""The space: which chains can be drawn, by the flags of techniques and what their fields say."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from bench_fixtures import fresh_model, make_context, small_digits
from cases import TEXTS
from hypothesis import given
from hypothesis import strategies as st

from compress.compressor import Compressor
from compress.context import StepContext
from compress.errors import UserError
from compress.model import Model
from compress.parts import Choices, Effort, Range, joins_searches, kept_fraction, searched
from compress.recommender.draw import AtRandom, Known, Preferred, at, numbers_of, tidy
from compress.recommender.folder import TRIALS
from compress.recommender.forms import BUILD, CUT, LOWER, RECOVER, Form, forms_of, kind_of
from compress.recommender.goal import Goal
from compress.recommender.measured import FULL, OK, Measured, Notebook, Trial
from compress.recommender.space import Space, space_of
from compress.recommender.space_file import Wishes, merged, read_wishes
from compress.recommender.warm import good_draws, lowering_alone, warm_start
from compress.recommender.work import shapes_of
from compress.techniques import chain as parse
from compress.techniques import techniques
from compress.training import Training

STUDENTS = ("cnn-small(width=8)", "mlp(width=8)")


@pytest.fixture(scope="module")
def context() -> StepContext:
    data = small_digits()
    model = fresh_model(data)
    return replace(make_context(data, teacher=model), enters=model)


def space(context: StepContext, wishes: Wishes | None = None) -> Space:
    wishes = wishes or Wishes()
    return space_of(wishes.forms(techniques(), STUDENTS), context, wishes.longest)


@pytest.fixture(scope="module")
def whole(context: StepContext) -> Space:
    return space(context)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("quantize()", LOWER),
        ("cast('float16')", LOWER),
        ("prune_channels(macs=0.5)", CUT),
        ("prune_weights(sparsity=0.5)", CUT),
        ("carve(ratio=0.5)", CUT),
        ("finetune(epochs=1)", RECOVER),
        ("distill(epochs=1)", RECOVER),
        ("distill(student='mlp', epochs=1)", BUILD),
        ("untrained(student='mlp')", BUILD),
        ("train(epochs=1)", None),
    ],
)
def test_the_kind_of_a_step_follows_from_its_flags(text: str, kind: str | None) -> None:
    assert kind_of(parse(text)) == kind


@pytest.mark.parametrize("text", TEXTS)
def test_what_is_left_without_training_trains_nothing(text: str) -> None:
    step = parse(text)
    shapes = step.untrained
    assert shapes is None or all(not isinstance(one, type(parse("finetune()"))) for one in shapes)
    for one in shapes or ():
        assert parse(repr(one)) == one
        assert one.untrained == (one,)


def test_a_chain_without_its_training_keeps_its_shapes() -> None:
    whole = "prune_channels(macs=0.5) -> distill(epochs=3) -> quantize()"
    assert list(map(repr, parse(whole).untrained or ())) == [
        "prune_channels(macs=0.5)",
        "quantize(seconds=15, max_drop=None)",
    ]
    [built] = parse("distill(student='mlp', epochs=2)").untrained or ()
    assert repr(built) == "untrained(student='mlp')"
    assert parse("repeat(2, distill(student='same', teacher='input'))").untrained is None


@given(seed=st.integers(0, 2**32 - 1), epochs=st.integers(1, 100))
def test_any_draw_is_a_legal_chain_that_parses_back(whole: Space, seed: int, epochs: int) -> None:
    chain, params = whole.draw(AtRandom(np.random.default_rng(seed)), epochs)
    assert parse(repr(chain)) == chain
    assert 1 <= len(chain.steps) <= whole.longest
    assert whole.chain(params, epochs) == chain
    kinds = [kind_of(step) for step in chain.steps]
    order = [[BUILD, CUT, RECOVER, LOWER].index(str(kind)) for kind in kinds]
    assert order == sorted(order)
    assert len({type(step) for step in chain.steps if kind_of(step) == CUT}) == kinds.count(CUT)
    assert RECOVER not in kinds or CUT in kinds


@given(seed=st.integers(0, 2**32 - 1))
def test_any_draw_has_one_without_its_training(whole: Space, seed: int) -> None:
    chain, params = whole.draw(AtRandom(np.random.default_rng(seed)), 3)
    bare = whole.chain(whole.untaught(params), 3)
    kinds = {form.cls: form.kind for form in whole.forms}
    assert not any(kinds[type(step)] in (BUILD, RECOVER) for step in bare.steps)
    cuts = [step for step in chain.steps if kinds[type(step)] == CUT]
    if chain.steps and not any(step.builds for step in chain.steps):
        assert [repr(s) for s in bare.steps if kinds[type(s)] == CUT][: len(cuts)] == [
            repr(step) for step in cuts
        ]
    if not any(kinds[type(step)] in (BUILD, RECOVER) for step in chain.steps):
        assert repr(bare) == repr(chain)


def test_epochs_are_no_draw_but_an_effort(whole: Space) -> None:
    _, params = whole.draw(Preferred({"cut": "prune_channels", "recovery": "finetune"}), 1)
    assert not any(name.endswith(".epochs") for name in params)
    for epochs in (1, 7, 1000):
        step = whole.chain(params, epochs).steps[1]
        assert step.epochs == min(epochs, 60)  # type: ignore[attr-defined]


def test_a_student_trains_longer_than_a_recovery(whole: Space) -> None:
    _, params = whole.draw(Preferred({"student": "distill:student"}), 1)
    assert whole.chain(params, 5).steps[0].epochs == 15  # type: ignore[attr-defined]


def test_all_chains_of_a_finite_space_come_once(context: StepContext) -> None:
    wishes = Wishes(
        only=("prune_channels", "finetune", "quantize"),
        values={
            "prune_channels": {
                "macs": Choices((0.3, 0.5)),
                "criterion": "l2",
                "scope": "local",
            },
            "finetune": {"learning_rate": 0.001},
            "quantize": {"max_drop": Choices((0.5, None))},
        },
    )
    texts = [repr(chain) for chain, _ in space(context, wishes).all(2)]
    # Two cuts, with or without recovery, with one of two lowerings or none; or lowering alone.
    assert len(texts) == 2 * 2 * 3 + 2
    assert len(set(texts)) == len(texts)


def test_without_training_data_nothing_that_trains_is_left(context: StepContext) -> None:
    found = space(replace(context, train=None))
    assert {form.kind for form in found.forms} == {CUT, LOWER}
    assert {"finetune", "distill", "distill:student"} <= found.left_out.keys()
    [prune] = [form for form in found.forms if form.name == "prune_channels"]
    assert prune.options["criterion"] == Choices(("l2", "reconstruction"))
    # Taylor's gradients need labels.
    assert "taylor" in found.left_out["prune_channels"]


def test_a_space_without_students_has_recoveries_alone(context: StepContext) -> None:
    own = {"distill": {"student": None, "loss": "kd", "learning_rate": 0.001}}
    found = space(context, Wishes(only=("distill", "prune_channels"), values=own))
    assert [form.name for form in found.forms if form.name.startswith("distill")] == ["distill"]
    assert not found.of(BUILD)


def test_where_nothing_lowers_something_is_cut(context: StepContext) -> None:
    found = space(context, Wishes(without=("quantize",)))
    for seed in range(50):
        chain, _ = found.draw(AtRandom(np.random.default_rng(seed)), 1)
        assert any(kind_of(step) in (CUT, BUILD) for step in chain.steps)


def test_no_technique_left_is_refused(context: StepContext) -> None:
    with pytest.raises(UserError, match="no technique is left that makes the model cheaper"):
        space(context, Wishes(only=("finetune",)))
    with pytest.raises(UserError, match=r"no technique is left.*needs"):
        space(replace(context, train=None), Wishes(only=("distill",)))


@dataclass(frozen=True, repr=False)
class Shrink(Compressor):
    """A plug-in that joins by saying what is worth trying."""

    share: float = field(
        default=1.0, metadata={**kept_fraction(), **searched(Range(0.1, 0.9, step=0.1))}
    )

    def compress(self, model: Model, context: StepContext) -> Model:
        return model


def test_a_plugin_joins_by_what_its_fields_say(context: StepContext) -> None:
    known = {**techniques(), "shrink": Shrink}
    found = space_of(Wishes(only=("shrink", "quantize")).forms(known, ()), context)
    kinds = [(form.name, form.kind) for form in found.forms]
    assert kinds == [("quantize", LOWER), ("shrink", CUT)]
    steps = {len(chain.steps) for chain, _ in found.all(1)}
    shares = {s.share for chain, _ in found.all(1) for s in chain.steps if isinstance(s, Shrink)}
    assert steps == {1, 2}
    assert shares == {0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9}


@dataclass(frozen=True, repr=False)
class Round(Compressor):
    """A plug-in that lowers."""

    lowers = True
    bits: int = field(default=8, metadata=searched(Choices((4, 8))))

    def compress(self, model: Model, context: StepContext) -> Model:
        return model


@dataclass(frozen=True, repr=False)
class RoundAndCut(Round):
    """One that says it lowers MACs besides."""

    variants = {"macs": {"bits": 8}}
    bits: int = field(default=8, metadata=searched(Choices((4, 8))))


LOWERING = {
    "quantize": {},
    "cast": {"to": "float16"},
    "ort_quantize": {"calibration": 64},
    "round": {},
    "prune_channels": {"macs": 0.5},
}


@pytest.mark.parametrize("by", ["macs", "params"])
def test_what_only_lowers_is_not_drawn_where_it_changes_nothing(
    context: StepContext, by: str
) -> None:
    """Neither alone, nor at the end of chains; a peer's and a plug-in's as little as our own."""
    known = {**techniques(), "round": Round}
    forms = Wishes(only=tuple(LOWERING), values=LOWERING).forms(known, (), by)
    found = space_of(forms, context, by=by)
    assert [form.name for form in found.forms] == ["prune_channels"]
    assert found.left_out.keys() == LOWERING.keys() - {"prune_channels"}
    assert "precision of the file" in found.left_out["quantize"]
    assert not lowering_alone(found)
    assert not any(step.lowers for chain, _ in found.all(1) for step in chain.steps)
    for other in ("size", "latency"):
        assert any(form.kind == LOWER for form in space_of(forms, context, by=other).forms)


def test_what_says_that_it_lowers_macs_is_drawn_for_them(context: StepContext) -> None:
    known = {**techniques(), "round": Round, "round_and_cut": RoundAndCut}
    for by, drawn in (("macs", True), ("params", False)):
        wishes = Wishes(only=("round", "round_and_cut", "prune_channels"))
        found = space_of(wishes.forms(known, (), by), context, by=by)
        assert bool(found.of(LOWER)) == drawn
        assert not {form.name for form in found.forms} & {"round", "round:macs"}


@pytest.mark.parametrize(("by", "what"), [("macs", "MACs"), ("params", "parameters")])
def test_lowering_alone_is_refused_for_what_it_cannot_lower(
    context: StepContext, by: str, what: str
) -> None:
    forms = Wishes(only=("quantize", "finetune")).forms(techniques(), (), by)
    with pytest.raises(UserError, match=f"no technique is left that lowers the number of {what}"):
        space_of(forms, context, by=by)
    space_of(forms, context, by="size")


def test_a_plugin_joins_whether_or_not_its_annotations_are_kept_with_it() -> None:
    """Python 3.14 makes annotations when they are asked for: no class has them among its names."""

    @dataclass(frozen=True, repr=False)
    class Lazy(Shrink):
        share: float = field(default=1.0, metadata=searched(Range(0.1, 0.9)))

    @dataclass(frozen=True, repr=False)
    class Heir(Lazy):
        other: float = 1.0

    del Lazy.__annotations__
    assert joins_searches(Lazy)
    assert not joins_searches(Heir)


@dataclass(frozen=True, repr=False)
class Retrain(Training):
    """A plug-in that trains in a way of its own, and says nothing of what is worth trying."""

    strength: float = 1.0

    def compress(self, model: Model, context: StepContext) -> Model:
        return model


def test_what_only_inherits_values_to_try_does_not_join(context: StepContext) -> None:
    known = {**techniques(), "retrain": Retrain}
    names = {form.name for form in Wishes().forms(known, ())}
    assert {"finetune", "distill"} <= names
    assert not {"sparsify", "retrain", "train", "search"} & names
    with pytest.raises(UserError, match=r"sparsify says nothing.*\[sparsify\] table"):
        Wishes(only=("sparsify",)).forms(known, ())
    asked_for = Wishes(only=("retrain",), values={"retrain": {"strength": 2.0}}).forms(known, ())
    [form] = asked_for
    assert form.kind == RECOVER
    assert form.effort == {"epochs": Effort(1, 60)}


def test_a_search_that_trains_is_not_screened(context: StepContext) -> None:
    trained, judged = (parse(f"search(macs=0.5, epochs={n}) -> quantize()") for n in (2, 0))
    assert shapes_of(trained) is None
    assert trained.untrained is None
    assert judged.untrained is not None
    assert parse("search(macs=0.5, epochs=2, family='resnet')").untrained is None


def test_values_that_are_given_keep_their_order() -> None:
    """Else the space of one process would not be that of the next, which resumes the search."""
    given = {
        "weight_decay": 0.1,
        "batch_size": 64,
        "keep": "best",
        "patience": 2,
        "optimizer": "sgd",
    }
    [form] = forms_of(techniques()["finetune"], (), given)
    assert list(form.fixed) == list(given)


def test_a_technique_has_a_form_for_each_of_its_kinds() -> None:
    forms = forms_of(techniques()["distill"], STUDENTS)
    assert [(form.name, form.kind) for form in forms] == [
        ("distill", RECOVER),
        ("distill:student", BUILD),
    ]
    assert forms[1].options["student"] == Choices(STUDENTS)
    assert forms[0].effort == {"epochs": Effort(1, 60)}
    assert [form.name for form in forms_of(techniques()["distill"], ())] == ["distill"]
    assert forms_of(techniques()["train"], STUDENTS) == []  # a baseline starts with it


@given(
    low=st.floats(0.01, 1),
    wide=st.floats(0.05, 5),
    step=st.floats(0.01, 0.5),
    share=st.floats(0, 1),
)
def test_numbers_stay_in_their_range(low: float, wide: float, step: float, share: float) -> None:
    high = low + wide
    for values in (Range(low, high, min(step, wide)), Range(low, high), Range(low, high, log=True)):
        assert values.low <= at(values, share) <= values.high


def test_a_range_of_steps_has_these_values() -> None:
    assert numbers_of(Range(0.2, 0.4, step=0.05)) == [0.2, 0.25, 0.3, 0.35, 0.4]
    assert numbers_of(Range(1, 4)) == [1, 2, 3, 4]
    with pytest.raises(ValueError, match="without steps"):
        numbers_of(Range(0.1, 0.2))
    assert tidy(0.30000000000000004, Range(0.2, 0.4)) == 0.3


def test_a_draw_of_another_space_is_none(whole: Space) -> None:
    with pytest.raises(KeyError):
        whole.chain({"student": "none", "cut": "melt"}, 1)
    with pytest.raises(KeyError):
        Known({"x": 2.0}).number("x", Range(0.1, 0.9))


def test_earlier_draws_come_by_the_goal(tmp_path: Path) -> None:
    notebook = Notebook(tmp_path / TRIALS)
    figures = [  # fast, small and in between; the last one loses 3 points
        ("fast", 4.0, 900, 0.5, 5),
        ("small", 1.5, 100, 2.0, 0),
        ("middle", 2.0, 500, 1.5, 2),
        ("bad", 9.0, 10, 0.1, 30),
    ]
    for name, speedup, size, ms, lost in figures:
        one = Measured(name, "ok", "", 1000, 900 - lost, lost, 0, size, size, size, speedup, ms=ms)
        notebook.add(Trial(0, {"cut": name}, name, OK, FULL, "", (one,)))

    def best(goal: Goal) -> list[object]:
        return [params["cut"] for params in good_draws([tmp_path], goal, 2)]

    assert best(Goal()) == ["fast", "middle"]
    assert best(Goal(max_drop=5.0)) == ["bad", "fast"]
    for by in ("size", "macs", "params"):
        assert best(Goal(by=by)) == ["small", "middle"]
    assert best(Goal(max_drop=None, target_ms=1.6)) == ["middle", "fast"]
    assert best(Goal(max_drop=None, target_ms=0.05)) == ["bad", "fast"]


def test_the_warm_start_has_what_is_known_to_be_good(whole: Space) -> None:
    [alone] = lowering_alone(whole)
    assert repr(whole.chain(alone, 4)) == "quantize()"
    texts = [repr(whole.chain(params, 4)) for params in warm_start(whole, lowered=True)]
    assert len(set(texts)) == len(texts)
    assert any("distill(student=" in text for text in texts)
    assert any(" -> distill(epochs=4" in text for text in texts)
    assert all(text.endswith("quantize()") for text in texts)
    plain = [repr(whole.chain(params, 4)) for params in warm_start(whole, lowered=False)]
    assert plain == [text.removesuffix(" -> quantize()") for text in texts]
    earlier = whole.draw(AtRandom(np.random.default_rng(5)), 1)[1]
    first, *others = warm_start(whole, True, [earlier, {"cut": "what is this"}])
    assert dict(first) == dict(earlier)
    assert others == warm_start(whole, True)


def test_what_makes_files_small_alone_is_tried_where_size_counts(context: StepContext) -> None:
    def lowerings(wishes: Wishes, by: str) -> list[str]:
        found = space_of(wishes.forms(techniques(), STUDENTS, by), context)
        alone = [repr(found.chain(draw, 1)) for draw in lowering_alone(found)]
        every = {repr(chain.steps[-1]) for chain, _ in found.all(1) if chain.steps[-1].lowers}
        assert set(alone) <= every
        return alone

    small = "quantize(bits=4, weight_only=True)"
    only = Wishes(only=("prune_weights", "quantize"), values={"prune_weights": {"sparsity": 0.5}})
    assert lowerings(only, "size") == ["quantize()", small]
    assert lowerings(only, "latency") == ["quantize()"]
    settled = replace(only, values={**only.values, "quantize": {"max_drop": 0.5}})
    assert lowerings(settled, "size") == ["quantize()"], "a table of its own says all"


def test_a_gentle_cut_takes_little_away(context: StepContext) -> None:
    """`sparsity` is what is gone, `macs` what is kept."""
    found = space(context, Wishes(only=("prune_weights", "prune_channels"), values=CUTS))
    first = [repr(found.chain(params, 4)) for params in warm_start(found, lowered=False)[:2]]
    assert sorted(first) == ["prune_channels(macs=0.8)", "prune_weights(sparsity=0.3)"]


CUTS = {
    "prune_weights": {"sparsity": Range(0.2, 0.9, step=0.1)},
    "prune_channels": {"macs": Range(0.2, 0.9, step=0.1), "criterion": "l2", "scope": "local"},
}


def test_where_nothing_lowers_the_warm_start_has_no_lowering(context: StepContext) -> None:
    found = space(context, Wishes(without=("quantize",)))
    assert lowering_alone(found) == []
    assert warm_start(found, lowered=False)


# --- files ----------------------------------------------------------------------------------


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "space.toml"
    path.write_text(text)
    return path


def test_a_file_restricts_and_widens(context: StepContext, tmp_path: Path) -> None:
    text = """
        only = ["distill", "prune_weights", "factorize", "quantize"]
        longest = 3
        [distill]
        student = ["mlp(width=4)"]
        epochs = { from = 2, to = 9 }
        loss = "kd"
        [prune_weights]
        sparsity = [0.5, 0.8]
        [factorize]
        macs = { from = 0.3, to = 0.7 }
        form = ["best", "channel"]
        [quantize]
        max_drop = "none"
    """
    found = space(context, read_wishes(written(tmp_path, text)))
    forms = {form.name: form for form in found.forms}
    assert forms.keys() == {"distill", "distill:student", "prune_weights", "factorize", "quantize"}
    assert forms["distill:student"].options["student"] == Choices(("mlp(width=4)",))
    assert forms["distill"].effort == {"epochs": Effort(2, 9)}
    assert forms["distill"].fixed == {"loss": "kd"}
    assert forms["prune_weights"].options == {"sparsity": Choices((0.5, 0.8))}
    assert forms["factorize"].options["macs"] == Range(0.3, 0.7)
    assert forms["quantize"].fixed == {"max_drop": None}
    assert found.longest == 3


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("onyl = []", "unknown key in .*'onyl'. Did you mean 'only'"),
        ("[prune_chanels]\nmacs = 0.5", "unknown technique in .*'prune_chanels'. Did you mean"),
        ("[prune_channels]\nmac = 0.5", "unknown option of prune_channels in .*'mac'"),
        ("[prune_channels]\nmacs = 1.5", "macs is the fraction that is kept"),
        ("[prune_channels]\nmacs = { from = 0.1, to = 1.2 }", "macs is the fraction that is kept"),
        ("[prune_channels]\nmacs = { from = 0.9, to = 0.2 }", "a range needs two numbers"),
        ("[prune_channels]\nmacs = { from = 0.1 }", "a range needs two numbers"),
        ("[prune_channels]\nmacs = { form = 0.1, to = 0.2 }", "unknown key of the range"),
        (
            "[prune_channels]\nmacs = { from = 0.1, to = 0.2, step = 3 }",
            "step is a positive number",
        ),
        ("[prune_channels]\nmacs = { from = 0.1, to = 0.2, step = 0.1, log = true }", "log is for"),
        ("[prune_channels]\nmacs = []", "is an empty list"),
        ("[distill]\nloss = ['kld']", "unknown loss 'kld'"),
        ("only = 'quantize'", "only is a list of techniques' names"),
        ("only = ['quantise']", "unknown technique in .*'quantise'. Did you mean 'quantize'"),
        ("only = ['prune_weights']", "says nothing of what is worth trying"),
        ("only = ['train']", "says nothing of what is worth trying"),
        ("[train]\nepochs = 3", "starts a baseline"),
        ("longest = 0", "longest is the number of steps"),
        ("longest = 9", "number of steps of a chain, from 1 to 4, not 9"),
        ("[finetune]\nepochs = { from = 5, to = 40, step = 5 }", "without step or log"),
        ("[finetune]\nepochs = { from = 5, to = 40, log = true }", "without step or log"),
        ("[finetune]\nepochs = { from = 5.7, to = 9.9 }", "a range of whole numbers"),
        ("longest = ", "not valid TOML"),
    ],
)
def test_wrong_files_are_refused(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        read_wishes(written(tmp_path, text)).forms(techniques(), STUDENTS)


def test_students_that_a_file_names_have_to_exist(context: StepContext, tmp_path: Path) -> None:
    def check(names: str) -> None:
        file = written(tmp_path, f"[distill]\nstudent = {names}\n[finetune]\nepochs = 2\n")
        read_wishes(file).check_students(techniques(), context)

    check("['mlp(width=4)', 'none', 'same']")
    check("'mlp(width=4)'")
    with pytest.raises(UserError, match=r"space.toml, student 'mpl': unknown model 'mpl'"):
        check("['mlp', 'mpl']")
    with pytest.raises(UserError, match=r"student 'mlp\(widht=4\)': unknown option of mlp"):
        check("'mlp(widht=4)'")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read the space file"):
        read_wishes(tmp_path / "none.toml")


def test_the_command_line_counts_before_the_file() -> None:
    file = Wishes(only=("carve",), without=("cast",), longest=2)
    both = merged(file, ("quantize",), ("finetune",))
    assert (both.only, both.without, both.longest) == (("quantize",), ("cast", "finetune"), 2)
    assert merged(file, (), ()) == file


def test_forms_show_all_their_values() -> None:
    form = Form("x", Shrink, CUT, {"share": Choices((0.2, 0.5))})
    assert [(name, value, repr(step)) for name, value, step in form.samples()] == [
        ("share", 0.2, "shrink(share=0.2)"),
        ("share", 0.5, "shrink(share=0.5)"),
    ]
