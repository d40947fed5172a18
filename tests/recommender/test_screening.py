"""Which chains the search never trains, which end early, and which are looked at first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from made_lab import MadeLab, made
from made_search import EPOCHS, HALF, VALUES, engine, made_space

from compress.benchmark.execute.executor import OVER_BUDGET
from compress.parts import Choices
from compress.recommender import engine as engines
from compress.recommender import order, stages
from compress.recommender.engine import Engine
from compress.recommender.goal import Goal
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
    Trial,
)
from compress.recommender.space import Space
from compress.recommender.work import shapes_of
from compress.techniques import chain as parse


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


CUTS = {"macs": Choices((0.9, 0.5)), "criterion": "l2", "scope": "local"}


class Breaking(MadeLab):
    """Where nothing learns, every cut by pruning breaks the model."""

    def measure(self, chains: Sequence[str], deadline: float) -> list[Measured]:
        return [
            replace(one, lost=one.items // 2, gained=0)
            if "prune_channels" in one.chain and "distill" not in one.chain
            else one
            for one in super().measure(chains, deadline)
        ]


def test_what_a_cut_alone_breaks_is_not_cut_on_without_training() -> None:
    space, lab = (
        made_space({**VALUES, "factorize": {"macs": 0.5}, "prune_channels": CUTS}),
        Breaking(),
    )
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
        lowering = {step for step in known if step.startswith("quantize(")}
        assert known - lowering <= steps, "int8 alone loses nothing"
        assert not any("distill" in step for step in steps)
    trained = [one for one in lab.measured if "prune_channels" in one and "distill" in one]
    assert trained, "with training it is tried"


def test_where_nothing_can_qualify_nothing_is_given_up_for_what_is_sure(space: Space) -> None:
    """But what loses too much is still not trained, and what loses little is."""
    lab = MadeLab()
    run = engine(space, lab, trials=30, test_items=360)
    run.run()
    assert run.judge.hopeless
    assert run.sure is None
    assert not any("holds the margin" in trial.reason for trial in run.notebook.trials)
    assert any(trial.state == TOO_FAR for trial in run.notebook.trials)
    assert any(trial.reached == FULL and "distill" in trial.chain for trial in run.notebook.trials)
    assert frozenset({"quantize()"}) not in run.broken


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
