"""Random texts into the parsers of chains, model names and suites: no crash but the stated error.

    python benchmarks/robustness/fuzz.py --out reports/robustness [--minutes 10]

Hypothesis makes the texts, and shrinks one that crashes a parser: chains as the grammar has them,
with any options and values; texts of pieces of the grammar; mutated real ones; any characters.
"""

from __future__ import annotations

import argparse
import random
import string
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import MISSING, fields
from importlib import resources
from pathlib import Path
from typing import Any, cast

from common import publish, table
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

from compress.benchmark.plan.suite import parse_suite
from compress.chain_parser import parse_model_name
from compress.compressor import Compressor
from compress.errors import UserError
from compress.techniques import chain, techniques

PIECES = [
    *("train", "distill", "quantize", "repeat", "prune_channels", "cast", "finetune", "none"),
    *("(", ")", "[", "]", "{", "}", ",", "=", "->", ">>", "-", ">", "*", "**", ":", ";", ".", "@"),
    *("epochs", "student", "macs", "teacher", "schedule", "temperature", "sparsity", "width"),
    *("loss", "hints", "kd()", "logits(weight=0.1)", "fitnets", "weight", "beta"),
    *("1", "0", "-1", "0.5", "1e999", "9" * 50, "0x10", "1_0", "True", "None", "nan", "inf", "1j"),
    *("'mlp'", '"x', "'''", "b'x'", "f'{x}'", "\\", "\n", "\t", " ", "\0", "\ufeff", "é", "\ud800"),
    *("lambda: 0", "__import__('os')", "not ", "if", "await ", "torchvision:", "file.py:make"),
    *("chains", "data", "model", "[[", "]]", "teachers", "#", "seeds", "= [", "1979-05-27", '"""'),
]
SEEDS = [
    "distill(student='cnn-small', epochs=3) -> quantize()",
    "repeat(3, prune_channels(macs=0.5) -> distill(epochs=1), schedule='cubic') -> quantize()",
    "distill(loss=[dkd(beta=1.0), logits(weight=0.1)], hints=fitnets(layers=['a:b']), epochs=1)",
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


EXAMPLES = 2000
"""Of one hunt by hypothesis; then the next begins, with another seed."""

TECHNIQUES = techniques()
WORDS = ["mlp", "same", "baseline", "input", "cubic", "linear", "cosine", "dkd", "best", "", "a b"]
VALUES = st.recursive(
    st.one_of(
        *(st.integers(), st.integers(0, 9), st.floats(), st.floats(0, 1), st.booleans()),
        *(st.none(), st.sampled_from(WORDS), st.text(max_size=5)),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=3), inner, max_size=2),
    ),
    max_leaves=4,
)


@st.composite
def steps(draw: st.DrawFn) -> str:
    """Return a step with some of its options, their usual values or any."""
    name = draw(st.sampled_from(sorted(TECHNIQUES)))
    options = fields(cast(Any, TECHNIQUES[name]))
    usual = {item.name: 0.5 if item.default is MISSING else item.default for item in options}
    needed = [item.name for item in options if item.default is MISSING]
    chosen = draw(st.lists(st.sampled_from([*usual, "x"]), max_size=3, unique=True))
    if draw(st.integers(0, 9)):
        chosen = list(dict.fromkeys([*needed, *(option for option in chosen if option != "x")]))
    values = (
        draw(VALUES) if draw(st.integers(0, 3)) == 0 else usual.get(option) for option in chosen
    )
    written = (f"{option}={value!r}" for option, value in zip(chosen, values, strict=True))
    return f"{name}({', '.join(written)})"


def chained(step: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.lists(step, min_size=1, max_size=4).map(" -> ".join)


CHAINS = st.recursive(
    chained(steps()),
    lambda inner: chained(st.builds("repeat({}, {})".format, st.integers(-1, 9), inner) | steps()),
    max_leaves=4,
)
TEXTS = st.randoms(use_true_random=False).map(text)


def hunt(
    texts: st.SearchStrategy[str], seed: int, until: float, counts: Counter[tuple[str, str]]
) -> list[tuple[str, str]]:
    """Give texts to every parser; return crashes, each with the shortest text that causes it."""
    last = ""

    @seeded(seed)
    @settings(
        max_examples=EXAMPLES,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    @given(texts)
    def check(text: str) -> None:
        nonlocal last
        if time.monotonic() > until:
            return
        last = text
        for name, parse in PARSERS.items():
            end = "crashed"
            try:
                parse(text)
                end = "parsed"
            except UserError:
                end = "refused"
            finally:
                counts[name, end] += 1

    try:
        check()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # that is what is looked for
        return [(f"{type(error).__name__}: {error}"[:150], last[:300])]
    return []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    until = time.monotonic() + 60 * options.minutes
    counts: Counter[tuple[str, str]] = Counter()
    crashes: dict[str, str] = {}
    seed = options.seed
    while time.monotonic() < until:
        for texts in (CHAINS, TEXTS):
            crashes |= dict(hunt(texts, seed, until, counts))
            seed += 1
    lines = [
        (name, *(counts[name, end] for end in ("parsed", "refused", "crashed"))) for name in PARSERS
    ]
    parts = [table(("parser", "parsed", "refused", "crashed"), lines)]
    parts.append(f"{options.minutes:g} minutes of hypothesis, seeds from {options.seed}.\n")
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
