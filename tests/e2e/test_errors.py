"""What a user meets when something is wrong: one line, exit status 2, no traceback, nothing written."""

from pathlib import Path

import pytest
from commands import ROOT, ka2l

from ka2l_ray.cli import app

SMOKE = "jobs/configs/smoke.yaml"


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["collect.sampels=3"], "`collect.sampels` is not a known field; did you mean `samples`?"),
        (["run.seed=-1"], "`run.seed` = -1: should be greater than or equal to 0"),
        (["collect.layers=[2, 9]"], "collect.layers = [2, 9]: world has layers 0 … 6, not [9]"),
        (["active.budget=61"], "active.budget = 61 exceeds corpus.world.pool_questions = 60"),
        (["corpus.world.probe_questions=3000"], "corpus.world.probe_questions = 3000: the world has only"),
        (["model.name_or_path=/no/such/model"], "model.name_or_path = '/no/such/model'"),
        (["corpus.source=questions.jsonl"], "corpus.source = 'questions.jsonl': no such file"),
        (["corpus.source=q.jsonl", "active.strategies=[oracle]"], "`oracle` needs corpus.source = world"),
    ],
)
def test_a_mistake_is_one_clear_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, overrides: list[str], says: str
) -> None:
    """In this process, which has imported Ray and torch already; the tests below start `ka2l` itself."""
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as ended:
        app(["run", SMOKE, "--set", f"run.storage={tmp_path}", *(part for o in overrides for part in ("--set", o))])
    shown = capfd.readouterr().err
    assert ended.value.code == 2
    lines = [line for line in shown.splitlines() if line.startswith("ka2l: ")]
    assert len(lines) == 1, shown
    assert says in lines[0]
    assert "Traceback" not in shown
    assert not list(tmp_path.rglob("manifest.json"))


def test_a_mistake_ends_the_command_itself(tmp_path: Path) -> None:
    done = ka2l("run", SMOKE, "--set", f"run.storage={tmp_path}", "--set", "finetune={workers: 50, batch_rows: 50}")
    assert done.returncode == 2
    assert "ka2l: finetune needs 50 CPUs and 0 GPUs; this cluster has 6 and 0" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_folder_of_another_configuration_is_refused_naming_the_field(tmp_path: Path) -> None:
    storage = ["--set", f"run.storage={tmp_path}"]
    assert ka2l("run", SMOKE, *storage, "--until", "questions").returncode == 0
    done = ka2l("run", SMOKE, *storage, "--set", "collect.samples=5", "--until", "questions")
    assert done.returncode == 2
    assert "collect.samples: 10 → 5" in done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["world", "--help"], ["submit", "--help"]])
def test_help_is_there(arguments: list[str]) -> None:
    done = ka2l(*arguments)
    assert done.returncode == 0
    assert "Usage" in done.stdout


def test_the_dry_run_prints_the_plan_and_writes_nothing(tmp_path: Path) -> None:
    done = ka2l("run", SMOKE, "--set", f"run.storage={tmp_path}", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert all(stage in done.stdout for stage in ("collect", "score", "replay", "evaluate", "finetune"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("file", sorted((ROOT / "jobs").glob("*.py")), ids=lambda f: f.name)
def test_every_job_script_names_a_command(file: Path) -> None:
    name = file.read_text().split('stage_job("')[1].split('"')[0]
    done = ka2l(name, "--help")
    assert done.returncode == 0, done.stderr
