"""`ka2l status`: what a run is doing, read from its folder alone."""

import json
import os
import socket
import time
from pathlib import Path

import pytest
from finished_run import open_run
from obeyed_text import ATTACK, SHOWN, obeyed
from runs import SMOKE
from typer.testing import CliRunner

from ka2l_ray.active.round import RoundState
from ka2l_ray.active.schedule import planned_rounds
from ka2l_ray.cli.app import app
from ka2l_ray.cli.status import print_status
from ka2l_ray.dataflow.attempts import NOTE, Attempt, ShardFile, Shards
from ka2l_ray.dataflow.driver import FILE, MISSED_BEATS, DriverState
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.pipeline.status import RunStatus, Work, status_of
from ka2l_ray.pipeline.table import STEP_NAMES


def begin(folder: Folder, name: str, rows: int, ago_s: float, own: int = 0) -> None:
    """A stage that wrote its first shard of 10 rows `ago_s` / 2 after it began."""
    data = (folder / "data").make()
    attempt = Attempt.begin(folder / "_attempt", data, Shards(name, rows, 10))
    (data / (file := ShardFile.new(0, attempt.token, own, own)).name).write_bytes(b"rows")
    for path, age_s in ((folder / "_attempt" / NOTE, ago_s), (data / file.name, ago_s / 2)):
        os.utime(path.path, (then := time.time() - age_s, then))


def test_a_run_that_was_only_opened_has_everything_to_do(tmp_path: Path) -> None:
    found = status_of(open_run(tmp_path))
    assert [s.name for s in found.steps] == list(STEP_NAMES)
    assert {s.state for s in found.steps} == {"to do"}
    assert (found.driver, found.working, found.errors, found.is_done) == (None, (), 0, False)
    assert found.rounds == {"acquire": len(planned_rounds(open_run(tmp_path)))}


def test_rows_rate_and_time_left_of_a_stage_in_progress(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    run.records.finish("questions", {"in": 100, "out": 98, "errors": 2})
    begin(run.base("activations").folder, "collect", 40, ago_s=40.0, own=1)
    found = status_of(run)
    states = {s.name: s.state for s in found.steps}
    assert (states["questions"], states["collect"], states["label"]) == ("done", "in progress", "to do")
    (work,) = found.working
    assert (work.where, work.done, work.total, work.errors) == ("base/activations", 10, 40, 1)
    assert work.per_second == pytest.approx(0.5, rel=0.05)
    assert work.left_s == pytest.approx(60.0, rel=0.05)
    assert work.quiet_s == pytest.approx(20.0, abs=2.0)
    assert found.errors == 3


def test_a_table_that_is_done_is_not_in_progress_even_if_a_kill_left_its_attempt(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    begin(run.base("scores").folder, "score", 40, ago_s=40.0)
    run.base("scores").close([])
    assert status_of(run).working == ()


def test_rounds_by_state_and_the_steps_of_a_training(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    first, second, *_ = planned_rounds(run)
    for state in (RoundState.ACQUIRE, RoundState.ANNOTATE):
        first.records.finish(state)
    (first.folder / "finetune/model-progress.json").write_json({"step": 30, "steps": 120})
    begin(second.table("decoded/written").folder, "decode", 20, ago_s=4.0)
    found = status_of(run)
    assert found.rounds["finetune"] == 1
    assert sum(found.rounds.values()) == len(planned_rounds(run))
    training, decoding = found.working
    assert (training.unit, training.done, training.total) == ("steps", 30, 120)
    assert training.where.endswith("round_01/finetune")
    assert decoding.where.endswith("decoded/written")


@pytest.mark.parametrize("is_stopped", [False, True])
def test_a_finished_run_is_done_though_its_step_of_rounds_keeps_no_record(tmp_path: Path, is_stopped: bool) -> None:
    """Also one whose strategy stopped before its last round."""
    run = open_run(tmp_path)
    for name in STEP_NAMES[:-1]:
        run.records.finish(name)
    left_out = {("ka2l", 0, 3)} if is_stopped else set()
    for a_round in planned_rounds(run):
        if (a_round.strategy, a_round.seed, a_round.number) not in left_out:
            for state in (RoundState.ACQUIRE, RoundState.ANNOTATE, RoundState.FINETUNE, RoundState.EVALUATE):
                a_round.records.finish(state)
    if is_stopped:
        assert not status_of(run).is_done
        stop = {"strategy": "ka2l", "seed": 0, "after_round": 2, "reason": "accuracy"}
        (run.folder / "results.json").write_json({"stopped": [stop]})
    found = status_of(run)
    assert found.is_done
    assert found.rounds == {"done": len(planned_rounds(run)) - len(left_out)}


def hold(run: Run, host: str, pid: int, age_s: float) -> None:
    file = run.folder / FILE
    file.write_json({"host": host, "pid": pid, "started_unix_s": 1.0, "token": "t"})
    os.utime(file.path, (then := time.time() - age_s, then))


@pytest.mark.parametrize(("age_s", "alive"), [(1.0, True), (15.0 * MISSED_BEATS + 5, False)])
def test_a_driver_on_another_machine_is_judged_by_its_beat(tmp_path: Path, age_s: float, alive: bool) -> None:
    run = open_run(tmp_path)
    hold(run, "elsewhere", 1, age_s)
    driver = status_of(run).driver
    assert driver is not None
    assert (driver.host, driver.is_alive) == ("elsewhere", alive)
    assert driver.beat_age_s == pytest.approx(age_s, abs=2.0)


def test_a_killed_driver_of_this_machine_is_gone_at_once(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    hold(run, socket.gethostname(), os.getpid(), 0.0)  # the number is this process', which began at another time
    driver = status_of(run).driver
    assert driver is not None
    assert not driver.is_alive


def test_the_command_prints_lines_or_json_and_refuses_what_is_no_run(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    begin(run.base("activations").folder, "collect", 40, ago_s=40.0)
    hold(run, "elsewhere", 7, 300.0)
    done = CliRunner().invoke(app, ["status", run.folder.path])
    assert done.exit_code == 0, done.output
    assert "working  base/activations: 10 of 40 rows (25%), 0 failed, 0.5 rows/s" in done.output
    assert "driver   process 7 on elsewhere, last sign of life 0:05:00 ago: gone" in done.output
    printed = json.loads(CliRunner().invoke(app, ["status", run.folder.path, "--json"]).output)
    assert printed["working"][0]["total"] == 40
    refused = CliRunner().invoke(app, ["status", str(tmp_path)])
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert "so it is not a run folder" in refused.stderr


def test_submitting_to_no_cluster_is_one_line_and_status_2() -> None:
    refused = CliRunner().invoke(app, ["submit", str(SMOKE), "--address", "http://127.0.0.1:9"])
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert refused.stderr.startswith("ka2l: --address http://127.0.0.1:9: no dashboard of a Ray cluster answers there")


def test_what_others_wrote_is_shown_as_text(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    work = Work(ATTACK, "rows", 1, 2, 0, 1.0, 1.0, 0.0)
    status = RunStatus(ATTACK, DriverState(ATTACK, 1, True, 0.0), (), {}, (work,), 0)
    print_status(status)
    shown = capsys.readouterr().out
    assert obeyed(shown) == set()
    assert shown.count(SHOWN) == 2, "the table and its title are as narrow as the steps"
    print_status(status, as_json=True)
    shown = capsys.readouterr().out
    assert obeyed(shown) == set()
    assert json.loads(shown)["run"] == ATTACK


def test_a_run_in_a_bucket(bucket: str) -> None:
    run = open_run(Path("unused"), run={"name": "r", "storage": bucket})
    (run.folder / "base/activations/data").make()
    attempt = Attempt.begin(
        run.folder / "base/activations/_attempt", run.folder / "base/activations/data", Shards("collect", 40, 10)
    )
    (run.folder / "base/activations/data" / ShardFile.new(0, attempt.token, 0, 0).name).write_bytes(b"rows")
    (work,) = status_of(Run.existing(run.folder.uri)).working
    assert (work.done, work.total) == (10, 40)
