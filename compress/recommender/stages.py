"""The stages of a trial: without training, with a little of it, with all; and why it ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

from compress.benchmark.execute.executor import OVER_BUDGET
from compress.compressor import Compressor
from compress.recommender.forms import CUT
from compress.recommender.goal import HOPELESS, LIKELY, MOST_SLACK, SURE, Judge
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
    UNFINISHED,
    Measured,
    Notebook,
    Trial,
)
from compress.recommender.order import Order
from compress.recommender.space import Space
from compress.recommender.study import Asked, Study
from compress.recommender.work import Work, shapes_of, with_times
from compress.system.amounts import decimal, duration
from compress.techniques import chain as parse

SHORTER = 4
"""A short recovery has a fourth of the epochs."""
NEGLIGIBLE = 0.03
"""Share of what is left of the budget: a training that takes less is not made shorter first."""
IDLE_ABOVE = 0.97
"""A cut that removes nothing, and after which a chain costs more than this share of what it costs
without it, makes nothing cheaper."""
NOTHING_CHEAPER = f" {IDLE}"
SEEN_IDLE = 3
"""Different cuts by a technique that make nothing cheaper, after which none of it are tried."""
GAIN = 0.9
"""Share of what a short recovery leaves lost that all of it takes back: beside those that were
seen, it counts as one of them."""


@dataclass
class Stages:
    """Takes chains through stages, and knows the best so far."""

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
    improved: Callable[[Measured], None] = lambda one: None
    best: Measured | None = None
    sure: Measured | None = None
    """The cheapest that is nearly sure to reach the goal."""
    idle: set[str] = field(default_factory=set)
    """Techniques whose cuts are not tried any more: several made nothing cheaper."""
    unchanged: dict[str, set[str]] = field(default_factory=dict)
    """By technique, the cuts that made nothing cheaper."""
    gains: list[float] = field(default_factory=list)
    """Of trained cuts: the share of what a short recovery left lost that all of it took back."""
    broken: dict[frozenset[str], str] = field(default_factory=dict)
    """Steps without training that together lose too much: in words how much."""

    def __post_init__(self) -> None:
        self.order = Order(self.judge)
        for one in self.notebook.candidates.values():
            self._consider(one, quiet=True)
            self._note_broken(one)
        for trial in self.notebook.trials:
            self._learn(trial)

    @property
    def left(self) -> float:
        return self.deadline - self.lab.now()

    def _chain(self, asked: Asked, epochs: float) -> Compressor:
        return self.space.chain(asked.params, epochs)

    def _screen(self, works: Sequence[Work]) -> None:
        """Measure chains without their training: what they cost, and that they work at all."""
        going = []
        for work in works:
            if names := self.idle & {step.name() for step in work.chain.steps}:
                work.end(IDLE, f"{min(names)}{NOTHING_CHEAPER}")
            elif reason := self._broken_by(work.chain):
                work.end(TOO_FAR, reason)
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
            self._note(work)

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
            work.end(IDLE, f"{cuts[0]!r}{NOTHING_CHEAPER}")
            self._unchanged(cuts[0].name(), repr(cuts[0]))

    def _unchanged(self, name: str, text: str) -> None:
        """Take note of a cut that gained nothing: after a few different ones, no more are tried.

        (A gentle one may leave whole what a strong one cuts.)
        """
        seen = self.unchanged.setdefault(name, set())
        seen.add(text)
        if len(seen) >= SEEN_IDLE:
            self.idle.add(name)

    def _untaught(self, chain: Compressor) -> frozenset[str]:
        """Return the steps of a chain in which nothing learns; none of other chains."""
        steps = chain.steps
        if any(step.builds or not (step.lowers or self._kind(step) == CUT) for step in steps):
            return frozenset()
        return frozenset(map(repr, steps))

    def _note_broken(self, one: Measured) -> None:
        """Take note of steps without training that lose too much."""
        if self.judge.goal.target_ms is not None or one.status != "ok":
            return
        chain = parse(one.chain)
        if self.judge.promise(one) < HOPELESS and self._untaught(chain):
            steps = [s for s in chain.steps if not (s.lowers and self._harmless(s.name()))]
            words = f"{one.chain} loses {-100 * one.change:.1f} points"
            self.broken[frozenset(map(repr, steps or chain.steps))] = words

    def _harmless(self, name: str) -> bool:
        """Whether lowering by a technique, alone, loses too little to have broken a chain."""
        alone = [
            one
            for one in self.notebook.candidates.values()
            if [step.name() for step in parse(one.chain).steps] == [name]
        ]
        return any(self.judge.promise(one) >= LIKELY for one in alone)

    def _broken_by(self, chain: Compressor) -> str:
        """Return why a chain in which nothing learns loses too much: if some of its steps do.

        What is cut besides, and int8, bring back nothing.
        """
        if not self.stages:
            return ""
        steps = self._untaught(chain)
        return next((text for known, text in self.broken.items() if known <= steps), "")

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
        # What a chain is worth without its training does not speak against training it.
        sure = None if self.sure is None or self.sure.chain == one.chain else self.sure
        known = None if sure is None else self.judge.cost(sure)
        if sure is not None and known is not None and cost >= known * _slack(one):
            return f"{sure.chain} costs less, and holds the margin"
        return ""

    def _train_shortly(self, works: Sequence[Work]) -> None:
        """Train with a part of the epochs what all of them can follow, or never will."""
        going = []
        for work in works:
            if (short := self._short(work)) is None:
                continue
            macs = macs_over(work.last, self.lab.baseline)
            full, quick = self.lab.predict(work.chain, macs), self.lab.predict(short, macs)
            if full <= NEGLIGIBLE * self.left or full <= self.left < full + quick:
                continue  # all of the training at once
            if self._affordable(work, short, macs):
                work.short = short
                going.append(work)
        self._measure(going, [work.short for work in going], SHORT)
        for work in going:
            if not work.state and (reason := self._too_far(work.last)):
                work.end(TOO_FAR, reason)
            self._note(work)

    def _short(self, work: Work) -> Compressor | None:
        """Return a chain with a short training; None if it has no shorter one than its own."""
        short = self._chain(work.asked, max(1, self.epochs // SHORTER))
        known = self.stages and work.shapes is not None
        return short if known and repr(short) != repr(work.chain) else None

    def _too_far(self, short: Measured) -> str:
        """Return why all of the training will hardly be enough; '' if it may be."""
        if self.judge.goal.target_ms is not None:
            return ""
        lost = max(0.0, -short.change)
        share = fmean([GAIN, *self.gains])
        # It scatters: half of what stayed lost otherwise may come back too, up to a fourth of all.
        hoped = round(lost * (share + min(0.25, (1 - share) / 2)) * short.items)
        later = replace(short, lost=max(0, short.lost - hoped))
        if self.judge.promise(later) >= HOPELESS:
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
            return self.judge.promise(one) >= LIKELY
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
        what = "not trained fully" if work.measured else "not tried"
        work.end(OK if work.reached == SHORT else NO_TIME, f"{what}: {reason}")
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
            self._note_broken(one)
            if one.status == "ok":
                work.reached = reached
            else:
                late = OVER_BUDGET in one.error
                work.end(NO_TIME if late else FAILED, one.error.removeprefix("StepEnded: "))

    def _note(self, work: Work) -> None:
        """Write down what was measured of a chain that goes on; it may be the best so far.

        Its trial may wait for its training, or train, when the search is killed.
        """
        if not work.state:
            number = self.notebook.number_of(work.asked.params, repr(work.chain))
            self.notebook.add(replace(work.trial(number), state=UNFINISHED))
            self._consider_sound(work.last)

    def _consider_sound(self, one: Measured) -> None:
        timed = one.speedup is not None or not self.judge.goal.times
        if one.status == "ok" and one.candidate and timed:
            self._consider(one)

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
        for one in trial.measured if trial.state != IDLE else ():
            self._consider_sound(one)
        text, found, _ = trial.reason.partition(NOTHING_CHEAPER)
        if trial.state == IDLE and found and "(" in text:
            self._unchanged(text.partition("(")[0], text)
        if trial.reached == FULL and len(trial.measured) == 3:
            _, short, full = trial.measured
            if short.change < 0:
                self.gains.append(min(1.0, max(0.0, 1 - full.change / short.change)))


def _slack(one: Measured) -> float:
    """Return by how much the cost of a file that was timed may be wrong, as a factor."""
    if one.speedup and one.speedup_low and one.speedup_low > 0:
        return min(one.speedup / one.speedup_low, MOST_SLACK)
    return 1.0
