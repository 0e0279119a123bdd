"""What a run books and publishes, whichever command plays its rounds: the real loop on steps that only leave their
marks."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from ka2l_ray import schema
from ka2l_ray.active import schedule
from ka2l_ray.active import steps as rounds
from ka2l_ray.active.outcome import base_record
from ka2l_ray.active.round import Round, RoundState
from ka2l_ray.annotate.annotators import Waiting
from ka2l_ray.annotate.file import ASKED
from ka2l_ray.cli import app as cli
from ka2l_ray.config import parse_config
from ka2l_ray.dataflow import records
from ka2l_ray.dataflow.attempts import ShardFile
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.pipeline import loop, retry, table

SMOKE = Path(__file__).parents[2] / "jobs/configs/smoke.yaml"
SECONDS = {RoundState.ACQUIRE: 1.0, RoundState.ANNOTATE: 2.0, RoundState.FINETUNE: 40.0, RoundState.EVALUATE: 3.0}
BASE_EVALUATION_S = 5.0


class Marks:
    """Steps that take a known time on a clock of their own and write just what the next one looks for."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.fails: list[RoundState | str] = []

    def take(self, name: RoundState | str, seconds: float) -> None:
        self.now_s += seconds
        if name in self.fails:
            self.fails.remove(name)
            raise ValueError(f"{name} fails once")

    def base(self, run: Run) -> dict[str, Any]:
        if not run.base("evaluation").is_done:
            self.take("base", BASE_EVALUATION_S)
            graded = pa.table(
                {
                    "id": ["e"],
                    "correct": [True],
                    "scope": ["pool"],
                    "answers": [["gold"]],
                    "error": pa.array([None], pa.string()),
                }
            )
            run.base("evaluation").write((None, graded))
        return {"rows_in": 1, "rows": 1}

    def step(self, state: RoundState) -> Callable[[Round], dict[str, Any] | None]:
        name, columns = {
            RoundState.ACQUIRE: ("acquired", schema.ACQUIRED),
            RoundState.ANNOTATE: ("annotations", schema.ANNOTATIONS),
        }.get(state, ("", pa.schema([])))

        def does(a_round: Round) -> dict[str, Any] | None:
            if name and a_round.table(name).is_done:
                return None
            self.take(state, SECONDS[state])
            if name:
                rows = [dict.fromkeys(columns.names) | {"id": str(n), "rank": n} for n in range(a_round.budget)]
                a_round.table(name).write((None, pa.Table.from_pylist(rows, schema=columns)))
            if state != RoundState.EVALUATE:
                return None
            figures = base_record(a_round.run, a_round.strategy, a_round.seed)
            return figures | {"round": a_round.number, "annotations": 2}

        return does


@pytest.fixture
def marks(monkeypatch: pytest.MonkeyPatch) -> Marks:
    made = Marks()
    steps = tuple(step for step in table.STEP_TABLE if step.name in ("evaluate", "rounds"))
    monkeypatch.setattr(records, "time", SimpleNamespace(monotonic=lambda: made.now_s, time=time.time))
    monkeypatch.setattr(table, "STEP_TABLE", steps)
    monkeypatch.setattr(table, "STEP_NAMES", ("evaluate", "rounds"))
    monkeypatch.setattr(loop, "STEP_NAMES", ("evaluate", "rounds"))
    monkeypatch.setitem(loop.DOES, "evaluate", made.base)
    monkeypatch.setattr(rounds, "STEPS", {state: made.step(state) for state in SECONDS})
    return made


@pytest.fixture
def run(tmp_path: Path) -> Run:
    active = {"strategies": ["ka2l"], "rounds": 2, "budget": 4}
    return Run.open(parse_config({"run": {"name": "r", "storage": str(tmp_path)}, "active": active}, "test"))


def results(run: Run) -> dict[str, Any]:
    return json.loads((Path(run.folder.path) / "results.json").read_text())


def test_a_round_command_publishes_the_round_it_finished_and_its_own_name(run: Run, marks: Marks) -> None:
    assert loop.advance(run, "evaluate", "ka2l evaluate x.yaml --set 'a=b c'") == []
    assert [r["round"] for r in results(run)["rounds"]] == [0, 1]
    assert results(run)["command"] == "ka2l evaluate x.yaml --set 'a=b c'"
    assert "ka2l evaluate x.yaml" in (Path(run.folder.path) / "report/index.html").read_text()


PLAYERS: dict[str, Callable[[Run], object]] = {
    "run": lambda run: loop.execute(run, None, "a test"),
    "evaluate": lambda run: [loop.advance(run, "evaluate", "a test") for _ in range(2)],
    "annotate, then evaluate": lambda run: [loop.advance(run, name, "a test") for name in ("annotate", "evaluate") * 2],
    "compare": lambda run: (
        loop.run_steps(run, "evaluate"),
        schedule.play_curve(run, "ka2l", 0),
        loop.publish(run, "a test"),
    ),
}


@pytest.mark.parametrize("player", PLAYERS.values(), ids=PLAYERS)
def test_seconds_and_rows_of_rounds_are_booked_once_whoever_plays_them(
    run: Run, marks: Marks, player: Callable[[Run], object]
) -> None:
    wanted = {state.value: 2 * seconds for state, seconds in SECONDS.items()}
    wanted["evaluate"] += BASE_EVALUATION_S
    player(run)
    assert results(run)["time_s"] == wanted
    assert results(run)["rows"]["rounds"] == {"in": 4, "out": 4, "errors": 0}
    loop.redo(run, "rounds")
    loop.run_steps(run, "evaluate")
    assert loop.publish(run, "a test")["time_s"] == {"evaluate": BASE_EVALUATION_S}
    player(run)
    assert results(run)["time_s"] == wanted


@pytest.mark.parametrize("fails", ["base", RoundState.FINETUNE])
def test_a_step_that_failed_and_went_on_books_both_attempts(run: Run, marks: Marks, fails: RoundState | str) -> None:
    marks.fails.append(fails)
    with pytest.raises(ValueError, match="fails once"):
        loop.execute(run, None, "a test")
    booked = loop.execute(run, None, "a test")["time_s"]
    assert booked["evaluate"] == 2 * SECONDS[RoundState.EVALUATE] + BASE_EVALUATION_S * (1 + (fails == "base"))
    assert booked["finetune"] == SECONDS[RoundState.FINETUNE] * (2 + (fails == RoundState.FINETUNE))


def test_a_commands_time_is_booked_if_it_did_anything(run: Run, marks: Marks) -> None:
    rounds_s = 2 * sum(SECONDS.values())
    assert loop.execute(run, "evaluate", "a test", before_s=7.0).get("wall_s") == 7.0 + BASE_EVALUATION_S
    assert loop.execute(run, "evaluate", "a test", before_s=7.0).get("wall_s") == 7.0 + BASE_EVALUATION_S
    for _ in range(2):
        assert loop.execute(run, None, "a test", before_s=8.0).get("wall_s") == 15.0 + BASE_EVALUATION_S + rounds_s


def test_redoing_a_base_step_books_it_anew(run: Run, marks: Marks) -> None:
    loop.execute(run, "evaluate", "a test")
    loop.redo(run, "evaluate")
    assert loop.execute(run, "evaluate", "a test")["time_s"] == {"evaluate": BASE_EVALUATION_S}


def test_a_redo_killed_half_way_is_finished_before_any_step_runs(
    run: Run, marks: Marks, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop.execute(run, None, "a test")
    delete = Folder.delete

    def dies(folder: Folder) -> None:
        if folder.path.endswith("/strategies"):
            raise KeyboardInterrupt
        delete(folder)

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "delete", dies)
        with pytest.raises(KeyboardInterrupt):
            loop.redo(run, "evaluate")
    assert not (run.folder / "base/evaluation").exists()
    assert (run.folder / "strategies").exists()
    assert loop.execute(run, "evaluate", "a test")["time_s"] == {"evaluate": BASE_EVALUATION_S}
    assert not (run.folder / "strategies").exists()


def test_what_is_known_is_told_anew_once_failed_rows_of_it_are_done_again(run: Run) -> None:
    file = ShardFile.new(0, "0123abcd", 1, 1)
    stated = {"rows_in": 1, "errors": 1, "stage": "evaluate", "shard_rows": 1}
    run.base("known/asked_again").close([{"name": f"data/{file.name}", "rows": 1}], **stated)
    run.base("known").write((None, pa.Table.from_pylist([], schema=schema.KNOWN)))
    assert retry.retry_errors(run) == {"known/asked_again": 1}
    assert not run.base("known").is_done
    assert not run.base("known/asked_again").is_done


@pytest.mark.parametrize("name", ["annotate", "finetune", "evaluate", "run"])
def test_every_command_that_meets_a_round_of_people_ends_as_paused(
    run: Run, marks: Marks, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def ask(a_round: Round) -> None:
        (a_round.folder / "annotations" / ASKED).write_json([])
        raise Waiting("2 questions wait for answers", "to_annotate.csv")

    monkeypatch.setitem(rounds.STEPS, RoundState.ANNOTATE, ask)
    monkeypatch.setattr(cli, "_held", lambda config: run)
    ended = CliRunner().invoke(cli.app, [name, str(SMOKE), "--set", "report.title=my run"])
    assert ended.exit_code == cli.PAUSED, ended.output
    assert f"ka2l annotate {SMOKE} --import FILE --set 'report.title=my run'" in ended.output
    assert results(run)["command"] == f"ka2l {name} {SMOKE} --set 'report.title=my run'"
