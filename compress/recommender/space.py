"""The space of a search: which chains can be drawn, and what can be drawn of their options.

A chain is [student] [cut [cut]] [recovery] [lowering], each part by what the flags of a technique
say that it is (`compress.recommender.forms.kind_of`), two in a row only where `Chain` allows it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from compress.compressor import Chain, Compressor
from compress.context import StepContext
from compress.errors import UserError
from compress.recommender.draw import Draw, InTurn, Known, Noted, Params, Value, Without, every
from compress.recommender.forms import (
    BUILD,
    COUNTED,
    CUT,
    LOWER,
    RECOVER,
    Form,
    idle_for,
    may_follow,
    runnable,
)

NONE = "none"
STUDENT, RECOVERY = "student", "recovery"
"""Questions about steps that train."""
LONGEST = 4
"""Steps of a chain, if a space says nothing else."""


@dataclass(frozen=True)
class Space:
    """All chains of some forms, up to a length."""

    forms: tuple[Form, ...]
    longest: int = LONGEST
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Technique -> why it, or some of its values, cannot be tried."""

    def of(self, kind: str) -> list[Form]:
        return [form for form in self.forms if form.kind == kind]

    @cached_property
    def _legal(self) -> set[tuple[str, str]]:
        return {(a.name, b.name) for a in self.forms for b in self.forms if may_follow(a, b)}

    def drawn(self, draw: Draw) -> list[Form]:
        """Return the forms of a drawn chain, in order; never none."""
        chosen: list[Form] = []
        lowers, room = self.of(LOWER), self.longest
        # Where nothing else can make a chain, this must.
        self._extend(chosen, draw, STUDENT, self.of(BUILD), not lowers and not self.of(CUT))
        free = room - len(chosen)
        must = not chosen and not lowers
        if free > 0 and self.of(CUT):
            self._extend(chosen, draw, "cut alone" if must else "cut", self.of(CUT), must)
        cut = chosen[-1] if chosen and chosen[-1].kind == CUT else None
        if cut is not None:
            if chosen == [cut] and room > len(chosen):
                others = [form for form in self.of(CUT) if form.cls is not cut.cls]
                self._extend(chosen, draw, f"after {cut.name}", others)
            if room > len(chosen):
                self._extend(chosen, draw, RECOVERY, self.of(RECOVER))
        if room > len(chosen):
            alone = not chosen
            self._extend(chosen, draw, "alone" if alone else "lowering", lowers, alone)
        return chosen

    def _extend(
        self,
        chosen: list[Form],
        draw: Draw,
        question: str,
        forms: Sequence[Form],
        must: bool = False,
    ) -> None:
        """Append the form that is drawn among those that may follow, or none of them."""
        last = chosen[-1] if chosen else None
        legal = [f for f in forms if last is None or (last.name, f.name) in self._legal]
        if not legal:
            return
        if last is not None and len(legal) < len(forms):
            question = f"{question} after {last.name}"  # one name, one list of answers
        names: list[Value] = [form.name for form in legal]
        found = draw.among(question, names if must else [NONE, *names])
        chosen += [form for form in legal if form.name == found]

    def draw(self, draw: Draw, epochs: float) -> tuple[Compressor, Params]:
        """Return a drawn chain and what was drawn.

        `epochs` is how long a recovery trains; what learns from fresh weights trains longer.
        """
        noted = Noted(draw)
        steps = [form.step(noted, epochs) for form in self.drawn(noted)]
        return (steps[0] if len(steps) == 1 else Chain(*steps)), noted.params

    def chain(self, params: Params, epochs: float) -> Compressor:
        """Return the chain of an earlier draw. Raises KeyError if this space has no such draw."""
        return self.draw(Known(params), epochs)[0]

    def untaught(self, params: Params) -> Params:
        """Return a draw without the steps of an earlier one that train, as far as chains allow."""
        return self.draw(Without(params, NONE, (STUDENT, RECOVERY)), 1)[1]

    def all(self, epochs: float) -> Iterator[tuple[Compressor, Params]]:
        """Yield every chain. Raises ValueError where a range without steps has endlessly many."""
        for draw in every(InTurn()):
            yield self.draw(draw, epochs)


def space_of(
    forms: Sequence[Form], context: StepContext, longest: int = LONGEST, by: str = ""
) -> Space:
    """Return the space of the forms that can run on a context, and change what is made small.

    Raises UserError if none is left that makes a model cheaper.
    """
    kept, left_out = [], {}
    for form in forms:
        found, reason = (None, why) if (why := idle_for(form, by)) else runnable(form, context)
        if reason:
            left_out[form.name] = reason
        if found is not None:
            kept.append(found)
    if not any(form.kind in (BUILD, CUT, LOWER) for form in kept):
        why = "; ".join(f"{name} {reason}" for name, reason in left_out.items())
        raise UserError(
            f"no technique is left that {_does(by)}{f' ({why})' if why else ''}: name others with "
            f"--only, or fewer with --without"
        )
    return Space(tuple(kept), longest, left_out)


def _does(by: str) -> str:
    return f"lowers the number of {COUNTED[by]}" if by in COUNTED else "makes the model cheaper"
