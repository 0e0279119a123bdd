"""Ray stays at the edge: which files may import it, and what importing the others loads."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MARKED = {
    f"ka2l_ray/{name}.py"
    for name in (
        "dataflow runtime pipeline corpus/stage collect/stage label/stage probe/search decode/stage "
        "annotate/stage finetune/train active/rounds active/compare world/build jobs"
    ).split()
}
"""The files that design.md marks [ray]; an upper bound."""


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
    assert "ka2l_ray/dataflow.py" in {f for f in sources("ka2l_ray") if "ray" in imported(f)}


def pure_modules() -> list[str]:
    """Modules that neither are marked, nor import a marked one, nor are the command line."""
    marked = {module(f) for f in MARKED}
    return [module(f) for f in sources("ka2l_ray") if f not in MARKED and f != "ka2l_ray/cli.py" and not imported(f) & marked]


@pytest.mark.parametrize("heavy", ["torch", "ray", "transformers"])
def test_configuration_loads_nothing_heavy(heavy):
    code = f"import sys, ka2l_ray.config; assert 'ka2l_ray' in sys.modules; assert {heavy!r} not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_pure_modules_do_not_load_ray():
    """In this very process, which runs all unit tests: none of them may load ray either."""
    assert {"ka2l_ray.probe.fit", "ka2l_ray.models.generation", "ka2l_ray.label.actor"} <= set(pure_modules())
    for name in pure_modules():
        importlib.import_module(name)
    assert "torch" in sys.modules
    assert "ray" not in sys.modules
