"""Where drawn values come from: a sampler, an earlier draw, chance, or all of them in turn."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from compress.parts import Range

Value = str | int | float | bool | None
Params = Mapping[str, Value]
"""What was drawn, by the names of the draws."""
DIGITS = 4
"""Significant ones of a number that was drawn."""


class Draw(Protocol):
    """Answers questions by name; the same name always comes with the same possible answers."""

    def among(self, name: str, values: Sequence[Value]) -> Value:
        """Return one of some values."""

    def number(self, name: str, values: Range) -> float:
        """Return a number of a range."""


@dataclass(frozen=True)
class Known:
    """The values of an earlier draw. Raises KeyError for a name that it has not."""

    params: Params

    def among(self, name: str, values: Sequence[Value]) -> Value:
        value = self.params[name]
        if value not in values:
            raise KeyError(f"{name}: {value!r} is not one of {list(values)}")
        return value

    def number(self, name: str, values: Range) -> float:
        value = self.params[name]
        if not isinstance(value, int | float) or not values.low <= value <= values.high:
            raise KeyError(f"{name}: {value!r} does not lie in {values}")
        return tidy(value, values)


@dataclass(frozen=True)
class Without:
    """The values of an earlier draw as far as they are asked for, and none for some questions."""

    params: Params
    none: Value
    questions: Collection[str]
    """First words of those that are answered by `none`, where that is an answer."""

    def among(self, name: str, values: Sequence[Value]) -> Value:
        asked = name.partition(" ")[0]
        if asked in self.questions and self.none in values:
            return self.none
        # The rest of a question names what stands before, which may be another step now.
        alike = [v for key, v in self.params.items() if key.partition(" ")[0] == asked]
        return next((v for v in (self.params.get(name), *alike) if v in values), values[0])

    def number(self, name: str, values: Range) -> float:
        value = self.params.get(name)
        if isinstance(value, int | float) and values.low <= value <= values.high:
            return tidy(value, values)
        return at(values, 0.5)


@dataclass(frozen=True)
class Preferred:
    """Preferred values where there are such, else the first one and the middle."""

    params: Params

    def among(self, name: str, values: Sequence[Value]) -> Value:
        value = self.params.get(name, values[0])
        return value if value in values else values[0]

    def number(self, name: str, values: Range) -> float:
        share = self.params.get(name, 0.5)
        assert isinstance(share, int | float), "a preferred number is a share of its range"
        return at(values, float(share))


@dataclass(frozen=True)
class AtRandom:
    """Values by chance, all alike."""

    generator: np.random.Generator

    def among(self, name: str, values: Sequence[Value]) -> Value:
        return values[int(self.generator.integers(len(values)))]

    def number(self, name: str, values: Range) -> float:
        return at(values, float(self.generator.random()))


@dataclass
class InTurn:
    """The next of all possible draws, in order; `advance` goes on to the one after."""

    path: list[tuple[int, int]] = field(default_factory=list)
    """Of each question: the number of the answer, and how many there are."""
    asked: int = 0

    def among(self, name: str, values: Sequence[Value]) -> Value:
        if self.asked == len(self.path):
            self.path.append((0, len(values)))
        number, _ = self.path[self.asked]
        self.asked += 1
        return values[number]

    def number(self, name: str, values: Range) -> float:
        return float(self.among(name, numbers_of(values)))  # type: ignore[arg-type]

    def advance(self) -> bool:
        """Go on to the next draw; return False after the last."""
        self.asked = 0
        while self.path:
            number, count = self.path.pop()
            if number + 1 < count:
                self.path.append((number + 1, count))
                return True
        return False


@dataclass
class Noted:
    """Another draw whose answers are noted."""

    draw: Draw
    params: dict[str, Value] = field(default_factory=dict)

    def among(self, name: str, values: Sequence[Value]) -> Value:
        self.params[name] = value = self.draw.among(name, values)
        return value

    def number(self, name: str, values: Range) -> float:
        self.params[name] = value = self.draw.number(name, values)
        return value


def numbers_of(values: Range) -> list[float]:
    """Return all numbers of a range. Raises ValueError for one without steps."""
    step = values.step or (1 if values.whole and not values.log else 0)
    if not step:
        raise ValueError(f"a range without steps has no list of values: {values}")
    count = int((values.high - values.low) / step + 1e-9) + 1
    return [tidy(values.low + number * step, values) for number in range(count)]


def at(values: Range, share: float) -> float:
    """Return the number at a share of a range, from 0 (its low end) to 1."""
    if values.log:
        found = values.low * (values.high / values.low) ** share
    elif values.step:
        places = int((values.high - values.low) / values.step + 1e-9)
        found = values.low + values.step * min(places, int(share * (places + 1)))
    else:
        found = values.low + share * (values.high - values.low)
    return tidy(found, values)


def tidy(value: float, values: Range) -> float:
    """Return a number without the last bits that its computation left: it stands in chain text."""
    if values.whole:
        return round(value)
    if value:
        value = round(value, DIGITS - 1 - math.floor(math.log10(abs(value))))
    return min(max(value, values.low), values.high)


def every(draws: InTurn) -> Iterator[InTurn]:
    """Yield the draw once for each combination of answers."""
    yield draws
    while draws.advance():
        yield draws
