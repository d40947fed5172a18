"""The search, in a lab where everything is known."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from bench_fixtures import fresh_model, make_context, small_digits
from made_lab import BASE, MadeLab, made

from compress.benchmark.execute.executor import OVER_BUDGET
from compress.parts import Choices
from compress.recommender import engine as engines
from compress.recommender import order, stages
from compress.recommender.engine import Engine, settled_epochs
from compress.recommender.finals import finalists
from compress.recommender.goal import Goal, Judge
from compress.recommender.measured import (
    CANNOT_WIN,
    FAILED,
    FULL,
    IDLE,
    NO_TIME,
    OK,
    SCREENED,
    SHORT,
    TOO_FAR,
    Measured,
    Notebook,
    Trial,
)
from compress.recommender.space import Space, space_of
from compress.recommender.space_file import Wishes
from compress.recommender.study import Study
from compress.recommender.warm import draws_to_resume, warm_start
from compress.recommender.work import shapes_of
from compress.techniques import chain as parse
from compress.techniques import techniques

EPOCHS = 8
VALUES = {
    "prune_channels": {"macs": Choices((0.9, 0.7, 0.5, 0.3)), "criterion": "l2", "scope": "local"},
    "factorize": {"macs": Choices((0.8, 0.5))},
    "distill": {"loss": "kd", "learning_rate": 0.001},
    "quantize": {"max_drop": 0.5},
}
ONLY = tuple(VALUES)
HALF = {
    "student": "none",
    "cut": "prune_channels",
    "prune_channels.macs": 0.5,
    "after prune_channels": "none",
    "recovery": "distill",
    "lowering": "none",
}
"""A draw: a cut to a half, and a recovery."""


@pytest.fixture(scope="module")
def space() -> Space:
    data = small_digits()
    model = fresh_model(data)
    context = replace(make_context(data, teacher=model), enters=model)
    forms = Wishes(only=ONLY, values=VALUES).forms(techniques(), ("cnn-small(width=8)",))
    return space_of(forms, context)


def engine(space: Space, lab: MadeLab, deadline: float = 1e9, **options: object) -> Engine:
    goal = options.pop("goal", Goal(max_drop=1.0))
    judge = Judge(goal, BASE, 10_000)  # type: ignore[arg-type]
    study = options.pop("study", None) or Study(space, int(options.pop("seed", 0)))  # type: ignore[call-overload]
    notebook = options.pop("notebook", Notebook())
    run = Engine(space, judge, lab, study, notebook, deadline, EPOCHS, **options)  # type: ignore[arg-type]
    run.warm = lambda lowered: warm_start(space, lowered)
    return run


def best_of(space: Space, judge: Judge) -> Measured:
    everything = [made(chain) for chain, _ in space.all(EPOCHS)]
    return min((one for one in everything if judge.chance(one) >= 0.5), key=judge.value)


def cost_of_all(space: Space) -> float:
    lab = MadeLab()
    lab.measure([repr(chain) for chain, _ in space.all(EPOCHS)], 0)
    return lab.clock


def test_it_comes_near_the_best_for_a_quarter_of_the_cost(space: Space) -> None:
    budget = 0.25 * cost_of_all(space)
    for seed in range(2):
        lab = MadeLab()
        run = engine(space, lab, budget, seed=seed)
        run.run()
        assert run.best is not None
        assert lab.clock <= budget + 1
        best, found = best_of(space, run.judge), made(parse(run.best.chain))
        assert run.judge.chance(found) >= 0.5
        assert run.judge.value(found) <= 0.85 * run.judge.value(best)  # of logarithms of the cost


def test_a_chain_that_cannot_be_fast_enough_is_never_trained(space: Space) -> None:
    lab = MadeLab()
    run = engine(space, lab, goal=Goal(max_drop=None, target_ms=0.3), trials=40)
    run.run()
    ended = [trial for trial in run.notebook.trials if trial.state == CANNOT_WIN]
    assert ended
    for trial in ended:
        assert made(parse(trial.chain)).ms > 0.3  # type: ignore[operator]
        assert trial.chain not in lab.measured
        assert trial.reached == SCREENED
    assert run.best is not None
    assert run.best.ms is not None
    assert run.best.ms <= 0.3


def test_what_costs_more_than_a_sure_winner_is_never_trained(space: Space) -> None:
    lab = MadeLab()
    run = engine(space, lab, trials=40)
    run.run()
    for trial in run.notebook.trials:
        if trial.state == CANNOT_WIN:
            assert trial.chain not in lab.measured or shapes_of(parse(trial.chain)) is None
    # int8 alone loses nothing and is twice as fast: float chains that are slower are not trained.
    slow = parse("prune_channels(macs=0.9) -> distill(epochs=8, learning_rate=0.001)")
    assert repr(slow) not in lab.measured


def test_sizes_decide_without_timing(space: Space) -> None:
    lab = MadeLab()
    run = engine(space, lab, goal=Goal(by="size", max_drop=1.0), trials=30)
    run.run()
    assert run.best is not None
    likely = [one for one in run.notebook.candidates.values() if run.judge.chance(one) >= 0.5]
    assert run.best.onnx_bytes == min(one.onnx_bytes for one in likely)
    early = [t for t in run.notebook.trials if t.reached != FULL and t.measured]
    own = {trial.chain for trial in run.notebook.trials}
    assert not ({trial.measured[0].chain for trial in early} - own) & set(lab.timed)


def test_hopeless_chains_end_after_a_short_training(space: Space) -> None:
    lab = MadeLab()
    run = engine(space, lab, 800.0, trials=40)
    run.run()
    ended = [trial for trial in run.notebook.trials if trial.state == TOO_FAR and trial.measured]
    assert ended
    for trial in ended:
        assert trial.reached == SHORT
        assert trial.chain not in lab.measured
        assert "points after a short training" in trial.reason
        assert run.judge.chance(made(parse(trial.chain))) < 0.5  # nothing was lost by it


def test_a_hopeless_short_training_ends_the_first_trial_too(space: Space) -> None:
    run = engine(space, MadeLab())

    def lost(points: int) -> Measured:
        return Measured("x", items=10_000, right=9000 - 100 * points, lost=100 * points)

    assert run.gains == []
    assert "points after a short training" in run._too_far(lost(90))
    assert run._too_far(lost(3)) == ""
    run.gains = [0.8] * 20
    assert run._too_far(lost(90))
    assert run._too_far(lost(3)) == ""
    run.gains = [0.0] * 20  # at most a fourth of it was ever to be hoped for
    assert run._too_far(lost(3))


class Breaking(MadeLab):
    """Where nothing learns, every cut by pruning breaks the model."""

    def measure(self, chains: Sequence[str], deadline: float) -> list[Measured]:
        return [
            replace(one, lost=one.items // 2, gained=0)
            if "prune_channels" in one.chain and "distill" not in one.chain
            else one
            for one in super().measure(chains, deadline)
        ]


def test_what_a_cut_alone_breaks_is_not_cut_on_without_training(space: Space) -> None:
    lab = Breaking()
    run = engine(space, lab, 1e9)
    run.run()
    chains = [repr(chain) for chain, _ in space.all(EPOCHS)]
    assert {trial.chain for trial in run.notebook.trials} == set(chains), "none is left out"
    broken = [t for t in run.notebook.trials if t.state == TOO_FAR and not t.measured]
    assert broken
    assert any(trial.chain not in lab.measured for trial in broken)
    assert any("prune_channels" in trial.reason for trial in broken)
    for trial in broken:
        steps, known = (
            {repr(step) for step in parse(text).steps}
            for text in (trial.chain, trial.reason.split(" loses ")[0])
        )
        assert known <= steps
        assert not any("distill" in step for step in steps)
    trained = [one for one in lab.measured if "prune_channels" in one and "distill" in one]
    assert trained, "with training it is tried"


def test_a_failed_trial_costs_one_row(space: Space) -> None:
    lab = MadeLab(broken=frozenset({"factorize"}))
    told: list[Trial] = []
    run = engine(space, lab, trials=25, tell=told.append)
    run.run()
    failed = [trial for trial in told if trial.state == FAILED]
    assert failed
    assert all("factorize" in trial.chain for trial in failed)
    assert {trial.reason for trial in failed} == {"made to fail"}
    assert len(told) == len(run.notebook.trials) == 25
    assert run.best is not None
    assert "factorize" not in run.best.chain


class Late(MadeLab):
    """Whose trainings are ended by the executor."""

    def measure(self, chains: Sequence[str], deadline: float) -> list[Measured]:
        return [
            Measured(one.chain, "failed", f"StepEnded: {OVER_BUDGET}: it was ended after 9 s")
            if "distill" in one.chain
            else one
            for one in super().measure(chains, deadline)
        ]


def test_what_was_ended_says_why_in_words(space: Space) -> None:
    run = engine(space, Late(), trials=1)
    run.warm = None
    run.study.enqueue([HALF], "")
    run.run()
    [trial] = run.notebook.trials
    assert trial.state == NO_TIME
    assert trial.reason == "nothing was left of the budget: it was ended after 9 s"


def test_the_deadline_is_kept(space: Space) -> None:
    for seconds in (5.0, 60.0, 300.0):
        lab = MadeLab()
        run = engine(space, lab, seconds)
        run.run()
        assert lab.clock <= seconds + 3  # a timing, which no prediction holds up


def test_what_there_is_no_time_for_says_so(space: Space) -> None:
    lab = MadeLab()
    run = engine(space, lab, 40.0)
    run.run()
    late = [trial for trial in run.notebook.trials if trial.state == NO_TIME]
    assert late
    assert all(trial.chain not in lab.measured for trial in late)
    reasons = ("not trained fully: about", "not trained: others promised more", "not tried: about")
    assert all(trial.reason.startswith(reasons) for trial in late)
    for trial in late:
        assert trial.reason.startswith("not tried") == (not trial.measured), trial


def test_a_short_training_is_no_use_where_the_whole_one_then_has_no_time(space: Space) -> None:
    short = repr(space.chain(HALF, EPOCHS // 4))
    whole = space.chain(HALF, EPOCHS)
    seconds = MadeLab().predict(whole, 1.0)

    def measured(left: float) -> list[str]:
        lab = MadeLab()
        run = engine(space, lab, left)
        run.warm = None
        run.study.enqueue([HALF], "")
        run.trials = 1
        run.run()
        return lab.measured

    before = 2 * MadeLab().predict(parse("prune_channels(macs=0.5)"), 1.0) + 3
    assert short in measured(10 * seconds)
    assert measured(before + 1.1 * seconds)[-1] == repr(whole)
    assert short not in measured(before + 1.1 * seconds), "it is trained fully at once"
    assert measured(before + 0.9 * seconds)[-1] == short, "better than nothing"


def test_a_space_that_was_searched_ends_the_search(space: Space) -> None:
    few = tuple(form for form in space.forms if form.name in ("quantize", "factorize"))
    small = replace(space, forms=few)
    lab = MadeLab()
    run = engine(small, lab)
    assert "had been tried before" in run.run()
    texts = [trial.chain for trial in run.notebook.trials]
    assert len(texts) == len(set(texts)) <= len(list(small.all(EPOCHS)))
    assert len(lab.measured) == len(set(lab.measured))


def test_a_search_that_is_taken_up_again_measures_nothing_twice(
    space: Space, tmp_path: Path
) -> None:
    lab, place = MadeLab(), tmp_path / "study.jsonl"
    first = engine(
        space, lab, trials=8, study=Study(space, 0, place), notebook=Notebook(tmp_path / "t.jsonl")
    )
    first.run()
    notebook = Notebook.read(tmp_path / "t.jsonl")
    assert notebook.trials == first.notebook.trials
    again = engine(space, lab, trials=16, study=Study(space, 0, place), notebook=notebook)
    assert again.best == first.best
    again.run()
    assert len(lab.measured) == len(set(lab.measured))
    assert len(notebook.trials) == 16


def test_what_had_no_time_is_tried_again_in_its_place(space: Space, tmp_path: Path) -> None:
    place = tmp_path / "study.jsonl"
    lab, book = MadeLab(), Notebook(tmp_path / "t.jsonl")
    engine(space, lab, 40.0, study=Study(space, 0, place), notebook=book).run()
    late = [trial for trial in book.trials if trial.state == NO_TIME]
    assert len(late) > 1
    assert book.done == len(book.trials) - len(late)
    book = Notebook.read(tmp_path / "t.jsonl")
    study = Study(space, 0, place)
    for draws, why in draws_to_resume(space, study, book):
        study.enqueue(draws, why)
    wanted = len(book.trials)
    run = engine(space, lab, 1e9, study=study, notebook=book, trials=wanted)
    run.run()
    assert book.done == wanted, "what had no time is no trial"
    assert len({trial.chain for trial in book.trials}) == len(book.trials)
    assert [trial.number for trial in book.trials] == list(range(len(book.trials)))
    for trial in late:
        again = book.trials[trial.number]
        assert (again.params, again.chain) == (trial.params, trial.chain)
        assert again.state != NO_TIME
    assert Notebook.read(tmp_path / "t.jsonl").trials == book.trials


def test_a_trial_that_had_less_time_than_before_forgets_nothing(tmp_path: Path) -> None:
    book, one = Notebook(tmp_path / "t.jsonl"), made(parse("prune_channels(macs=0.5)"))
    before = Trial(0, {"cut": "x"}, "a", NO_TIME, SCREENED, "", (one,))
    book.add(before)
    number = book.number_of({"cut": "x"}, "a")
    book.add(Trial(number, {"cut": "x"}, "a", NO_TIME, "", "about 5 s"))
    assert [(t.number, t.measured, t.reached) for t in book.trials] == [(0, (one,), SCREENED)]
    assert book.late == [{"cut": "x"}]
    # The same draw makes another chain where the epochs are others.
    assert book.number_of({"cut": "x"}, "b") == 0
    assert book.number_of({"cut": "y"}, "c") == 1
    book.add(Trial(0, {"cut": "x"}, "b", FAILED))
    assert [(t.chain, t.state) for t in book.trials] == [("b", FAILED)]
    assert book.number_of({"cut": "x"}, "b") == 1, "only what had no time is replaced"
    assert Notebook.read(tmp_path / "t.jsonl").trials == book.trials


class Unlabelled(MadeLab):
    """A lab whose data cannot be trained on."""

    def epoch(self) -> float:
        return 0.0


def test_where_nothing_can_be_trained_the_number_of_epochs_is_no_matter() -> None:
    assert settled_epochs(MadeLab(), 600.0) == 10
    assert settled_epochs(Unlabelled(), 600.0) == 1


def test_one_gentle_cut_that_changes_nothing_does_not_speak_against_strong_ones(
    space: Space,
) -> None:
    def as_before(one: Measured) -> Measured:
        whole = replace(one, macs=1000, params=1000, speedup=one.speedup and 2.0)
        return whole if "prune_channels(macs=0.9)" in one.chain else one

    class Gentle(MadeLab):
        def measure(self, chains: Sequence[str], deadline: float) -> list[Measured]:
            return list(map(as_before, super().measure(chains, deadline)))

        def time(self, measured: Sequence[Measured]) -> list[Measured]:
            return list(map(as_before, super().time(measured)))

    run = engine(space, Gentle(), trials=40)
    run.run()
    assert run.idle == set()
    assert any("prune_channels(macs=0.5" in chain for chain in run.notebook.candidates)


def test_a_technique_whose_cuts_change_nothing_is_given_up(
    space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    def as_before(one: Measured) -> Measured:
        whole = replace(one, macs=1000, params=1000, speedup=one.speedup and 2.0)
        return whole if "factorize" in one.chain else one

    class Idle(MadeLab):
        def measure(self, chains: Sequence[str], deadline: float) -> list[Measured]:
            return list(map(as_before, super().measure(chains, deadline)))

        def time(self, measured: Sequence[Measured]) -> list[Measured]:
            return list(map(as_before, super().time(measured)))

    lab = Idle()
    monkeypatch.setattr(stages, "SEEN_IDLE", 2)
    run = engine(space, lab, trials=40)
    run.run()
    assert run.idle == {"factorize"}
    idle = [trial for trial in run.notebook.trials if trial.state == IDLE]
    told = [trial for trial in idle if trial.reason.startswith("factorize makes")]
    assert told
    assert all(not trial.measured for trial in told)
    assert {trial.reason for trial in idle if trial not in told} == {
        f"factorize(macs={share}) makes nothing cheaper" for share in (0.5, 0.8)
    }
    again = engine(space, MadeLab(), notebook=run.notebook)
    assert again.idle == {"factorize"}, "as it was known before"


def test_an_untrained_student_is_no_candidate(space: Space) -> None:
    run = engine(space, MadeLab(), trials=30)
    run.run()
    assert any("untrained" in one.chain for t in run.notebook.trials for one in t.measured)
    assert not any("untrained" in text for text in run.notebook.candidates)


def test_students_are_looked_at_early_where_that_costs_little(
    space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    def chains_before_students(deadline: float) -> int:
        lab = MadeLab()
        engine(space, lab, deadline, trials=60).run()
        taught = ["student" in text and "untrained" not in text for text in lab.measured]
        return [*taught, True].index(True)

    monkeypatch.setattr(order, "UNKNOWN", 1e-6)  # by what is known, they come last
    # A student has a quarter of the size, and three times the epochs: 61 seconds.
    rich, poor = chains_before_students(5_000), chains_before_students(300)
    monkeypatch.setattr(engines, "LOOKS", 0)
    assert rich < chains_before_students(5_000)
    assert poor == chains_before_students(300)


@pytest.mark.parametrize("broken", [frozenset(), frozenset({"distill"})])
def test_students_are_looked_at_as_often_as_said(
    space: Space, broken: frozenset[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(order, "UNKNOWN", 1e-6)
    looks = []
    real = Engine._train_best

    def spy(run: Engine) -> list[Trial]:
        places = [p for p, cost in enumerate(run._costs()) if run._worth_a_look(*cost)]
        before = run._looked()
        ended = real(run)
        looks.append((len(places), run._looked() - before))
        return ended

    monkeypatch.setattr(Engine, "_train_best", spy)
    run = engine(space, MadeLab(broken=broken), 50_000, together=4, trials=40)
    run.run()
    assert sum(worth for worth, _ in looks) > 0
    seen = 0
    for worth, trained in looks:  # beyond that, a student is trained only if it promises most
        if seen >= engines.LOOKS:
            break
        assert trained >= min(worth, engines.LOOKS - seen)
        seen += trained
    assert seen >= engines.LOOKS


def test_each_improvement_is_told_at_once(space: Space) -> None:
    told: list[Measured] = []
    run = engine(space, MadeLab(), trials=40, improved=told.append)
    run.run()
    assert told[-1] == run.best
    for before, after in itertools.pairwise(told):
        assert run.judge.better(after, before)


class Killed(MadeLab):
    """Where the search is killed as soon as something trains."""

    def measure(self, chains: Sequence[str], deadline: float) -> list[Measured]:
        if any("distill" in text for text in chains):
            raise KeyboardInterrupt
        return super().measure(chains, deadline)


@pytest.mark.parametrize("by", ["latency", "size"])
def test_what_was_measured_before_a_training_is_told_before_it(
    space: Space, tmp_path: Path, by: str
) -> None:
    told: list[Measured] = []
    goal, place = Goal(by=by, max_drop=10.0), tmp_path / "trials.jsonl"
    run = engine(
        space, Killed(), goal=goal, notebook=Notebook(place), trials=1, improved=told.append
    )
    run.warm = None
    run.study.enqueue([HALF], "")
    assert run.judge.goal == goal
    with pytest.raises(KeyboardInterrupt):
        run.run()
    cut = "prune_channels(macs=0.5)"
    assert [one.chain for one in told] == [cut]
    again = Notebook.read(place)
    assert not any(trial.measured for trial in again.trials), "its trial has not ended"
    assert again.candidates == {cut: told[0]}
    assert engine(space, MadeLab(), goal=goal, notebook=again).best == told[0]


def test_what_a_chain_is_without_its_training_does_not_end_its_trial(space: Space) -> None:
    lab = MadeLab()
    run = engine(space, lab, goal=Goal(by="size", max_drop=10.0), trials=1)
    run.warm = None
    run.study.enqueue([HALF], "")
    run.run()
    assert run.sure is not None
    [trial] = run.notebook.trials
    assert (trial.state, trial.reached) == (OK, FULL)
    assert lab.measured[-1] == trial.chain
    assert run.notebook.unfinished == {}


def test_draws_are_measured_side_by_side(space: Space) -> None:
    calls: list[int] = []

    class Wide(MadeLab):
        def measure(self, chains: Sequence[str], deadline: float) -> list[Measured]:
            calls.append(len(chains))
            return super().measure(chains, deadline)

    run = engine(space, Wide(), trials=12, together=4)
    run.run()
    assert len(run.notebook.trials) == 12
    assert max(calls) > 1


def test_epochs_are_settled_by_the_budget() -> None:
    lab = MadeLab()
    assert settled_epochs(lab, 600.0) == 10  # six trainings of ten epochs of ten seconds
    assert settled_epochs(lab, 1.0) == 1
    assert settled_epochs(lab, 1e6) == 30


def test_finalists_are_worth_most_together(space: Space) -> None:
    run = engine(space, MadeLab(), trials=40)
    run.run()
    chosen = finalists(run.notebook.candidates.values(), run.judge, 3)
    assert 1 <= len(chosen) <= 3
    assert run.best in chosen


def test_states_are_words() -> None:
    assert {OK, CANNOT_WIN, TOO_FAR, IDLE, FAILED, NO_TIME} == {
        *("ok", "cannot win", "loses too much", "makes nothing cheaper", "failed", "no time"),
    }


def test_a_warm_start_ends_in_lowering_only_where_that_pays(space: Space) -> None:
    class Slow(MadeLab):
        def time(self, measured: Sequence[Measured]) -> list[Measured]:
            found = super().time(measured)
            return [replace(one, speedup=0.8) if "quantize" in one.chain else one for one in found]

    for lab, lowered in ((MadeLab(), True), (Slow(), False)):
        run = engine(space, lab, trials=6)
        run.run()
        first, *others = [trial for trial in run.notebook.trials if trial.drawn == "warm start"]
        assert first.chain == "quantize()"
        assert others
        assert all(("quantize" in trial.chain) == lowered for trial in others)
