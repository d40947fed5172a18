"""Random texts into the parsers of chains, model names and suites: no crash but the stated error.

    python benchmarks/robustness/fuzz.py --out reports/robustness [--minutes 10]

Texts are made of pieces of the grammar, of mutated real ones, and of any characters at all.
"""

from __future__ import annotations

import argparse
import random
import string
import time
from collections import Counter
from collections.abc import Callable
from importlib import resources
from pathlib import Path

from common import publish, table

from compress.compressor import Compressor
from compress.errors import UserError
from compress.harness.suite import parse_suite
from compress.language import parse_model_name
from compress.techniques import chain

PIECES = [
    *("train", "distill", "quantize", "repeat", "prune_channels", "cast", "finetune", "none"),
    *("(", ")", "[", "]", "{", "}", ",", "=", "->", ">>", "-", ">", "*", "**", ":", ";", ".", "@"),
    *("epochs", "student", "macs", "teacher", "schedule", "temperature", "sparsity", "width"),
    *("1", "0", "-1", "0.5", "1e999", "9" * 50, "0x10", "1_0", "True", "None", "nan", "inf", "1j"),
    *("'mlp'", '"x', "'''", "b'x'", "f'{x}'", "\\", "\n", "\t", " ", "\0", "\ufeff", "é", "\ud800"),
    *("lambda: 0", "__import__('os')", "not ", "if", "await ", "torchvision:", "file.py:make"),
    *("chains", "data", "model", "[[", "]]", "teachers", "#", "seeds", "= [", "1979-05-27", '"""'),
]
SEEDS = [
    "distill(student='cnn-small', epochs=3) -> quantize()",
    "repeat(3, prune_channels(macs=0.5) -> distill(epochs=1), schedule='cubic') -> quantize()",
    "torchvision:resnet18(stem='small')",
    "mine.py:make(width=2)",
    *(
        item.read_text()
        for item in resources.files("compress.suites").iterdir()
        if item.name.endswith(".toml")
    ),
]


def text(chance: random.Random) -> str:
    """Return a random text of one of the three kinds."""
    kind = chance.random()
    if kind < 0.45:
        return "".join(chance.choice(PIECES) for _ in range(chance.randint(0, 40)))
    if kind < 0.9:
        return mutated(chance.choice(SEEDS), chance)
    if kind < 0.95:
        piece = chance.choice(PIECES) + chance.choice(PIECES)
        return piece * chance.choice([10, 100, 1000, 3000])
    return "".join(chr(chance.randrange(0x110000)) for _ in range(chance.randint(0, 60)))


def mutated(seed: str, chance: random.Random) -> str:
    for _ in range(chance.randint(1, 6)):
        begin = chance.randint(0, len(seed))
        end = min(len(seed), begin + chance.choice([0, 0, 1, 1, 2, 5, 20]))
        new = chance.choice(
            [chance.choice(PIECES), chance.choice(string.printable), "", seed[:end]]
        )
        seed = seed[:begin] + new + seed[end:]
    return seed


def parse_again(given: str) -> Compressor:
    """Parse a chain; what parses has a text that parses back to it."""
    made = chain(given)
    assert chain(repr(made)) == made, "the text of a chain does not parse back to it"
    return made


PARSERS: dict[str, Callable[[str], object]] = {
    "chain": parse_again,
    "model name": parse_model_name,
    "suite": lambda given: parse_suite("fuzz", given),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    until = time.monotonic() + 60 * options.minutes
    counts: Counter[tuple[str, str]] = Counter()
    crashes: dict[str, str] = {}
    slowest = 0.0
    while time.monotonic() < until:
        given = text(chance)
        for name, parse in PARSERS.items():
            began = time.monotonic()
            try:
                parse(given)
                counts[name, "parsed"] += 1
            except UserError:
                counts[name, "refused"] += 1
            except BaseException as error:  # that is what is looked for
                if isinstance(error, KeyboardInterrupt):
                    raise
                counts[name, "crashed"] += 1
                crashes.setdefault(f"{name}: {type(error).__name__}: {error}"[:150], given[:300])
            slowest = max(slowest, time.monotonic() - began)
    lines = [
        (name, *(counts[name, end] for end in ("parsed", "refused", "crashed"))) for name in PARSERS
    ]
    parts = [table(("parser", "parsed", "refused", "crashed"), lines)]
    parts.append(
        f"{options.minutes:g} minutes, seed {options.seed}; the slowest took {slowest:.3f} s.\n"
    )
    if crashes:
        parts.append(table(("crash", "text"), [(k, repr(v)) for k, v in crashes.items()]))
    publish(
        options.out / "fuzz.md",
        "Random texts into the parsers",
        parts,
        "python benchmarks/robustness/fuzz.py --out reports/robustness"
        f" --minutes {options.minutes:g}",
    )


if __name__ == "__main__":
    main()
