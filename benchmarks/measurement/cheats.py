"""What becomes of techniques that cheat.

    python benchmarks/measurement/cheats.py --out reports/measurement

They are brought as a plug-in, through an entry point, and run beside an honest technique.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import cheating
from cheating import CHEATS
from installed import installed
from trials import publish, table

import compress

CHAINS = [f"{cls.name()}()" for cls in CHEATS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = installed(Path(folder) / "site", Path(cheating.__file__), CHEATS)
        sys.path.insert(0, str(place))
        results = compress.run(
            data="digits",
            model="cnn-small",
            chain=["train(epochs=10) -> quantize()", *CHAINS],
            out=Path(folder) / "out",
            progress=False,
        )
    lines = [
        [
            row["chain"],
            row["status"],
            f"{row['accuracy']:.2%}" if "accuracy" in row else "-",
            row.get("accuracy_verdict") or "-",
            f"{row['cpu_speedup']:.2f}" if "cpu_speedup" in row else "-",
            row["error"] or "-",
        ]
        for row in results.rows
    ]
    publish(
        options.out / "cheats.md",
        "Techniques that cheat",
        [
            table(("chain", "status", "accuracy", "verdict", "speed-up", "error"), lines),
            "A row that is not `ok` has no deployable file and no latency. What computes something,"
            " however little, is not refused but measured: its accuracy says what it is worth.\n",
        ],
        "python benchmarks/measurement/cheats.py --out reports/measurement",
    )


if __name__ == "__main__":
    main()
