"""The best student of a family within a budget: screened by short distillations."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file, save

from compress import counts
from compress.compressor import seed_everything
from compress.context import StepContext
from compress.errors import StepFailed, UserError
from compress.model import Model, weights_hash
from compress.ranks import ranks
from compress.stateless_rng import seed_of
from compress.supernet.evolution import Score
from compress.supernet.halving import halved
from compress.system.files import digest
from compress.system.progress import stage
from compress.techniques.distill import Distill
from compress.techniques.search_budget import WORDS, Budget
from compress.training import evaluate
from compress.zoo.families import members

TENSORS = "student.safetensors"


@dataclass(frozen=True)
class Student:
    """A member of the family, and what it costs as a share of the origin."""

    name: str
    share: float


class FamilySearch:
    """Students of a family learn from the model; about half of them go on, again and again.

    What a student has learnt is kept in the cache, so a search that was stopped goes on.
    """

    def __init__(
        self, family: str, budget: Budget, distill: Distill, model: Model, context: StepContext
    ) -> None:
        """Take the settings of the distillations; its epochs are the winner's in all."""
        self.family, self.budget, self.distill, self.model = family, budget, distill, model
        self.context = replace(context, teacher=model)
        self.students: dict[str, Model] = {}

    def best(self, candidates: int) -> Model:
        """Return the best of so many students, those that cost most within the budget."""
        within = self._within()[:candidates]
        epochs, names = self.distill.epochs, [one.name for one in within]
        rounds = halved(names, epochs, self._train)
        for place, round_ in enumerate(rounds):
            for name, score in round_:
                self.context.log.row("student", rung=place + 1, student=name, accuracy=score[0])
        return self._made(within, rounds[-1][0][0])

    def random(self, rng: np.random.Generator, candidates: int) -> Model:
        """Return a random one of these students, trained for as long."""
        within = self._within()[:candidates]
        name = within[int(rng.integers(len(within)))].name
        self._train(name, 0, self.distill.epochs)
        return self._made(within, name)

    def _within(self) -> list[Student]:
        """Return the members within the budget, those that cost most first."""
        names, found = members(self.family, self.context.task), []
        whole = counts.macs(self.budget.origin.module, self.budget.origin.example)
        with stage(f"looking at {self.family}", len(names), "models") as progress:
            for name in names:
                progress.advance()
                try:
                    student = self._fresh(name)
                except UserError as error:
                    self.context.log.row("student", student=name, left_out=str(error))
                    continue
                # To time one takes seconds, and one of more MACs is no faster.
                if counts.macs(student.module, student.example) <= whole:
                    found.append(Student(name, self.budget.share(student.module)))
        found.sort(key=lambda one: (-one.share, one.name))
        within = [one for one in found if one.share <= self.budget.target]
        if not within:
            self._refuse(found)
        return within

    def _refuse(self, found: list[Student]) -> None:
        what, target = self.budget.what, self.budget.target
        if not found:
            raise StepFailed(
                f"search: no model of the family {self.family} costs less than this one"
            )
        least = found[-1]
        raise StepFailed(
            f"search: {what}={target} cannot be reached: the smallest of the family "
            f"{self.family}, {least.name}, has {least.share:.3f} {WORDS[what]}"
        )

    def _fresh(self, name: str) -> Model:
        seed_everything(seed_of("student", self.context.seed, name))
        return self.context.student(name)

    # --- training -------------------------------------------------------------------------

    def _train(self, name: str, rung: int, epochs: int) -> Score:
        """Train a student on, or recall what it learnt, and judge it."""
        student = self.students.get(name) or self._fresh(name)
        key = digest(
            {
                "student": name,
                "rung": rung,
                "weights": weights_hash(student.module),
                "of": [repr(replace(self.distill, epochs=epochs)), weights_hash(self.model.module)],
                "in": [self.context.scope, self.context.setting, self.context.code],
                "seed": self.context.seed,
            }
        )
        score = self._recalled(key, student)
        if score is None:
            before = len(self.context.log.rows)
            seed = seed_of("rung", self.context.seed, rung, name)
            seed_everything(seed)
            step, context = replace(self.distill, epochs=epochs), replace(self.context, seed=seed)
            student = step.compress(student, context)
            validation = context.validation
            assert validation is not None, "run() has checked needs"
            module = student.module.to(context.device)
            accuracy, loss = ranks().agreed(
                lambda: evaluate(module, context.task, validation, context.device)
            )
            module.to("cpu")
            score = [accuracy, -loss]
            self._keep(key, student, score, before)
        self.students[name] = student
        return tuple(score)

    def _recalled(self, key: str, student: Model) -> list[float] | None:
        """Give a student the weights that it had learnt when the step was stopped."""
        cache = self.context.cache if self.context.scope else None
        entry = None if cache is None else cache.get(key, temporary=True)
        if entry is None:
            return None
        student.module.load_state_dict(load_file(entry.folder / TENSORS))
        self.context.log.rows.extend(entry.about["rows"])
        return list(entry.about["score"])

    def _keep(self, key: str, student: Model, score: list[float], before: int) -> None:
        cache = self.context.cache if self.context.scope else None
        if cache is None:
            return
        tensors = {n: t.contiguous().clone() for n, t in student.module.state_dict().items()}

        def fill(folder: Path) -> Mapping[str, Any]:
            (folder / TENSORS).write_bytes(save(tensors))
            return {"score": score, "rows": self.context.log.rows[before:]}

        with contextlib.suppress(OSError):  # a full disk: the search itself can go on
            cache.put(key, fill, temporary=True)

    def _made(self, within: list[Student], name: str) -> Model:
        share = next(one.share for one in within if one.name == name)
        words, target = WORDS[self.budget.what], self.budget.target
        self.context.log.row("search", student=name, share=share, target=target)
        self.context.log.note(
            f"search: asked for {target:.2f} {words}, reached {share:.2f} with {name}, the best "
            f"of {len(within)} of the family {self.family}"
        )
        return self.students[name]
