"""Keys follow the imports of what ran: no module is forgotten, and none that did not run counts."""

from __future__ import annotations

import ast
import cProfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bench_fixtures import small_digits
from cases import TEXTS

from compress.benchmark.execute import job as job_module
from compress.benchmark.execute.executor import ChainJob
from compress.benchmark.execute.job import Stores, perform
from compress.benchmark.plan import keys as keys_module
from compress.benchmark.plan.graph import make_graph
from compress.benchmark.plan.keys import (
    HANDING,
    files,
    followed,
    imported,
    measuring_modules,
    own_versions,
    step_modules,
    techniques_may_import,
)
from compress.benchmark.plan.plan import Plan, make_plan
from compress.benchmark.plan.suite import Suite
from compress.benchmark.store.store import Store
from compress.techniques import BUILT_IN, chain
from compress.training import Training

TRAIN = "train(epochs=1)"
# All configured techniques, but one export is enough for both methods of quantizing.
CHAINS = tuple(repr(chain(text)) for text in TEXTS if text != TRAIN and "percentile" not in text)
DATA = small_digits()
NAMES = {str(path): module for module, path in files().items()}
NAMING = {
    "compress",  # offers a Python user all that there is
    "compress.benchmark.plan.keys",  # where following begins
    "compress.benchmark.plan.suite",  # reads suites, whose content stands in the keys
    *("compress.timing.launch", "compress.timing.memory"),  # for what is timed there are no keys
    "compress.timing.trial",  # its own name; whoever calls it imports it
    "compress.runtimes",  # names its group of entry points
}
REPORTING = {m for m in files() if m.split(".")[1:2] in (["report"], ["cli"], ["api"], ["suites"])}


def plan_of(*chains: str) -> Plan:
    suite = Suite("test", "digits", "cnn-small(width=16)", (TRAIN, *chains), controls=False)
    return make_plan(suite, data=DATA)


def parsed_imports(module: str) -> set[str]:
    """Return what `imported` should, from the parsed file."""
    found: set[str] = set()
    ahead: list[ast.AST] = [ast.parse(files()[module].read_text())]
    while ahead:
        node = ahead.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        ahead += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports name the whole way"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names & files().keys()
            found |= set() if names <= files().keys() else {str(node.module)}
    return {name for name in found if name.partition(".")[0] == "compress"}


def test_the_scan_for_imports_finds_what_the_parsed_file_imports() -> None:
    for module in files():
        extra = imported(module) - parsed_imports(module)
        assert parsed_imports(module) <= imported(module), module
        # The package of an import on several lines, or an example in a docstring, costs nothing
        # but precision.
        assert all(files()[name].name == "__init__.py" for name in extra), (module, extra)


def test_nothing_that_computes_is_imported_in_another_way() -> None:
    """By `importlib`, or in another process by its name, a module would be forgotten."""
    steps = {module for cls in BUILT_IN for module in followed(cls.__module__)}
    for module in sorted(steps | measuring_modules() | step_modules() | techniques_may_import()):
        for node in ast.walk(ast.parse(files()[module].read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                named = node.value in files() and node.value != "compress"
                assert not named or module in NAMING, (module, node.value)
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            dynamic = called.endswith(("import_module", "__import__", "spec_from_file_location"))
            # A user's own file stands in the key by its content, a library by its version.
            allowed = {"compress.zoo.code", "compress.benchmark.plan.keys", "compress"}
            assert not dynamic or module in allowed, (module, called)


@pytest.fixture(scope="module")
def called(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Run every technique as a run does; return the modules whose functions each step called."""
    plan, folder = plan_of(*CHAINS), tmp_path_factory.mktemp("stores")
    stores = Stores(Store(folder / "shared"), Store(folder / "private"))
    graph, found = make_graph(plan), {}
    with pytest.MonkeyPatch.context() as patch:
        seen: set[str] = set()
        patch.setattr(job_module, "run", watched(job_module.run, seen))
        patch.setattr(job_module, "measure_row", watched(job_module.measure_row, seen))
        for row in plan.rows:
            chain_run = graph.chain_run((row.text, 0))
            for until, node in enumerate(chain_run.nodes):
                if node.measures and row.text not in ("baseline", "cast('float16')"):
                    continue
                seen.clear()
                outcome = perform(ChainJob(row.text, 0, until), plan, stores)
                assert outcome.ok, outcome.error
                found[f"= {row.text}" if node.measures else node.text] = set(seen)
    return found


def watched(function: Callable[..., Any], seen: set[str]) -> Callable[..., Any]:
    """Note the modules of ours whose functions are called while a function runs."""

    def wrapper(*arguments: Any, **options: Any) -> Any:
        profile = cProfile.Profile(subcalls=False, builtins=False)
        try:
            return profile.runcall(function, *arguments, **options)
        finally:
            profile.create_stats()
            called = [place for place, _, name in profile.stats if name != "<module>"]
            seen.update(NAMES[place] for place in called if place in NAMES)

    return wrapper


def test_no_module_that_a_step_runs_is_forgotten(called: dict[str, set[str]]) -> None:
    steps = {text: seen for text, seen in called.items() if not text.startswith("=")}
    assert steps.keys() == {TRAIN, *CHAINS}
    for text, seen in steps.items():
        step = chain(text)
        assert "compress.compressor" in seen
        assert ("compress.training.loop" in seen) == ("epochs" in text)
        assert seen <= step_modules(step), text
        assert not step_modules(step) & REPORTING
    quantizing = steps[repr(chain("quantize(calibration=64)"))]
    assert {"compress.deploy.observe", "compress.int8.lower"} <= quantizing


def test_no_module_that_a_measuring_runs_is_forgotten(called: dict[str, set[str]]) -> None:
    for text in ("= baseline", "= cast('float16')"):
        assert {"compress.timing.executed", "compress.deploy.verify"} <= called[text]
        assert called[text] <= measuring_modules()
    assert not measuring_modules() & REPORTING


@pytest.fixture
def changed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Let some modules have another content."""

    def change(*modules: str) -> None:
        places = dict(files())
        for number, module in enumerate(modules):
            places[module] = tmp_path / f"{number}.py"
            places[module].write_bytes(files()[module].read_bytes() + b"\n# changed\n")
        monkeypatch.setattr(keys_module, "files", lambda: places)
        keys_module.code_digest.cache_clear()

    yield change
    monkeypatch.undo()
    keys_module.code_digest.cache_clear()


STEPS = ("finetune(epochs=1)", "prune_weights(sparsity=0.5)", "quantize()", "cast('float16')")


def keys() -> dict[str, str]:
    """Return the keys of single steps (the first is the baseline's) and of what is measured."""
    graph = make_graph(plan_of(*STEPS))
    found = {
        chain_run.nodes[0].text: chain_run.nodes[0].key
        for chain_run in graph.chain_runs
        if chain_run.nodes[:-1]
    }
    return {**found, "measure": graph.baseline(0).measured.key}


@pytest.mark.parametrize(
    ("module", "texts"),
    [
        ("system.environment", {TRAIN, *STEPS, "measure"}),  # all follow the baseline, which trains
        ("training.batch_loader", {TRAIN, *STEPS, "measure"}),
        ("benchmark.execute.job", {TRAIN, *STEPS, "measure"}),
        ("techniques.quantize", {"quantize()", "measure"}),
        ("int8.lower", {"quantize()", "measure"}),
        ("deploy.observe", {"quantize()", "cast('float16')", "measure"}),
        ("deploy.half", {"cast('float16')", "measure"}),
        ("techniques.prune_weights", {"prune_weights(sparsity=0.5)", "measure"}),
        ("timing.executed", {"quantize()", "measure"}),
        ("benchmark.measure.row", {"measure"}),
    ],
)
def test_another_content_changes_the_keys_of_what_runs_it(
    module: str, texts: set[str], changed: Callable[..., None]
) -> None:
    before = keys()
    assert before == keys()
    changed(f"compress.{module}")
    after = keys()
    assert {text for text in after if after[text] != before[text]} == texts


def test_what_reports_and_what_people_call_change_no_key(changed: Callable[..., None]) -> None:
    assert len(REPORTING) >= 20
    before = keys()
    changed(*REPORTING)
    assert keys() == before


def test_a_step_depends_on_the_versions_of_its_own_libraries() -> None:
    step = chain("finetune()")
    assert own_versions(step) == {}
    other = type("Other", (type(step),), {"libraries": ("pytest", "no-such-distribution")})
    assert own_versions(other()) == {"pytest": pytest.__version__}


def test_plain_distilling_does_not_depend_on_how_files_are_lowered() -> None:
    lowering = {"compress.int8.lower", "compress.int8.placement", "compress.techniques.quantize"}
    assert not step_modules(chain("distill()")) & lowering
    aware = step_modules(chain("distill(quantization_aware=quantize())"))
    assert lowering <= aware


def test_a_plug_in_depends_on_all_that_it_may_import() -> None:
    foreign = type("Foreign", (type(chain("finetune()")),), {"__module__": "elsewhere"})
    assert issubclass(foreign, Training)
    found = step_modules(foreign())
    assert techniques_may_import() <= found
    assert {"compress.techniques.carve", "compress.deploy.half", "compress.surgery"} <= found
    assert not found & REPORTING
    rest = found - techniques_may_import() - HANDING
    assert rest <= followed("compress.benchmark.store.store") | {"compress"}
