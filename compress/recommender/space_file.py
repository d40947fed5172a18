"""Which techniques and values a search may try: what the user says in a file or as options.

A file in TOML: `only`, `without` and `longest`, and a table for each technique with the values of
its options: one, a list, or a range such as `{from = 0.3, to = 0.9, step = 0.05}`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from compress.compressor import Compressor
from compress.context import StepContext
from compress.errors import UserError, unknown
from compress.parts import (
    Choices,
    Effort,
    Range,
    Students,
    is_number,
    joins_searches,
    searched_fields,
    settings_of,
)
from compress.recommender.forms import Form, forms_of
from compress.recommender.space import LONGEST
from compress.techniques.distill import SAME

KEYS = ("only", "without", "longest")
ENDS = ("from", "to", "step", "log")


@dataclass(frozen=True)
class Wishes:
    """What a search may try: techniques by name, values of their options."""

    only: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    longest: int = LONGEST
    values: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Technique -> option -> `Range`, `Choices`, `Effort` or a value."""
    source: str = ""

    def forms(
        self, techniques: Mapping[str, type[Compressor]], students: tuple[str, ...], by: str = ""
    ) -> list[Form]:
        """Return the forms of the techniques that are wished for.

        Those that say what is worth trying of them, and those that the file has a table for. Of
        those without a table, the variants for what a search makes small (`by`) are forms as well.
        Raises UserError for a name that does not exist, and for a value that is refused.
        """
        for name in (*self.only, *self.without, *self.values):
            if name not in techniques:
                raise unknown(f"technique{self._where}", name, techniques)
        joining = [n for n, cls in techniques.items() if joins_searches(cls) or n in self.values]
        for name in self.only:
            if name not in joining:
                raise UserError(
                    f"{name} says nothing of what is worth trying of its options: give a "
                    f"[{name}] table in a file for --space, or leave it out of --only"
                )
        chosen = [n for n in joining if (not self.only or n in self.only) and n not in self.without]
        forms = []
        for name in chosen:
            own = self._checked(techniques[name], self.values.get(name, {}))
            own, named = _without_students(techniques[name], own, students)
            try:
                found = forms_of(techniques[name], named, own, "" if name in self.values else by)
                for form in found:
                    list(form.samples())  # every value is one that the technique takes
            except UserError as error:
                raise UserError(f"space{self._where}: {error}") from None
            if not found and (name in self.only or name in self.values):
                raise UserError(f"{name} starts a baseline, and is no step of a search")
            forms += found
        return forms

    def check_students(
        self, techniques: Mapping[str, type[Compressor]], context: StepContext
    ) -> None:
        """Raise UserError for a student that the file names and that cannot be built."""
        named = [
            student
            for name, own in self.values.items()
            for student in _without_students(techniques[name], own, ())[1]
        ]
        for student in dict.fromkeys(named):
            try:
                if student != SAME:
                    context.student(student)
            except UserError as error:
                raise UserError(f"space{self._where}, student {student!r}: {error}") from error

    @property
    def _where(self) -> str:
        return f" in {self.source}" if self.source else ""

    def _checked(self, cls: type[Compressor], own: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values of a technique's options, a range of epochs as an effort."""
        known = [item.name for item in settings_of(cls)]
        for name in own:
            if name not in known:
                raise unknown(f"option of {cls.name()}{self._where}", name, known)
        usual = searched_fields(cls)
        found = dict(own)
        for name, value in own.items():
            if isinstance(usual.get(name), Effort) and isinstance(value, Range):
                if not value.whole or value.step or value.log:
                    raise UserError(
                        f"{cls.name()}.{name}{self._where} is as much as stages ask for: a range "
                        f"of whole numbers from ... to ..., without step or log"
                    )
                found[name] = Effort(int(value.low), int(value.high))
        return found


def _without_students(
    cls: type[Compressor], own: Mapping[str, Any], students: tuple[str, ...]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the values without those that name students, and the students that are tried.

    None among them stands for no student.
    """
    rest, usual = dict(own), searched_fields(cls)
    for name in own:
        if isinstance(usual.get(name), Students):
            value = rest.pop(name)
            values = value.values if isinstance(value, Choices) else (value,)
            students = tuple(one for one in values if one is not None)
    return rest, students


def read_wishes(path: Path) -> Wishes:
    """Read a file of wishes. Raises UserError that says what is wrong in it."""
    try:
        values = tomllib.loads(path.read_text())
    except OSError as error:
        raise UserError(f"cannot read the space file {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid TOML: {error}") from error
    tables = {key: value for key, value in values.items() if isinstance(value, dict)}
    for key in values.keys() - tables.keys() - set(KEYS):
        raise unknown(f"key in {path}", key, [*KEYS, "[technique]"])
    for key in tables.keys() & set(KEYS):
        raise UserError(f"{path}: {key} is no table")
    longest = values.get("longest", LONGEST)
    if not isinstance(longest, int) or isinstance(longest, bool) or not 1 <= longest <= LONGEST:
        raise UserError(
            f"{path}: longest is the number of steps of a chain, from 1 to {LONGEST}, not "
            f"{longest!r}"
        )
    read = {
        name: {key: _value(value, f"{path}: {name}.{key}") for key, value in table.items()}
        for name, table in tables.items()
    }
    return Wishes(
        _names(values.get("only", []), f"{path}: only"),
        _names(values.get("without", []), f"{path}: without"),
        longest,
        read,
        str(path),
    )


def merged(wishes: Wishes, only: Iterable[str], without: Iterable[str]) -> Wishes:
    """Return wishes with those of the command line, which count before the file's."""
    both = tuple(only) or wishes.only, (*wishes.without, *without)
    return Wishes(*both, wishes.longest, wishes.values, wishes.source)


def _names(value: object, what: str) -> tuple[str, ...]:
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        return tuple(value)
    raise UserError(f"{what} is a list of techniques' names, not {value!r:.100}")


def _value(value: Any, what: str) -> Any:
    if isinstance(value, dict):
        return _range(value, what)
    if isinstance(value, list):
        if not value:
            raise UserError(f"{what} is an empty list: leave it out, or give values to try")
        return Choices(tuple(map(_plain, value)))
    return _plain(value)


def _plain(value: Any) -> Any:
    """Return a value of the file; TOML has no word for None."""
    return None if value == "none" else tuple(value) if isinstance(value, list) else value


def _range(value: Mapping[str, Any], what: str) -> Range:
    for key in value:
        if key not in ENDS:
            raise unknown(f"key of the range {what}", key, ENDS)
    low, high, step = value.get("from"), value.get("to"), value.get("step")
    log = value.get("log", False)
    if not (_is_number(low) and _is_number(high) and low < high):
        raise UserError(f"{what}: a range needs two numbers, from below to: {dict(value)}")
    if step is not None and not (_is_number(step) and 0 < step <= high - low):
        raise UserError(f"{what}: step is a positive number within the range, not {step!r}")
    if log and (step is not None or low <= 0):
        raise UserError(f"{what}: log is for positive numbers, without step")
    if not isinstance(log, bool):
        raise UserError(f"{what}: log is true or false, not {log!r}")
    return Range(low, high, step or 0.0, log)


def _is_number(value: Any) -> TypeGuard[float]:
    return is_number(value)
