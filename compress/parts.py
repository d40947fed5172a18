"""What chain text writes as a call: steps, and the parts inside them, such as losses."""

from __future__ import annotations

import dataclasses
import inspect
import keyword
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, ClassVar

from compress.errors import IllegalChain, UserError, unknown

_KIND, _RULE, _KEPT = "kind of parts", "rule", "kept fraction"
_SEARCHED = "searched"


class Configured:
    """A frozen dataclass whose fields are its configuration and whose `repr` is its chain text.

    A field says in its metadata which values it takes: a rule, such as `whole_number()`, or parts
    (`takes`). None is always fine where it is the default, and a list becomes a tuple. A class
    whose settings depend on one another checks that in a `__post_init__` of its own, after this
    one's.
    """

    always_shown: ClassVar[tuple[str, ...]] = ()
    """Settings that the text names even where they have their defaults."""

    @classmethod
    def name(cls) -> str:
        """Return the name in chain text: the class name in snake case."""
        return re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()

    @classmethod
    def modernized(cls, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return options of chain text, with those of earlier versions in today's form."""
        return options

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, item.name)
            if value is None and item.default is None:
                continue
            if _KIND in item.metadata:
                value = self._parts(item.name, item.metadata[_KIND], value)
            elif isinstance(value, list):
                value = tuple(value)
            object.__setattr__(self, item.name, value)
            if _RULE in item.metadata:
                sentence, holds = item.metadata[_RULE]
                if not holds(value):
                    raise IllegalChain(f"{self.name()}: {item.name} {sentence}, not {value!r}")

    def _parts(self, name: str, kind: PartKind, value: Any) -> Any:
        """Return the parts that a value names: a tuple of them for a list; of one part, itself."""
        listed = kind.several and isinstance(value, (list, tuple))
        try:
            parts = tuple(map(kind.part, value if listed else [value]))
        except IllegalChain as error:
            raise IllegalChain(f"{self.name()}: {name}: {error}") from None
        return parts[0] if len(parts) == 1 else parts

    def __repr__(self) -> str:
        shown = []
        for item in settings_of(type(self)):
            value = getattr(self, item.name)
            default = item.default
            if item.name in self.always_shown or default is dataclasses.MISSING or value != default:
                shown.append(f"{item.name}={value!r}")
        return f"{self.name()}({', '.join(shown)})"


class Part(Configured):
    """A small technique inside a technique: options that only make sense together, and a job.

    A kind of parts is a subclass (`Loss`, `Hint`), a part a frozen dataclass below it. The first
    paragraph of a part's docstring is its description in `compress-models list`.
    """


def settings_of(cls: type[Configured]) -> list[dataclasses.Field[Any]]:
    """Return a class's own settings, then inherited ones, those of the farthest base last."""
    shared = {
        name: distance
        for distance, base in enumerate(cls.__mro__)
        for name in vars(base).get("__annotations__", {})
    }
    return sorted(dataclasses.fields(cls), key=lambda item: shared[item.name])  # type: ignore[arg-type]


def by_name(
    base: type[Configured], group: str, built_in: Iterable[type[Any]]
) -> Mapping[str, type[Any]]:
    """Return classes by their names in chain text, those that installed packages bring included.

    `group` is that of the packages' entry points. Raises UserError if one of them takes a name that
    is in use or does not derive from `base`.
    """
    classes = {cls.name(): cls for cls in built_in}
    for entry in entry_points(group=group):
        cls = entry.load()
        if not (isinstance(cls, type) and issubclass(cls, base)):
            raise UserError(f"the plug-in {entry.value} is not a {base.__name__}")
        name = cls.name()
        if keyword.iskeyword(name):
            raise UserError(f"the plug-in {entry.value} takes the name {name!r} of Python")
        if name in classes:
            raise UserError(f"the plug-in {entry.value} takes the name {name!r}, in use")
        classes[name] = cls
    return classes


def lookup(kind: str, name: str, known: Mapping[str, type[Any]]) -> type[Any]:
    """Return the class of a name in chain text, or raise UserError with the nearest names."""
    if name not in known:
        raise unknown(kind, name, known)
    return known[name]


def build(cls: type[Any], *arguments: Any, **options: Any) -> Any:
    """Return an instance of a class of chain text; raise IllegalChain if the options do not fit."""
    name, signature = cls.name(), inspect.signature(cls)
    known = signature.parameters
    for key in options:
        if key not in known:
            raise unknown(f"option of {name}", key, known)
    try:
        signature.bind(*arguments, **options)
    except TypeError as error:
        raise IllegalChain(f"{name}: {error}; its options are {', '.join(known)}") from None
    return cls(*arguments, **options)


@dataclass(frozen=True)
class PartKind:
    """Which parts a field takes: those of a table, by name or as calls, one or a list of them."""

    base: type[Part]
    table: Callable[[], Mapping[str, type[Any]]]
    several: bool = False

    @property
    def name(self) -> str:
        """The kind in words, such as 'loss'."""
        return self.base.name()

    def part(self, value: object) -> Part:
        """Return a part as it is, or the part of a name, with its defaults."""
        if isinstance(value, self.base):
            return value
        table = self.table()
        if not isinstance(value, str):
            more = ", or a list of them" if self.several else ""
            raise IllegalChain(f"a {self.name} such as {next(iter(table))}(){more}, not {value!r}")
        part: Part = build(lookup(self.name, value, table))
        return part


def takes(
    base: type[Part], table: Callable[[], Mapping[str, type[Any]]], several: bool = False
) -> Mapping[str, Any]:
    """Return the metadata of a dataclass field that takes parts, by name or built."""
    return {_KIND: PartKind(base, table, several)}


def part_fields(cls: type) -> Mapping[str, PartKind]:
    """Return which fields of a class take parts, and which parts."""
    fields = getattr(cls, "__dataclass_fields__", {})
    return {key: item.metadata[_KIND] for key, item in fields.items() if _KIND in item.metadata}


def rule(sentence: str, holds: Callable[[Any], bool]) -> Mapping[str, Any]:
    """Return the metadata of a dataclass field whose values must satisfy `holds`.

    The error says `<field> <sentence>, not <value>`.
    """
    return {_RULE: (sentence, holds)}


def whole_number(least: int = 1) -> Mapping[str, Any]:
    """The rule of a whole number."""
    return rule(
        f"must be a whole number of at least {least}",
        lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= least,
    )


def positive() -> Mapping[str, Any]:
    return rule("must be positive", lambda value: is_number(value) and value > 0)


def positive_or_zero() -> Mapping[str, Any]:
    return rule("must be >= 0", lambda value: is_number(value) and value >= 0)


def kept_fraction() -> Mapping[str, Any]:
    """The rule of how much of a model is kept, which `Repeat` approaches step by step."""
    fraction = rule(
        "is the fraction that is kept, above 0 and at most 1",
        lambda value: is_number(value) and 0 < value <= 1,
    )
    return {**fraction, _KEPT: True}


def kept_fractions(owner: Configured) -> dict[str, float]:
    """Return the kept fractions among the settings that are given."""
    names = [item.name for item in dataclasses.fields(owner) if _KEPT in item.metadata]  # type: ignore[arg-type]
    return {name: getattr(owner, name) for name in names if getattr(owner, name) is not None}


@dataclass(frozen=True)
class Range:
    """Numbers worth trying for an option, from `low` to `high` in steps of `step` (0: any).

    On a logarithmic scale with `log`, which has no steps. Steps have chains share beginnings.
    """

    low: float
    high: float
    step: float = 0.0
    log: bool = False

    @property
    def whole(self) -> bool:
        """Whether all values are whole numbers: both ends are."""
        return isinstance(self.low, int) and isinstance(self.high, int)


@dataclass(frozen=True)
class Choices:
    """Values worth trying for an option; a part stands as its name."""

    values: tuple[Any, ...]


@dataclass(frozen=True)
class Effort:
    """An option that is not drawn: the more of it, the better and the slower, such as epochs.

    Trials spend little of it first, from `low` to `high`.
    """

    low: int
    high: int


@dataclass(frozen=True)
class Students:
    """An option that names a smaller model to build in place of the one that enters."""


Searched = Range | Choices | Effort | Students


def searched(values: Searched) -> Mapping[str, Any]:
    """Return the metadata of a field whose values `recommend` searches.

    A technique that declares one such field itself takes part in the search, a plug-in's too:
    `macs: float = field(metadata={**kept_fraction(), **searched(Range(0.2, 0.9, step=0.05))})`.
    """
    return {_SEARCHED: values}


def searched_fields(cls: type[Configured]) -> dict[str, Searched]:
    """Return what is worth trying for each field of a class that says so."""
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    return {item.name: item.metadata[_SEARCHED] for item in fields if _SEARCHED in item.metadata}


def joins_searches(cls: type[Configured]) -> bool:
    """Whether a class declares values to try itself: those that it inherits come along then."""
    own, *inherited = (getattr(one, "__dataclass_fields__", {}) for one in cls.__mro__)
    return any(
        all(fields.get(name) is not own[name] for fields in inherited)
        for name in searched_fields(cls)
    )


def one_of(*choices: str) -> Mapping[str, Any]:
    return rule(f"must be one of {', '.join(choices)}", choices.__contains__)


def flag() -> Mapping[str, Any]:
    return rule("is True or False", lambda value: isinstance(value, bool))


def a_name() -> Mapping[str, Any]:
    return rule("is a name", lambda value: isinstance(value, str))


def is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def are_names(value: object) -> bool:
    """Whether a value is a tuple of texts."""
    return isinstance(value, tuple) and all(isinstance(name, str) for name in value)
