"""What a technique can be in a chain: its kind, by its flags, and what is drawn of its options."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from compress.compressor import Chain, Compressor
from compress.context import StepContext
from compress.errors import IllegalChain, UserError
from compress.parts import Choices, Effort, Range, Students, build, searched_fields
from compress.recommender.draw import Draw, Preferred, numbers_of

BUILD, CUT, RECOVER, LOWER = "build", "cut", "recover", "lower"
"""Builds another model; changes shapes or weights; trains and changes no shape; writes the file."""
COUNTED: Mapping[str, str] = {"macs": "MACs", "params": "parameters"}
"""What is counted in the module, whatever the precision of the file that is written of it."""
STUDENTS_EPOCHS = 3
"""A student learns from fresh weights: it gets so many times the epochs of a recovery."""

Options = Mapping[str, Range | Choices]


@dataclass(frozen=True)
class Form:
    """A technique in one kind, and the values of its options that are tried."""

    name: str
    cls: type[Compressor]
    kind: str
    options: Options = field(default_factory=dict)
    effort: Mapping[str, Effort] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)

    def step(self, draw: Draw, epochs: float) -> Compressor:
        """Return the technique with drawn options, and as much effort as `epochs` of recovery."""
        values = {name: self._drawn(name, draw) for name in self.options}
        times = STUDENTS_EPOCHS if self.kind == BUILD else 1
        efforts = {
            name: round(min(max(epochs * times, one.low), one.high))
            for name, one in self.effort.items()
        }
        step: Compressor = build(self.cls, **self.fixed, **values, **efforts)
        return step

    def _drawn(self, name: str, draw: Draw) -> Any:
        values, question = self.options[name], f"{self.name}.{name}"
        if isinstance(values, Range):
            return draw.number(question, values)
        texts = list(map(_shown, values.values))
        return values.values[texts.index(draw.among(question, texts))]

    @property
    def sample(self) -> Compressor:
        """The technique with the first and middle values."""
        return self.step(Preferred({}), 1)

    def samples(self) -> Iterator[tuple[str, Any, Compressor]]:
        """Yield (option, value, the technique with it) for each choice, and the ends of ranges."""
        usual = {name: _first(values) for name, values in self.options.items()}
        efforts = {name: one.low for name, one in self.effort.items()}
        for name, values in self.options.items():
            ends = (values.low, values.high) if isinstance(values, Range) else values.values
            for value in ends:
                given = {**self.fixed, **usual, **efforts, name: value}
                yield name, value, build(self.cls, **given)


def _shown(value: Any) -> Any:
    """Return a value as a sampler knows it: a plain one as it is, others as text."""
    return value if isinstance(value, str | int | float | bool | None) else repr(value)


def _first(values: Range | Choices) -> Any:
    if isinstance(values, Choices):
        return values.values[0]
    return numbers_of(values)[0] if values.step else values.low


def kind_of(step: Compressor) -> str | None:
    """Return what a step is in a chain; None for one that a baseline begins with."""
    if step.restarts and not step.builds:
        return None
    if step.lowers:
        return LOWER
    if step.builds:
        return BUILD
    return RECOVER if step.untrained == () else CUT


def forms_of(
    cls: type[Compressor],
    students: tuple[str, ...],
    own: Mapping[str, Any] | None = None,
    by: str = "",
) -> list[Form]:
    """Return the forms of a technique: one, and one more if a student may take the model's place.

    `own` are values of options in place of the technique's: `Range`, `Choices`, `Effort`, or one
    value. Without any, its variant for what a search makes small (`by`) is a form as well. Raises
    UserError for a value that the technique refuses.
    """
    values: dict[str, Any] = {**searched_fields(cls), **(own or {})}
    named = [name for name, one in values.items() if isinstance(one, Students)]
    plain = {name: one for name, one in values.items() if name not in named}
    forms = [_form(cls, cls.name(), plain)]
    if named and students:
        taught = {**plain, named[0]: Choices(students)}
        forms.append(_form(cls, f"{cls.name()}:{named[0]}", taught))
    if by in cls.variants and not own:
        forms.append(_form(cls, f"{cls.name()}:{by}", cls.variants[by]))
    return [form for form in forms if form is not None]


def _form(cls: type[Compressor], name: str, values: Mapping[str, Any]) -> Form | None:
    kinds = Range | Choices
    options = {key: one for key, one in values.items() if isinstance(one, kinds)}
    effort = {key: one for key, one in values.items() if isinstance(one, Effort)}
    # In their order, which a set would lose: a search knows its space by this text.
    fixed = {key: one for key, one in values.items() if key not in {**options, **effort}}
    form = Form(name, cls, "", options, effort, fixed)
    kind = kind_of(form.sample)
    return None if kind is None else replace(form, kind=kind)


def idle_for(form: Form, by: str) -> str:
    """Return why a form cannot change what a search makes small (`by`); '' if it can.

    What only lowers the precision of the file leaves the module as it is. A technique that does
    more than that says so: it builds another model, or has a variant for this very goal.
    """
    changes = form.kind != LOWER or form.sample.builds or by in form.cls.variants
    if by not in COUNTED or changes:
        return ""
    return f"changes the precision of the file, and not its number of {COUNTED[by]}"


def runnable(form: Form, context: StepContext) -> tuple[Form | None, str]:
    """Return the form with the choices that can run on a context, and why others cannot.

    None if none can. Building a student shows whether it fits the data.
    """
    kept, reasons = form, []
    for name, value, step in form.samples():
        if reason := why_not(step, context):
            values = kept.options[name]
            if isinstance(values, Range):
                return None, reason
            left = Choices(tuple(one for one in values.values if one != value))
            kept = replace(kept, options={**kept.options, name: left})
            reasons.append(f"{name}={value!r}: {reason}")
            if not left.values:
                return None, reason
    if reason := why_not(kept.sample, context):
        return None, reason
    return kept, "; ".join(reasons)


def why_not(step: Compressor, context: StepContext) -> str:
    """Return why a step cannot run on a context; '' if it can."""
    missing = [need for need in sorted(step.needs) if not context.has(need)]
    if missing:
        return f"needs {' and '.join(missing)}, of which the data has none"
    try:
        step.check(context)
    except UserError as error:
        return str(error)
    return ""


def may_follow(before: Form, after: Form) -> bool:
    """Whether a chain may have one form behind another."""
    try:
        Chain(before.sample, after.sample)
    except IllegalChain:
        return False
    return True
