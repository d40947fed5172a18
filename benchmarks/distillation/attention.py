"""Scaled dot product attention on the CPU, forwards and backwards: bfloat16 against float32.

    python benchmarks/distillation/attention.py --out reports/distillation

As in a training in bfloat16, the inputs are bfloat16 and so is what comes out; in between one way
computes in bfloat16, the other in float32. Both take turns.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from common import publish, table
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as attention

SHAPES = (
    ("ViT-tiny of this project", 128, 4, 65, 32),
    ("DeiT-tiny", 16, 3, 197, 64),
    ("ViT-B/16", 4, 12, 197, 64),
    ("BERT-base, 128 tokens", 8, 12, 128, 64),
    ("BERT-base, 512 tokens", 2, 12, 512, 64),
)
"""A name, items, heads, tokens, and values of each head."""
ROUNDS = 7


def in_bfloat16(inputs: list[Tensor]) -> Tensor:
    query, key, value = inputs
    return attention(query, key, value)


def in_float32(inputs: list[Tensor]) -> Tensor:
    return in_bfloat16([tensor.float() for tensor in inputs]).bfloat16()


def seconds(way: Callable[[list[Tensor]], Tensor], inputs: list[Tensor], back: bool) -> float:
    started = time.perf_counter()
    output = way(inputs)
    if back:
        output.sum().backward()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    lines = []
    for label, *shape, values in SHAPES:
        inputs = [
            torch.randn(*shape, values, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)
        ]
        least = dict.fromkeys(
            [(way, back) for back in (False, True) for way in (in_bfloat16, in_float32)],
            float("inf"),
        )
        for _ in range(ROUNDS):
            for way, back in least:
                least[way, back] = min(least[way, back], seconds(way, inputs, back))
        for back, passes in ((False, "forward"), (True, "forward, backward")):
            slow, fast = (1000 * least[way, back] for way in (in_bfloat16, in_float32))
            figures = (f"{value:.2f}" for value in (slow, fast, slow / fast))
            lines.append([label, "x".join(map(str, [*shape, values])), passes, *figures])
    heads = ("attention of", "shape", "passes", "bfloat16 ms", "float32 ms", "ratio")
    publish(
        options.out / "attention.md",
        "Attention on the CPU: bfloat16 against float32",
        [
            table(heads, lines),
            f"Shape: items, heads, tokens, values a head. The least of {ROUNDS} rounds, in turns, "
            f"torch {torch.__version__}, {torch.get_num_threads()} threads. Ratio: how many times "
            "as fast float32 is. In both ways inputs and outputs are bfloat16.\n",
        ],
        "python benchmarks/distillation/attention.py --out reports/distillation",
    )


if __name__ == "__main__":
    main()
