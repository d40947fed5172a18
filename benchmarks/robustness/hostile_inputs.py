"""Hostile checkpoints, ONNX files, suites, chains, names and archives: refused, none executed.

    python benchmarks/robustness/hostile_inputs.py --out reports/robustness

Each is given to the command line as a user would who got it from a stranger. What counts: the exit
status of a wrong call, a sentence (no traceback), and no trace of the code that it carries.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import os
import pickle
import py_compile
import random
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import click
import numpy as np
import onnx
import torch
from common import publish, table
from onnx import TensorProto, helper

from compress.cli import cli
from compress.errors import UserError

Words = list[str]
Make = Callable[[Path, Path], Words]
"""(an empty folder, the trace that must not appear) -> the words of a call."""

TINY = ["--data", "digits", "--model", "mlp(width=8)"]


class Payload:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.trace),))


# --- checkpoints --------------------------------------------------------------------------


def weights(name: str, write: Callable[[Path, Path], object]) -> Make:
    """A run that starts from a file of weights."""

    def make(folder: Path, trace: Path) -> Words:
        write(folder / name, trace)
        return ["run", *TINY, "--chain", "quantize()", "--weights", str(folder / name)]

    return make


def pickled(protocol: int) -> Callable[[Path, Path], object]:
    return lambda path, trace: path.write_bytes(pickle.dumps(Payload(trace), protocol))


def torch_zip(path: Path, trace: Path) -> None:
    torch.save({"weight": torch.ones(2), "epoch": Payload(trace)}, path)


def torch_old(path: Path, trace: Path) -> None:
    torch.save(Payload(trace), path, _use_new_zipfile_serialization=False)


def whole_module(path: Path, trace: Path) -> None:
    torch.save(torch.nn.Sequential(torch.nn.Linear(2, 2)), path)


def scripted(path: Path, trace: Path) -> None:
    """A zip like those of torch.jit.save: code that a careless loader would run."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/code/__torch__.py", f"import os\nos.mkdir({str(trace)!r})\n")
        archive.writestr("m/data.pkl", pickle.dumps(Payload(trace)))
        archive.writestr("m/version", "3")


def huge_header(path: Path, trace: Path) -> None:
    path.write_bytes((2**62).to_bytes(8, "little") + b"{}")


def overlapping(path: Path, trace: Path) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 4]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"1234")


def zip_bomb(path: Path, trace: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/data.pkl", pickle.dumps({"a": 1}))
        archive.writestr("m/data/0", bytes(10**7))


# --- ONNX files ---------------------------------------------------------------------------


def onnx_file(change: Callable[[onnx.ModelProto, Path], object]) -> Make:
    def make(folder: Path, trace: Path) -> Words:
        (folder.parent / "secret").write_bytes(bytes(48))
        weight = helper.make_tensor("w", TensorProto.FLOAT, [3, 4], bytes(48), raw=True)
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["y"])],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
            [weight],
        )
        opsets = [helper.make_opsetid("", 20)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        change(model, folder)
        (folder / "m.onnx").write_bytes(model.SerializeToString())
        return ["check", str(folder / "m.onnx")]

    return make


def located(location: str, prepare: Callable[[Path], object] = lambda folder: None) -> Make:
    def change(model: onnx.ModelProto, folder: Path) -> None:
        prepare(folder)
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", location.replace("FOLDER", str(folder.parent))

    return onnx_file(change)


def claimed(model: onnx.ModelProto, folder: Path) -> None:
    model.graph.initializer[0].dims[0] = 2**50


def foreign(model: onnx.ModelProto, folder: Path) -> None:
    model.graph.node[0].domain = "com.stranger"


def context(model: onnx.ModelProto, folder: Path) -> None:
    node = helper.make_node("EPContext", [], ["z"], domain="com.microsoft", ep_cache_context="e.so")
    model.graph.node.append(node)


# --- suites, chains, names ----------------------------------------------------------------


def suite(text: str) -> Make:
    def make(folder: Path, trace: Path) -> Words:
        filled = text.replace("TRACE", str(trace)).replace("FOLDER", str(folder))
        (folder / "s.toml").write_text(filled)
        (folder / "evil.py").write_text(
            f"import os\nos.mkdir({str(trace)!r})\ndef make(num_classes): pass\n"
            f"def metric(a, b): return 0\n"
        )
        return ["bench", str(folder / "s.toml")]

    return make


GOOD = 'data = "digits"\nmodel = "mlp"\nchains = ["train() -> quantize()"]\n'


def chain(text: str) -> Make:
    return lambda folder, trace: ["run", *TINY, "--chain", text.replace("TRACE", str(trace))]


def model(text: str) -> Make:
    def make(folder: Path, trace: Path) -> Words:
        (folder / "evil.py").write_text(f"import os\nos.mkdir({str(trace)!r})\n")
        name = text.replace("TRACE", str(trace)).replace("FOLDER", str(folder))
        return ["run", "--data", "digits", "--model", name, "--chain", "train()"]

    return make


# --- data ---------------------------------------------------------------------------------


def archive(name: str, member: str, link: str = "") -> Make:
    def make(folder: Path, trace: Path) -> Words:
        path, inside = folder / name, member.replace("TRACE", str(trace))
        if name.endswith(".zip"):
            with zipfile.ZipFile(path, "w") as made:
                made.writestr(inside, "x")
        else:
            with tarfile.open(path, "w") as tar:
                info = tarfile.TarInfo(inside)
                info.type, info.linkname = (
                    (tarfile.SYMTYPE, link) if link else (tarfile.REGTYPE, "")
                )
                tar.addfile(info, io.BytesIO())
        root = ["--data-root", str(folder / "root")]
        return ["run", "--data", f"imagefolder:{path}", *root, "--chain", "train()"]

    return make


def arrays(write: Callable[[Path, Path], object]) -> Make:
    def make(folder: Path, trace: Path) -> Words:
        write(folder / "a.npz", trace)
        return ["run", "--data", f"arrays:{folder / 'a.npz'}", "--chain", "train()"]

    return make


def object_array(path: Path, trace: Path) -> None:
    hostile = np.array([Payload(trace)], dtype=object)
    np.savez(path, x_train=hostile, y_train=[0], x_test=hostile, y_test=[0])


def claimed_array(path: Path, trace: Path) -> None:
    text = b"{'descr': '|u1', 'fortran_order': False, 'shape': (10**15,), }"
    text = text.replace(b"10**15", b"1000000000000000")
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("x_train.npy", b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text)


def encrypted_array(path: Path, trace: Path) -> None:
    """Members whose headers say that they are encrypted."""
    claimed_array(path, trace)
    content = bytearray(path.read_bytes())
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(mark) + place] |= 1
    path.write_bytes(content)


def header(text: bytes) -> Callable[[Path, Path], object]:
    def write(path: Path, trace: Path) -> None:
        with zipfile.ZipFile(path, "w") as made:
            start = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little")
            for name in ("x_train", "y_train", "x_test", "y_test"):
                made.writestr(f"{name}.npy", start + text)

    return write


def damaged_archive(name: str, mode: Literal["w:gz", "w:xz", "w:bz2"]) -> Make:
    """A compressed archive whose last bytes, the checksum's, are others."""

    def make(folder: Path, trace: Path) -> Words:
        path = folder / name
        with tarfile.open(path, mode) as tar:
            info = tarfile.TarInfo("train/a/x.png")
            info.size = 5000
            tar.addfile(info, io.BytesIO(random.Random(0).randbytes(5000)))
        content = bytearray(path.read_bytes())
        content[-6 if mode == "w:gz" else len(content) // 2] ^= 0xFF
        path.write_bytes(content)
        root = ["--data-root", str(folder / "root")]
        return ["run", "--data", f"imagefolder:{path}", *root, "--chain", "train()"]

    return make


def deep_model(folder: Path, trace: Path) -> Words:
    (folder / "blueprint.json").write_text("[" * 100_000 + "]" * 100_000)
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    return ["check", str(folder)]


def many_sides(model: onnx.ModelProto, folder: Path) -> None:
    tensor = model.graph.initializer[0]
    del tensor.dims[:]
    tensor.dims.extend([2**62] * 20)


def bytecode(folder: Path, trace: Path) -> Words:
    """A harmless file, and beside it compiled code that claims to be its."""
    evil = folder / "evil.py"
    evil.write_text(f"import os\nos.mkdir({str(trace)!r})\n")
    (folder / "mine.py").write_text("raise ValueError('a harmless file')\n")
    cached = importlib.util.cache_from_source(str(folder / "mine.py"))
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    py_compile.compile(str(evil), cfile=cached, invalidation_mode=mode)
    allowed = str(folder / "mine.py")
    model = ["--model", f"{allowed}:make", "--allow-code", allowed]
    return ["run", "--data", "digits", *model, "--chain", "train()"]


def evaluated_array(path: Path, trace: Path) -> None:
    text = f"{{'descr': __import__('os').mkdir({str(trace)!r})}}".encode()
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("x_train.npy", b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text)


def merged(content: str) -> Make:
    def make(folder: Path, trace: Path) -> Words:
        (folder / "results.jsonl").write_text(content)
        (folder / "t.json").write_text('{"schema": 1, "files": {"../../x": ""}}')
        return ["merge", str(folder), str(folder / "t.json")]

    return make


INPUTS: dict[str, Make] = {
    **{f"weights: pickle, protocol {n}": weights("w.pt", pickled(n)) for n in (0, 2, 4)},
    "weights: pickle named .bin": weights("w.bin", pickled(2)),
    "weights: pickle named .ckpt": weights("w.ckpt", pickled(2)),
    "weights: payload beside tensors": weights("w.pt", torch_zip),
    "weights: payload in torch's old format": weights("w.pth", torch_old),
    "weights: a whole module": weights("w.pt", whole_module),
    "weights: code as in TorchScript": weights("w.pt", scripted),
    "weights: safetensors, header of 4 EiB": weights("w.safetensors", huge_header),
    "weights: safetensors, tensor of 4 TiB": weights("w.safetensors", overlapping),
    "weights: zip that is no checkpoint": weights("w.pt", zip_bomb),
    "weights: a folder": weights("w.pt", lambda path, trace: path.mkdir()),
    "weights: Python code": weights("w.py", lambda p, t: p.write_text(f"open({str(t)!r}, 'w')")),
    "onnx: data above": located("../secret"),
    "onnx: data above, hidden": located("a/../../secret"),
    "onnx: data above, with backslashes": located("..\\secret"),
    "onnx: data at an absolute path": located("FOLDER/secret"),
    "onnx: data on a share": located("\\\\host\\share\\secret"),
    "onnx: data in a device": located("/dev/zero"),
    "onnx: data behind a symbolic link": located(
        "link", lambda folder: (folder / "link").symlink_to(folder.parent / "secret")
    ),
    "onnx: data behind a linked folder": located(
        "sub/secret", lambda folder: (folder / "sub").symlink_to(folder.parent)
    ),
    "onnx: data behind a hard link": located(
        "hard", lambda folder: os.link(folder.parent / "secret", folder / "hard")
    ),
    "onnx: data in a pipe": located("pipe", lambda folder: os.mkfifo(folder / "pipe")),
    "onnx: a tensor of 18 PB": onnx_file(claimed),
    "onnx: an operator of a stranger": onnx_file(foreign),
    "onnx: an operator that loads a library": onnx_file(context),
    "suite: code as the model": suite(GOOD.replace('"mlp"', '"FOLDER/evil.py:make"')),
    "suite: code as the metric": suite(GOOD + 'metric = "FOLDER/evil.py:metric"\n'),
    "suite: allows code itself": suite(GOOD + 'allow_code = ["FOLDER/evil.py"]\n'),
    "suite: unknown key": suite(GOOD + "weigths = 1\n"),
    "suite: a chain that is code": suite(
        GOOD.replace("train()", "__import__('os').mkdir('TRACE')")
    ),
    "suite: no TOML": suite("[[[[" * 1000),
    "suite: nested a thousand deep": suite(GOOD + "x = " + "[" * 1000 + "]" * 1000),
    "suite: endless numbers": suite(GOOD + f"seeds = [{'9' * 5000}]\n"),
    "suite: weights outside, and none": suite(
        GOOD.replace("train() -> ", "") + 'weights = "../../../../etc/passwd"\n'
    ),
    "chain: an expression": chain("__import__('os').mkdir('TRACE')"),
    "chain: an expression as a value": chain("train(epochs=__import__('os').mkdir('TRACE'))"),
    "chain: an f-string": chain("train(student=f\"{__import__('os').mkdir('TRACE')}\")"),
    "chain: a lambda": chain("(lambda: 0)()"),
    "chain: a comprehension": chain("train(epochs=[x for x in ()])"),
    "chain: attributes": chain("train.__class__()"),
    "chain: a dunder as a step": chain("__class__()"),
    "chain: stars": chain("train(**{'epochs': 1})"),
    "chain: nested two thousand deep": chain("repeat(2, " * 300 + "train()" + ")" * 300),
    "chain: a hundred thousand characters": chain("train() -> " * 10_000 + "quantize()"),
    "chain: a power tower": chain("train(epochs=9**9**9**9)"),
    "chain: unary operators without end": chain("train(epochs=" + "-" * 3000 + "1)"),
    "model: code of a stranger": model("FOLDER/evil.py:make"),
    "model: code by a path with ..": model("FOLDER/../" + "x/evil.py:make"),
    "model: a function of torchvision that is no model": model("torchvision:get_model"),
    "model: weights in the name": model("torchvision:resnet18(weights='DEFAULT')"),
    "model: a hub": model("timm:hf-hub:stranger/model"),
    "model: a dunder": model("torchvision:__builtins__"),
    "model: a layer of 10^18 weights": model("mlp(width=1000000000)"),
    "archive: zip that leads out": archive("a.zip", "../../trace"),
    "archive: zip with an absolute name": archive("a.zip", "TRACE"),
    "archive: tar that leads out": archive("a.tar", "../../trace"),
    "archive: tar with a symbolic link": archive("a.tar", "train", "/etc"),
    "arrays: Python objects": arrays(object_array),
    "arrays: a header of a petabyte": arrays(claimed_array),
    "arrays: a header that is code": arrays(evaluated_array),
    "arrays: encrypted": arrays(encrypted_array),
    "arrays: a header that ends early": arrays(header(b"{'descr': '|u1', (")),
    "arrays: a header with a list as a key": arrays(header(b"{[]: 1}")),
    "archive: tar.gz with a wrong checksum": damaged_archive("a.tar.gz", "w:gz"),
    "archive: tar.xz that is damaged": damaged_archive("a.tar.xz", "w:xz"),
    "archive: tar.bz2 that is damaged": damaged_archive("a.tar.bz2", "w:bz2"),
    "saved model: nested without end": deep_model,
    "onnx: twenty sides of 2^62": onnx_file(many_sides),
    "model: bytecode beside a harmless file": bytecode,
    "run: results that are a list": merged("[]\n"),
    "run: results without a run": merged('{"schema": 2}\n'),
    "run: results of an older version": merged('{"schema": 1}\n'),
    "run: results nested without end": merged("[" * 100_000 + "]" * 100_000 + "\n"),
    "run: results that are no JSON": merged("\0\0\0"),
    "run: results of another schema": merged('{"schema": "x", "run": "a", "kind": "row"}\n'),
}


def outcome(name: str, folder: Path) -> tuple[bool, str]:
    """Give an input to the command line; return whether it was refused well, and what was said."""
    inside, trace = folder / "x", folder / "trace"
    inside.mkdir()
    words = INPUTS[name](inside, trace)
    out = ["--out", str(folder / "out")] if words[0] in ("run", "bench") else []
    try:
        cli([*words, *out], standalone_mode=False)
    except (UserError, click.ClickException) as error:
        said = str(getattr(error, "message", "") or error)
    except BaseException as error:  # a crash is what is looked for
        if isinstance(error, KeyboardInterrupt):
            raise
        return False, f"CRASH {type(error).__name__}: {error}"
    else:
        return False, "it was accepted"
    if trace.exists():
        return False, "ITS CODE RAN"
    return bool(said.strip()), said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    lines, bad = [], 0
    for name in INPUTS:
        with tempfile.TemporaryDirectory() as place:
            good, said = outcome(name, Path(place))
            text = " ".join(said.replace(place, "DIR").replace("|", "/").split())
        bad += not good
        text = text.encode("ascii", "replace").decode()
        lines.append(
            (name, "yes" if good else "NO", text if len(text) < 130 else text[:127] + "...")
        )
    publish(
        options.out / "hostile-inputs.md",
        "Hostile inputs",
        [
            f"{len(INPUTS)} inputs; {len(INPUTS) - bad} refused with a sentence and not executed, "
            f"{bad} not.\n",
            table(("input", "refused", "what was said"), lines),
        ],
        "python benchmarks/robustness/hostile_inputs.py --out reports/robustness",
    )


if __name__ == "__main__":
    main()
