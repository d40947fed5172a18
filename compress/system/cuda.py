"""The GPU as torch sees it. All calls to CUDA that the timing makes are here.

So the rest can be tested with a fake device.
"""

from __future__ import annotations

import contextlib
import functools
import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from compress.errors import first_line, out_of_memory

Call = Callable[[int], Any]


@dataclass(frozen=True)
class Captured:
    """A CUDA graph: `replay()` computes anew, into the same `outputs`.

    All that the graph holds of weights and inputs is their addresses. So `run`, to which they
    belong, must live as long as the graph is replayed: keep the whole object.
    """

    replay: Callable[[], Any]
    outputs: Any
    run: Callable[[], Any]


class Cuda:
    """The first CUDA device."""

    name = "cuda"
    """What torch calls it."""
    uncapturable = ""
    """Why no graph is captured any more, or ''."""

    def absent(self) -> str:
        """Return why there is no device, or ''."""
        return "" if torch.cuda.is_available() else "torch finds no CUDA device"

    def lacks(self, dtype: str) -> str:
        """Return why the device cannot compute in a number type, or ''."""
        if dtype == "bfloat16" and not torch.cuda.is_bf16_supported(including_emulation=False):
            return "this GPU does not compute in bfloat16"
        return ""

    def failure(self) -> str:
        """Return what broke the device for this process (an illegal access, say), or ''.

        After such an error every later call fails, whatever it is.
        """
        if self.absent():
            return ""
        try:
            torch.ones(1, device=self.name).add_(1).item()
        except torch.OutOfMemoryError:
            return ""
        except RuntimeError as error:
            return first_line(error)
        return ""

    @contextlib.contextmanager
    def settled(self) -> Iterator[None]:
        """float32 means float32 (no TF32), and cuDNN looks for its fastest algorithm per shape.

        `allow_tf32` is left alone: torch raises an error where it is read in a process that has
        set `fp32_precision` (torch's notes on CUDA semantics, TensorFloat-32).
        """
        cudnn: Any = torch.backends.cudnn
        places: list[Any] = [torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn]
        before = [place.fp32_precision for place in places]
        benchmark = cudnn.benchmark
        try:
            for place in places:
                place.fp32_precision = "ieee"
            cudnn.benchmark = True
            yield
        finally:
            for place, precision in zip(places, before, strict=True):
                place.fp32_precision = precision
            cudnn.benchmark = benchmark

    @functools.cached_property
    def _events(self) -> tuple[Any, Any]:
        return torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def stopwatch(self, call: Call, index: int) -> tuple[float, Any]:
        """Run `call(index)` on an idle device; return its seconds by CUDA events, and its outputs.

        The device waits while Python launches kernel after kernel: that is part of the seconds,
        because it is part of what a caller waits for.
        """
        start, end = self._events
        torch.cuda.synchronize()
        start.record()
        outputs = call(index)
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3, outputs

    def capture(self, run: Callable[[], Any]) -> Captured:
        """Capture what `run()` launches as a CUDA graph.

        Raises RuntimeError for what cannot be captured, such as a value that is read back; from
        then on for everything, because torch's allocator may go on as if that capture were still
        under way, and fail in the next one (mended by its pull request 180395 of 2026).
        """
        if self.uncapturable:
            raise RuntimeError(self.uncapturable)
        self._warm(run)
        try:
            replay, outputs = self._record(run)
        except Exception as error:
            if not out_of_memory(str(error)):
                self.uncapturable = (
                    f"no graph is tried after one that could not be captured: {first_line(error)}"
                )
            raise
        return Captured(replay, outputs, run)

    def _warm(self, run: Callable[[], Any]) -> None:
        """Run on a side stream before a capture, as torch's notes on CUDA graphs do."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                run()
        torch.cuda.current_stream().wait_stream(side)

    def _record(self, run: Callable[[], Any]) -> tuple[Callable[[], Any], Any]:
        """Return the replay of a new graph, and the outputs that it writes."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = run()
        return graph.replay, outputs

    def held(self) -> int:
        """Return the bytes that tensors hold now.

        cuBLAS holds a workspace from its first product on: it is allocated here, so that it counts
        for no module.
        """
        ones = torch.ones(8, 8, device=self.name)
        torch.nn.functional.linear(ones, ones, ones[0]) @ ones
        del ones
        torch.cuda.synchronize()
        return int(torch.cuda.memory_allocated())

    def peak(self, run: Callable[[], Any]) -> int:
        """Return the most bytes that tensors held while `run()` went on."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return int(torch.cuda.max_memory_allocated())

    def free(self) -> None:
        """Give back the memory of everything that is no longer referred to."""
        gc.collect()
        with contextlib.suppress(RuntimeError):  # of a broken device, which `failure` reports
            torch.cuda.empty_cache()

    def about(self) -> dict[str, Any]:
        """Return what the figures depend on (JSON)."""
        properties = torch.cuda.get_device_properties(0)
        return {
            "name": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "memory_bytes": properties.total_memory,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
