"""A search from its beginning to its report: baseline, trials, finalists, within a budget."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from compress.benchmark.execute.run_spec import spec_of
from compress.benchmark.plan.graph import make_graph
from compress.benchmark.plan.plan import Plan, with_chains
from compress.benchmark.plan.provenance import about as described
from compress.benchmark.plan.splits import splits_for
from compress.benchmark.plan.suite import SEARCH
from compress.benchmark.run import RunOptions, run_plan
from compress.benchmark.store.outputs import Outputs
from compress.errors import UserError
from compress.model import weights_hash
from compress.recommender import folder as places
from compress.recommender.cost import CostModel
from compress.recommender.draw import Params
from compress.recommender.engine import Engine, settled_epochs
from compress.recommender.finals import Final, files_of, final_suite, finalists, judged, optimism
from compress.recommender.folder import SearchFolder
from compress.recommender.goal import Goal, Judge, finalists_for, warning_of
from compress.recommender.lab import BenchLab
from compress.recommender.measured import NO_TIME, Measured, Notebook, Trial
from compress.recommender.probe import STARTING, Probe, check_budget, probe
from compress.recommender.publish import Story, publish_model, write_report
from compress.recommender.space import Space, space_of
from compress.recommender.space_file import Wishes
from compress.recommender.study import Study
from compress.recommender.warm import warm_start
from compress.recommender.words import live, told
from compress.report.curves import curve_rows
from compress.report.write import write_reports
from compress.results.derive import Derived, read_results
from compress.results.log import RunLog, read_run
from compress.results.record import BASELINE, Record
from compress.results.table import Row, text_of
from compress.system.progress import say, stage
from compress.techniques import techniques
from compress.zoo.students import students_of

QUICK_TIMING = 0.006
"""Share of the budget that the timing of one trial's file takes, from `SHORTEST` seconds."""
SHORTEST, LONGEST = 1.0, 6.0
FINAL_TIMING = 0.1
"""Share of the budget for the timing of the finalists."""
LEAST_TIMING, MOST_TIMING = 6.0, 60.0
SIDE_BY_SIDE = 8
"""Trials at once, at most, where an executor has many workers."""
TRAINED = 0.6
"""Share of the budget that trainings may take, by which their epochs are settled."""
NEXT = 3
"""Chains that a report says would be tried next."""


@dataclass(frozen=True)
class Request:
    """What is searched for, and how long."""

    goal: Goal
    budget: float
    """Seconds."""
    wishes: Wishes = field(default_factory=Wishes)
    trials: int | None = None
    """At most so many, over all runs of the search."""
    timing_seconds: float | None = None
    earlier: tuple[Path, ...] = ()
    """Folders of earlier searches on models like this one, whose best draws come first."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """What the search was called with, so that it can be taken up again."""


@dataclass(frozen=True)
class Found:
    """What a search found. `winner` is the chain that reached the goal on the test split, or ''."""

    out: Path
    sentence: str
    winner: str
    nearest: str
    """The chain whose file lies at the top of the folder: the winner, or what came nearest."""
    rows: tuple[dict[str, Any], ...]
    """Of the final run, on the test split."""
    trials: tuple[Trial, ...]
    optimism: Mapping[str, float]


def space_for(plan: Plan, wishes: Wishes) -> Space:
    """Return the space of chains for a plan's data and model. Raises UserError if none is left."""
    students = (*plan.suite.students, *students_of(plan.suite.model))
    context = replace(plan.check_context, teacher=plan.start)
    if plan.data.untrainable:
        context = replace(context, train=None)
    own_model = plan.instance is not None
    names = tuple(plan.suite.students) if own_model else students
    return space_of(wishes.forms(techniques(), names), context, wishes.longest)


def question_of(plan: Plan, request: Request, space: Space) -> dict[str, Any]:
    """Return what a search is about (JSON): with other answers to it, it is another search."""
    suite = asdict(replace(plan.suite, chains=(), splits=""))
    kept = {key: suite[key] for key in ("data", "model", "weights", "baseline", "seeds", "options")}
    return {
        **kept,
        "seeds": list(suite["seeds"]),
        "options": {key: repr(value) for key, value in suite["options"].items()},
        "content": [plan.data.identity(), plan.data.test_identity()],
        "start": weights_hash(plan.start.module) if plan.baseline is None else "",
        "goal": asdict(request.goal),
        "space": [[repr(form) for form in space.forms], space.longest],
    }


def search(
    plan: Plan,
    out: Path,
    request: Request,
    options: RunOptions,
    begun: Callable[[], None] = lambda: None,
) -> Found:
    """Search, and write what was found into a folder. `plan` has the splits of a final run.

    `begun` is called when the folder is known to be this search's, before any work.

    Raises UserError before any work if something cannot work. Whatever ends it, the best file so
    far lies at the top of the folder.
    """
    started = time.monotonic()
    space = space_for(plan, request.wishes)
    question = question_of(plan, request, space)
    there = SearchFolder(out)
    there.about()  # the folder of something else is refused before it is written to
    with there.lock():
        known = there.check_same(question)
        run = _Search(plan, there, request, options, space, started)
        timing = run.final_timing
        guess = probe(plan)
        if not known:
            check_budget(run.plan, guess, len(plan.data.test), timing, request.budget)
            begun()
            there.write({"question": question, "arguments": dict(request.arguments)})
        run.about = there.about() or {}
        return run.carry_out(guess)


class _Search:
    """One run of a search."""

    def __init__(
        self,
        plan: Plan,
        there: SearchFolder,
        request: Request,
        options: RunOptions,
        space: Space,
        started: float,
    ) -> None:
        self.final_plan, self.there, self.out = plan, there, there.path
        self.request, self.options, self.space = request, options, space
        self.started, self.deadline = started, started + request.budget
        self.test_items = len(plan.data.test)
        suite = replace(plan.suite, splits=SEARCH)
        searched = replace(plan, suite=suite, data=splits_for(SEARCH, plan.data))
        # A chain for each technique: whoever runs steps imports what they need beforehand.
        samples = dict.fromkeys(repr(form.sample) for form in space.forms)
        self.plan = with_chains(searched, list(samples))
        self.about: dict[str, Any] = {}
        self.notebook = Notebook.read(self.out / places.TRIALS)
        self.study: Study | None = None
        self.records: dict[str, Record] = {}
        self.judge: Judge | None = None
        self.close: Callable[[], None] = lambda: None

    # --- budgets ---------------------------------------------------------------------------

    @property
    def final_timing(self) -> float:
        given = self.request.timing_seconds
        share = FINAL_TIMING * self.request.budget
        return given or min(max(share, LEAST_TIMING), MOST_TIMING)

    def _reserve(self, lab: BenchLab, count: int, begun: float) -> float:
        """Return the seconds that the finalists will take: made, measured, timed, reported."""
        each = lab.costs.measuring() + self.test_items * self.guess.forward
        rows = count + 1
        return min(STARTING, begun) + rows * each + 1.2 * self.final_timing + STARTING / 2

    # --- the search ------------------------------------------------------------------------

    def carry_out(self, guess: Probe) -> Found:
        self.guess = guess
        with stage("", heading=True), self._lab(guess) as lab:
            count = finalists_for(self.request.goal, self.test_items)
            begun = time.monotonic()
            lab.begin()
            first = time.monotonic() - begun
            judge = self.judge = Judge(self.request.goal, lab.baseline, self.test_items, count)
            warning = warning_of(self.request.goal, self.test_items)
            if warning and self.options.progress:
                say(warning)
            deadline = self.deadline - self._reserve(lab, count, first)
            engine = self._engine(lab, judge, deadline)
            try:
                ended = engine.run()
            finally:
                self.close()
            self._record_spent()
            report = self._story(ended, [warning] if warning else [])
            chosen = finalists(self.notebook.candidates.values(), judge)
        if not chosen:
            said = write_report(
                self.out, report, judge, self.notebook, self.records, self._search, None
            )
            return Found(self.out, said, "", "", (), tuple(self.notebook.trials), {})
        derived = self._finals([one.chain for one in chosen])
        return self._report(derived, judge, report)

    @property
    def _search(self) -> Path:
        return self.out / places.SEARCH

    @contextlib.contextmanager
    def _lab(self, guess: Probe) -> Iterator[BenchLab]:
        """Yield a lab with an executor, and end that."""
        graph = make_graph(self.plan)
        private = (self.out / places.PRIVATE).resolve()
        # What it holds is named by objects of a process, which is no longer.
        shutil.rmtree(private, ignore_errors=True)
        outputs = Outputs(self._search, self.plan.suite.seeds)
        with outputs.lock, outputs.scratch() as scratch:
            spec = spec_of(
                self.plan,
                graph.setting,
                self.options.store_of(self.out),
                private,
                limits=self.options.limits,
                data_root=self.options.data_root,
                progress=self.options.progress,
            )
            spec.keep_pixels(self.plan)
            costs = CostModel(guess.epoch(self.plan), STARTING / 2)
            seconds = min(max(QUICK_TIMING * self.request.budget, SHORTEST), LONGEST)
            make = self.options.executor
            with contextlib.closing(make(self.plan, spec, outputs.logs, Path(scratch))) as executor:
                lab = BenchLab(self.plan, outputs, executor, spec.stores, costs, seconds)
                self._remember(lab)
                yield lab

    def _remember(self, lab: BenchLab) -> None:
        """Take in the records of an earlier run of this search, and have new ones written down."""
        path = self._search / "results.jsonl"
        name = ""
        if path.exists():
            with contextlib.suppress(UserError):
                run = read_run(path)
                name = run.name
                for (chain, _), record in run.records.items():
                    lab.records[chain] = record
        lab.log = RunLog(path, described(self.plan, ""), name)
        if BASELINE in lab.records:
            for record in lab.records.values():
                lab.learn(record)
        self.records = lab.records

    def _engine(self, lab: BenchLab, judge: Judge, deadline: float) -> Engine:
        study = self.study = Study(self.space, self.plan.suite.seeds[0], self.out / places.STUDY)
        if "epochs" not in self.about:
            left = max(0.0, deadline - lab.now())
            self.about["epochs"] = settled_epochs(lab, TRAINED * left)
            self._write()
        self._enqueue(study)
        show = _Live()
        engine = Engine(
            self.space,
            judge,
            lab,
            study,
            self.notebook,
            deadline,
            self.about["epochs"],
            self.request.trials,
            min(lab.executor.workers, SIDE_BY_SIDE),
        )

        def tell(trial: Trial) -> None:
            if self.options.progress:
                say(told(trial, judge))

        def begin(number: int) -> None:
            show.now(live(number, engine.best, judge, self.deadline - lab.now()))

        engine.tell, engine.begin = tell, begin
        engine.improved = lambda one: self._improved(one, lab, judge)
        self.close = show.close
        if engine.best is not None:
            self._improved(engine.best, lab, judge)
        return engine

    def _enqueue(self, study: Study) -> None:
        """Have come first: what was interrupted, then the warm start that was not yet tried."""
        tried = [dict(trial.params) for trial in self.notebook.trials if trial.state != NO_TIME]
        open_draws = [p for p in study.resume() if p and self._is_draw(p)]
        late = [trial.params for trial in self.notebook.trials if trial.state == NO_TIME]
        warm = warm_start(self.space, self._earlier())
        for draws, why in (
            (open_draws, "interrupted"),
            (late, "no time before"),
            (warm, "warm start"),
        ):
            fresh = [params for params in draws if dict(params) not in tried]
            study.enqueue(fresh, why)
            tried += [dict(params) for params in fresh]

    def _is_draw(self, params: Params) -> bool:
        try:
            self.space.chain(params, 1)
        except (KeyError, UserError):
            return False
        return True

    def _earlier(self) -> list[Params]:
        """Return the best draws of earlier searches, by how cheap they were at no great loss."""
        found = []
        for path in self.request.earlier:
            notebook = Notebook.read(path / places.TRIALS)
            good = [t for t in notebook.trials if t.last is not None and t.state == "ok"]
            good = [
                t
                for t in good
                if t.last and 100 * -t.last.change < (self.request.goal.max_drop or 1)
            ]
            good.sort(key=lambda t: -(t.last.speedup or 0.0) if t.last else 0.0)
            found += [trial.params for trial in good[:NEXT]]
        return found

    # --- what is written -------------------------------------------------------------------

    def _write(self) -> None:
        self.there.write({k: v for k, v in self.about.items() if k != "version"})

    def _record_spent(self) -> None:
        self.about["spent"] = self.about.get("spent", 0.0) + time.monotonic() - self.started
        self._write()

    def _story(self, ended: str, warnings: Sequence[str]) -> Story:
        figures = {}
        upcoming: list[str] = []
        if ended and self.study is not None:
            figures = {
                "the cost": self.study.importances("cost"),
                "accuracy": self.study.importances("change"),
            }
            upcoming = self._next(self.study)
        suite = self.plan.suite
        return Story(
            f"{suite.model} on {self.plan.data.task.name}: {self.request.goal.words()}",
            suite.model,
            ended,
            self.about.get("spent", time.monotonic() - self.started),
            [*warnings, *self._cautions()],
            figures,
            upcoming,
            self.space.left_out,
            self.about.get("finals", 0) + 1,
        )

    def _cautions(self) -> list[str]:
        """Return what a reader must know of the validation items."""
        found = []
        if self.plan.baseline is None or not self.plan.baseline.restarts:
            found.append(
                "The model came with weights. If its training has seen these validation items, "
                "changes measured on them are not those on new items: the finalists' table shows "
                "by how much."
            )
        if self.plan.data.untrainable:
            found.append(
                f"Nothing can be trained on this data ({self.plan.data.untrainable}): half of what "
                f"is not for testing served calibration, the rest the choice."
            )
        return found

    def _next(self, study: Study) -> list[str]:
        """Return the chains that would come next."""
        copied, known = study.copy(), {trial.chain for trial in self.notebook.trials}
        copied.waiting = list(study.waiting)
        found: dict[str, None] = {}
        for _ in range(5 * NEXT):
            asked = copied.ask()
            text = repr(self.space.chain(asked.params, self.about["epochs"]))
            if text not in known:
                found[text] = None
            copied.tell(asked, None)
            if len(found) == NEXT:
                break
        return list(found)

    def _improved(self, one: Measured, lab: BenchLab, judge: Judge) -> None:
        """Put the best so far at the top of the folder, with its table."""
        files = lab.file_of(one)
        publish_model(self.out, files, {"chain": one.chain, "state": "so far", **_figures(one)})
        write_report(
            self.out,
            self._story("", []),
            judge,
            self.notebook,
            {},
            self._search,
            one,
        )

    # --- the end ---------------------------------------------------------------------------

    def _finals(self, chains: Sequence[str]) -> Derived:
        """Measure the finalists on the test split; return what comes of it."""
        goal = self.request.goal
        margin = goal.max_drop or 1.0
        suite = final_suite(self.final_plan, chains, self.final_timing, margin)
        plan = with_chains(replace(self.final_plan, suite=suite), chains)
        folder = self.out / places.FINALISTS
        store = self.options.store_of(self.out)
        private = (self.out / places.PRIVATE).resolve()
        options = replace(self.options, store=store, private=private)
        with stage("finalists on the test split", heading=True):
            run_plan(plan, folder, options)
        self.about["finals"] = self.about.get("finals", 0) + 1
        self._write()
        derived = read_results(folder)
        epochs = curve_rows((record.chain, record.seed, record.log) for record in derived.records)
        write_reports(derived.rows, derived.about, folder, epochs)
        return derived

    def _report(self, derived: Derived, judge: Judge, story: Story) -> Found:
        winner, finals = judged(derived.rows, judge.goal, self.notebook.candidates)
        base: Row = next(row for row in derived.rows if text_of(row, "chain") == BASELINE)
        top: Final | None = winner or next(iter(finals), None)
        if top is not None and (files := files_of(self.out / places.FINALISTS, top.row)):
            state = "qualifies" if winner else "nothing qualifies; this is the nearest"
            publish_model(self.out, files, {"chain": top.chain, "state": state})
        said = write_report(
            self.out,
            replace(story, spent=self.about["spent"], tests=self.about["finals"]),
            judge,
            self.notebook,
            self.records,
            self._search,
            None,
            finals,
            base,
            winner,
        )
        return Found(
            self.out,
            said,
            winner.chain if winner else "",
            top.chain if top else "",
            derived.rows,
            tuple(self.notebook.trials),
            optimism(finals),
        )


def _figures(one: Measured) -> dict[str, Any]:
    names = ("items", "lost", "gained", "speedup", "ms", "onnx_bytes", "macs", "params")
    return {name: getattr(one, name) for name in names}


class _Live:
    """The line before what is being done; it changes with every trial."""

    def __init__(self) -> None:
        self.stack = contextlib.ExitStack()

    def now(self, text: str) -> None:
        self.close()
        self.stack.enter_context(stage(text, heading=True))

    def close(self) -> None:
        self.stack.close()
