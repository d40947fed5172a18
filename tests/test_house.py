"""The architecture: imports point one way, and `import compress` is cheap."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import compress

PACKAGE = Path(__file__).resolve().parents[1] / "compress"

SYSTEM = {"system"}
NOUNS = {
    *("errors", "stateless_rng", "tasks", "model", "ensemble", "context", "compressor", "counts"),
    *("ranks", "parts", "chain_parser", "heads", "find_heads", "dataflow", "rebuild"),
    "attention",
}
WORK = {"surgery", "zoo", "training", "deploy", "int8", "lowrank", "supernet", "timing", "runtimes"}
BENCH = {
    "benchmark.plan",
    "benchmark.store",
    "benchmark.execute",
    "benchmark.measure",
    "benchmark.portable",
}

# What each room may import besides itself; docs/architecture.md says so, too.
MAY_IMPORT: dict[str, set[str]] = {
    "system": {"errors"},
    "stats": set(),
    **dict.fromkeys(NOUNS, SYSTEM | NOUNS),
    "surgery": SYSTEM | NOUNS,
    "runtimes": SYSTEM | NOUNS,
    "zoo": SYSTEM | NOUNS,
    "training": SYSTEM | NOUNS,
    "timing": SYSTEM | NOUNS | {"stats", "runtimes"},
    "deploy": SYSTEM | NOUNS | {"runtimes"},
    "int8": SYSTEM | NOUNS | {"deploy"},
    "lowrank": SYSTEM | NOUNS | {"surgery"},
    "supernet": SYSTEM | NOUNS | {"training", "deploy", "timing", "runtimes"},
    "techniques": SYSTEM | NOUNS | WORK | {"stats"},
    "peers": SYSTEM | NOUNS | {"deploy"},
    "results": SYSTEM | {"errors", "stats", "timing", "runtimes"},
    "report": SYSTEM | {"errors", "results", "stats", "timing", "runtimes"},
    "benchmark.store": SYSTEM | NOUNS | {"results"},
    "benchmark.plan": SYSTEM | NOUNS | WORK | {"techniques", "benchmark.store", "results"},
    "benchmark.measure": SYSTEM
    | NOUNS
    | WORK
    | {"benchmark.plan", "benchmark.store", "results", "stats"},
    "benchmark.execute": SYSTEM
    | NOUNS
    | WORK
    | {"benchmark.plan", "benchmark.store", "benchmark.measure", "results"},
    "benchmark.portable": SYSTEM | NOUNS | WORK | {"stats", "results", "benchmark.store"},
    "benchmark.run": SYSTEM | {"errors", "timing", "results", *BENCH},
    "recommender": SYSTEM
    | NOUNS
    | WORK
    | BENCH
    | {"benchmark.run", "techniques", "results", "report", "stats"},
    "suites": set(),
    "api": SYSTEM
    | NOUNS
    | BENCH
    | {"benchmark.run", "results", "report", "techniques", "zoo", "recommender"},
    "cli": {"api", "errors", "tasks", "parts", "results", "system", "techniques", "zoo", *BENCH},
    "__main__": {"cli"},
}


def room(module: str) -> str:
    """Return the room of a module by its dotted name within the package."""
    first, _, rest = module.partition(".")
    return f"benchmark.{rest.partition('.')[0]}" if first == "benchmark" and rest else first


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("compress"):
            inside = node.module.removeprefix("compress").lstrip(".")
            if inside in ("", "benchmark"):
                found |= {room(f"{inside}.{alias.name}".lstrip(".")) for alias in node.names}
            else:
                found.add(room(inside))
        elif isinstance(node, ast.Import):
            modules = [a.name for a in node.names if a.name.startswith("compress")]
            found |= {room(name.removeprefix("compress").lstrip(".")) for name in modules}
    return found


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_what_it_may(path: Path) -> None:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    own = room(".".join(part for part in parts if part != "__init__"))
    if own == "benchmark":  # the rooms' common folder: a name and a sentence
        assert not imports(path)
        return
    # The version is in the package itself, and is a plain string.
    assert imports(path) - {own, "__version__"} <= MAY_IMPORT[own]


def test_the_documented_table_is_this_one() -> None:
    groups = {"nouns": NOUNS, "work": WORK, "all of `benchmark`": BENCH, "nothing": set()}
    lines = (PACKAGE.parent / "docs" / "architecture.md").read_text().splitlines()
    start = lines.index("| room | holds | may import |") + 2
    documented: dict[str, set[str]] = {}
    for line in lines[start : lines.index("", start)]:
        rooms, _, allowed = (cell.strip() for cell in line.strip("|").split("|"))
        parts = [part.strip() for part in allowed.split(",")]
        may = {part.strip("`").replace("/", ".") for part in parts if part not in groups}
        may = may.union(*(groups[part] for part in parts if part in groups))
        documented |= dict.fromkeys(re.findall(r"`([\w/]+)`", rooms), may)
    documented = {name.replace("/", "."): may for name, may in documented.items()}
    silent = {"suites", "__main__"}
    assert documented == {name: may for name, may in MAY_IMPORT.items() if name not in silent}


def test_rooms_form_no_circle() -> None:
    """Nouns are one room here: they know each other."""
    graph: dict[str, set[str]] = {}
    for name, allowed in MAY_IMPORT.items():
        own = "nouns" if name in NOUNS else name
        others = {"nouns" if other in NOUNS else other for other in allowed}
        graph.setdefault(own, set()).update(others - {own})
    graph["system"] -= {"nouns"}  # errors know nothing
    assert list(TopologicalSorter(graph).static_order())


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


def test_reports_know_nothing_of_torch_and_onnx() -> None:
    code = "import sys, compress.report.write; print({'torch', 'onnx'} & set(sys.modules))"
    assert run(code) == "set()"


def test_every_public_name_resolves() -> None:
    """Also when all modules are imported: a room of the same name would take its place."""
    resolve = "print(all(callable(getattr(compress, name)) for name in compress.__all__))"
    everything = "import compress.cli, compress.api, compress.benchmark.run"
    code = f"import compress\nprint(callable(compress.bench))\n{resolve}\n{everything}\n{resolve}"
    assert run(code).split() == ["True"] * 3
    assert not {path.stem for path in PACKAGE.iterdir()} & set(compress.__all__)


def test_unknown_names_are_attribute_errors() -> None:
    import compress

    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        compress.nothing  # noqa: B018
