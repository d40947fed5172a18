"""A search from its beginning to its report: baseline, trials, finalists, within a budget."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from compress.benchmark.plan.plan import Plan, with_chains
from compress.benchmark.plan.splits import splits_for
from compress.benchmark.plan.suite import SEARCH
from compress.benchmark.run import RunOptions, run_plan, stopped_by_a_full_disk
from compress.benchmark.store.outputs import DEPLOYABLE
from compress.errors import UserError
from compress.recommender import folder as places
from compress.recommender.budget import (
    Ending,
    check_budget,
    ending_of,
    final_timing,
    quick_timing,
    quickest_trial,
    timing_within,
    why_nothing,
)
from compress.recommender.cost import CostModel
from compress.recommender.engine import Engine, settled_epochs
from compress.recommender.finals import (
    Final,
    affordable,
    files_of,
    final_suite,
    judged,
    optimism,
)
from compress.recommender.folder import SearchFolder
from compress.recommender.goal import Goal, Judge, finalists_for, finalists_measured, warning_of
from compress.recommender.lab import BenchLab, opened
from compress.recommender.measured import FULL, NO_TIME, SHORT, Measured, Notebook, Trial
from compress.recommender.probe import Probe, probe
from compress.recommender.publish import (
    Story,
    front_text,
    publish_model,
    words_so_far,
    write_report,
    write_trials,
)
from compress.recommender.question import Found, Request, cautions, question_of, space_for
from compress.recommender.same_objects import keep_steps
from compress.recommender.space import Space
from compress.recommender.study import Study, check_journal
from compress.recommender.warm import draws_to_resume, good_draws, warm_start
from compress.recommender.words import Live, live, sentence, trial_line
from compress.report.curves import curve_rows
from compress.report.layout import wrap
from compress.report.markup import WIDTH
from compress.report.write import write_reports
from compress.results.derive import Derived, read_results, row_alone
from compress.results.record import BASELINE, Record
from compress.results.table import Row, text_of
from compress.system.amounts import duration
from compress.system.progress import say, stage

SIDE_BY_SIDE = 8
"""Trials at once, at most, where an executor has room for many."""
TRAINED = 0.6
"""Share of the budget that trainings may take, by which their epochs are settled."""
STOPPED = "it was stopped"
NEXT = 3
"""Chains that a report says would be tried next, and of an earlier search that are tried first."""


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
    space = space_for(plan, request.wishes, request.goal.by)
    question = question_of(plan, request, space)
    there = SearchFolder(out)
    made = bool(there.check_same(question))  # what is refused leaves no folder behind
    check_journal(out / places.STUDY)
    searched, guess = searched_plan(plan, space), probe(plan)
    timing = final_timing(request.budget, request.timing_seconds)
    passed = time.monotonic() - request.since
    check_budget(searched, guess, len(plan.data.test), timing, request.budget, passed, made)
    with stopped_by_a_full_disk(out), there.lock():
        known = there.check_same(question)  # another process may have begun one meanwhile
        run = _Search(plan, searched, there, request, options, space)
        if not known:
            begun()
            there.write({"question": question, "arguments": dict(request.arguments)})
        run.about = there.about() or {}
        run.earlier = run.about.get("spent", 0.0)
        try:
            with run.stoppable():
                return run.carry_out(guess)
        finally:
            run.record_spent()


def searched_plan(plan: Plan, space: Space) -> Plan:
    """Return the plan of a search, whose test items are the validation split's."""
    suite = replace(plan.suite, splits=SEARCH)
    searched = replace(plan, suite=suite, data=splits_for(SEARCH, plan.data))
    # A chain for each technique: whoever runs steps imports what they need beforehand.
    samples = dict.fromkeys(repr(form.sample) for form in space.forms)
    return with_chains(searched, list(samples))


class _Search:
    """One run of a search."""

    def __init__(
        self,
        final_plan: Plan,
        plan: Plan,
        there: SearchFolder,
        request: Request,
        options: RunOptions,
        space: Space,
    ) -> None:
        self.final_plan, self.plan = final_plan, plan
        self.there, self.out = there, there.path
        self.request, self.options, self.space = request, options, space
        self.started, self.deadline = request.since, request.since + request.budget
        self.test_items = len(final_plan.data.test)
        self.about: dict[str, Any] = {}
        self.earlier = 0.0
        """Seconds of earlier runs."""
        self.notebook = Notebook.read(self.out / places.TRIALS)
        self.study: Study | None = None
        self.records: dict[str, Record] = {}
        self.judge: Judge | None = None
        self.best: Measured | None = None
        self.warnings: Sequence[str] = ()
        self.idle: set[str] = set()
        self.close: Callable[[], None] = lambda: None

    # --- budgets ---------------------------------------------------------------------------

    def _ending(self, lab: BenchLab, begun: float) -> Ending:
        """Return what the end will take, if the steps of finalists are in the store (`_again`)."""
        timing = final_timing(self.request.budget, self.request.timing_seconds)
        return ending_of(lab, self.guess, self.test_items, begun, timing)

    def _quickest(self, lab: BenchLab) -> float:
        """Return the seconds of the quickest trial."""
        timing = quick_timing(self.request.budget) if self.request.goal.times else 0.0
        return quickest_trial(self.space, lab.costs, timing)

    def _again(self, lab: BenchLab, judge: Judge, count: int, left: float) -> float:
        """Return the seconds that finalists of earlier runs will take whose steps are lost.

        The store was emptied, or no longer counts (see `same_objects`). Raises UserError if not
        even what has won can be made again in the seconds that are left.
        """
        if self.proven:
            seconds = lab.remaking([self.proven])
            if seconds > left:
                raise UserError(
                    f"{self.proven} has won before, but its steps are no longer in the store: to "
                    f"make it again takes about {duration(seconds)}, and "
                    f"{duration(max(0.0, left))} are left of the budget: give a larger one"
                )
        return lab.remaking([one.chain for one in self._chosen(lab, judge, count, left)])

    # --- the search ------------------------------------------------------------------------

    def carry_out(self, guess: Probe) -> Found:
        self.guess = guess
        with stage("", heading=True), self._lab() as lab:
            begun = time.monotonic()
            few = warning_of(self.request.goal, self.test_items)
            self._say(few)
            lab.begin(self.deadline)
            first, ready = time.monotonic() - begun, lab.now()
            trial, end = self._quickest(lab), self._ending(lab, first)
            most = finalists_measured(self.request.goal, self.test_items)
            spare = self.deadline - ready - trial - end.row * bool(self.proven)
            count = end.finalists(most, spare)
            strict = min(finalists_for(self.request.goal, self.test_items), count)
            judge = self.judge = Judge(self.request.goal, lab.baseline, self.test_items, strict)
            note = text_of(row_alone(lab.records[BASELINE], self._search), "note")
            said_of_it = f"A note on the baseline: {note}" if note else ""
            self._say(said_of_it)
            warnings = self.warnings = [one for one in (few, said_of_it) if one]
            rows = count + bool(self.proven)
            reserved = end.seconds(rows)
            remaking = self._again(lab, judge, count, self.deadline - reserved - lab.now())

            def ends() -> float:
                """Return when finals must begin: what rows take is known better with each."""
                return self.deadline - self._ending(lab, first).seconds(rows)

            engine = self._engine(lab, judge, lambda: ends() - remaking)
            try:
                ended = engine.run()
            finally:
                self.close()
            self.idle = engine.idle
            report = self._story(ended, warnings)
            chosen = self._chosen(lab, judge, count, ends() - lab.now())
            again = lab.remaking([one.chain for one in chosen])
            end = self._ending(lab, first)
            left = self.deadline - lab.now() - again - end.measuring(len(chosen))
        if not chosen:
            said = self.about.get("said") or words_so_far(engine.best, judge, self.notebook)
            if all(one.state == NO_TIME and not one.last for one in self.notebook.trials):
                took = ready - self.started
                said = f"{said}: {why_nothing(self.request.budget, took, reserved, trial)}"
            self._write_report(report, judge, said, self.proven)
            trials = tuple(self.notebook.trials)
            front = front_text(self.notebook.candidates.values(), judge)
            return Found(self.out, said, self.proven, self.proven, (), trials, {}, front)
        timing = timing_within(end.timing, left)
        derived = self._finals([one.chain for one in chosen], timing)
        return self._report(derived, judge, report)

    def _say(self, warning: str) -> None:
        """Show what a user should know before hours are spent, if there is anything."""
        if warning and self.options.progress:
            say("\n".join(wrap(warning, WIDTH)))

    def _chosen(self, lab: BenchLab, judge: Judge, count: int, left: float) -> list[Measured]:
        """Return the finalists; a chain that reached the goal before is always one of them."""
        return affordable(self.notebook.candidates, judge, count, lab.remaking, left, self.proven)

    @property
    def proven(self) -> str:
        """The chain that reached the goal in finals before; '' if none did."""
        return str(self.about.get("winner", ""))

    @property
    def _search(self) -> Path:
        return self.out / places.SEARCH

    @property
    def _private(self) -> Path:
        return (self.out / places.PRIVATE).resolve()

    @contextlib.contextmanager
    def _lab(self) -> Iterator[BenchLab]:
        """Yield a lab with an executor, and end that."""
        keep_steps(self.plan, self._private)
        with opened(
            self.plan,
            self._search,
            self.options.store_of(self.out),
            quick_timing(self.request.budget),
            costs=CostModel(self.guess.epoch(self.plan)),
            private=self._private,
            options=self.options,
        ) as lab:
            self.records = lab.records
            yield lab

    def _engine(self, lab: BenchLab, judge: Judge, deadline: Callable[[], float]) -> Engine:
        study = self.study = Study(self.space, self.plan.suite.seeds[0], self.out / places.STUDY)
        trained = any(trial.reached in (SHORT, FULL) for trial in self.notebook.trials)
        if "epochs" not in self.about or not trained:  # of an earlier, shorter budget
            left = max(0.0, deadline() - lab.now())
            self.about["epochs"] = settled_epochs(lab, TRAINED * left)
            self._write()
        for draws, why in draws_to_resume(self.space, study, self.notebook):
            study.enqueue(draws, why)
        show = Live()
        engine = Engine(
            self.space,
            judge,
            lab,
            study,
            self.notebook,
            deadline(),
            self.about["epochs"],
            self.request.trials,
            min(lab.executor.side_by_side, SIDE_BY_SIDE),
        )

        def tell(trial: Trial) -> None:
            self.record_spent()
            write_trials(self.out, self.notebook.trials, judge)
            if self.options.progress:
                say(trial_line(trial, judge))

        def begin(number: int) -> None:
            engine.deadline = deadline()
            show.now(live(number, engine.best, judge, self.deadline - lab.now()))

        earlier = good_draws(self.request.earlier, self.request.goal, NEXT)
        engine.tell, engine.begin = tell, begin
        engine.look_again = lambda: lab.costs.look_again(lambda: probe(self.plan).epoch(self.plan))
        engine.warm = lambda lowered: warm_start(self.space, lowered, earlier)
        engine.improved = lambda one: self._improved(one, lab, judge)
        self.close = show.close
        if engine.best is not None:
            self._improved(engine.best, lab, judge)
        return engine

    # --- what is written -------------------------------------------------------------------

    def _write(self) -> None:
        self.there.write({k: v for k, v in self.about.items() if k != "version"})

    def record_spent(self) -> None:
        """Write down what all runs have taken so far: this one may be killed."""
        self.about["spent"] = self._spent
        self._write()

    @property
    def _spent(self) -> float:
        return self.earlier + time.monotonic() - self.started

    def _story(self, ended: str, warnings: Sequence[str]) -> Story:
        figures = {}
        upcoming: list[str] = []
        if ended and self.study is not None:
            figures = {
                "the cost": self.study.importances("cost"),
                "accuracy": self.study.importances("lost"),
            }
            trials, late = self.notebook.trials, self.notebook.late
            known = {trial.chain for trial in trials if trial.state != NO_TIME}
            epochs = self.about["epochs"]
            upcoming = self.study.upcoming(known, epochs, self.idle, NEXT, late)
        suite = self.plan.suite
        return Story(
            f"{suite.model} on {self.plan.data.task.name}: {self.request.goal.words()}",
            suite.model,
            ended,
            self._spent,
            [*warnings, *cautions(self.plan)],
            figures,
            upcoming,
            self.space.left_out,
            self.about.get("finals", 0) + 1,
        )

    def _improved(self, one: Measured, lab: BenchLab, judge: Judge) -> None:
        """Put the best so far at the top of the folder, with its table.

        What has reached the goal on the test split stays there, until the next finalists.
        """
        self.best = one
        if self.proven:
            return
        files = lab.file_of(one)
        publish_model(self.out, files, {"chain": one.chain, "state": "so far", **_figures(one)})
        said = words_so_far(one, judge, self.notebook)
        self._write_report(self._story("", self.warnings), judge, said, one.chain, picture=False)

    @contextlib.contextmanager
    def stoppable(self) -> Iterator[None]:
        """When Ctrl-C ends this context, write down and say what the best is, and where."""
        try:
            yield
        except KeyboardInterrupt:
            if self.judge is not None:
                self._stopped(self.judge)
            raise

    def _stopped(self, judge: Judge) -> None:
        self.record_spent()
        said = self.about.get("said") or words_so_far(self.best, judge, self.notebook)
        chain = self.proven or (self.best.chain if self.best else "")
        story = replace(self._story("", self.warnings), ended=STOPPED)
        self._write_report(story, judge, said, chain, picture=False)
        if self.options.progress:
            say(f"{said}.")
            if chain:
                say(f"{self.out / DEPLOYABLE}: {chain}")

    # --- the end ---------------------------------------------------------------------------

    def _finals(self, chains: Sequence[str], timing: float) -> Derived:
        """Measure the finalists on the test split; return what comes of it."""
        goal = self.request.goal
        margin = goal.max_drop or 1.0
        suite = final_suite(self.final_plan, chains, timing, margin)
        plan = with_chains(replace(self.final_plan, suite=suite), chains)
        folder = self.out / places.FINALISTS
        store = self.options.store_of(self.out)
        options = replace(self.options, store=store, private=self._private)
        known = self.about.get("judged", [])
        if any(chain not in known for chain in chains):  # the others' answers are in the store
            self.about["finals"] = self.about.get("finals", 0) + 1
            self.about["judged"] = [*dict.fromkeys([*known, *chains])]
        self._write()  # now: it may be stopped midway
        with stage("finalists on the test split", heading=True):
            run_plan(plan, folder, options)
        derived = read_results(folder)
        epochs = curve_rows((record.chain, record.seed, record.log) for record in derived.records)
        write_reports(derived.rows, derived.about, folder, epochs)
        return derived

    def _report(self, derived: Derived, judge: Judge, story: Story) -> Found:
        proven, candidates = self.proven, self.notebook.candidates
        if judge.goal.target_ms is not None:
            candidates[BASELINE] = judge.baseline
        winner, finals = judged(derived.rows, judge.goal, candidates, proven)
        if proven and (winner is None or winner.chain == proven):
            # Its verdict and its file are those of the finals in which it was tested first.
            said = self.about.get("said") or f"{proven} reached the goal in earlier finals"
            won, top = proven, proven
        else:
            base: Row = next(row for row in derived.rows if text_of(row, "chain") == BASELINE)
            said = self._publish(finals, winner, base, judge.goal)
            won, top = winner.chain if winner else "", finals[0].chain if finals else ""
        story = replace(story, spent=self._spent, tests=self.about["finals"], proven=proven)
        self._write_report(story, judge, said, top, finals)
        trials = tuple(self.notebook.trials)
        front = front_text(self.notebook.candidates.values(), judge)
        return Found(self.out, said, won, top, derived.rows, trials, optimism(finals), front)

    def _publish(self, finals: Sequence[Final], winner: Final | None, base: Row, goal: Goal) -> str:
        """Put what won, or came nearest, at the top of the folder; return what is said of it."""
        if not finals:
            return "Nothing qualifies, and nothing could be measured on the test split"
        top = finals[0]
        said = sentence(top, base, goal)
        if winner is None:
            said = f"Nothing qualifies. The nearest: {said}"
        if files := files_of(self.out / places.FINALISTS, top.row):
            state = "qualifies" if winner else "nothing qualifies; this is the nearest"
            publish_model(self.out, files, {"chain": top.chain, "state": state})
        if winner is not None:
            # The baseline is no chain to be proven: what was, has no longer its file at the top.
            chain = "" if winner.chain == BASELINE else winner.chain
            self.about |= {"winner": chain, "said": said if chain else ""}
            self._write()
        return said

    def _write_report(
        self,
        story: Story,
        judge: Judge,
        said: str,
        chain: str,
        finals: Sequence[Final] = (),
        picture: bool = True,
    ) -> None:
        records = self.records if picture else {}
        write_report(
            self.out, story, judge, self.notebook, records, self._search, said, chain, finals
        )


def _figures(one: Measured) -> dict[str, Any]:
    counts = ("items", "lost", "gained", "onnx_bytes", "macs", "params")
    times = ("speedup", "speedup_low", "speedup_high", "ms")
    return {name: getattr(one, name) for name in (*counts, *times)}
