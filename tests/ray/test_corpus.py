"""The questions stage as Ray tasks: any filesystem, the same table as the preview, unusable rows listed and
counted."""

import gzip
import json
from pathlib import Path
from typing import Any, cast

import pyarrow.parquet as pq
import pytest
from runs import small

from ka2l_ray import schema
from ka2l_ray.active.evaluation import evaluate_base, evaluation_stage
from ka2l_ray.active.outcome import base_record
from ka2l_ray.active.pool import replay_samples
from ka2l_ray.active.replay import knew
from ka2l_ray.collect.stage import sample_replay
from ka2l_ray.config import ConfigError
from ka2l_ray.corpus.preview import preview
from ka2l_ray.corpus.stage import questions
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.errors import StageError
from ka2l_ray.label.stage import clustering_stage
from ka2l_ray.models.prompts import corpus_prompt
from ka2l_ray.text.grading import Grading


def rows(start: int, count: int) -> list[dict[str, Any]]:
    return [
        {"question": f"Which {n * 7919} of the {n * 104729} is {n}?", "answers": [f"a{n}"], "group": f"g{n % 3}"}
        for n in range(start, count)
    ]


def lines(found: list[Any]) -> bytes:
    return b"\n".join(json.dumps(r).encode() for r in found)


def test_files_on_object_storage_become_the_table_that_the_preview_shows(bucket: str, tmp_path: Path) -> None:
    address, query = bucket.split("?")
    folder = Folder.of(bucket).make()
    (folder / "a.jsonl").write_bytes(lines([*rows(0, 150), {"question": " "}]))
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(lines(rows(140, 300))))
    overrides = (
        f"corpus.source='{address}/*?{query}'",
        "run.max_error_fraction=0.05",
        "corpus.prompt.style=fewshot",
        "corpus.prompt.shots=3",
    )
    run = Run.open(small(tmp_path, *overrides))
    manifest, shown = questions(run), preview(run.config)
    assert (manifest["rows_in"], manifest["merged"], manifest["dropped"], manifest["rows"]) == (311, 10, 1, 300)
    table = run.table("questions")
    assert {s: table.part_rows(s) for s in schema.SPLITS} == shown.splits
    assert sum(shown.splits.values()) + shown.set_aside == 300
    assert {r["question"] for r in table.read().to_pylist()} == {r["question"] for r in rows(0, 300)}
    dropped = Folder.of(str(tmp_path)) / "smoke/questions/dropped"
    (found,) = [r for n in dropped.names() for r in pq.read_table((dropped / n).path).to_pylist()]
    assert (found["row"], found["field"]) == (151, "question")
    assert not (table.folder / "_parsed").exists()
    assert corpus_prompt(run).template.count("\nAnswer: a") == 3
    assert questions(run) == manifest, "a finished table was written again"


def test_what_a_task_refuses_is_reported_in_its_own_words(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines([*rows(0, 50), {"question": None}]))
    with pytest.raises(
        StageError,
        match=r"1 of 51 rows cannot be used, .* First: .*a\.jsonl: row 51: question = None must be non-empty text",
    ):
        questions(Run.open(small(tmp_path / "runs", f"corpus.source={tmp_path}/a.jsonl")))
    (tmp_path / "b.parquet").write_bytes(b"PAR1")
    with pytest.raises(ConfigError, match=r"b\.parquet: cannot be read") as refused:
        questions(Run.open(small(tmp_path / "runs", f"corpus.source={tmp_path}/b.parquet", "run.name=other")))
    assert "Traceback" not in str(refused.value)


def test_where_prompts_differ_accuracy_is_under_both_and_replay_under_the_one_that_is_trained_on(
    tmp_path: Path,
) -> None:
    """The world's model was trained on the bare prompt only, so solved examples before it cost accuracy. A model
    that is replayed answers given after them, and graded without them, would seem to forget."""
    run = Run.open(small(tmp_path, "corpus.prompt={style: fewshot, shots: 2}"))
    questions(run)
    evaluate_base(run)
    bare, fewshot = run.base("evaluation"), run.table("base/evaluation/corpus_prompt")
    assert bare.rows == fewshot.rows == run.table("questions").part_rows("eval")
    record = cast(dict[str, Any], base_record(run, "ka2l", 0))
    tables = [
        [r["correct"] for r in t.read(["correct", "scope"]).to_pylist() if r["scope"] == "pool"]
        for t in (bare, fewshot)
    ]
    assert [record["accuracy"], record["corpus_prompt_accuracy"]] == [sum(map(bool, c)) / len(c) for c in tables]
    assert record["accuracy"] > record["corpus_prompt_accuracy"]
    assert run.table("questions").part_rows(schema.SHOTS) == 2
    source = Table(run.folder / "base/replay/questions")
    source.write((None, run.table("questions").read(part="eval").slice(0, 30)))
    sample_replay(run, source, run.base("replay"), seed=1)
    asked = {r["id"]: r for r in bare.read(["id", "answer", "correct"]).to_pylist()}
    replayed = replay_samples(run)
    assert [r["greedy"] for r in replayed] == [asked[r["id"]]["answer"] for r in replayed]
    known = [r["id"] for r in replayed if knew(r["samples"], r["greedy"], r["answers"])]
    assert len(known) > 5
    assert all(asked[i]["correct"] for i in known)


@pytest.mark.parametrize(("style", "kind"), [("bare", "exact"), ("chat", "contains")])
def test_labels_and_evaluations_of_a_run_are_graded_alike(tmp_path: Path, style: str, kind: str) -> None:
    run = Run.open(small(tmp_path, f"finetune.prompt.style={style}"))
    setups = [
        clustering_stage(run, "label", "").setup,
        clustering_stage(run, "label_pool", "pool_").setup,
        evaluation_stage(run, None, run.config.corpus.prompt).setup,
        evaluation_stage(run, run.folder / "tuned", run.config.finetune.prompt).setup,
    ]
    assert [s.grading for s in setups] == [Grading(cast(Any, kind))] * 4
