"""Searches a grid's rows instead of training: how near to its best, for which share of its cost.

    python benchmarks/recommend/replay.py --grid cifar10 --out reports/recommend

`recommend`, random search and Optuna alone, with the seconds that each would have spent. The best
of the grid is its fastest chain that is shown on the test items to lose less than the margin, alone
(no correction for the others: it is what a search could name at best). What a chain will take is
predicted as in a search, by the steps that were replayed so far; the probe that stands in for the
first ones knows the median training of the grid. Finalists are timed and tested for nothing, which
a search would have to reserve time for.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import fmean

import numpy as np
from grid_rows import GridRow, read, stored
from grids import GRIDS, Grid

from compress.compressor import Compressor
from compress.recommender.cost import BESIDE, CostModel
from compress.recommender.draw import AtRandom
from compress.recommender.engine import Engine
from compress.recommender.finals import finalists
from compress.recommender.goal import Goal, Judge, finalists_for
from compress.recommender.lab import macs_over
from compress.recommender.measured import Measured, Notebook
from compress.recommender.question import space_for
from compress.recommender.space import Space
from compress.recommender.study import Asked, Study
from compress.recommender.warm import warm_start
from compress.results.record import BASELINE
from compress.stats.levels import ALPHA
from compress.stats.verdicts import holm
from compress.system.files import write_atomic
from compress.techniques import chain as parse

DROPS = (0.5, 1.0, 2.0, 3.0)
SHARES = (0.25, 0.5)
NEAR = 1.03
KINDS = ("recommend", "random", "optuna")


@dataclass
class ReplayLab:
    """A lab in which everything was measured before; its clock goes by what that took then."""

    rows: Mapping[str, GridRow]
    clock: float = 0.0
    done: set[str] = field(default_factory=set)
    """Beginnings of chains whose steps are in the store, and rows that were measured."""
    order: list[tuple[float, str]] = field(default_factory=list)
    """When which chain was measured."""

    def __post_init__(self) -> None:
        self.baseline = self.rows[BASELINE].validation
        known = CostModel(0.0)
        for row in self.rows.values():
            self._learn(known, row)
        self.costs = CostModel(known.epoch() / (1 + BESIDE), known.measuring())

    def _made(self, step: Compressor, row: GridRow) -> float:
        """Return the MACs of what a step of a row's chain made, over the baseline's."""
        alone = self.rows.get(repr(step)) if step.builds else None
        return macs_over((alone or row).validation, self.baseline)

    def _learn(self, costs: CostModel, row: GridRow) -> None:
        steps = [(step := parse(text), self._made(step, row)) for text, _ in row.steps]
        log = [{"kind": "step", "step": text, "seconds": taken} for text, taken in row.steps]
        measuring = {"kind": "measuring", "seconds": row.measuring}
        costs.learn_log(row.validation.chain, steps, [*log, measuring])

    def _left(self, text: str) -> tuple[float, list[str]]:
        text = stored(self.rows, text)
        row, before, seconds = self.rows[text], "", 0.0
        new = []
        for step, taken in row.steps:
            before = f"{before} -> {step}"
            if before not in self.done:
                seconds += taken
                new.append(before)
        if text not in self.done:
            seconds += row.measuring
            new.append(text)
        return seconds, new

    def measure(self, chains: Sequence[str], deadline: float) -> list[Measured]:
        for text in chains:
            seconds, new = self._left(text)
            self.clock += seconds
            self.done |= set(new)
            self.order.append((self.clock, text))
            self._learn(self.costs, self.rows[stored(self.rows, text)])
        return [
            replace(
                self.rows[stored(self.rows, text)].validation,
                chain=text,
                speedup=None,
                timed="",
                ms=None,
            )
            for text in chains
        ]

    def time(self, measured: Sequence[Measured]) -> list[Measured]:
        found = []
        for one in measured:
            row = self.rows[stored(self.rows, one.chain)]
            self.clock += row.timing
            known = replace(row.validation, chain=one.chain, timed=one.chain)
            found.append(replace(known, candidate=one.candidate))
        return found

    def predict(self, chain: Compressor, macs: float) -> float:
        row = self.rows[stored(self.rows, repr(chain))]
        left, before = 0.0, ""
        for text, _ in row.steps:
            before = f"{before} -> {text}"
            if before not in self.done:
                step = parse(text)
                made = self._made(step, row) if step.builds else macs
                left += self.costs.seconds(step, made)
        return left if row.validation.chain in self.done else left + self.costs.measuring()

    def epoch(self) -> float:
        return 1.0

    def now(self) -> float:
        return self.clock


class RandomStudy(Study):
    """Draws by chance."""

    def __post_init__(self) -> None:
        self.generator = np.random.default_rng(self.seed)

    def ask(self, by_chance: bool = False) -> Asked:
        _, params = self.space.draw(AtRandom(self.generator), 1)
        return Asked(None, params, "")  # type: ignore[arg-type]

    def tell(self, asked: Asked, *_: object, **__: object) -> None:
        pass


@dataclass(frozen=True)
class Subject:
    """A grid's rows as a question: what is there to be found within a margin."""

    grid: Grid
    space: Space
    rows: Mapping[str, GridRow]
    drop: float

    @property
    def full(self) -> dict[str, GridRow]:
        return {text: row for text, row in self.rows.items() if row.level == "full"}

    @property
    def test_items(self) -> int:
        return max(row.test_items for row in self.full.values())

    @property
    def judge(self) -> Judge:
        goal = Goal(max_drop=self.drop)
        most = finalists_for(goal, self.test_items)
        return Judge(goal, self.rows[BASELINE].validation, self.test_items, most)

    def cost(self) -> float:
        """Return the seconds of all chains, trained fully, with shared beginnings."""
        lab = ReplayLab(self.rows)
        for text, row in self.full.items():
            lab.measure([text], 0)
            lab.time([row.validation])
        return lab.clock

    def best(self) -> str:
        """Return the fastest chain that qualifies alone; '' if none does."""
        able = [text for text in self.full if self.qualified([text])]
        return max(able, key=lambda text: self.rows[text].validation.speedup or 0.0, default="")

    def qualified(self, chains: Sequence[str]) -> list[str]:
        """Return those that are shown on the test items to lose less than the margin, by Holm."""
        judge, rows = self.judge, self.rows
        able = [text for text in chains if rows[text].test_items and rows[text].validation.speedup]
        ps = holm([rows[text].test.noninferiority_p(judge.goal.margin) for text in able])
        shown = [text for text, p in zip(able, ps, strict=True) if p <= ALPHA]
        return [text for text in shown if (judge.cost(rows[text].validation) or 1.0) < 1]

    def searched(self, kind: str, seed: int, budget: float) -> Searched:
        """Search the rows with some seconds."""
        lab, judge, notebook = ReplayLab(self.rows), self.judge, Notebook()
        study = Study(self.space, seed, plain=kind == "optuna")
        if kind == "random":
            study = RandomStudy(self.space, seed)
        stages = kind == "recommend"
        epochs = self.grid.epochs
        engine = Engine(self.space, judge, lab, study, notebook, budget, epochs, stages=stages)
        if stages:
            engine.warm = partial(warm_start, self.space)
        engine.run()
        most = finalists_for(judge.goal, self.test_items)
        named = finalists(notebook.candidates.values(), judge, most)
        chosen = list(dict.fromkeys(stored(self.rows, one.chain) for one in named))
        passed = self.qualified(chosen)
        winner = min(passed, key=lambda text: judge.value(self.rows[text].validation), default="")
        return Searched(winner, tuple(chosen), notebook, lab)


@dataclass(frozen=True)
class Searched:
    """What a search of a grid came to."""

    winner: str
    """The chain that it would have named; '' for none."""
    finalists: tuple[str, ...]
    notebook: Notebook
    lab: ReplayLab


def subjects(grid: Grid, out: Path) -> list[Subject]:
    """Return a grid's questions, one for each margin."""
    with tempfile.TemporaryDirectory() as folder:
        space = space_for(grid.plans(Path(folder))[0], grid.wishes(Path(folder)))
    rows = read(out, grid.name)
    return [Subject(grid, space, rows, drop) for drop in DROPS]


def table(subject: Subject, seeds: Sequence[int]) -> list[str]:
    """Return the lines of a margin's table."""
    best, cost = subject.best(), subject.cost()
    if not best:
        return [f"| {subject.drop} | none qualifies | | | | | | |"]
    fastest = subject.rows[best].validation.speedup or 0.0
    lines = []
    for kind in KINDS:
        for share in SHARES:
            found = [subject.searched(kind, seed, share * cost).winner for seed in seeds]
            ratios = [
                fastest / (subject.rows[text].validation.speedup or 1.0) for text in found if text
            ]
            near = sum(ratio <= NEAR for ratio in ratios)
            mean = f"{fmean(ratios):.3f}" if ratios else "-"
            lines.append(
                f"| {subject.drop} | `{best}` | {fastest:.2f} | {kind} | {share:.0%} | "
                f"{near} of {len(seeds)} | {mean} | {len(seeds) - len(ratios)} |"
            )
    return lines


def replay(grid: Grid, out: Path, seeds: Sequence[int]) -> None:
    asked = subjects(grid, out)
    first = asked[0]
    sound = sum(row.validation.status == "ok" for row in first.full.values())
    lines = [
        f"{len(first.full)} chains, {sound} of which do not fail, trained fully: "
        f"{first.cost():.0f} s with shared beginnings; {first.rows[BASELINE].validation.items} "
        f"validation items, {first.test_items} test items; seeds {seeds[0]} to {seeds[-1]}.",
        "",
        "| max-drop | grid's best | speed-up | search | share | within 3 % | mean ratio | none |",
        "|" + " --- |" * 8,
    ]
    for subject in asked:
        lines += table(subject, seeds)
    text = "\n".join(lines) + "\n"
    write_atomic(out / f"grid-{grid.name}.md", text.encode())
    print(text)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--grid", choices=list(GRIDS), default="cifar10")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=10, help="how many searches of each kind")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    options = parser.parse_args()
    seeds = range(options.first, options.first + options.seeds)
    replay(GRIDS[options.grid], options.out, seeds)


if __name__ == "__main__":
    main()
