"""Whether the two products of attention are worth being int8: QKᵀ, and softmax times V.

    python benchmarks/int8/attention.py --out reports/int8/vnni --files FILES [--make]

`quantize()` leaves them float. Here its file (`seconds=0`) is given quantized inputs of these
products, and timed beside itself and the float file, in turns: either right before the products,
or from the projection on, so that integers are reshaped and transposed, and the factor between is
part of a scale. Softmax stays float in all of them. Ranges are made up: the time does not depend
on them. It needs a quiet machine for
`--seconds` per net; `--make` makes the files beforehand.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common as passes

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "measurement"))

import accuracy
import latency
from kept_rows import KeptRows, table_of, write_report

from compress.deploy.export import export
from compress.deploy.session import arrays
from compress.int8.placement import NOW, ratio
from compress.int8.rewrite import constant
from compress.tasks.base import stacked_inputs
from compress.timing.trial import seconds_of

NETS = ("torchvision:vit_b_16", "vit-tiny")
MOVING = ("Gather", "Mul", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
FLOAT = "float"
FORMS = {
    "both products, quantized before them": (True, True, False),
    "QKᵀ alone, quantized before it": (True, False, False),
    "softmax·V alone, quantized before it": (False, True, False),
    "both products, quantized from the projection on": (True, True, True),
    "softmax·V alone, quantized from the projection on": (False, True, True),
}
"""What is int8 (QKᵀ, softmax times V), and whether its inputs are from the projection on."""


def products(graph: ir.Graph) -> Iterator[tuple[ir.Node, bool]]:
    """Yield the products of two activations, and whether softmax times V."""
    for node in graph:
        if node.op_type != "MatMul":
            continue
        left = node.inputs[0]
        before = left.producer() if left is not None else None
        after = {use.node.op_type for use in node.outputs[0].uses()}
        if before is not None and before.op_type == "Softmax":
            yield node, True
        elif "Softmax" in after:
            yield node, False


def pair(graph: ir.Graph, value: ir.Value, scale: float, zero: int) -> ir.Value:
    """Quantize a value and dequantize it behind the node that makes it."""
    name = f"{value.name}_{len(list(value.uses()))}_{zero}"
    scales = constant(graph, f"scale_{zero}", np.array(scale, np.float32))
    zeros = constant(graph, f"zero_{zero}", np.array(zero, np.uint8))
    to = ir.node("QuantizeLinear", [value, scales, zeros], name=f"{name}_quantize")
    back = ir.node("DequantizeLinear", [to.outputs[0], scales, zeros], name=f"{name}_back")
    producer = value.producer()
    assert producer is not None
    graph.insert_after(producer, [to, back])
    return back.outputs[0]


def moved_from(graph: ir.Graph, value: ir.Value) -> list[ir.Value]:
    """Return a value and those that it was moved from, to its projection; drop factors between."""
    found = []
    node = value.producer()
    while node is not None and node.op_type in MOVING:
        before = node.inputs[0]
        assert before is not None
        if node.op_type == "Mul":
            ir.convenience.replace_all_uses_with(node.outputs[0], before)
        else:
            found.append(node.outputs[0])
        node = before.producer()
    assert node is not None
    return [*found, node.outputs[0]]


def variant(file: bytes, scores: bool, values: bool, early: bool) -> bytes:
    """Return an int8 file in which products of attention read integers."""
    model = ir.serde.deserialize_model(onnx.load_from_string(file))
    graph = model.graph
    moved: dict[int, ir.Value] = {}
    for node, weighs in list(products(graph)):
        if not (values if weighs else scores):
            continue
        places = [1] if weighs else [0, 1]
        if weighs:
            node.replace_input_with(0, pair(graph, node.inputs[0], 1 / 255, 0))  # type: ignore[arg-type]
            output = node.outputs[0]
            readers = [(use.node, use.idx) for use in output.uses()]
            found = pair(graph, output, 0.02, 128)
            for reader, index in readers:
                reader.replace_input_with(index, found)
        for place in places:
            value = node.inputs[place]
            assert value is not None
            if early:
                moved |= {id(one): one for one in moved_from(graph, value)}
            else:
                node.replace_input_with(place, pair(graph, value, 0.02, 128))
    for one in moved.values():  # of what all three share, once
        readers = [(use.node, use.idx) for use in one.uses()]
        found = pair(graph, one, 0.02, 128)
        for reader, index in readers:
            reader.replace_input_with(index, found)
    passes.RemoveUnusedNodesPass()(model)  # onnxruntime would compute them
    return ir.serde.serialize_model(model).SerializeToString()


def files_of(name: str, root: Path, folder: Path) -> tuple[dict[str, bytes], np.ndarray]:
    """Return the files of a net and items, kept in a folder."""
    forms = (NOW, FLOAT, *FORMS)
    place = folder / f"attention {name}"
    if not (place / "items.npy").exists():
        place.mkdir(parents=True, exist_ok=True)
        floating, made, items = made_of(name, root, folder)
        contents = [made, floating, *(variant(made, *what) for what in FORMS.values())]
        for number, content in enumerate(contents):
            (place / f"{number}.onnx").write_bytes(content)
        np.save(place / "items.npy", items)
    files = {form: (place / f"{i}.onnx").read_bytes() for i, form in enumerate(forms)}
    return files, np.load(place / "items.npy")


def made_of(name: str, root: Path, folder: Path) -> tuple[bytes, bytes, np.ndarray]:
    """Return the float file, the int8 file, and items of a net."""
    if ":" in name:
        subject = latency.Subject.of(name, root)
        [items] = arrays(tuple(tensor[:8] for tensor in subject.inputs))
        return subject.content, subject.kept(latency.WHOLE, folder)[0], items
    model, data = accuracy.setting(name, root)
    items_of = accuracy.calibration(data, accuracy.CALIBRATION, False)
    made = accuracy.lowered(model, data, "quantize(seconds=0, max_drop=None)", items_of)
    [items] = arrays(stacked_inputs(data.task, data.train, 8))
    return export(model), made, items


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--root", type=Path, default=Path("../shared/data"))
    parser.add_argument("--seconds", type=float, default=40)
    parser.add_argument("--files", type=Path, required=True, help="Keeps files, as latency.py's.")
    parser.add_argument("--make", action="store_true", help="Make files alone, and time nothing.")
    options = parser.parse_args()
    kept = KeptRows(options.out / "attention.jsonl", "net", "form")
    for name in NETS:
        files, items = files_of(name, options.root, options.files)
        if options.make:
            continue
        found = seconds_of(files, [items], options.seconds)
        for form in files:
            value, error = ratio(found, form)
            kept.add(
                {
                    "net": name,
                    "form": "quantize(seconds=0)" if form == NOW else form,
                    "ms": round(1e3 * float(np.median(found[form])), 3),
                    "speed-up": round(value, 3),
                    "error": round(float(error), 3),
                }
            )
    rows = list(kept.read().values())
    lines = [
        *table_of(("net", "form", "ms", "speed-up", "error"), rows),
        "",
        "Speed-ups over `quantize(seconds=0)`, with the standard error of their logarithm.",
    ]
    command = f"python benchmarks/int8/attention.py --out {options.out} --files FILES"
    if not options.make:
        write_report(options.out / "attention.md", "Products of attention", lines, rows, command)


if __name__ == "__main__":
    main()
