"""The search: draws, in stages from no training to all of it, as long as the budget lasts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from compress.compressor import Compressor
from compress.recommender.draw import Params
from compress.recommender.lab import Lab, macs_over
from compress.recommender.measured import (
    CANNOT_WIN,
    FAILED,
    NO_TIME,
    TOO_FAR,
    Measured,
    Trial,
)
from compress.recommender.order import most_promising
from compress.recommender.stages import Stages
from compress.recommender.study import Asked
from compress.recommender.warm import LATE, lowering_alone
from compress.recommender.work import Work

TRAININGS = 6
"""Full recoveries of a model as large as the baseline that a budget should be enough for."""
FEWEST, MOST = 1, 30
"""Epochs of a full recovery."""
POOL = 6
"""Chains that are screened before one of them, the most promising, is trained."""
WARM, UNTRAINED = "warm start", "without its training"
REPEATS = 4
"""Draws in a row that were there already, after which some are drawn by chance."""
IN_TURN = 12
"""Draws in a row that were there already, after which what is left is tried in turn."""
LOOKED_AT = 10_000
"""Chains of the space that are looked at for one that is left."""
DUPLICATES = 60
"""Draws in a row that were there already, after which the space counts as searched."""
LOOKS, CHEAP = 2, 0.05
"""Students that are trained before all else, each for this share of what is left at most: whether
small nets learn the data is worth knowing, and no screening tells."""
LOSES_ALL = 100.0
"""Points by which the goal is missed."""
UNAFFORDABLE = 6
"""Draws in a row that would have taken too long, after which none are drawn that train, and then
the search ends."""


@dataclass
class Engine(Stages):
    """Searches until the deadline of `lab.now`, or until so many `trials` are there.

    `tell` is called with each finished trial, `improved` with each new best chain.
    """

    tell: Callable[[Trial], None] = lambda trial: None
    warm: Callable[[bool], Sequence[Params]] | None = None
    """The draws behind lowering alone, by whether that makes the model cheaper."""
    begin: Callable[[int], object] = lambda number: None
    look_again: Callable[[], bool] = lambda: False
    """Find out anew how long a training takes; return whether it is much less than thought."""
    pool: list[Work] = field(default_factory=list)
    """What was screened, and may be trained."""
    late: set[str] = field(default_factory=set)
    """Chains that there was no time for."""
    screened: float = 0.0
    """Seconds of screening since the last training."""
    untrained: bool = False
    """Whether no training fits into what is left: only chains in which nothing learns are drawn."""
    in_turn: Iterator[tuple[Compressor, Params]] | None = None
    """All chains of the space, as far as they were not looked at."""

    def run(self) -> str:
        """Search; return in words why it ended."""
        try:
            return self._run()
        finally:
            for work in self.pool:
                work.end(NO_TIME, "not trained: others promised more")
            self._finish(self.pool)
            self.pool = []

    def _run(self) -> str:
        duplicates = unaffordable = 0
        drawing = ""
        begun = self._begin_warm()
        while self.left > 0:
            known = self.notebook.done + len(self.pool)
            if begun is not None and (self.notebook.trials or self.pool):
                self.study.enqueue([one for one in self._warm() if one not in begun], WARM)
                begun = None
            if not drawing and unaffordable >= UNAFFORDABLE and not self.untrained:
                self._give_up_training()
                unaffordable = 0
            drawing = drawing or self._why_none_is_drawn(known, duplicates, unaffordable)
            if not drawing and self._screens_on():
                count = self.together
                if self.trials is not None:
                    count = min(count, self.trials - known)
                if duplicates >= IN_TURN:
                    self.study.enqueue(self._untried(count), "left over")
                if self.study.waiting:  # what is known to be worth it comes before the sampler's
                    count = min(count, len(self.study.waiting))
                fresh = self._draw(count, by_chance=duplicates >= REPEATS)
                duplicates = 0 if fresh else duplicates + count
                ended = self._screen_all(fresh) if fresh else []
            elif self.pool:
                ended = self._train_best()
            else:
                return drawing
            for trial in ended:
                unaffordable = unaffordable + 1 if trial.state == NO_TIME else 0
        return "the budget is spent"

    def _give_up_training(self) -> None:
        """Draw nothing from now on that trains, unless a second look says that it takes less."""
        if self.look_again():
            self.study.enqueue(self.notebook.late, LATE)
            self.late.clear()
        else:
            self.untrained, self.in_turn = True, None

    def _why_none_is_drawn(self, known: int, duplicates: int, unaffordable: int) -> str:
        """Return in words why no further draw is made; '' where one is."""
        if self.trials is not None and known >= self.trials:
            return f"{self.trials} trials are done"
        if duplicates >= DUPLICATES:
            return f"the last {DUPLICATES} draws had been tried before"
        if unaffordable >= UNAFFORDABLE:
            return "no further chain would have been finished in time"
        return ""

    def _begin_warm(self) -> list[Params] | None:
        """Have lowering alone come first; return what else of the warm start does, None without.

        Whether the rest ends in lowering depends on how it does alone. Only what else fits beside
        it does not wait for that.
        """
        if self.warm is None:
            return None
        self.study.enqueue(lowering_alone(self.space), WARM)
        begun = self._warm()[: max(0, self.together - len(self.study.waiting))]
        self.study.enqueue(begun, WARM)
        return begun

    def _warm(self) -> list[Params]:
        """Return the draws of the warm start behind lowering alone."""
        assert self.warm is not None, "it is asked for only where there is one"
        return list(self.warm(self._lowering_pays()))

    def _screens_on(self) -> bool:
        """Whether another chain is screened before one is trained.

        Not if the pool is full, nor if screening has taken as long as the best training will.
        """
        if len(self.pool) >= POOL:
            return False
        return not self.pool or self.screened < min(seconds for _, seconds in self._costs())

    def _costs(self) -> list[tuple[Measured, float]]:
        """Return the chains of the pool as they were screened, with the seconds of the rest."""
        found = []
        for work in self.pool:
            macs = macs_over(work.last, self.lab.baseline)
            found.append((work.last, self.lab.predict(work.chain, macs)))
        return found

    def _untried(self, count: int) -> list[Params]:
        """Return draws whose chains are new: fewer if no more are left, none of endlessly many."""
        if self.in_turn is None:
            self.in_turn = self.space.all(self.epochs)
        tried = {trial.chain for trial in self.notebook.trials}
        tried |= {repr(work.chain) for work in self.pool}
        try:
            looked = itertools.islice(self.in_turn, LOOKED_AT)
            new = (
                params
                for chain, params in looked
                if repr(chain) not in tried and (not self.untrained or self._worth_cutting(chain))
            )
            return list(itertools.islice(new, count))
        except ValueError:
            return []

    def _draw(self, count: int, by_chance: bool) -> list[Asked]:
        """Return draws whose chains are new."""
        asked = [self._ask(by_chance) for _ in range(count)]
        return [one for one in asked if not self._answer_known(one)]

    def _ask(self, by_chance: bool) -> Asked:
        """Return a draw; where no training fits any more, what it has besides its training."""
        asked = self.study.ask(by_chance)
        if not self.untrained or self._untaught(self._chain(asked, self.epochs)):
            return asked
        self.study.tell(asked, None)
        return self.study.ask_for(self.space.untaught(asked.params), UNTRAINED)

    def _worth_cutting(self, chain: Compressor) -> bool:
        """Whether nothing learns in a chain, and no part of it is known to lose too much."""
        return bool(self._untaught(chain)) and not self._broken_by(chain)

    def _screen_all(self, asked: Sequence[Asked]) -> list[Trial]:
        """Screen draws; finish what needs no training, and put the others into the pool."""
        self.begin(self.notebook.done)
        works = [Work(one, self._chain(one, self.epochs)) for one in asked]
        started = self.lab.now()
        self._go(works, self._screen)
        self.screened += self.lab.now() - started
        waiting = [w for w in works if not w.state and w.shapes is not None and self.stages]
        at_once = [work for work in works if work not in waiting]
        self._go(at_once, self._train_fully)
        self.pool += waiting
        return self._finish(at_once)

    def _train_best(self) -> list[Trial]:
        """Train what promises most of the pool."""
        self.begin(self.notebook.done)
        self.screened = 0.0
        costs = self._costs()
        places = most_promising(costs, self.order, self.best)
        looks = [place for place in places if self._worth_a_look(*costs[place])]
        looks = looks[: max(0, LOOKS - self._looked())]
        places = [*looks, *(place for place in places if place not in looks)]
        if in_time := [place for place in places if costs[place][1] <= self.left]:
            places = in_time
        chosen = [self.pool[place] for place in places[: self.together]]
        self.pool = [work for work in self.pool if work not in chosen]
        for work in chosen:  # the best may have changed since they were screened
            if reason := self._cannot_win(work.last):
                work.end(CANNOT_WIN, reason)
        self._go(chosen, self._train_shortly)
        self._go(chosen, self._train_fully)
        return self._finish(chosen)

    def _worth_a_look(self, screened: Measured, seconds: float) -> bool:
        """Whether a student is trained to see what small ones can learn."""
        if screened.candidate or seconds > CHEAP * self.left:
            return False
        return self.best is None or self.judge.value(screened) < self.judge.value(self.best)

    def _looked(self) -> int:
        """Return how many students a training was begun of; it may have failed."""
        seen = [t for t in self.notebook.trials if t.measured and not t.measured[0].candidate]
        return sum(len(trial.measured) > 1 for trial in seen)

    def _lowering_pays(self) -> bool:
        """Whether lowering alone makes the model cheaper; where that is not known, it may."""
        for draw in lowering_alone(self.space):
            one = self.notebook.candidates.get(repr(self.space.chain(draw, self.epochs)))
            cost = None if one is None else self.judge.cost(one)
            return cost is None or cost < 1
        return False

    # --- trials ----------------------------------------------------------------------------

    def _answer_known(self, asked: Asked) -> bool:
        """Answer a draw that was tried before (or makes the chain of one) as it was then.

        What there was no time for in this run has no time later in it.
        """
        chain = self._chain(asked, self.epochs)
        text = repr(chain)
        if self.untrained and self._broken_by(chain):
            self.study.tell(asked, 1.0, LOSES_ALL)  # most are: each would be a line of its own
            return True
        if text in self.late or text in [repr(work.chain) for work in self.pool]:
            self.study.tell(asked, None)
            return True
        for trial in self.notebook.trials:
            if trial.chain == text and trial.state != NO_TIME:
                self._tell_study(asked, trial)
                return True
        return False

    def _go(self, works: Sequence[Work], stage: Callable[[Sequence[Work]], None]) -> None:
        """Take what has not ended through a stage, together."""
        going = [work for work in works if not work.state]
        started = self.lab.now()
        if going:
            stage(going)
        for work in going:
            work.seconds += (self.lab.now() - started) / len(going)

    def _finish(self, works: Sequence[Work]) -> list[Trial]:
        """Write down how trials ended, and learn from them."""
        trials = []
        for work in works:
            number = self.notebook.number_of(work.asked.params, repr(work.chain))
            trial = work.trial(number)
            if trial.state == NO_TIME:
                self.late.add(trial.chain)
            self.notebook.add(trial)
            self._learn(trial)
            self._tell_study(work.asked, trial)
            trials.append(trial)
            self.tell(trial)
        return trials

    def _tell_study(self, asked: Asked, trial: Trial) -> None:
        last = trial.last
        if trial.state == NO_TIME:
            # What it would lose with its training is not known.
            self.study.tell(asked, None)
            return
        if trial.state == FAILED or (trial.state == TOO_FAR and last is None):
            # Not as Optuna's failures, which it draws again: like one that loses everything.
            self.study.tell(asked, 1.0, LOSES_ALL)
            return
        if last is None or (self.judge.goal.times and last.speedup is None):
            self.study.tell(asked, None)
            return
        value = self.judge.value(last)
        violation = self.judge.violation(last)
        if trial.state == CANNOT_WIN:
            # Not trained, so what it would lose is not known: its cost alone speaks against it.
            violation = 0.0
            value = math.log(self.judge.cost(last) or 1.0)
            if self.judge.goal.target_ms is not None:
                value, violation = 1.0, self.judge.violation(last)
        figures = {"cost": self.judge.cost(last) or 1.0}
        if trial.state != CANNOT_WIN:
            figures["lost"] = -last.change
        self.study.tell(asked, value, violation, figures)


def settled_epochs(lab: Lab, seconds: float) -> int:
    """Return the epochs of a full recovery: `TRAININGS` of them should fit in some seconds.

    Where nothing can be trained an epoch takes no time, and their number means nothing.
    """
    epoch = lab.epoch()
    return int(min(max(seconds / TRAININGS / epoch, FEWEST), MOST)) if epoch else FEWEST
