"""`ka2l tables`: a stranger finds where a column is made, and the README says the same."""

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ka2l_ray.cli.app import app
from ka2l_ray.cli.tables import print_tables, with_tables
from ka2l_ray.config import ConfigError
from ka2l_ray.schema import TABLES

ROOT = Path(__file__).parents[3]


def shown(*words: str) -> list[str]:
    done = CliRunner().invoke(app, ["tables", *words])
    assert done.exit_code == 0, done.output
    return done.output.splitlines()


def test_the_readme_has_the_generated_tables():
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    assert page == with_tables(page), "run `make docs`"
    assert page.count("| `base/knowledge` | `label/stage` |") == 1


def test_where_p_unknown_is_made_and_carried():
    first, second, *_, last = shown("p_unknown")
    assert first == "base/scores, one row per pool question: made by step score, ka2l_ray/probe/score.py"
    assert second.split()[:3] == ["p_unknown", "float", "P(unknown):"]
    assert last == "carried over into strategies/NAME/seed_S/round_NN/decoded"


def test_where_gamma_is_made():
    lines = shown("γ")
    assert shown("gamma") == lines
    place = lines.index("base/knowledge, one row per probe question: made by step label, ka2l_ray/label/stage.py")
    assert "threshold_nats       in manifest.json γ: least semantic entropy" in lines[place + 2]


def test_without_a_name_every_table_column_and_fact_is_shown():
    lines = shown()
    for spec in TABLES.values():
        assert any(line.startswith(f"{spec.folder}") for line in lines)
        for name in (*(c.name for c in spec.added), *spec.facts):
            assert any(line.startswith(f"  {name} ") for line in lines)


@pytest.mark.parametrize(
    ("name", "folders"),
    [
        ("knowledge", ["base/knowledge"]),
        ("base/knowledge", ["base/knowledge"]),
        ("evaluation", ["base/evaluation", "strategies/NAME/seed_S/round_NN/evaluation"]),
        ("last_012", ["base/activations", "base/samples"]),
        ("quadrant", ["base/knowledge", "base/pool_knowledge"]),
    ],
)
def test_a_name_is_a_table_or_a_folder_or_a_column(name: str, folders: list[str]):
    heads = [line.partition(",")[0] for line in shown(name) if "made by step" in line]
    assert heads == folders


def test_another_name_is_refused():
    with pytest.raises(ConfigError, match="is called 'p_unknwon'; tables are questions, pilot"):
        print_tables("p_unknwon")


def test_it_starts_without_ray_and_torch():
    code = (
        "import sys; from ka2l_ray.cli.app import app; app(['tables', 'γ'], standalone_mode=False); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "base/knowledge" in done.stdout
    assert not {"ray", "torch", "transformers"} & set(done.stdout.splitlines()[-1].split())
