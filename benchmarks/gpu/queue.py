"""The proofs that need a GPU, in order of worth: what is finished is kept, the rest goes on.

    python benchmarks/gpu/queue.py --seconds 540 --out DIR [--resume DIR]
        [--wheels carried/wheels] [--data carried/data]

Runs one proof after the other until the time is spent. A proof that is ended goes on from its store
the next time: `--resume` names the folder that an earlier call has left, or its parts. Needs torch,
numpy, onnx and onnxruntime; wheels of what is missing come from `--wheels`, and no registry is
asked. What is missing then is named, with the command that gets it, before any proof begins.
Results are also packed into `DIR/parts`, at most eight files of less than 16 MiB. What failed is
tried again by the next call, after everything else.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PART, PARTS = 15 * 2**20, 8
STATE, FOLDER = "queue.json", "parts"
SHRINKS = 1.2
"""How many times smaller results may become at most: tables more than that, weights less."""
GRACE = 20.0
"""Seconds that a proof has to leave what it has, and at the end those to pack it."""
FOR_TESTS = ("pytest", "hypothesis")
LEAST = 30.0
"""Seconds below which no further proof is begun."""


@dataclass(frozen=True)
class Proof:
    """A command, in the repository's root; `{out}` stands for its own folder."""

    name: str
    seconds: float
    """About how long it takes, for whoever reads the queue."""
    words: tuple[str, ...]


def bench(name: str, suite: str, seconds: float, *more: str) -> Proof:
    words = ("-m", "compress", "bench", suite, "--device", "cuda", "--out", "{out}", *more)
    return Proof(name, seconds, words)


QUEUE = (
    bench("cifar10", "cifar10", 240),
    bench("cifar10-seeds", "benchmarks/distillation/cifar10-seeds.toml", 3600),
    Proof(
        "tests",
        90,
        (
            *("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/timing/test_cuda.py"),
            *("tests/runtimes/test_onnxruntime_cuda.py", "tests/training/test_graphs.py"),
            *("tests/training/test_checkpoint.py", "tests/benchmark/test_fork_server.py"),
            "tests/zoo/test_own_pixels_taught.py",
        ),
    ),
    Proof(
        "photographs",
        120,
        (
            *("benchmarks/pretrained/throughput.py", "--out", "{out}", "--only", "rates"),
            *("--device", "cuda", "--items", "768"),
        ),
    ),
    Proof("semi-structured", 60, ("benchmarks/pruning/semi_structured.py",)),
    bench("resnet56-pruned", "benchmarks/pruning/resnet56.toml", 1200),
    bench("search", "benchmarks/search/cifar10.toml", 900),
    bench("cifar10-long", "benchmarks/distillation/cifar10-long.toml", 3600),
)


def run_queue(queue: Sequence[Proof], out: Path, seconds: float, env: dict[str, str]) -> None:
    """Run the proofs that are not finished until the time is spent; write down how each ended."""
    ends = time.monotonic() + seconds - GRACE
    state = read_state(out)
    known = {proof.name: state.get(proof.name, {}).get("status") for proof in queue}
    for proof in sorted(queue, key=lambda proof: known[proof.name] == "failed"):
        if known[proof.name] == "done":
            continue
        left = ends - time.monotonic()
        if left < LEAST:
            print(f"{proof.name}: waits for the next time ({left:.0f} s left)", flush=True)
            continue
        print(f"{proof.name}: begun, about {proof.seconds:.0f} s", flush=True)
        status, took = run_proof(proof, out, left, env)
        before = state.get(proof.name, {}).get("seconds", 0.0)
        state[proof.name] = {"status": status, "seconds": round(before + took, 1)}
        (out / STATE).write_text(json.dumps(state, indent=2) + "\n")
        print(f"{proof.name}: {status} after {took:.0f} s", flush=True)


def run_proof(proof: Proof, out: Path, left: float, env: dict[str, str]) -> tuple[str, float]:
    """Run a proof for at most `left` seconds; return how it ended, and the seconds it took."""
    folder = out / proof.name
    folder.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, *(word.replace("{out}", str(folder)) for word in proof.words)]
    started = time.monotonic()
    with open(out / f"{proof.name}.log", "a") as log:
        process = subprocess.Popen(words, cwd=ROOT, env=env, stdout=log, stderr=log)
        try:
            status = "done" if process.wait(left) == 0 else "failed"
        except subprocess.TimeoutExpired:
            status = "unfinished"
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE / 2)
            process.kill()
            process.wait()
    return status, time.monotonic() - started


def read_state(out: Path) -> dict[str, Any]:
    path = out / STATE
    return dict(json.loads(path.read_text())) if path.exists() else {}


def pack(out: Path) -> list[Path]:
    """Write all results into parts; where they are too large, without the stores' checkpoints.

    Weights hardly shrink, and a GPU waits: they are compressed at the fastest level, and what is
    too large beforehand is not tried. Raises SystemExit if even the rest is too much: the folder
    itself has it all.
    """
    parts = out / FOLDER
    shutil.rmtree(parts, ignore_errors=True)
    parts.mkdir()
    content = io.BytesIO()
    for without in ((), ("images",), ("images", ".steps")):
        inside = [path.relative_to(out) for path in sorted(out.rglob("*")) if path.is_file()]
        inside = [path for path in inside if not {FOLDER, *without} & set(path.parts)]
        if sum((out / path).stat().st_size for path in inside) > SHRINKS * PART * PARTS:
            continue
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w:gz", compresslevel=1) as archive:
            for path in inside:
                archive.add(out / path, str(path))
        if content.tell() <= PART * PARTS:
            break
    else:
        raise SystemExit(f"the results in {out} take more than {PARTS} parts")
    whole, made = content.getvalue(), []
    for number, begin in enumerate(range(0, len(whole), PART)):
        made.append(parts / f"part-{number}")
        made[-1].write_bytes(whole[begin : begin + PART])
    return made


def unpack(earlier: Path, out: Path) -> None:
    """Bring back what an earlier call has left: its folder, or the parts of it."""
    parts = sorted([*earlier.glob("part-*"), *(earlier / FOLDER).glob("part-*")])
    if (earlier / STATE).exists():
        shutil.copytree(earlier, out, dirs_exist_ok=True)
    elif parts:
        content = b"".join(part.read_bytes() for part in parts)
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
            archive.extractall(out, filter="data")
    else:
        raise SystemExit(f"{earlier} has neither {STATE} nor parts of an earlier call")


def environment(out: Path, wheels: Path | None, data: Path | None) -> dict[str, str]:
    """Return the proofs' environment; install wheels beside the results, from that folder alone."""
    env = dict(os.environ)
    paths = [str(ROOT)]
    if wheels is not None:
        site = out.resolve().with_name(f"{out.name}-site")
        files = sorted(map(str, wheels.glob("*.whl")))
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
        subprocess.run([*install, "--target", str(site), *files], check=True)
        paths.append(str(site))
    env["PYTHONPATH"] = os.pathsep.join([*paths, *filter(None, [env.get("PYTHONPATH")])])
    if data is not None:
        env["COMPRESS_DATA_ROOT"] = str(data.resolve())
    return env


def missing(env: dict[str, str]) -> list[str]:
    """Return the distributions that the proofs need and that are not there."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = [re.split(r"[^\w.-]", words)[0] for words in project["dependencies"]]
    code = (
        "import sys\nfrom importlib.metadata import PackageNotFoundError, version\n"
        "for name in sys.argv[1:]:\n"
        "    try:\n        version(name)\n    except PackageNotFoundError:\n        print(name)\n"
    )
    words = [sys.executable, "-c", code, *names, *FOR_TESTS]
    return subprocess.run(words, env=env, capture_output=True, text=True, check=True).stdout.split()


def carried(name: str) -> Path | None:
    """Return the folder of this name that was brought along, if it is there."""
    return folder if (folder := ROOT / "carried" / name).is_dir() else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--resume", type=Path)
    parser.add_argument("--wheels", type=Path, default=carried("wheels"))
    parser.add_argument("--data", type=Path, default=carried("data"))
    options = parser.parse_args()
    # This file's name is that of a module of the standard library, which others import.
    sys.path[:] = [place for place in sys.path if place != str(Path(__file__).parent)]
    started = time.monotonic()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.resume is not None and options.resume.resolve() != options.out.resolve():
        unpack(options.resume, options.out)
    env = environment(options.out, options.wheels, options.data)
    if lacking := missing(env):
        raise SystemExit(
            f"not installed here: {', '.join(lacking)}. Where there is a registry, get them by\n"
            f"    pip download --only-binary :all: --python-version 3.12 --no-deps "
            f"--dest carried/wheels {' '.join(lacking)}\n"
            f"(torchvision: the version that goes with torch here), and what these need in turn"
        )
    run_queue(QUEUE, options.out, options.seconds - (time.monotonic() - started), env)
    for part in pack(options.out):
        print(part)


if __name__ == "__main__":
    main()
