"""Does a run on one's own pretrained net answer as a plain script does, and what does it cost?

    python benchmarks/pretrained/same_answers.py --out DIR [--root ../shared/data] [--report DIR]
        [--times 3]

EfficientNet-Lite0 on 1,000 photographs: the command line with no option but data, model and
weights, against a script of timm and onnxruntime alone, with timm's own transforms. Compares every
answer, and the pixels of 50 photographs with timm's and torchvision's transforms; times a row of
the run beside plain decoding and one pass of onnxruntime at batch 32, several times in turns, as a
machine's speed drifts; each run has a folder of its own, and keeps nothing of the one before.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import timm
import torchvision
from PIL import Image

from compress.deploy.session import predict, session
from compress.results.derive import Derived, read_results
from compress.system.environment import cpu_info
from compress.system.files import write_atomic
from compress.tasks.base import prepared_batches
from compress.tasks.preprocessing import Settings
from compress.zoo.data import load_data
from compress.zoo.image_files import ImageFiles
from compress.zoo.pretrained import pretrained

MODEL = "tf_efficientnet_lite0"
BATCH = 32
PHOTOGRAPHS = 50
WEIGHTS = "weights/tf_efficientnet_lite0-imagenet.safetensors"


def config_of(name: str) -> dict[str, Any]:
    """Return the arguments of timm's own transform for a model."""
    known = timm.get_pretrained_cfg(name)
    assert known is not None
    return dict(timm.data.resolve_data_config(pretrained_cfg=known.to_dict()))


def plain_answers(onnx: Path, files: list[Path]) -> tuple[np.ndarray, float]:
    """Return the answers by timm's own transform and onnxruntime, and the seconds they took."""
    transform = timm.data.create_transform(**config_of(MODEL))
    started = time.perf_counter()
    session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
    logits = []
    for begin in range(0, len(files), BATCH):
        images = [Image.open(path).convert("RGB") for path in files[begin : begin + BATCH]]
        batch = np.stack([transform(image).numpy() for image in images])
        logits.append(session.run(None, {"input": batch})[0])
    return np.concatenate(logits).argmax(1), time.perf_counter() - started


def largest_difference(files: list[Path]) -> dict[str, int]:
    """Return the largest difference of our pixels to the libraries' own, in levels of 255."""
    theirs = {f"timm:{MODEL}": timm.data.create_transform(**config_of(MODEL), normalize=False)}
    ours: dict[str, Settings] = {}
    known = pretrained(f"timm:{MODEL}", "DEFAULT")
    assert known is not None
    ours[f"timm:{MODEL}"] = known.settings
    for name in ("resnet18", "resnet50", "efficientnet_b0", "swin_t", "inception_v3"):
        weights = torchvision.models.get_model_weights(name).DEFAULT.transforms()
        weights.mean, weights.std = [0.0] * 3, [1.0] * 3
        theirs[f"torchvision:{name}"] = lambda image, t=weights: t(image) * 255
        found = pretrained(f"torchvision:{name}", "DEFAULT")
        assert found is not None
        ours[f"torchvision:{name}"] = found.settings
    worst = dict.fromkeys(theirs, 0)
    for path in files:
        image = Image.open(path).convert("RGB")
        for name, transform in theirs.items():
            pixels = transform(image).numpy().transpose(1, 2, 0).round().astype(int)
            own = ours[name].fit((1, 1))(image).astype(int)
            worst[name] = max(worst[name], int(np.abs(pixels - own).max()))
    return worst


def row_seconds(results: Derived) -> list[float]:
    """Return the seconds that each row took to be measured."""
    return [
        line["seconds"]
        for record in results.records
        for line in record.log
        if line["kind"] == "measuring"
    ]


def answers_of(folder: Path, onnx_path: str) -> np.ndarray:
    """Return the classes that a row's file gave to the test items."""
    with np.load(folder / "raw" / f"{Path(onnx_path).parent.name}.npz") as answers:
        return np.asarray(answers["predictions"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--root", type=Path, default=Path("../shared/data"))
    parser.add_argument("--report", type=Path, help="Where to write same_answers.md.")
    parser.add_argument("--times", type=int, default=3, help="Runs, each beside a plain script.")
    options = parser.parse_args()
    if options.times < 1:
        parser.error("--times is at least 1")
    source = f"imagefolder:{options.root / 'imagenet-sample'}"
    words = ["run", "--data", source, "--model", f"timm:{MODEL}", "--weights"]
    words += [str(options.root / WEIGHTS), "--chain", "quantize()", "--out"]
    known = pretrained(f"timm:{MODEL}", "DEFAULT")
    assert known is not None
    data = load_data(source, usual=known.settings)
    assert isinstance(data.test, ImageFiles)
    assert isinstance(data.validation, ImageFiles)
    plain, rows, differ = [], [], 0
    for number in range(options.times):
        folder = options.out / str(number)
        subprocess.run([sys.executable, "-m", "compress", *words, str(folder)], check=True)
        results = read_results(folder)
        base = results.rows[0]
        theirs, seconds = plain_answers(folder / base["onnx_path"], data.test.files)
        ours = answers_of(folder, base["onnx_path"])
        differ = max(differ, int((ours != theirs).sum()))
        plain.append(seconds)
        rows.append(row_seconds(results))
    file = folder / base["onnx_path"]
    held, _ = plain_answers(file, data.validation.files)
    batches = [inputs for inputs, _ in prepared_batches(data.task, data.validation, BATCH)]
    ours_held = predict(session(file.read_bytes()), batches).argmax(1)
    right = int((theirs == data.test.labels.numpy()).sum())
    right += int((held == data.validation.labels.numpy()).sum())
    every = data.test.files[:: len(data.test.files) // PHOTOGRAPHS][:PHOTOGRAPHS]
    found = {
        "preprocessing": results.about["preprocessing"],
        "test items": len(ours),
        "answers that differ": differ,
        "held-out items": len(held),
        "of them differ": int((ours_held != held).sum()),
        "accuracy of the test items": base["accuracy"],
        "plain accuracy of all items": right / (len(theirs) + len(held)),
        "plain seconds": [round(one, 1) for one in plain],
        "seconds of each row": [[round(one, 1) for one in run] for run in rows],
        "largest difference in levels": largest_difference(every),
    }
    print(json.dumps(found, indent=2))
    if options.report is not None:
        write_atomic(options.report / "same_answers.md", report(found).encode())


def report(found: dict[str, Any]) -> str:
    """Return what was found as a page."""
    plain, runs = found["plain seconds"], found["seconds of each row"]
    differences = found["largest difference in levels"]
    cpu, features = cpu_info()
    times = [[row / one for row in run] for run, one in zip(runs, plain, strict=True)]
    first, second = (statistics.median(column) for column in zip(*times, strict=True))
    lines = [
        "# The same answers as a plain script",
        "",
        f"EfficientNet-Lite0, {found['preprocessing']}: {found['answers that differ']} of "
        f"{found['test items']} answers differ from those of timm's own transform and onnxruntime,",
        f"and {found['of them differ']} of the {found['held-out items']} to the photographs that "
        f"are for calibration and validation (of which the run's table has none); "
        f"{found['accuracy of the test items']:.2%} of the test items are right, "
        f"{found['plain accuracy of all items']:.1%} of all.",
        "",
        f"Measuring the first row takes {first:.2f} times as long as plain decoding and one pass "
        f"at batch {BATCH}, the second (int8) {second:.2f} times: medians of {len(plain)} runs.",
        "",
        "| run | plain, s | first row, s | times | second row, s | times |",
        "| --: | --: | --: | --: | --: | --: |",
        *(
            f"| {number} | {one} | {run[0]} | {ratio[0]:.2f} | {run[1]} | {ratio[1]:.2f} |"
            for number, (one, run, ratio) in enumerate(zip(plain, runs, times, strict=True), 1)
        ),
        "",
        f"| pixels of {PHOTOGRAPHS} photographs, as | largest difference in levels |",
        "| --- | --- |",
        *(f"| {name} | {levels} |" for name, levels in differences.items()),
        "",
        f"On {cpu} ({', '.join(features)}).",
        "",
        "This gives it: `python benchmarks/pretrained/same_answers.py --out OUT --report "
        "reports/pretrained`",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
