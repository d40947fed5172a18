"""The search, in a lab where everything is known: what wins, and what it goes on from."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from made_lab import MadeLab, kept, made, trained
from made_search import EPOCHS, HALF, VALUES, engine, made_space

from compress.compressor import Compressor
from compress.recommender.engine import settled_epochs
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
    TOO_FAR,
    Measured,
    Notebook,
    Trial,
)
from compress.recommender.space import Space
from compress.recommender.study import Asked, Study
from compress.recommender.warm import draws_to_resume, lowering_alone, warm_start
from compress.techniques import chain as parse


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


def test_the_deadline_is_kept(space: Space) -> None:
    for seconds in (5.0, 60.0, 300.0):
        lab = MadeLab()
        run = engine(space, lab, seconds)
        run.run()
        assert lab.clock <= seconds + 3  # a timing, which no prediction holds up


class Slow(MadeLab):
    """A lab in which no training ends in time."""

    def predict(self, chain: Compressor, macs: float) -> float:
        return 0.0 if repr(chain) in self.done else 1 + 1e6 * kept(chain) * trained(chain)


@pytest.mark.parametrize("together", [1, 3])
def test_where_no_training_fits_all_that_trains_nothing_is_tried(
    space: Space, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compress.recommender.engine.UNAFFORDABLE", 2)
    lab = Slow()
    run = engine(space, lab, 1e5, together=together)
    run.run()
    assert run.untrained
    assert not any(trained(parse(text)) for text in lab.measured)
    chains = [chain for chain, _ in space.all(EPOCHS)]
    untaught = {repr(chain) for chain in chains if run._worth_cutting(chain)}
    assert untaught
    assert untaught <= {trial.chain for trial in run.notebook.trials if trial.measured}
    told = run.study._answered()
    assert len(told) >= len(untaught), "the sampler learns from them"


def test_what_a_busy_moment_called_too_long_is_thought_of_again(
    space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compress.recommender.engine.UNAFFORDABLE", 1)
    lab = Slow()
    run = engine(space, lab, 1e5)
    looked: list[float] = []

    def look_again() -> bool:
        looked.append(lab.clock)
        lab.predict = MadeLab.predict.__get__(lab)  # type: ignore[method-assign]
        return len(looked) == 1

    run.look_again = look_again
    run.run()
    assert len(looked) == 1
    assert not run.untrained
    assert not any(trial.state == NO_TIME for trial in run.notebook.trials)
    assert any(trained(parse(text)) for text in lab.measured)
    assert {t.drawn for t in run.notebook.trials} >= {"warm start", "no time before"}


def test_a_cut_is_blamed_where_lowering_alone_loses_nothing() -> None:
    run = engine(made_space(), MadeLab())
    run.notebook.add(Trial(0, {}, "quantize()", OK, FULL, "", (made(parse("quantize()")),)))
    broken = made(parse("prune_channels(macs=0.3) -> quantize(seconds=15)"))
    run._note_broken(broken)
    assert run._broken_by(parse("prune_channels(macs=0.3) -> quantize()"))
    assert not run._broken_by(parse("prune_channels(macs=0.5) -> quantize()"))
    other = engine(made_space(), MadeLab())
    other._note_broken(broken)
    assert not other._broken_by(parse("prune_channels(macs=0.3)")), "or is it what int8 has done?"


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


class Asking(Study):
    """A study that notes why each draw was made, and what it was."""

    def ask(self, by_chance: bool = False) -> Asked:
        asked = super().ask(by_chance)
        self.__dict__.setdefault("asked", []).append(asked)
        return asked


@pytest.mark.parametrize("together", [1, 2, 8, 40])
def test_the_warm_start_comes_before_what_the_sampler_draws(space: Space, together: int) -> None:
    """However many are made side by side: else random draws fill the first places of a cluster."""
    study, begun = Asking(space, 0), []
    run = engine(space, MadeLab(), trials=20, together=together, study=study)
    run.begin = lambda number: begun.append(len(study.__dict__["asked"]))
    run.run()
    wanted = [*lowering_alone(space), *warm_start(space, lowered=True)]
    asked = study.__dict__["asked"]
    assert [one.params for one in asked[: len(wanted)]] == wanted
    assert [one.drawn for one in asked] == [
        *["warm start"] * len(wanted),
        *[""] * (len(asked) - len(wanted)),
    ]
    assert begun[0] == min(together, len(wanted))


def test_what_is_begun_beside_lowering_alone_is_not_all_of_the_warm_start(space: Space) -> None:
    """What is left of it ends in int8 only if that is known to pay by then."""

    class Slow(MadeLab):
        def time(self, measured: Sequence[Measured]) -> list[Measured]:
            found = super().time(measured)
            return [replace(one, speedup=0.8) if "quantize" in one.chain else one for one in found]

    study = Asking(space, 0)
    engine(space, Slow(), trials=12, together=3, study=study).run()
    lowered, plain = (warm_start(space, lowered) for lowered in (True, False))
    asked = [one.params for one in study.__dict__["asked"] if one.drawn == "warm start"]
    assert asked == [*lowering_alone(space), *lowered[:2], *plain]


@pytest.mark.parametrize("together", [1, 8])
def test_where_nothing_lowers_the_rest_of_the_warm_start_comes_first(together: int) -> None:
    space = made_space({name: own for name, own in VALUES.items() if name != "quantize"})
    study = Asking(space, 0)
    engine(space, MadeLab(), trials=8, together=together, study=study).run()
    wanted = warm_start(space, lowered=False)
    assert [one.params for one in study.__dict__["asked"][: len(wanted)]] == wanted


@pytest.mark.parametrize("together", [1, 4])
def test_what_is_left_is_tried_as_many_at_once_as_there_is_room_for(
    space: Space, together: int
) -> None:
    few = tuple(form for form in space.forms if form.name in ("quantize", "factorize"))
    small = replace(space, forms=few)
    run = engine(small, MadeLab(), together=together)
    everything = {repr(chain) for chain, _ in small.all(EPOCHS)}
    assert {repr(small.chain(draw, EPOCHS)) for draw in run._untried(together)} <= everything
    assert len(run._untried(100)) == len(everything) - together
    assert run._untried(1) == []


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
