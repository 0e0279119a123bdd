"""Ray stays at the edge: which files may import it, and what importing the others loads."""

import ast
import graphlib
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import ka2l_ray

ROOT = Path(__file__).parents[2]
FLOORS = (
    "errors hashing results_schema schema stats tables",
    "config",
    "text",
    "entropy",
    "dataflow",
    "models world chat",
    "corpus collect label probe annotate finetune",
    "decode",
    "api",
    "active world_model",
    "planning report",
    "pipeline",
    "cli",
)
"""Folders and single files of the package, lowest floor first; one imports only from floors below its own."""
MARKED = {
    f"ka2l_ray/{name}.py"
    for name in (
        "dataflow/cluster dataflow/local_nodes dataflow/metrics dataflow/nodes dataflow/stage dataflow/tasks "
        "dataflow/trials dataflow/vault corpus/stage probe/search probe/trial annotate/stage decode/search "
        "decode/training decode/measuring finetune/train world_model/build pipeline/checks pipeline/curves cli/jobs"
    ).split()
}
"""The files that may import Ray; an upper bound."""


def sources(*folders: str) -> list[str]:
    return sorted(str(p.relative_to(ROOT)) for folder in folders for p in (ROOT / folder).rglob("*.py"))


def imported(file: str) -> set[str]:
    """Every module that a file imports anywhere, with the members of `from` imports, which may be modules."""
    names = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: relative import, which this test cannot follow"
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def module(file: str) -> str:
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def test_only_marked_files_import_ray():
    importing = {f for f in sources("ka2l_ray", "jobs") if any(n.split(".")[0] == "ray" for n in imported(f))}
    assert importing <= MARKED, f"these may not import ray: {sorted(importing - MARKED)}"


def test_the_marked_files_that_exist_are_found_importing_ray():
    """Otherwise the test above could pass by looking at nothing."""
    assert "ka2l_ray/dataflow/stage.py" in {f for f in sources("ka2l_ray") if "ray" in imported(f)}


def pure_modules() -> list[str]:
    """Modules that reach no marked one by any chain of imports."""
    reached, graph = {module(f) for f in MARKED}, imports()
    while more := {name for name, others in graph.items() if others & reached} - reached:
        reached |= more
    return sorted(graph.keys() - reached)


def room(name: str) -> str:
    """The folder of a module, or the file where it stands in none."""
    return name.split(".")[1]


def imports() -> dict[str, set[str]]:
    """The modules of this package that each one imports."""
    modules = {module(f): f for f in sources("ka2l_ray")}
    return {
        name: imported(file) & modules.keys() - {name, "ka2l_ray"}
        for name, file in modules.items()
        if name != "ka2l_ray"
    }


def test_every_folder_has_a_floor():
    rooms = {room(name) for name in imports()}
    assert rooms == {name for floor in FLOORS for name in floor.split()}


def test_a_folder_imports_only_from_floors_below_its_own():
    floor = {name: n for n, names in enumerate(FLOORS) for name in names.split()}
    climbing = [
        f"{name} imports {other}"
        for name, others in imports().items()
        for other in others
        if room(name) != room(other) and floor[room(other)] >= floor[room(name)]
    ]
    assert climbing == []


def test_the_root_only_names_what_it_loads_later_and_nothing_inside_uses_it():
    """Python runs `ka2l_ray/__init__.py` before any other file; what it offers is above the stages and loads no Ray."""
    top = ast.parse((ROOT / "ka2l_ray/__init__.py").read_text()).body
    run_first = {n.module for n in top if isinstance(n, ast.ImportFrom)}
    run_first |= {alias.name for n in top if isinstance(n, ast.Import) for alias in n.names}
    assert run_first == {"importlib", "typing"}
    public = {f"ka2l_ray.{name}" for name in ka2l_ray.__all__}
    assert [f for f in sources("ka2l_ray") if f != "ka2l_ray/__init__.py" and imported(f) & public] == []
    assert {getattr(ka2l_ray, name).__module__ for name in ka2l_ray.__all__} <= set(pure_modules())


def test_no_file_imports_itself_in_a_circle():
    graphlib.TopologicalSorter(imports()).prepare()


@pytest.mark.parametrize(
    ("name", "heavy"),
    [*(("config", heavy) for heavy in ("torch", "ray", "transformers")), ("probe.trial", "torch")],
)
def test_what_many_processes_load_loads_nothing_heavy(name, heavy):
    """Every command, and every trial of a search, which fits a probe in less time than torch takes to import."""
    code = f"import sys, ka2l_ray.{name}; assert 'ka2l_ray' in sys.modules; assert {heavy!r} not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_pure_modules_do_not_load_ray():
    """In this very process, which runs all unit tests: none of them may load ray either."""
    assert {"ka2l_ray.probe.fit", "ka2l_ray.models.generation", "ka2l_ray.label.actor"} <= set(pure_modules())
    for name in pure_modules():
        importlib.import_module(name)
    assert "torch" in sys.modules
    assert "ray" not in sys.modules
