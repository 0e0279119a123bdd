"""What is sent with a job, what it is called, and when nothing is sent at all."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from ka2l_ray.cli import jobs
from ka2l_ray.cli.app import app
from ka2l_ray.config import ConfigError, RunSection, load_config

SMOKE = Path(__file__).parents[3] / "jobs/configs/smoke.yaml"


def submission(folder: Path, *overrides: str, words: tuple[str, ...] = ("run",)) -> jobs.Submission:
    file = folder / "elsewhere/mine.yaml"
    file.parent.mkdir(exist_ok=True)
    shutil.copy(SMOKE, file)
    given = ["run.storage=/shared/runs", *overrides]
    return jobs.Submission(file, load_config(file, given), given, words)


def test_package_configuration_and_relative_files_are_sent_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("data/a.jsonl", "data/b.jsonl", "data/c.csv", "runs/old/results.json", ".git/HEAD"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    with submission(tmp_path, "corpus.source=[data/*.jsonl, /shared/d.jsonl]").working_directory() as folder:
        sent = {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()}
    own = {name for name in sent if not name.startswith("ka2l_ray/")}
    assert own == {"mine.yaml", "data/a.jsonl", "data/b.jsonl"}
    assert "ka2l_ray/cli/__main__.py" in sent
    assert not [name for name in sent if "__pycache__" in name]
    assert not folder.exists()


def test_a_folder_is_sent_whole_through_links_and_whatever_it_tells_git_to_leave_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data[v2]/.git").mkdir(parents=True)
    (tmp_path / "large").mkdir()
    (tmp_path / "large/b.jsonl").write_text("x" * 1000)
    (tmp_path / "data[v2]/a.jsonl").write_text("{}")
    (tmp_path / "data[v2]/.gitignore").write_text("/a.jsonl")
    (tmp_path / "data[v2]/link").symlink_to(tmp_path / "large")
    with submission(tmp_path, "corpus.source=['data[v2]/**', 'data[v2]/*.jsonl']").working_directory() as folder:
        sent = sorted(str(f.relative_to(folder)) for f in (folder / "data[v2]").rglob("*") if f.is_file())
    assert sent == ["data[v2]/a.jsonl", "data[v2]/link/b.jsonl"]
    monkeypatch.setattr(jobs, "SENT_AT_MOST", 1001)
    with pytest.raises(ConfigError, match="to be sent with the job"):
        jobs.check_size([tmp_path / "data[v2]"])


def test_the_command_is_that_of_the_shell_with_its_overrides(tmp_path: Path) -> None:
    made = submission(tmp_path, "report.title=It's mine", words=("compare", "--seeds", "2"))
    assert made.entrypoint == (
        "python -m ka2l_ray.cli compare mine.yaml --seeds 2 --set run.storage=/shared/runs "
        """--set 'report.title=It'"'"'s mine'"""
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run.storage=runs", "run.storage = 'runs': is relative, so it would be in the job's working directory"),
        ("corpus.source=../q.jsonl", "corpus.source = '../q.jsonl': is outside the current folder"),
        ("corpus.source=none/*.jsonl", "corpus.source = 'none/*.jsonl': no such file"),
        ("model.adapter=adapter", "model.adapter = 'adapter': no such file"),
    ],
)
def test_what_the_job_would_not_find_is_refused_before_anything_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, override: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as refused, submission(tmp_path, override).working_directory():
        raise AssertionError("was made")
    assert str(refused.value).startswith(message)


def test_paths_that_mean_the_same_on_the_cluster_are_not_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = ("corpus.source=[s3://bucket/q.jsonl, $DATA/q.jsonl, ~/q.jsonl]", "model.name_or_path=org/model")
    with submission(tmp_path, *given).working_directory() as folder:
        assert sorted(f.name for f in folder.iterdir()) == ["ka2l_ray", "mine.yaml"]


def test_too_much_is_refused_and_the_largest_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = tmp_path / "large.jsonl"
    with large.open("wb") as file:
        file.truncate(jobs.SENT_AT_MOST + 1)
    (tmp_path / "small.jsonl").write_text("{}")
    with pytest.raises(ConfigError, match=r"large.jsonl: 200 MiB, of 200 MiB to be sent with the job; at most 200"):
        jobs.check_size([tmp_path / "small.jsonl", large])
    jobs.check_size([tmp_path / "small.jsonl"])


def test_a_folder_of_gigabytes_is_refused_before_anything_is_copied_or_asked_of_a_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With limit, size, the largest files, and how to leave them out."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/deep").mkdir(parents=True)
    (tmp_path / "data/.git").mkdir()
    sizes = {"data/deep/states.parquet": 700, "data/old.parquet": 90, "data/q.jsonl": 0, "data/.git/pack": 900}
    for name, mib in sizes.items():
        with (tmp_path / name).open("wb") as file:
            file.truncate(mib * 2**20)
    monkeypatch.setattr(jobs.shutil, "copytree", lambda *_, **__: pytest.fail("was copied"))
    with pytest.raises(ConfigError) as refused, submission(tmp_path, "corpus.source=data").working_directory():
        pass
    said = str(refused.value)
    assert said.startswith(f"{tmp_path}/data/deep/states.parquet: 700 MiB, of "), "what is not sent does not count"
    for part in ("at most 200 are sent", "its URI or its absolute path", f"next: {tmp_path}/data/old.parquet: 90 MiB"):
        assert part in said
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    with submission(tmp_path, f"corpus.source={tmp_path}/data").working_directory() as folder:
        assert sorted(f.name for f in folder.iterdir()) == ["ka2l_ray", "mine.yaml"]


def job(name: str, has_ended: bool, storage: str = "/runs") -> Any:
    status = SimpleNamespace(is_terminal=lambda: has_ended)
    return SimpleNamespace(submission_id=name, status=status, metadata={"storage": storage})


def test_jobs_of_a_run_are_numbered_by_its_name() -> None:
    ended = [job("a.b-1", True), job("a.b-9", True), job("axb-30", False), job("a.b-12", False, "/elsewhere")]
    assert jobs._next_id(RunSection(name="a.b", storage="/runs"), [*ended, job("raysubmit_1", False)]) == "a.b-13"
    assert jobs._next_id(RunSection(name="new", storage="/runs"), ended) == "new-1"


def test_a_second_job_of_a_run_is_refused_while_the_first_has_not_ended() -> None:
    with pytest.raises(ConfigError, match=r"job a-2 is at work on it\. Follow it with `ka2l submit --follow a-2`"):
        jobs._next_id(RunSection(name="a", storage="/runs"), [job("a-1", True), job("a-2", False)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "submit needs a configuration file, or --follow and a job"),
        (
            [str(SMOKE), "--command", "annotate --import a.csv"],
            "--command 'annotate --import a.csv': --import is not for",
        ),
        ([str(SMOKE), "--command", "rm -rf /"], "--command 'rm -rf /': must begin with one of run, collect"),
    ],
)
def test_mistakes_are_one_line_and_status_2(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(app, ["submit", *arguments])
    assert done.exit_code == 2
    assert done.stderr.startswith(f"ka2l: {message}")
    assert len(done.stderr.splitlines()) == 1
