"""Rounds on the shared cluster: people as annotators, a comparison that is resumed, a new probe of a tuned model."""

import csv
import json
import re
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray
from chat_server import ChatServer
from runs import SMOKE, copied, small

from ka2l_ray import schema
from ka2l_ray.active import schedule
from ka2l_ray.active.examples import watched_questions
from ka2l_ray.active.known import find_known
from ka2l_ray.active.outcome import known_counts, noise_floor
from ka2l_ray.active.replay import replay_counts
from ka2l_ray.active.reprobe import own_run, reprobe, scoring_run
from ka2l_ray.active.round import Round, RoundState
from ka2l_ray.annotate.file import import_file
from ka2l_ray.config import load_config
from ka2l_ray.dataflow.cluster import curves_at_once
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.errors import StageError
from ka2l_ray.pipeline import loop, results
from ka2l_ray.pipeline.compare import compare, open_runs
from ka2l_ray.world.facts import build_world

ROUNDS = (
    "decode.enabled=false",
    "active={strategies: [ka2l, random], rounds: 1, budget: 8, random_draws: 1}",
    "finetune={workers: 1, zero_stage: 0, epochs: 2, replay: {ratio: 1.0, samples: 2, kl_weight: 1.0}}",
)


@pytest.fixture(scope="module")
def compared(scored: tuple[Run, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """A comparison of two strategies on one seed, whose probe and scores were there before; made once for this file."""
    (run,) = open_runs(small(tmp_path_factory.mktemp("compared"), *ROUNDS), seeds=1)
    run = copied(scored[0], run.config)
    compare([run], parallel=2, command="a test")
    return [run]


def test_a_comparison_holds_every_curve_and_plays_none_twice(compared: list[Run]) -> None:
    folder = Path(compared[0].folder.path).parent
    summary = json.loads((folder / "compare.json").read_text())
    assert [s["strategy"] for s in summary["strategies"]] == ["ka2l", "random"]
    assert all([p["annotations"] for p in s["curve"]] == [0, 8] for s in summary["strategies"])
    assert (folder / "index.html").read_text().count("<svg") == 1
    played = {f: f.stat().st_mtime_ns for f in folder.rglob("round_*/steps.json")}
    assert len(played) == 2
    _, again = compare(compared, parallel=2, command="a test")
    assert {f: f.stat().st_mtime_ns for f in folder.rglob("round_*/steps.json")} == played
    assert (
        again["strategies"] == summary["strategies"]
        or json.loads(json.dumps(again["strategies"])) == summary["strategies"]
    )


def test_a_round_keeps_its_ledger_and_the_same_replay_size_for_every_strategy(compared: list[Run]) -> None:
    rounds = [r.record() for r in schedule.planned_rounds(compared[0])]
    assert [r.get("ledger", {}).get("asked") for r in rounds] == [8, 8]
    assert all(r["cost"] == 8.0 for r in rounds)
    wanted = sum(replay_counts(compared[0].config.finetune.replay, 8))
    tables = [
        Run(r.folder, r.run.config).table("finetune/replay_questions") for r in schedule.planned_rounds(compared[0])
    ]
    assert [t.rows for t in tables] == [wanted, wanted]


def test_the_world_is_asked_in_its_own_words_and_the_noise_floor_is_over_what_is_known_or_wrong(
    compared: list[Run], tmp_path: Path
) -> None:
    """The world's model was trained on bare prompts only, so that solved examples make it lose what it knows."""
    run = copied(compared[0], small(tmp_path, *ROUNDS, "finetune.prompt={style: fewshot, shots: 2}"))
    evaluated = run.base("evaluation").read(["fact_id", "scope", "correct"]).to_pylist()
    right = {r["fact_id"] for r in evaluated if r["scope"] == "pool" and r["correct"]}
    asked = run.base("known/asked_again").read(["fact_id", "correct", "samples"]).to_pylist()
    assert {r["fact_id"] for r in asked} == right
    assert [len(r["samples"]) for r in asked] == [run.config.collect.samples * r["correct"] for r in asked]
    counts = known_counts(run)
    assert counts
    assert counts["known"] > 5
    assert noise_floor(run) is None
    find_known(run)
    floor = noise_floor(run)
    assert floor
    assert (floor["lost"]["of"], floor["gained"]["of"]) == (counts["known"], counts["wrong"])
    assert floor["lost"]["count"] > 0
    booked = results.gather(run, "a test")["evaluation_ledger"]
    assert booked["known"] == {"questions": len(asked), "samples": sum(len(r["samples"]) for r in asked)}
    assert booked["noise_floor"]["questions"] == counts["known"] + counts["wrong"]


def test_a_comparison_goes_on_at_the_step_it_was_killed_in(compared: list[Run]) -> None:
    """Killed between a training and the end of its evaluation: the training stands, the evaluation is made again, with
    the same figures."""
    killed, other = schedule.planned_rounds(compared[0])
    before, trained = killed.record(), Path(killed.model.path, "training.json").stat().st_mtime_ns
    untouched = Path(other.folder.path, "steps.json").stat().st_mtime_ns
    killed.records.reopen(RoundState.EVALUATE)
    Path(killed.folder.path, "evaluation/manifest.json").unlink()
    assert killed.state == RoundState.EVALUATE
    compare(compared, parallel=1, command="a test")
    figures = {k: v for k, v in killed.record().items() if k != "seconds"}
    assert figures == {k: v for k, v in before.items() if k != "seconds"}
    assert Path(killed.model.path, "training.json").stat().st_mtime_ns == trained
    assert Path(other.folder.path, "steps.json").stat().st_mtime_ns == untouched


def test_a_strategy_that_has_reached_its_target_buys_nothing_and_says_why(compared: list[Run], tmp_path: Path) -> None:
    """Random goes on to its whole budget: savings are measured against it."""
    run = copied(compared[0], small(tmp_path, *ROUNDS, "active.stop.accuracy=0.01"))
    assert [(r.strategy, r.draw) for r in schedule.next_rounds(run)] == [("random", 0)]
    (stop,) = results.gather(run, "a test")["stopped"]
    assert (stop["strategy"], stop["after_round"], stop["reason"]) == ("ka2l", 0, "accuracy target reached")
    assert "active.stop.accuracy" not in schedule.play_curve(run, "ka2l", 0)
    assert not Path(Round(run, "ka2l", 0, 1).folder.path).exists()


def test_as_many_curves_at_once_as_the_cluster_holds(compared: list[Run]) -> None:
    """Six CPUs: a curve takes a training's workers and one for itself, or a pool's actors and two."""
    config = compared[0].config
    cpus = int(ray.cluster_resources()["CPU"])
    assert curves_at_once(config) == cpus // 3
    wide = config.model_copy(
        update={"finetune": config.finetune.model_copy(update={"cpus_per_worker": float(cpus - 1)})}
    )
    assert curves_at_once(wide) == 1


KEY = "sk-SECRET-9876543210"


def test_a_comparison_asks_with_the_drivers_key_within_the_limits_and_fails_in_one_line(
    compared: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key is set after the cluster started, so no worker has it. Every answer is refused, so no curve goes on to
    train."""
    monkeypatch.setenv("KA2L_ANNOTATOR_KEY", KEY)
    with ChatServer().running() as server:
        server.troubles = defaultdict(lambda: ["status 401"] * 9)
        server.before = lambda question: time.sleep(0.2)
        asking = ("annotate.source=endpoint", f"annotate.endpoint={{url: '{server.url}', concurrency: 2}}")
        run = copied(compared[0], small(tmp_path, *ROUNDS, *asking))
        with pytest.raises(StageError) as failed:
            compare([run], parallel=2, command="a test")
    assert re.match(
        r"(ka2l|random) draw 0 of seed 0: annotate: http\S+ answered none of 8 questions\. First: HTTP 401: ",
        str(failed.value),
    )
    assert "Traceback" not in str(failed.value)
    assert len(str(failed.value).splitlines()) == 1
    assert {h.get("Authorization") for h in server.headers} == {f"Bearer {KEY}"}
    assert server.most_at_once <= 2


@pytest.mark.long
def test_a_tuned_model_is_probed_anew_and_used_only_where_it_is_fit(compared: list[Run]) -> None:
    run = compared[0]
    active = run.config.active.model_copy(update={"reprobe": True, "rounds": 2})
    two = Run(run.folder, run.config.model_copy(update={"active": active}))
    first, second = Round(two, "ka2l", 0, 1), Round(two, "ka2l", 0, 2)
    verdict = reprobe(first)
    assert verdict["used"] == ((verdict["entropy_auroc"] or 0.0) >= 0.7)
    tuned = own_run(first)
    assert tuned.config.model.adapter == f"{first.folder.path}/finetune/model"
    assert scoring_run(first).folder.path == run.folder.path
    assert scoring_run(second).folder.path == (tuned.folder.path if verdict["used"] else run.folder.path)
    base, fresh = (r.base("samples").read(["id", "samples"]).sort_by("id").to_pylist() for r in (run, tuned))
    assert [r["id"] for r in base] == [r["id"] for r in fresh]
    assert base != fresh, "the tuned model answered like the base model, so the base model was probed"
    if verdict["used"]:
        assert tuned.base("scores").rows == 40


def test_watched_questions_have_gold_and_are_as_many_as_asked_for(tmp_path: Path) -> None:
    """A draw of the eval split is not thinned out by rows that cannot be graded."""
    watching = load_config(SMOKE, ["finetune.evaluate_every_epochs=1", "finetune.evaluate_rows=6"])
    run = Run(Folder.of(str(tmp_path)), watching)
    rows = [
        {"id": f"{i:02d}", "question": f"q{i}", "answers": [] if i % 5 else ["gold"], "split": "eval"}
        for i in range(40)
    ]
    run.table("questions").write(("eval", pa.Table.from_pylist(rows, schema=schema.QUESTIONS)))
    watched = watched_questions(Round(run, "ka2l", 0, 1))
    assert watched is not None
    assert [r["answers"] for r in watched.read().to_pylist()] == [["gold"]] * 6
    assert watched_questions(Round(Run(run.folder, load_config(SMOKE)), "ka2l", 0, 1)) is None


def test_people_answer_in_a_spreadsheet_and_the_loop_goes_on(compared: list[Run], tmp_path: Path) -> None:
    run = copied(compared[0], small(tmp_path, *ROUNDS, "annotate.source=file"))
    assert [r.state for r in loop.advance(run, "annotate", "a test")] == [RoundState.WAITING, RoundState.WAITING], (
        "one waiting strategy held up the other"
    )
    waiting = schedule.waiting_rounds(run)
    files = [Path(r.folder.path) / "annotations/to_annotate.csv" for r in waiting]
    asked = [row for file in files for row in csv.DictReader(file.read_text(encoding="utf-8-sig").splitlines())]
    world = build_world()
    answers = {row["id"]: fact.value if (fact := world.ask(row["question"])) else "" for row in asked}
    blank, *_ = answers
    answers[blank] = ""
    for n, file in enumerate(files):
        edited = tmp_path / f"edited-{n}.csv"
        rows = list(csv.DictReader(file.read_text(encoding="utf-8-sig").splitlines()))
        lines = [
            "notes;answer;question;id",
            *(f";{answers[r['id']]};{r['question']};{r['id']}" for r in reversed(rows)),
        ]
        edited.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
        import_file(str(edited), [r.folder / "annotations" for r in waiting])
    assert loop.advance(run, "annotate", "a test") == []
    tables = [r.table("annotations").read().to_pylist() for r in waiting]
    assert all(len(t) == len({row["id"] for row in t}) == 8 for t in tables)
    got = {row["id"]: row for t in tables for row in t}
    assert got[blank]["status"] == "blank"
    assert all(row["answer"] == answers[i] for i, row in got.items() if i != blank)
    assert {r.state for r in schedule.next_rounds(run)} == {RoundState.FINETUNE}


def test_every_table_of_a_run_has_the_columns_and_facts_of_its_spec(compared: list[Run]) -> None:
    (run,) = compared
    a_round = schedule.planned_rounds(run)[0].folder.path.removeprefix(f"{run.folder.path}/")
    found = {}
    for name, spec in schema.TABLES.items():
        table = run.table(spec.folder.replace(schema.ROUND, a_round))
        if table.is_done:
            found[name] = table
            states = pa.schema([f for f in table.schema() if pa.types.is_fixed_size_list(f.type)])
            fields = [f for column in spec.columns for f in column.fields(states)]
            names = [f.name for f in fields] + ["error"] * spec.can_fail
            assert table.schema().names == names, name
            assert all(table.schema().field(f.name).type == f.type for f in fields), name
            facts = {*schema.MANIFEST_FACTS, *schema.STAGE_FACTS} if spec.can_fail else {*schema.MANIFEST_FACTS}
            assert {*table.manifest()} - {*spec.facts} <= facts, name
    assert {"questions", "activations", "samples", "clusters", "knowledge", "scores", "evaluation"} < {*found}
    assert {"replay", "acquired", "annotations", "examples", "replay_questions", "round_evaluation"} < {*found}
