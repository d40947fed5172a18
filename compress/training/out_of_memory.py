"""Telling a lack of memory from other errors."""

from __future__ import annotations

import torch

OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "bad_alloc")
"""Texts of errors of torch, CUDA and oneDNN that have no type of their own."""


class OutOfMemoryElsewhere(RuntimeError):
    """Memory ran out in another of the processes that train together."""


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that the device or the machine has too little memory."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in OUT_OF_MEMORY)
