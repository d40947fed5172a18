"""AMD Quark's AutoSearchPro: calibration settings by a grid, then rounding by Optuna."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from compress.errors import first_line
from compress.system.patched import patched

TRIALS = 1000
"""More than fit in any time: the time ends the search."""
LOGGER = "auto_search.log"
ITERATIONS = {"type": "int", "low": 1000, "high": 10000, "step": 1000}
"""Of AdaRound or AdaQuant a layer. Its presets go to 20,000 and 30,000, on a GPU."""


class TimeIsOver(Exception):
    """Ends AutoSearchPro, which knows no time limit."""


class Searched(NamedTuple):
    """What a search came to."""

    content: bytes
    """The int8 file of the least error."""
    errors: list[float]
    """Those of all files that were judged, in their order."""
    broke: str
    """What ended the search before its time; '' if its time did."""


def space(items: int) -> dict[str, Any]:
    """Return its preset for 8 bits, with what onnxruntime's kernels can run, on a CPU.

    The preset has signed activations and one scale for all weights of a layer, which onnxruntime's
    CPU kernels run slowly and less exactly; here these are as for `quark_quantize()`.
    """
    learnt = {"num_iterations": ITERATIONS, "data_size": [items], "batch_size": [2]}
    learnt["early_stop"] = [True]
    return {
        "activation": ["UInt8Spec"],
        "activation_params": {
            "symmetric": [False],
            "calibration_method": ["MinMax", "Percentile", "LayerwisePercentile"],
            "scale_type": ["Float32"],
            "quant_granularity": ["Tensor"],
            "only_if": "activation",
        },
        "weight": ["Int8Spec"],
        "weight_params": {
            "symmetric": [True],
            "scale_type": ["Float32"],
            "quant_granularity": ["Channel"],
            "only_if": "weight",
        },
        "cle_algo": ["cle", None],
        "cle_params": {"cle_steps": [-1, 1], "only_if": {"cle_algo": "cle"}},
        "algorithms": ["adaround", "adaquant"],
        "adaround_params": {
            **learnt,
            "learning_rate": {"type": "float", "low": 1e-2, "high": 1e-1, "log": True},
            "only_if": {"algorithms": "adaround"},
        },
        "adaquant_params": {
            **learnt,
            "learning_rate": {"type": "float", "low": 1e-6, "high": 1e-4, "log": True},
            "only_if": {"algorithms": "adaquant"},
        },
        "OptimizeModel": [True],
        "PrintSummary": [False],
    }


def best_within(
    seconds: float,
    source: Path,
    reader: object,
    items: int,
    error: Callable[[bytes], float],
    seed: int = 0,
) -> Searched:
    """Return the int8 file of the least error that AutoSearchPro finds.

    `reader` gives the calibration `items`; `error` judges a file's content. The trial that runs
    when the time is over is finished. It writes into the working directory.

    Raises:
        Exception: whatever Quark raises, if no file has been judged by then.
    """
    import optuna
    from quark.onnx.quantization.auto_search import auto_search_pro

    errors: list[float] = []
    best = b""
    ends = time.monotonic() + seconds

    def evaluated(path: str) -> float:
        """Return what is to be large: Quark takes the difference to that of the float file."""
        nonlocal best
        if Path(path) == source:
            return 0.0
        content = Path(path).read_bytes()
        Path(path).unlink()  # it keeps the files of all trials
        found = error(content)
        if found < min(errors, default=float("inf")):
            best = content
        errors.append(found)
        if time.monotonic() >= ends:
            raise TimeIsOver
        return -found

    def samplers(logger: object) -> Mapping[str, Any]:
        return {"TPE": optuna.samplers.TPESampler(seed=seed)}

    settings = {
        "search_space": space(items),
        "two_stage_search": True,
        "search_algo": "TPE",
        "search_evaluator": evaluated,
        "direction": "minimize",
        "n_trials": TRIALS,
        "n_jobs": 1,
        "base_framework": "onnx",
        "model_input": str(source),
        "calib_data_reader": reader,
        "study_storage_db": None,
        "output_dir": "searched",
        "temp_dir": "temporary",
    }
    broke = "it had tried all of its settings"
    try:
        with patched(auto_search_pro, get_sampler_dict=samplers):
            auto_search_pro.AutoSearchPro(settings).run()
    except TimeIsOver:
        broke = ""
    except Exception as error:  # of one setting, which ends its search
        if not errors:
            raise
        broke = f"{type(error).__name__}: {first_line(error)}"
    finally:
        logger = logging.getLogger(LOGGER)
        for handler in list(logger.handlers):  # they write into a folder that is about to go
            logger.removeHandler(handler)
            with contextlib.suppress(OSError):
                handler.close()
    return Searched(best, errors, broke)
