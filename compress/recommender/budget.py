"""What a search divides its budget into: the time until trials begin, the trials, and its end."""

from __future__ import annotations

from dataclasses import dataclass

from compress.benchmark.plan.plan import Plan
from compress.errors import UserError
from compress.recommender.cost import QUICK, CostModel
from compress.recommender.forms import BUILD, CUT, LOWER
from compress.recommender.lab import BenchLab
from compress.recommender.probe import EAGER, Probe
from compress.recommender.space import Space
from compress.results.record import BASELINE
from compress.system.amounts import duration

QUICK_TIMING = 0.006
"""Share of the budget that the timing of one trial's file takes, from `SHORTEST` seconds."""
SHORTEST, LONGEST = 1.0, 6.0
FINAL_TIMING = 0.1
"""Share of the budget for the timing of the finalists."""
LEAST_TIMING, MOST_TIMING = 6.0, 60.0
OVER_TIMING = 1.2
"""What a timing takes, its processes' starts included, over its seconds."""
ROOM = 3
"""A budget has to be so many times as long as one chain takes to be worth a search."""
STARTING = 10.0
"""Seconds until the first step begins, at most."""
REPORTS = 5.0
"""Seconds in which tables and pictures are written, and processes end."""


def quick_timing(budget: float) -> float:
    """Return the seconds for which one trial's file is timed."""
    return min(max(QUICK_TIMING * budget, SHORTEST), LONGEST)


def final_timing(budget: float, given: float | None) -> float:
    """Return the seconds for which finalists are timed: as given, or as suits the budget."""
    return min(max(FINAL_TIMING * budget, LEAST_TIMING), MOST_TIMING) if given is None else given


def timing_within(planned: float, left: float) -> float:
    """Return for how long finalists are timed where so many seconds are left for it.

    What a search took too long is taken from their timing, as far as that still tells something.
    """
    return min(planned, max(SHORTEST, left / OVER_TIMING))


def check_budget(
    plan: Plan,
    found: Probe,
    test_items: int,
    timing: float,
    budget: float,
    passed: float,
    made: bool,
) -> None:
    """Raise UserError for a budget in which not even one chain could be tried and tested.

    `passed` are the seconds that are gone already. `made`: the baseline was, by an earlier run of
    the search. What is not known yet is taken for little: it is no reason to refuse a budget.
    """
    items = len(plan.data.test) * (1 if made else 2) + 2 * test_items
    seconds = 0.0 if made else found.making(plan)
    seconds += items * found.forward / EAGER + QUICK + OVER_TIMING * timing + REPORTS
    least = passed + seconds
    if budget < least:
        make = "" if made else "to make the baseline, "
        raise UserError(
            f"a budget of {duration(budget)} is too small: {make}to try one chain, to test and to "
            f"time it takes about {duration(least)} here. Give at least {duration(ROOM * least)}, "
            f"which leaves time for some more"
        )


@dataclass(frozen=True)
class Ending:
    """The end of a search: its finalists measured on the test split and timed, its reports."""

    starting: float
    """Seconds until the first row is measured."""
    row: float
    """Seconds that a row takes beside its timing; its steps are in the store."""
    timing: float

    def measuring(self, finalists: int) -> float:
        """Return the seconds that so many finalists and the baseline take beside their timing."""
        return self.starting + (finalists + 1) * self.row + REPORTS

    def seconds(self, finalists: int) -> float:
        return self.measuring(finalists) + OVER_TIMING * self.timing

    def finalists(self, most: int, left: float) -> int:
        """Return how many finalists there is time for in the seconds that are left: at least 1."""
        return next((n for n in range(most, 1, -1) if self.seconds(n) <= left), 1)


def ending_of(lab: BenchLab, guess: Probe, test_items: int, begun: float, timing: float) -> Ending:
    """Return what the end of a search will take, whose own beginning took `begun` seconds.

    An item takes as long as the probe says, but no longer than the rows that were measured say.
    Processes start as quickly as they did for the baseline, whose own work took the rest.
    """
    log = lab.records[BASELINE].log
    work = sum(line["seconds"] for line in log if line["kind"] in ("step", "measuring"))
    starting = begun - work if begun > work else begun  # less: its work lay in the store
    measuring = lab.costs.measuring()
    item = min(guess.forward / EAGER, measuring / lab.baseline.items)
    return Ending(min(STARTING, starting), measuring + test_items * item, timing)


def quickest_trial(space: Space, costs: CostModel, timing: float) -> float:
    """Return the seconds of the quickest step that makes a model cheaper, measured and timed.

    One that trains a student counts only if there is no other: it is seldom done with one epoch.
    """
    steps = [form.sample for form in space.forms if form.kind in (CUT, LOWER)]
    steps = steps or [form.sample for form in space.of(BUILD)]
    return min(costs.seconds(step, 1.0) for step in steps) + costs.measuring() + timing


def why_nothing(budget: float, passed: float, reserved: float, trial: float) -> str:
    """Return why no chain was tried: where the budget went, and what a trial would have taken."""
    return (
        f"of {duration(budget)}, {duration(passed)} had passed when the baseline was measured, "
        f"{duration(reserved)} are reserved to test and to time finalists, and the quickest trial "
        f"takes about {duration(trial)}. Give a larger budget, to go on"
    )
