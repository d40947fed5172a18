"""Everything that runs in one form on the GPU, timed in turns, several times over.

A GPU process takes seconds to start, so one process is used, and repetitions stand for processes:
each places every copy anew, in another order, so that it lies elsewhere in memory. What differs
from process to process alone is not seen. The statistics are those of the CPU. Torch is imported
where it is used.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from compress.errors import first_line, out_of_memory
from compress.runtimes.onnxruntime_cuda import ProviderSession
from compress.runtimes.torch_cuda import CHANNELS_LAST, CONTIGUOUS, Form, open_module, place
from compress.timing.interleave import (
    Candidate,
    Plan,
    Series,
    interleave,
    make_in_random_order,
    rotating,
)
from compress.timing.raw_timings import CONTROL, LEVELS, Launched, RawTimings
from compress.timing.setting import Setting
from compress.timing.worker import by_name, deviation, feed_indices, feeds_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compress.system.cuda import Cuda

PILOT = Plan(seconds=0.1, min_rounds=7)
"""How the memory formats of a module are compared before the timing that counts."""
TOLERANCE = {"float32": 0.02, "float16": 0.05, "bfloat16": 0.25}
"""What outputs may deviate by, see `deviation`; bfloat16 has eight bits."""

Maker = Callable[[], Candidate]
"""Places something on the device; what it raises is the reason that it cannot be timed."""


@dataclass
class Feeds:
    """Real samples, one tensor (M, ...) per input.

    The copies on the device are shared by all modules that are run in the same form.
    """

    samples: tuple[Tensor, ...]
    device: Cuda
    _placed: dict[Form, list[tuple[Tensor, ...]]] = field(default_factory=dict)

    def placed(self, form: Form) -> list[tuple[Tensor, ...]]:
        """Return the feeds on the device, in the number type and memory format of a form."""
        import torch

        form = replace(form, graph=False)  # the inputs of a graph are no others
        if form not in self._placed:
            self._placed[form] = [
                tuple(
                    place(sample[torch.from_numpy(row)], form, self.device)
                    for sample in self.samples
                )
                for row in feed_indices(len(self.samples[0]), form.batch)
            ]
        return self._placed[form]

    def clear(self) -> None:
        self._placed.clear()


def module_candidate(
    module: nn.Module, form: Form, feeds: Feeds, expected: np.ndarray, device: Cuda
) -> Candidate:
    """Return a copy of a module on the device, over rotating real samples, to time and check.

    `expected` are the float32 outputs of the verified file on the CPU, (M, classes). The copy that
    feeds a graph is part of its seconds. Raises what `open_module` raises.
    """
    inputs, rows = feeds.placed(form), feed_indices(len(expected), form.batch)

    def check(number: int, outputs: Tensor) -> str:
        on_cpu = outputs.detach().float().cpu().numpy()
        return differs(on_cpu, expected, rows[number], TOLERANCE[form.dtype])

    run = open_module(module, form, inputs[0], device)
    return rotating(run, inputs, check, device.stopwatch)


def file_candidate(
    session: ProviderSession,
    samples: Sequence[np.ndarray],
    expected: np.ndarray,
    batch: int,
    tolerance: float,
) -> Candidate:
    """Return a session over rotating real samples on the device, to time and check.

    `expected` are the file's outputs on the CPU, (M, classes). Raises ValueError if the samples
    do not suit the file.
    """
    rows, arrays = feeds_of(samples, batch)

    def check(number: int, binding: Any) -> str:
        return differs(binding.copy_outputs_to_cpu()[0], expected, rows[number], tolerance)

    bindings = [session.bind(inputs) for inputs in by_name(session, arrays)]
    return rotating(session.run_bound, bindings, check)


def differs(outputs: np.ndarray, expected: np.ndarray, row: np.ndarray, allowed: float) -> str:
    """Return what is wrong with the outputs of a timed run in plain English, or ''."""
    off = deviation(outputs, expected, row)
    if off <= allowed:
        return ""
    if not np.isfinite(outputs).all():
        return "some outputs of the timed runs are not finite"
    return (
        f"the outputs of the timed runs differ from those on the CPU by {off:.0%} of their "
        f"spread, and {allowed:.0%} is allowed"
    )


def faster_layout(
    module: nn.Module, form: Form, feeds: Feeds, expected: np.ndarray, device: Cuda
) -> str:
    """Return the memory format in which a module is faster in a form, by a short timing of both.

    It comes before the timing that counts, so that no figure is the better of two. A graph is
    timed as a graph: without what Python costs, another format may be the faster. Without an
    input of four dimensions, and where neither can be timed, it is contiguous. Raises what
    `module_candidate` raises, if it does for both.
    """
    if not any(sample.dim() == 4 for sample in feeds.samples):
        return CONTIGUOUS
    candidates: dict[str, Candidate] = {}
    failed: list[Exception] = []
    for layout in (CONTIGUOUS, CHANNELS_LAST):
        own = replace(form, layout=layout)
        try:
            candidates[layout] = module_candidate(module, own, feeds, expected, device)
        except Exception as error:
            failed.append(error)
    if not candidates:
        raise failed[0]
    series = interleave(candidates, PILOT, seed=0)
    sound = {name: float(np.median(s.medians)) for name, s in series.items() if not s.error}
    return min(sound, key=lambda name: sound[name], default=CONTIGUOUS)


def take_turns(
    makers: Mapping[str, Maker],
    *,
    baseline: str,
    batch: int,
    device: Cuda,
    plan: Plan,
    repetitions: int,
) -> RawTimings:
    """Time candidates against each other and against a second copy of the baseline.

    `plan` is that of one repetition. The result's one setting is that of the batch size. What
    does not fit into the device's memory beside all others is timed beside the baseline alone.
    Repetitions end early if the device breaks; the reasons then stand with the candidates.
    """
    started = time.perf_counter()
    everything = {**makers, CONTROL: makers[baseline]}
    launched: list[Launched] = []
    for number in range(repetitions):
        together = partial(_together, everything, plan, device, number)
        parts = _repetition(together, list(everything), baseline)
        launched += [Launched(0, {str(batch): series}) for series in parts]
        if device.failure():
            break
    return RawTimings(
        # The levels are the CPU's: they are not timed here.
        names=(*everything, *LEVELS),
        baseline=baseline,
        settings=(Setting(0, batch).name,),
        all_threads=0,
        launched=tuple(launched),
        seconds=round(time.perf_counter() - started, 3),
        environment={},
    )


def _repetition(
    together: Callable[[list[str]], dict[str, Any]], names: list[str], baseline: str
) -> list[dict[str, Any]]:
    """Return series by candidate: of all that fit together, then of those that did not."""
    series = together(names)
    large = [name for name, one in series.items() if out_of_memory(one["error"])]
    if baseline in large:
        # The others took its place: nothing was compared.
        large = list(series)
    alone = [together([baseline, name]) for name in large if name != baseline]
    return [{k: v for k, v in series.items() if k not in large}, *alone]


def _together(
    makers: Mapping[str, Maker], plan: Plan, device: Cuda, seed: int, names: list[str]
) -> dict[str, Any]:
    """Place some candidates, time them in turns, and give back the memory (JSON)."""
    candidates, errors = make_in_random_order(
        {name: makers[name] for name in names}, seed, lambda e: f"{type(e).__name__}: {e}"
    )
    series = {name: Series(error=text) for name, text in errors.items()}
    series |= interleave(candidates, plan, seed)
    candidates.clear()
    device.free()
    return {name: asdict(series[name]) | {"error": _short(series[name].error)} for name in names}


def _short(error: str) -> str:
    text = first_line(error) if error else ""
    return f"the GPU's memory is full: {text}" if out_of_memory(text) else text
