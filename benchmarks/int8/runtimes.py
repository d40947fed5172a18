"""Which releases of onnxruntime open our files?

    pip install --no-deps --target ORT/1.17.3 onnxruntime==1.17.3        # and others
    pip install --target NUMPY "numpy<2" "protobuf<6" flatbuffers packaging
    python benchmarks/int8/runtimes.py --runtimes ORT --numpy NUMPY --out reports/int8

Every folder in ORT has one release. A file of one node for each opset says which opsets a release
opens; a convolutional net and a transformer, float and int8, as they are and with older opsets,
must give the same answers there as here.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper

from compress.compressor import run, seed_everything
from compress.context import StepContext, StepLog
from compress.deploy.export import export, stamp
from compress.deploy.session import predict, session
from compress.deploy.versions import with_opset
from compress.errors import StepFailed
from compress.system.files import write_atomic
from compress.tasks.base import stacked_inputs
from compress.techniques import chain
from compress.zoo.data import load_data
from compress.zoo.models import fresh

OPSETS = range(17, 24)
NETS = ("cnn-small", "timm:vit_tiny_patch16_224(img_size=8, patch_size=2, depth=4)")
OLDER = (18, 17)
THERE = """
import json, pathlib, sys
import numpy as np
import onnxruntime
found = {}
for path in sorted(pathlib.Path(sys.argv[1]).glob("*.onnx")):
    try:
        there = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception:
        found[path.stem] = "refused"
        continue
    answers = path.with_suffix(".npz")
    if not answers.exists():
        found[path.stem] = "opens"
        continue
    known = np.load(answers)
    logits = there.run(None, {there.get_inputs()[0].name: known["inputs"]})[0]
    same = (logits.argmax(1) == known["logits"].argmax(1)).mean()
    found[path.stem] = f"{same:.1%}"
print(json.dumps({"version": onnxruntime.__version__, "found": found}))
"""


def write_files(folder: Path) -> None:
    """Write all files, and beside those of nets their inputs and outputs here."""
    for number in OPSETS:
        [x, y] = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
        graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
        opsets = [helper.make_opsetid("", number)]
        ir = helper.find_min_ir_version_for(opsets)
        one = helper.make_model(graph, opset_imports=opsets, ir_version=ir)
        onnx.save(one, folder / f"opset {number} (IR {ir}).onnx")
    data = load_data("digits")
    inputs = stacked_inputs(data.task, data.test, 128)[0]
    for name in NETS:
        seed_everything(0)
        context = StepContext(
            data.task, train=data.train, calibration=data.calibration, log=StepLog()
        )
        model = run(
            chain("finetune(epochs=3, learning_rate=0.002)"), fresh(name, data.task), context
        )
        lowered = run(chain("quantize()"), model, context)
        assert lowered.onnx is not None
        short = name.partition("(")[0].rpartition(":")[2]
        for kind, content in (("float", export(model)), ("int8", lowered.onnx)):
            for opset in (None, *OLDER):
                told = f"{short} {kind}" + (f", opset={opset}" if opset else "")
                try:
                    made = content if opset is None else with_opset(content, opset)
                except StepFailed as error:
                    print(told, error)
                    continue
                made = stamp(made, {})
                (folder / f"{told}.onnx").write_bytes(made)
                logits = predict(session(made), [(inputs,)])
                np.savez(folder / f"{told}.npz", inputs=inputs.numpy(), logits=logits)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runtimes", type=Path, required=True)
    parser.add_argument("--numpy", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    columns: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory() as place:
        write_files(Path(place))
        for site in sorted(path for path in options.runtimes.iterdir() if path.is_dir()):
            env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (site, options.numpy)))}
            command = [sys.executable, "-c", THERE, place]
            done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
            told = json.loads(done.stdout.splitlines()[-1])
            columns[told["version"]] = told["found"]
    names = list(dict.fromkeys(name for found in columns.values() for name in found))
    order = sorted(columns, key=lambda version: [int(part) for part in version.split(".")])
    lines = ["# Which onnxruntime opens which file", "", "| file | " + " | ".join(order) + " |"]
    lines.append("| --- |" + " --- |" * len(order))
    for name in names:
        lines.append(
            f"| {name} | " + " | ".join(columns[one].get(name, "") for one in order) + " |"
        )
    lines += [
        "",
        "Shares: of the answers that are the same as here.",
        "",
        "```",
        textwrap.dedent((__doc__ or "").split("\n\n")[1]),
        "```",
        "",
    ]
    options.out.mkdir(parents=True, exist_ok=True)
    write_atomic(options.out / "runtimes.md", "\n".join(lines).encode())


if __name__ == "__main__":
    main()
