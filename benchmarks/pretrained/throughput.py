"""Does training wait for JPEG files? Images per second at 224 pixels, and memory on a large folder.

    python benchmarks/pretrained/throughput.py --out reports/pretrained [--root ../shared/data]

Of photographs, for ResNet-18 and EfficientNet-Lite0: decoding alone (beside torch's DataLoader
with a worker process for each core and torchvision's transforms, from its second epoch on),
training alone (the same images in memory), and training from files, decoded anew and as the store
keeps them, there also with random-resized crops and colour jitter. All take turns, round by round.
Then a training in a step whose memory limit is a fifth of the images.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas
import psutil
import torch
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from compress.compressor import run, seed_everything
from compress.context import StepContext, StepLog
from compress.results.derive import read_results
from compress.system.environment import cpu_info
from compress.system.files import write_atomic
from compress.system.memory import family
from compress.tasks.base import Data, Split, Subset, TensorSplit
from compress.techniques import chain
from compress.training import batch_loader
from compress.zoo.data import load_data
from compress.zoo.image_files import ImageFiles, keep_pixels
from compress.zoo.models import fresh

NETS = ("torchvision:resnet18", "timm:tf_efficientnet_lite0")
BATCH = 32
LIMIT = 2.0
"""Gigabytes of a step's memory."""
TIMES = 5
SIZE = 224
CROPS = "flip-crop"
PHOTOS = "flip-resizedcrop-jitter"


def decoding(split: Split) -> float:
    """Return images per second of reading a split in batches."""
    started = time.perf_counter()
    for _ in split.batches(BATCH):
        pass
    return len(split) / (time.perf_counter() - started)


def loading(folder: Path, index: list[int]) -> Callable[[], float]:
    """Return what gives the images per second of torch's DataLoader, as users write it."""
    steps = [v2.Resize(SIZE), v2.CenterCrop(SIZE), v2.PILToTensor()]
    images = torch.utils.data.Subset(ImageFolder(folder, v2.Compose(steps)), index)
    loader = DataLoader(images, BATCH, num_workers=os.cpu_count() or 1, persistent_workers=True)

    def rate() -> float:
        started = time.perf_counter()
        for _ in loader:
            pass
        return len(index) / (time.perf_counter() - started)

    rate()  # its workers start with the first epoch
    return rate


def training(data: Data, split: Split, net: str, device: torch.device, augment: str) -> float:
    """Return images per second of an epoch on a split, as the step's log has them."""
    seed_everything(0)
    task = replace(data.task, augment=augment)  # type: ignore[type-var]
    context = StepContext(task=task, train=split, device=device, seed=0, log=StepLog())
    run(chain(f"finetune(epochs=1, batch_size={BATCH})"), fresh(net, task), context)
    [row] = [row for row in context.log.rows if row["kind"] == "epoch"]
    return float(row["samples_per_second"])


def rates(
    root: Path, items: int, rounds: int, device: torch.device, store: Path
) -> dict[str, list[float]]:
    """Return images per second of every way, by its words; all ways take turns."""
    ways: dict[str, Callable[[], float]] = {}
    memory: Split | None = None
    place = root / "imagenet-sample" / "val"
    for words, keeps in (("decoded", False), ("kept in the store", True)):
        data = load_data(f"imagefolder:{place.parent}")
        if keeps:
            keep_pixels(data, store)
        files = Subset(data.test, torch.arange(items))
        raw, targets = files.fetch(torch.arange(items))
        memory = memory or TensorSplit(raw, targets)
        ways[f"read alone, {words}"] = partial(decoding, files)
        for net in NETS:
            ways[f"{net}, in memory"] = partial(training, data, memory, net, device, CROPS)
            ways[f"{net}, {words}"] = partial(training, data, files, net, device, CROPS)
            if keeps:
                ways[f"{net}, {words}, {PHOTOS}"] = partial(
                    training, data, files, net, device, PHOTOS
                )
    assert isinstance(data.test, ImageFiles)
    numbers = {path: number for number, (path, _) in enumerate(ImageFolder(place).samples)}
    chosen = [numbers[str(path)] for path in data.test.files[:items]]
    ways["read alone, torch's DataLoader"] = loading(place, chosen)
    found: dict[str, list[float]] = defaultdict(list)
    batch_loader.MEMORY_SHARE = 0.0  # as if the images did not fit
    for _ in range(rounds):
        for words, way in ways.items():
            found[words].append(way())
    return found


def table(found: dict[str, list[float]], items: int) -> list[str]:
    """Return the rates as lines of Markdown, and how near training from files is to its bound."""
    middle = {words: statistics.median(values) for words, values in found.items()}
    lines = [
        f"| {items} photographs | images/s, median | lowest to highest |",
        "| --- | --: | --: |",
    ]
    lines += [
        f"| {words} | {middle[words]:.1f} | {min(values):.1f} to {max(values):.1f} |"
        for words, values in found.items()
    ]
    lines.append("")
    for net in NETS:
        for how in ("decoded", "kept in the store", f"kept in the store, {PHOTOS}"):
            read = middle[f"read alone, {how.removesuffix(f', {PHOTOS}')}"]
            bound = min(read, middle[f"{net}, in memory"])
            share = middle[f"{net}, {how}"] / bound
            lines.append(f"- {net}, {how}: {share:.2f} of the slower of reading and training.")
    return lines


def large_folder(root: Path, work: Path) -> tuple[Path, int]:
    """Return a folder of links to photographs whose pixels are so many times the limit."""
    photographs = sorted((root / "imagenet-sample").rglob("*.jpg"))
    count = int(TIMES * LIMIT * 1e9 / (3 * SIZE * SIZE))
    for number in range(count):
        part = "train" if number % 100 else "test"
        place = work / "large" / part / f"class{number % 7}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.jpg").symlink_to(photographs[number % len(photographs)].resolve())
    return work / "large", count


def peak_of(process: subprocess.Popen[Any]) -> int:
    """Return the most bytes that one of a run's steps has held while it ran."""
    most = 0
    while process.poll() is None:
        for pid in family(process.pid):
            try:
                one = psutil.Process(pid)
                if one.name() == "compress-step":
                    most = max(most, one.memory_info().rss)
            except psutil.Error:
                continue
        time.sleep(0.1)
    return most


def in_little_memory(root: Path, work: Path) -> str:
    """Train in steps whose memory limit is a fifth of the pixels; return in words how it went."""
    folder, count = large_folder(root, work)
    words = ["run", "--data", f"imagefolder:{folder}", "--model", "mlp(width=8)"]
    words += ["--baseline", f"train(epochs=2, batch_size={BATCH})"]
    words += ["--chain", "prune_weights(sparsity=0.5)", "--step-memory", str(LIMIT)]
    words += ["--timing-seconds", "1", "--out", str(work / "run")]
    process = subprocess.Popen([sys.executable, "-m", "compress", *words])
    peak = peak_of(process)
    rows = read_results(work / "run").rows
    states = [row["status"] + (row["error"] and f" ({row['error']})") for row in rows]
    pixels = sum(path.stat().st_size for path in (work / "run").rglob("*.pixels"))
    words_of_rates = ""
    if (curves := work / "run" / "curves.csv").exists():
        speeds = pandas.read_csv(curves).samples_per_second.round()
        words_of_rates = (
            f" {speeds[0]:.0f} images/s in the first epoch, {speeds[1]:.0f} in the second."
        )
    return (
        f"A folder of {count:,} photographs, {count * 3 * SIZE**2 / 1e9:.1f} GB of pixels "
        f"({pixels / 1e9:.1f} GB in the store), trained on twice in steps of at most {LIMIT:g} GB: "
        f"rows {', '.join(states)}; a step held at most {peak / 1e9:.2f} GB.{words_of_rates}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    root = os.environ.get("COMPRESS_DATA_ROOT", "../shared/data")
    parser.add_argument("--root", type=Path, default=Path(root))
    parser.add_argument("--items", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("rates", "memory"))
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    cpu, features = cpu_info()
    device = torch.device(options.device)
    machine = f"{cpu} ({', '.join(features)}), {torch.get_num_threads()} threads."
    if device.type == "cuda":
        machine = f"Trained on {torch.cuda.get_device_name()}, read by {machine}"
    with tempfile.TemporaryDirectory() as place:
        if options.only != "memory":
            lines = [f"# Training from JPEG files at {SIZE} pixels", ""]
            found = rates(options.root, options.items, options.rounds, device, Path(place))
            lines += table(found, options.items)
            given = f" --items {options.items} --rounds {options.rounds}"
            write(options.out / "throughput.md", [*lines, "", machine], given)
        if options.only != "rates":
            lines = ["# A folder that is larger than memory", "", ""]
            lines[2] = in_little_memory(options.root, Path(place))
            write(options.out / "memory.md", [*lines, "", machine])


def write(place: Path, lines: list[str], given: str = "") -> None:
    only = "memory" if place.stem == "memory" else "rates"
    command = f"python benchmarks/pretrained/throughput.py --only {only}{given}"
    command += " --out reports/pretrained"
    lines += ["", f"`{command}` gives it.", ""]
    write_atomic(place, "\n".join(lines).encode())
    print("\n".join(lines), flush=True)


if __name__ == "__main__":
    main()
