"""One of several processes that do a step together: see test_ranks.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from bench_fixtures import fresh_model, make_bench, small_digits
from safetensors.torch import save_file

from compress.compressor import run
from compress.ranks import join, leave
from compress.techniques import chain


def trained(text: str, out: Path) -> None:
    """Run a chain on the digits; leave its weights and its curve in a folder."""
    data = small_digits()
    start = fresh_model(data, "mlp(width=32)")
    context = make_bench(data, teacher=start)
    result = run(chain(text), start, context)
    out.mkdir(parents=True)
    save_file(result.module.state_dict(), out / "weights.safetensors")
    (out / "rows.json").write_text(json.dumps(context.log.rows))


def main(rank: int, count: int, folder: Path, chains: list[str]) -> None:
    torch.set_num_threads(1)
    join(rank, count, "cpu", folder / "meeting")
    for number, text in enumerate(chains):
        trained(text, folder / str(number) / str(rank))
    leave()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
