"""A lab whose chains cost and lose what formulas say, on a clock of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from compress.compressor import Compressor, leaves
from compress.recommender.measured import Measured
from compress.techniques import chain as parse
from compress.training import Training

ITEMS = 10_000
BASE = Measured(
    "baseline", items=ITEMS, right=9000, onnx_bytes=4000, macs=1000, params=1000, ms=1.0
)


def kept(chain: Compressor) -> float:
    """The MACs of a chain's result, over the baseline's."""
    share = 1.0
    for step, _ in leaves(chain):
        share *= getattr(step, "macs", None) or 1.0
        if step.builds:
            share *= 0.25
    return share


def trained(chain: Compressor) -> int:
    return sum(step.epochs * n for step, n in leaves(chain) if isinstance(step, Training))


def made(chain: Compressor) -> Measured:
    """Speed-up: MACs kept to the power -0.8, times 2 for int8. A cut loses (1 - kept)² x 20 points
    less 80 % of that with many epochs; a student that was not trained all.
    """
    share, epochs = kept(chain), trained(chain)
    int8 = any(step.lowers for step in chain.steps)
    built = any(step.builds for step in chain.steps)
    lost = 0.2 * (1 - share) ** 2 * (1 - 0.8 * (1 - math.exp(-epochs / 4)))
    if built and not epochs:
        lost = 0.8
    speed = share**-0.8 * (2.0 if int8 else 1.0)
    return Measured(
        repr(chain),
        items=ITEMS,
        right=round(9000 - ITEMS * lost),
        lost=round(ITEMS * lost) + 20,
        gained=20,
        onnx_bytes=round(4000 * share / (4 if int8 else 1)),
        macs=round(1000 * share),
        params=round(1000 * share),
        speedup=speed,
        speedup_low=speed / 1.01,
        speedup_high=speed * 1.01,
        ms=1 / speed,
        timed=repr(chain),
    )


@dataclass
class MadeLab:
    """Ten seconds for an epoch of the baseline's size, one for anything else."""

    broken: frozenset[str] = frozenset()
    """Techniques whose chains fail."""
    clock: float = 0.0
    done: set[str] = field(default_factory=set)
    measured: list[str] = field(default_factory=list)
    timed: list[str] = field(default_factory=list)
    baseline: Measured = BASE

    def predict(self, chain: Compressor, macs: float) -> float:
        return 0.0 if repr(chain) in self.done else 1 + 10 * kept(chain) * trained(chain)

    def measure(self, chains: Sequence[str], deadline: float) -> list[Measured]:
        found = []
        for text in chains:
            chain = parse(text)
            self.clock += self.predict(chain, 1.0)
            self.done.add(text)
            self.measured.append(text)
            if self.broken & {step.name() for step in chain.steps}:
                found.append(Measured(text, "failed", "made to fail"))
            else:
                found.append(replace(made(chain), speedup=None, ms=None, timed=""))
        return found

    def time(self, measured: Sequence[Measured]) -> list[Measured]:
        found = []
        for one in measured:
            self.clock += 1
            self.timed.append(one.chain)
            if one.status == "ok":
                one = replace(made(parse(one.chain)), candidate=one.candidate)
            found.append(one)
        return found

    def epoch(self) -> float:
        return 10.0

    def now(self) -> float:
        return self.clock
