"""Optuna's part: which draw is next, what mattered, and what would come next."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Container, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compress.errors import UserError
from compress.parts import Range
from compress.recommender.draw import AtRandom, Params, Value, tidy
from compress.recommender.space import Space

if TYPE_CHECKING:
    import optuna

NAME = "recommend"
STARTUP = 6
"""Draws by chance, after those of the warm start, before the sampler has something to go by."""
LEAST = 8
"""Trials from which what mattered is worth a figure."""


@dataclass
class OptunaDraw:
    """The answers of Optuna's sampler, a trial's."""

    trial: optuna.trial.Trial

    def among(self, name: str, values: Sequence[Value]) -> Value:
        return self.trial.suggest_categorical(name, list(values))

    def number(self, name: str, values: Range) -> float:
        step = values.step or None
        if values.whole:
            low, high = int(values.low), int(values.high)
            every = int(step or 1)
            return self.trial.suggest_int(name, low, high, step=every, log=values.log)
        found = self.trial.suggest_float(name, values.low, values.high, step=step, log=values.log)
        return tidy(found, values)


@dataclass
class Asked:
    """A draw that the study waits for an answer to."""

    trial: optuna.trial.Trial
    params: Params
    drawn: str


@dataclass
class Study:
    """An Optuna study of a space, in a file if it has a place there, else in memory."""

    space: Space
    seed: int
    path: Path | None = None
    plain: bool = False
    """Whether nothing but Optuna's own startup comes first, to compare with."""
    waiting: list[tuple[Params, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        with _quiet():
            self.study = self._open()

    def _open(self) -> optuna.Study:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        storage = None
        if self.path is not None:
            _mend(self.path)
            nothing: Any = _NoLock()  # it has what Optuna's base class asks for
            storage = JournalStorage(JournalFileBackend(str(self.path), lock_obj=nothing))
        startup = 10 if self.plain else STARTUP
        sampler = optuna.samplers.TPESampler(
            seed=self.seed, n_startup_trials=startup, multivariate=True, group=True
        )
        return optuna.create_study(
            storage=storage, study_name=NAME, load_if_exists=True, sampler=sampler
        )

    def enqueue(self, draws: Sequence[Params], why: str) -> None:
        """Have some draws come first."""
        self.waiting += [(params, why) for params in draws]

    def ask(self, by_chance: bool = False) -> Asked:
        """Return the next draw, the sampler's or one by chance."""
        with _quiet():
            params: Params | None = None
            why = ""
            if self.waiting:
                params, why = self.waiting.pop(0)
            elif by_chance:
                generator = np.random.default_rng([self.seed, len(self.study.get_trials(False))])
                _, params = self.space.draw(AtRandom(generator), 1)
            if params is not None:
                self.study.enqueue_trial(dict(params))
            trial = self.study.ask()
            _, params = self.space.draw(OptunaDraw(trial), 1)
        return Asked(trial, params, why)

    def ask_for(self, params: Params, why: str) -> Asked:
        """Return a draw of these values, before all that is waiting."""
        self.waiting.insert(0, (params, why))
        return self.ask()

    def tell(
        self,
        asked: Asked,
        value: float | None,
        violation: float = 0.0,
        figures: Mapping[str, float] | None = None,
    ) -> None:
        """Answer a draw with its value (smaller is better) and by how much it misses the goal.

        None for a trial that failed. `figures` are what `importances` can be asked about.
        """
        import optuna

        with _quiet():
            if value is None:
                self.study.tell(asked.trial, state=optuna.trial.TrialState.FAIL)
                return
            asked.trial.set_constraint("goal", violation)
            for name, figure in (figures or {}).items():
                asked.trial.set_user_attr(name, figure)
            self.study.tell(asked.trial, value)

    def resume(self) -> list[Params]:
        """End what a killed process left open; return these draws, which have no answer yet."""
        import optuna

        found: list[Params] = []
        with _quiet():
            for trial in self.study.get_trials(states=[optuna.trial.TrialState.RUNNING]):
                self.study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
                found.append(dict(trial.params))
        return found

    # --- at the end ------------------------------------------------------------------------

    def copy(self) -> Study:
        """Return a study in memory with the same answers, to ask without consequences."""
        other = Study(self.space, self.seed + 1)
        with _quiet():
            other.study.add_trials(self._answered())
        return other

    def upcoming(
        self,
        known: Container[str],
        epochs: int,
        idle: Set[str],
        count: int,
        late: Sequence[Params] = (),
    ) -> list[str]:
        """Return the chains that would come next, without those known and those with idle cuts.

        A search that goes on begins with the draws that came too `late`.
        """
        copied = self.copy()
        copied.waiting = [*((params, "") for params in late), *self.waiting]
        found: dict[str, None] = {}
        for number in range(10 * count):
            # The sampler may insist on what is known.
            asked = copied.ask(by_chance=number - len(found) > count)
            chain = self.space.chain(asked.params, epochs)
            if repr(chain) not in known and not {step.name() for step in chain.steps} & idle:
                found[repr(chain)] = None
            copied.tell(asked, None)
            if len(found) == count:
                break
        return list(found)

    def _answered(self) -> list[optuna.trial.FrozenTrial]:
        import optuna

        return self.study.get_trials(states=[optuna.trial.TrialState.COMPLETE])

    def importances(self, figure: str) -> dict[str, float]:
        """Return how much each draw mattered for a low figure, one that answers were told with.

        Shares that add up to 1 (Optuna's PED-ANOVA) among the draws that all trials have, which
        are the steps of the chains; and likewise among the options of each technique, over the
        trials that have it. What fewer than `LEAST` trials tell is left out.
        """
        trials = [trial for trial in self._answered() if figure in trial.user_attrs]
        names = dict.fromkeys(name for trial in trials for name in trial.params)
        everywhere = [name for name in names if all(name in trial.params for trial in trials)]
        groups = [everywhere]
        for form in self.space.forms:
            groups.append([name for name in names if name.startswith(f"{form.name}.")])
        found: dict[str, float] = {}
        for group in groups:
            found |= _importances(trials, group, figure)
        return found


def _importances(
    trials: Sequence[optuna.trial.FrozenTrial], names: Sequence[str], figure: str
) -> dict[str, float]:
    """Return the shares of some draws, over the trials that have all of them."""
    import optuna

    having = [trial for trial in trials if all(name in trial.params for name in names)]
    varied = [name for name in names if len({trial.params[name] for trial in having}) > 1]
    figures = {trial.user_attrs[figure] for trial in having}
    if len(having) < LEAST or not varied or len(figures) < 2:
        return {}
    with _quiet():
        study = optuna.create_study()
        study.add_trials(having)
        shares = optuna.importance.get_param_importances(
            study, params=varied, target=lambda trial: float(trial.user_attrs[figure])
        )
    return {name: float(share) for name, share in shares.items()}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Leave out Optuna's warnings that parts of it are new."""
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        # That importances are for low figures, which is what is asked.
        warnings.filterwarnings("ignore", message="PedAnovaImportanceEvaluator computes")
        yield


class _NoLock:
    """A lock that locks nothing: the search's folder has one, which ends with its process.

    Optuna's own are files that a killed process leaves behind.
    """

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


def check_journal(path: Path) -> None:
    """Raise UserError if a file is there and is not Optuna's, its half-written end apart."""
    if not path.exists():
        return
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            sound = "op_code" in json.loads(line)
        except (ValueError, TypeError, RecursionError):
            sound = False
        if not sound:
            raise UserError(
                f"{path} is damaged in line {number}: give another --out, and --like {path.parent} "
                f"to begin with what was best there"
            )


def _mend(path: Path) -> None:
    """Cut off what a killed process has left half-written at the end of Optuna's file."""
    if not path.exists():
        return
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        with open(path, "r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)
