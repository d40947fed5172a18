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
    torch.set_num_threads(1)
    data = small_digits()
    start = fresh_model(data, "mlp(width=32)")
    context = make_bench(data, teacher=start)
    result = run(chain(text), start, context)
    out.mkdir()
    save_file(result.module.state_dict(), out / "weights.safetensors")
    (out / "rows.json").write_text(json.dumps(context.log.rows))


def main(rank: int, count: int, text: str, folder: Path) -> None:
    join(rank, count, "cpu", folder / "meeting")
    trained(text, folder / str(rank))
    leave()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
