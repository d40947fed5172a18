"""The architecture: imports point one way, and `import compress` is cheap."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "compress"

# Each room may import itself and the rooms before it.
NOUNS = {
    *("amounts", "errors", "files", "memory", "progress", "draws", "task", "model", "ensemble"),
    *("step_context", "compressor", "counts", "language"),
}
ORDER = [
    NOUNS,
    {"training", "surgery", "timing", "deploy", "zoo"},
    {"techniques"},
    {"harness"},
    {"report", "suites"},
    {"api"},
    {"cli", "__main__"},
]


def room(module: str) -> str:
    return module.removeprefix("compress").lstrip(".").partition(".")[0]


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("compress"):
            if node.module == "compress":
                found |= {alias.name for alias in node.names}
            else:
                found.add(room(node.module))
        elif isinstance(node, ast.Import):
            found |= {room(a.name) for a in node.names if a.name.startswith("compress")}
    return found


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    relative = path.relative_to(PACKAGE)
    own = relative.parts[0].removesuffix(".py")
    rank = next(number for number, rooms in enumerate(ORDER) if own in rooms)
    allowed = set().union(*ORDER[: rank + 1])
    # The version is in the package itself, and is a plain string.
    assert imports(path) - {"__version__"} <= allowed


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_importing_the_package_imports_nothing_heavy() -> None:
    heavy = run(
        "import sys, compress, compress.cli\n"
        "print([m for m in ('torch', 'numpy', 'pandas', 'onnx', 'matplotlib') if m in sys.modules])"
    )
    assert heavy == "[]"


def test_onnxruntime_reports_on_nobody() -> None:
    assert run("import compress, os; print(os.environ['ORT_DISABLE_TELEMETRY'])") == "1"


def test_reports_know_nothing_of_torch() -> None:
    loaded = run("import sys, compress.report.write; print('torch' in sys.modules)")
    assert loaded == "False"


def test_every_public_name_resolves() -> None:
    assert run("import compress; print(all(getattr(compress, n) for n in compress.__all__))") == (
        "True"
    )


def test_unknown_names_are_attribute_errors() -> None:
    import compress

    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        compress.nothing  # noqa: B018
