"""A trial on its way: its chain in three lengths, and what was measured of it so far."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from compress.compressor import Chain, Compressor
from compress.recommender.measured import Measured, Trial
from compress.recommender.study import Asked


@dataclass(eq=False)
class Work:
    """A trial on its way."""

    asked: Asked
    chain: Compressor
    shapes: Compressor | None = None
    short: Compressor | None = None
    measured: list[Measured] = field(default_factory=list)
    reached: str = ""
    state: str = ""
    reason: str = ""
    seconds: float = 0.0

    @property
    def last(self) -> Measured:
        return self.measured[-1]

    def end(self, state: str, reason: str = "") -> None:
        self.state, self.reason = state, reason

    def trial(self, number: int) -> Trial:
        return Trial(
            number,
            dict(self.asked.params),
            repr(self.chain),
            self.state,
            self.reached,
            self.reason,
            tuple(self.measured),
            round(self.seconds, 3),
            self.asked.drawn,
        )


def shapes_of(chain: Compressor) -> Compressor | None:
    """Return a chain without its training; None if it trains nothing, or shapes are not known."""
    trains = any(step.untrained == () or step.builds for step in chain.steps)
    steps = chain.untrained if trains else None
    if not steps:
        return None
    found = steps[0] if len(steps) == 1 else Chain(*steps)
    return None if repr(found) == repr(chain) else found


def with_times(one: Measured, work: Work) -> Measured:
    """Return a trained chain with the times of the same shapes, untrained."""
    if one.speedup is not None or not work.measured or one.status != "ok":
        return one
    before = work.measured[0]
    return replace(
        one,
        speedup=before.speedup,
        speedup_low=before.speedup_low,
        speedup_high=before.speedup_high,
        ms=before.ms,
        timed=before.timed,
    )
