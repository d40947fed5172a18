"""One of several processes that do a step together: see test_ranks.py."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from bench_fixtures import fresh_model, make_context, small_digits
from safetensors.torch import save_file

from compress.compressor import run
from compress.errors import StepFailed
from compress.ranks import join, leave, ranks
from compress.techniques import chain


def trained(text: str, out: Path) -> None:
    """Run a chain on a net and the digits; leave its weights and its curve in a folder."""
    net, _, text = text.partition(": ")
    data = small_digits()
    start = fresh_model(data, net)
    context = make_context(data, teacher=start)
    result = run(chain(text), start, context)
    out.mkdir(parents=True)
    save_file(result.module.state_dict(), out / "weights.safetensors")
    (out / "rows.json").write_text(json.dumps(context.log.rows))


class Failing:
    """A cache whose disk is full in the first process, and that the others only look at."""

    def get(self, key: str, temporary: bool = False) -> None:
        return None

    def put(self, key: str, fill: Any, temporary: bool = False) -> None:
        if ranks().first:
            raise OSError("the disk is full")

    def drop(self, key: str) -> None:
        pass


def disagreements(folder: Path) -> None:
    """What one process meets alone, all get to know."""
    found: list[str] = []
    for error in (ValueError("first"), type("Own", (Exception,), {})("own")):
        try:
            ranks().agreed(lambda error=error: raise_it(error))
        except Exception as raised:
            found.append(f"{type(raised).__name__} {raised}")
    found.append(str(ranks().anywhere(ranks().rank == 1)))
    found.append(str(ranks().agreed(lambda: ranks().rank)))
    data = small_digits()
    start = fresh_model(data, "mlp(width=16)")
    context = replace(
        make_context(data, teacher=start), cache=Failing(), scope="s", setting="a", code="c"
    )
    run(chain("distill(student='mlp(width=8)', epochs=4, views=2, batch_size=50)"), start, context)
    notes = [note for note in context.log.notes if "the disk did not take it" in note]
    found.append(f"{len(notes)} note")
    try:
        run(chain(f"train(epochs=1, batch_size={2 * ranks().count - 1})"), start, context)
    except StepFailed as error:
        found.append(str(error))
    (folder / f"agreed-{ranks().rank}.json").write_text(json.dumps(found))


def raise_it(error: Exception) -> None:
    raise error


def main(rank: int, count: int, folder: Path, chains: list[str]) -> None:
    torch.set_num_threads(1)
    join(rank, count, "cpu", folder / "meeting")
    for number, text in enumerate(chains):
        trained(text, folder / str(number) / str(rank))
    disagreements(folder)
    leave()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
