"""What a user meets when something is wrong: one line, exit status 2, no traceback, nothing written."""

import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT, ka2l

from ka2l_ray.cli.app import app
from ka2l_ray.config import load_config
from ka2l_ray.dataflow import driver
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.pipeline.compare import open_runs

SMOKE = "jobs/configs/smoke.yaml"
HOLDER = """
import sys, time
from ka2l_ray.dataflow import driver
from ka2l_ray.dataflow.storage import Folder

driver.hold(Folder.of(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["collect.sampels=3"], "`collect.sampels` is not a known field; did you mean `samples`?"),
        (["run.seed=-1"], "`run.seed` = -1: should be greater than or equal to 0"),
        (["collect.layers=[2, 9]"], "collect.layers = [2, 9]: world has layers 0 … 6, not [9]"),
        (["active.budget=61"], "active.budget = 61 exceeds corpus.world.pool_questions = 60"),
        (["corpus.world.probe_questions=3000"], "corpus.world.probe_questions = 3000: the world has only"),
        (["model.name_or_path=/no/such/model"], "model.name_or_path = '/no/such/model'"),
        (["corpus.source=questions.jsonl"], f"corpus.source = '{ROOT}/questions.jsonl': no such file"),
        (
            ["decode.decoder=$NO_SUCH_VARIABLE/d"],
            "decode.decoder = '$NO_SUCH_VARIABLE/d': the environment has no NO_SUCH_VARIABLE",
        ),
        (["corpus.source=q.jsonl", "active.strategies=[oracle]"], "`oracle` needs corpus.source = world"),
        (
            ["corpus.source=q.jsonl", "active.strategies=[decoded]"],
            "reference answers cannot answer them",
        ),
        (
            ["corpus.source=q.jsonl", "active.strategies=[oracle_wrong]"],
            "`oracle_wrong` needs an eval that asks the pool's",
        ),
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


@pytest.mark.parametrize(
    "typed", [["run"], ["collect"], ["annotate"], ["annotate", "--import", "a.csv"], ["compare", "--seeds", "2"]]
)
def test_a_second_driver_is_refused_and_changes_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, typed: list[str]
) -> None:
    """Of a comparison, the second run is held: the first, which is free, is left alone too."""
    monkeypatch.chdir(ROOT)
    given = load_config(SMOKE, [f"run.storage={tmp_path}"])
    run = open_runs(given, 2)[1] if typed[0] == "compare" else Run.open(given)
    before = files(tmp_path)
    command, *more = typed
    with subprocess.Popen([sys.executable, "-c", HOLDER, run.folder.path], stdout=subprocess.PIPE, text=True) as first:
        try:
            assert first.stdout
            assert first.stdout.readline() == "held\n"
            with pytest.raises(SystemExit) as ended:
                app([command, SMOKE, *more, "--set", f"run.storage={tmp_path}", "--set", "collect.samples=5"])
        finally:
            first.kill()
    assert ended.value.code == 2
    assert f"another driver is at work on this run, process {first.pid}" in capfd.readouterr().err
    assert files(tmp_path) == before


def files(folder: Path) -> dict[Path, bytes]:
    return {f: f.read_bytes() for f in folder.rglob("*") if f.is_file() and f.name != driver.FILE}


def test_a_mistake_ends_the_command_itself(tmp_path: Path) -> None:
    done = ka2l("run", SMOKE, "--set", f"run.storage={tmp_path}", "--set", "finetune={workers: 50, batch_rows: 50}")
    assert done.returncode == 2
    assert "ka2l: finetune needs 50 CPUs and 0 GPUs; this cluster has 6 and 0" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_folder_of_another_configuration_is_refused_naming_the_field(tmp_path: Path) -> None:
    run = Run.open(load_config(ROOT / SMOKE, [f"run.storage={tmp_path}"]))
    run.table("questions").close([])  # a run that has begun
    done = ka2l("run", SMOKE, "--set", f"run.storage={tmp_path}", "--set", "collect.samples=5", "--until", "questions")
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
