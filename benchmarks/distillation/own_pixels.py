"""How often a teacher at 224 pixels is right beside a student at fewer: on which pixels.

    python benchmarks/distillation/own_pixels.py --photos PHOTOS --weights FILE \
        --out reports/distillation

EfficientNet-Lite0 of timm, on the photographs that are for testing: on the student's pixels,
resized to its own size, and on those that are decoded from the files by its own spec. The student's
spec is the same but for the size.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from common import publish, table

from compress.benchmark.plan.plan import make_plan
from compress.benchmark.plan.suite import NamedTeacher, Suite
from compress.training import accuracy

SIDES = (64, 112, 160)
NET = "timm:tf_efficientnet_lite0"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--photos", type=Path, required=True, help="ImageNet's, a folder a class")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    lines, words = [], ""
    for side in SIDES:
        suite = Suite(
            "own pixels",
            f"imagefolder:{options.photos}",
            NET,
            ("quantize()",),
            str(options.weights),
            options={"size": side},
            teachers={"big": NamedTeacher(NET, str(options.weights))},
        )
        plan = make_plan(suite, device="cpu")
        data, teacher = plan.data, plan.teachers["big"]
        sight = teacher.sight
        assert sight is not None, "its spec is another"
        assert sight.change is not None, "so is its size"
        own = accuracy(teacher.module, sight.task, sight.of(data.test))
        resized = teacher.copy().module
        resized.register_forward_pre_hook(sight.change)
        shares = (accuracy(resized, data.task, data.test), own)
        figures = (f"{100 * share:.2f} %" for share in shares)
        lines.append([str(side), str(len(data.test)), *figures])
        words = sight.task.input_words()
    heads = ("student's side", "photographs", "on the student's pixels, resized", "on its own")
    publish(
        options.out / "own-pixels.md",
        "A teacher on the student's pixels and on its own",
        [
            table(heads, lines),
            f"EfficientNet-Lite0 of timm; its own: {words}. The student's spec is the same but for "
            "the size.\n",
        ],
        "python benchmarks/distillation/own_pixels.py --photos PHOTOS --weights FILE "
        "--out reports/distillation",
    )


if __name__ == "__main__":
    main()
