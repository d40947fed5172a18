"""The search: draws, in stages from no training to all of it, as long as the budget lasts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

from compress.benchmark.execute.local_executor import OVER_BUDGET
from compress.compressor import Compressor
from compress.recommender.draw import Params
from compress.recommender.forms import CUT
from compress.recommender.goal import LIKELY, SURE, Judge
from compress.recommender.lab import Lab, macs_over
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
from compress.recommender.order import Order, most_promising
from compress.recommender.space import Space
from compress.recommender.study import Asked, Study
from compress.recommender.warm import lowering_alone
from compress.recommender.work import Work, shapes_of, with_times
from compress.system.amounts import decimal, duration

TRAININGS = 6
"""Full recoveries of a model as large as the baseline that a budget should be enough for."""
FEWEST, MOST = 1, 30
"""Epochs of a full recovery."""
SHORTER = 4
"""A short recovery has a fourth of the epochs."""
NEGLIGIBLE = 0.03
"""Share of what is left of the budget: a training that takes less is not made shorter first."""
HOPELESS = 0.05
"""A chance below which a chain is not trained on."""
IDLE_ABOVE = 0.97
"""A cut that removes nothing, and after which a chain costs more than this share of what it costs
without it, changes nothing."""
MOST_SLACK = 1.1
"""A few processes give wide intervals; what was timed in turns is hardly as far off as this."""
POOL = 6
"""Chains that are screened before one of them, the most promising, is trained."""
WARM = "warm start"
REPEATS = 4
"""Draws in a row that were there already, after which some are drawn by chance."""
DUPLICATES = 60
"""Draws in a row that were there already, after which the space counts as searched."""
UNAFFORDABLE = 6
"""Draws in a row that would have taken too long, after which the search ends."""
GAIN = 0.5
"""Share of what a short recovery leaves lost that all of it takes back, until one was seen."""


@dataclass
class Engine:
    """Searches until the deadline of `lab.now`, or until so many `trials` are there.

    `tell` is called with each finished trial, `improved` with each new best chain.
    """

    space: Space
    judge: Judge
    lab: Lab
    study: Study
    notebook: Notebook
    deadline: float
    epochs: int
    """Of a full recovery."""
    trials: int | None = None
    together: int = 1
    """Draws that are measured at once."""
    stages: bool = True
    """Whether chains are screened, and trained shortly first; else each is trained fully."""
    tell: Callable[[Trial], None] = lambda trial: None
    warm: Callable[[bool], Sequence[Params]] | None = None
    """The draws to begin with, once it is known whether lowering alone makes the model cheaper."""
    improved: Callable[[Measured], None] = lambda one: None
    begin: Callable[[int], object] = lambda number: None
    best: Measured | None = None
    sure: Measured | None = None
    """The cheapest that is nearly sure to reach the goal."""
    idle: set[str] = field(default_factory=set)
    """Cuts that were seen to change nothing of this model."""
    gains: list[float] = field(default_factory=list)
    """Of trained cuts: the share of what a short recovery left lost that all of it took back."""
    pool: list[Work] = field(default_factory=list)
    """What was screened, and may be trained."""

    def __post_init__(self) -> None:
        self.order = Order(self.judge)
        for one in self.notebook.candidates.values():
            self._consider(one, quiet=True)
        for trial in self.notebook.trials:
            self._learn(trial)

    @property
    def left(self) -> float:
        return self.deadline - self.lab.now()

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
        warm, drawing = self.warm, ""
        if warm is not None:
            self.study.enqueue(lowering_alone(self.space), WARM)
        while self.left > 0:
            known = len(self.notebook.trials) + len(self.pool)
            if warm is not None and known:
                self.study.enqueue(warm(self._lowering_pays()), WARM)
                warm = None
            if self.trials is not None and known >= self.trials:
                drawing = f"{self.trials} trials are done"
            elif duplicates >= DUPLICATES:
                drawing = f"the last {DUPLICATES} draws had been tried before"
            if unaffordable >= UNAFFORDABLE:
                return "no further chain would have been finished in time"
            if not drawing and len(self.pool) < POOL:
                count = self.together
                if self.trials is not None:
                    count = min(count, self.trials - known)
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

    def _draw(self, count: int, by_chance: bool) -> list[Asked]:
        """Return draws whose chains are new."""
        asked = [self.study.ask(by_chance) for _ in range(count)]
        return [one for one in asked if not self._answer_known(one)]

    def _screen_all(self, asked: Sequence[Asked]) -> list[Trial]:
        """Screen draws; finish what needs no training, and put the others into the pool."""
        self.begin(len(self.notebook.trials))
        works = [Work(one, self._chain(one, self.epochs)) for one in asked]
        self._go(works, self._screen)
        waiting = [w for w in works if not w.state and w.shapes is not None and self.stages]
        at_once = [work for work in works if work not in waiting]
        self._go(at_once, self._train_fully)
        self.pool += waiting
        return self._finish(at_once)

    def _train_best(self) -> list[Trial]:
        """Train what promises most of the pool."""
        self.begin(len(self.notebook.trials))
        costs = []
        for work in self.pool:
            macs = macs_over(work.last, self.lab.baseline)
            costs.append((work.last, self.lab.predict(work.chain, macs)))
        places = most_promising(costs, self.order, self.best)[: self.together]
        chosen = [self.pool[place] for place in places]
        self.pool = [work for work in self.pool if work not in chosen]
        for work in chosen:  # the best may have changed since they were screened
            if reason := self._cannot_win(work.last):
                work.end(CANNOT_WIN, reason)
        self._go(chosen, self._train_shortly)
        self._go(chosen, self._train_fully)
        return self._finish(chosen)

    def _lowering_pays(self) -> bool:
        """Whether lowering alone makes the model cheaper; where that is not known, it may."""
        for draw in lowering_alone(self.space):
            one = self.notebook.candidates.get(repr(self.space.chain(draw, self.epochs)))
            cost = None if one is None else self.judge.cost(one)
            return cost is None or cost < 1
        return False

    # --- trials ----------------------------------------------------------------------------

    def _chain(self, asked: Asked, epochs: float) -> Compressor:
        return self.space.chain(asked.params, epochs)

    def _answer_known(self, asked: Asked) -> bool:
        """Answer a draw that was tried before (or makes the chain of one) as it was then."""
        text = repr(self._chain(asked, self.epochs))
        if text in [repr(work.chain) for work in self.pool]:
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
            trial = work.trial(len(self.notebook.trials))
            self.notebook.add(trial)
            self._learn(trial)
            self._tell_study(work.asked, trial)
            trials.append(trial)
            self.tell(trial)
        return trials

    def _screen(self, works: Sequence[Work]) -> None:
        """Measure chains without their training: what they cost, and that they work at all."""
        going = []
        for work in works:
            if names := self.idle & {step.name() for step in work.chain.steps}:
                work.end(IDLE, f"{min(names)} changes nothing of this model")
            elif self.stages and (shapes := shapes_of(work.chain)) is not None:
                work.shapes = shapes
                going.append(work)
        going = [work for work in going if self._affordable(work, work.shapes, 1.0)]
        self._measure(going, [work.shapes for work in going], SCREENED)
        for work in going:
            if not work.state:
                self._note_idle(work)
            if not work.state and (reason := self._cannot_win(work.last)):
                work.end(CANNOT_WIN, reason)

    def _note_idle(self, work: Work) -> None:
        """Take note of a cut that left the model's size and its cost as they were."""
        steps = work.chain.steps
        cuts = [step for step in steps if self._kind(step) == CUT]
        base = self.lab.baseline
        same = (work.last.macs, work.last.params) == (base.macs, base.params)
        if len(cuts) != 1 or not same or any(step.builds for step in steps):
            return
        rest = " -> ".join(repr(step) for step in steps if step.lowers)
        without = self.notebook.candidates.get(rest) if rest else replace(base, speedup=1.0)
        costs = [None if one is None else self.judge.cost(one) for one in (work.last, without)]
        if all(costs) and costs[0] > IDLE_ABOVE * costs[1]:  # type: ignore[operator]
            self.idle.add(cuts[0].name())
            work.end(IDLE, f"{cuts[0].name()} changes nothing of this model")

    def _kind(self, step: Compressor) -> str:
        return next((form.kind for form in self.space.forms if form.cls is type(step)), "")

    def _cannot_win(self, one: Measured) -> str:
        """Return why a chain of this cost cannot win, whatever its training; '' if it can."""
        goal = self.judge.goal
        if goal.target_ms is not None:
            if one.ms is not None and one.ms > goal.target_ms * _slack(one):
                return f"it takes {decimal(one.ms)} ms, and {decimal(goal.target_ms)} is the target"
            return ""
        cost = self.judge.cost(one)
        if cost is None:
            return ""
        if cost >= 1:
            return "it costs no less than the baseline"
        known = None if self.sure is None else self.judge.cost(self.sure)
        if self.sure is not None and known is not None and cost >= known * _slack(one):
            return f"{self.sure.chain} costs less, and holds the margin"
        return ""

    def _train_shortly(self, works: Sequence[Work]) -> None:
        going = []
        for work in works:
            short = self._chain(work.asked, max(1, self.epochs // SHORTER))
            if not self.stages or repr(short) == repr(work.chain) or work.shapes is None:
                continue
            macs = macs_over(work.last, self.lab.baseline)
            full = self.lab.predict(work.chain, macs)
            if full > NEGLIGIBLE * self.left and self._affordable(work, short, macs):
                work.short = short
                going.append(work)
        self._measure(going, [work.short for work in going], SHORT)
        for work in going:
            if not work.state and (reason := self._too_far(work.last)):
                work.end(TOO_FAR, reason)

    def _too_far(self, short: Measured) -> str:
        """Return why all of the training will hardly be enough; '' if it may be."""
        if self.judge.goal.target_ms is not None:
            return ""
        lost = max(0.0, -short.change)
        share = fmean(self.gains) if self.gains else GAIN
        # With what was seen before, and once more as much: it scatters.
        hoped = round(lost * min(1.0, share + 0.25) * short.items)
        later = replace(short, lost=max(0, short.lost - hoped))
        chance = self.judge.chance(later)
        if chance >= HOPELESS:
            return ""
        return f"{100 * short.change:+.1f} points after a short training"

    def _train_fully(self, works: Sequence[Work]) -> None:
        going = []
        for work in works:
            macs = macs_over(work.measured[-1], self.lab.baseline) if work.measured else 1.0
            if self._affordable(work, work.chain, macs):
                going.append(work)
        self._measure(going, [work.chain for work in going], FULL)
        self._time_promising(going)
        for work in going:
            if not work.state:
                self._note_idle(work)
            if not work.state:
                work.end(OK)

    def _time_promising(self, works: Sequence[Work]) -> None:
        """Time the files of chains that may be the best; of others, their shapes were timed."""
        ready = [w for w in works if not w.state and self._needs_time(w.last)]
        for work, one in zip(ready, self.lab.time([w.last for w in ready]), strict=True):
            work.measured[-1] = one
            if one.status != "ok":
                work.end(FAILED, one.error)

    def _needs_time(self, one: Measured) -> bool:
        if one.timed == one.chain:
            return False
        if not self.judge.goal.times:
            return self.judge.chance(one) >= LIKELY
        return one.speedup is None or self.judge.better(one, self.best)

    # --- what all stages do ----------------------------------------------------------------

    def _affordable(self, work: Work, chain: Compressor | None, macs: float) -> bool:
        """Whether a chain will be finished in time; else its trial ends here.

        A chain that was measured with less training stays a candidate with that.
        """
        assert chain is not None, "only chains that are to be measured come here"
        seconds = self.lab.predict(chain, macs)
        if seconds <= self.left:
            return True
        reason = f"about {duration(seconds)}, and {duration(max(0.0, self.left))} were left"
        work.end(OK if work.reached == SHORT else NO_TIME, f"not trained fully: {reason}")
        return False

    def _measure(
        self, works: Sequence[Work], chains: Sequence[Compressor | None], reached: str
    ) -> None:
        if not works:
            return
        found = self.lab.measure([repr(chain) for chain in chains], self.deadline)
        if reached == SCREENED and self.judge.goal.times:
            found = self.lab.time(found)
        for work, one in zip(works, found, strict=True):
            built = any(step.builds for step in work.chain.steps)
            one = with_times(replace(one, candidate=reached != SCREENED or not built), work)
            work.measured.append(one)
            if one.status == "ok":
                work.reached = reached
            else:
                work.end(NO_TIME if OVER_BUDGET in one.error else FAILED, one.error)

    def _consider(self, one: Measured, quiet: bool = False) -> None:
        if self.judge.chance(one) >= SURE and self.judge.better(one, self.sure):
            self.sure = one
        if self.judge.better(one, self.best):
            self.best = one
            if not quiet:
                self.improved(one)

    def _learn(self, trial: Trial) -> None:
        """Take in what a trial tells: the best, and what all of a training adds to some of it."""
        self.order.learn(trial)
        for one in trial.measured:
            timed = one.speedup is not None or not self.judge.goal.times
            if one.status == "ok" and one.candidate and timed and trial.state != IDLE:
                self._consider(one)
        if trial.state == IDLE and trial.reason.endswith("of this model"):
            self.idle.add(trial.reason.partition(" ")[0])
        if trial.reached == FULL and len(trial.measured) == 3:
            _, short, full = trial.measured
            if short.change < 0:
                self.gains.append(min(1.0, max(0.0, 1 - full.change / short.change)))

    def _tell_study(self, asked: Asked, trial: Trial) -> None:
        last = trial.last
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


def _slack(one: Measured) -> float:
    """Return by how much the cost of a file that was timed may be wrong, as a factor."""
    if one.speedup and one.speedup_low and one.speedup_low > 0:
        return min(one.speedup / one.speedup_low, MOST_SLACK)
    return 1.0


def settled_epochs(lab: Lab, seconds: float) -> int:
    """Return the epochs of a full recovery: `TRAININGS` of them should fit in some seconds."""
    return int(min(max(seconds / TRAININGS / lab.epoch(), FEWEST), MOST))
