"""Everything that runs in one form on the GPU, timed in turns, several times over.

A GPU process takes seconds to start, so one process is used, and repetitions stand for processes:
each places every copy anew, in another order, so that it lies elsewhere in memory. What differs
from process to process alone is not seen. The statistics are those of the CPU.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from compress.system.cuda import Cuda, first_line, out_of_memory
from compress.timing.interleave import Candidate, Plan, Series, interleave
from compress.timing.raw_timings import CONTROL, LEVELS, Launched, RawTimings
from compress.timing.setting import Setting

Maker = Callable[[], Candidate]
"""Places something on the device; what it raises is the reason that it cannot be timed."""


@dataclass(frozen=True)
class Effort:
    """`seconds` are for all repetitions together; `min_rounds` in each come first."""

    seconds: float = 5.0
    repetitions: int = 5
    min_rounds: int = 10
    block_seconds: float = 0.005


def take_turns(
    makers: Mapping[str, Maker],
    *,
    baseline: str,
    batch: int,
    device: Cuda,
    effort: Effort,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> RawTimings:
    """Time candidates against each other and against a second copy of the baseline.

    The result's one setting is that of the batch size. What does not fit into the device's memory
    beside all others is timed beside the baseline alone. Repetitions end early if the device
    breaks; the reasons then stand with the candidates.
    """
    started = clock()
    everything = {**makers, CONTROL: makers[baseline]}
    plan = Plan(effort.seconds / effort.repetitions, effort.min_rounds, effort.block_seconds)
    launched: list[Launched] = []
    for number in range(effort.repetitions):
        once = _Repetition(everything, plan, device, seed * 1000 + number, clock)
        launched += [Launched(0, {str(batch): found}) for found in once.run(baseline)]
        if device.failure():
            break
    return RawTimings(
        # The levels are the CPU's: nobody has timed them here.
        names=(*everything, *LEVELS),
        baseline=baseline,
        settings=(Setting(0, batch).name,),
        all_threads=0,
        launched=tuple(launched),
        seconds=round(clock() - started, 3),
        environment={},
    )


class _Repetition:
    """One placing and timing of everything."""

    def __init__(
        self,
        makers: Mapping[str, Maker],
        plan: Plan,
        device: Cuda,
        seed: int,
        clock: Callable[[], float],
    ) -> None:
        self.makers, self.plan, self.device = makers, plan, device
        self.seed, self.clock = seed, clock

    def run(self, baseline: str) -> list[dict[str, Any]]:
        """Return series by candidate: of all that fit together, then of those that did not."""
        found = self._together(list(self.makers))
        large = [name for name, series in found.items() if out_of_memory(series["error"])]
        if baseline in large:
            # The others took its place: nothing was compared.
            large = list(found)
        alone = [self._together([baseline, name]) for name in large if name != baseline]
        return [{k: v for k, v in found.items() if k not in large}, *alone]

    def _together(self, names: list[str]) -> dict[str, Any]:
        order = list(names)
        random.Random(self.seed).shuffle(order)
        candidates: dict[str, Candidate] = {}
        failed: dict[str, Series] = {}
        for name in order:
            try:
                candidates[name] = self.makers[name]()
            except Exception as error:  # torch and onnxruntime raise classes of many bases
                failed[name] = Series(error=f"{type(error).__name__}: {error}")
        found = failed | interleave(candidates, self.plan, self.seed, self.clock)
        candidates.clear()
        self.device.free()
        return {name: asdict(found[name]) | {"error": _told(found[name].error)} for name in names}


def _told(error: str) -> str:
    text = first_line(error) if error else ""
    return f"the GPU's memory is full: {text}" if out_of_memory(text) else text
