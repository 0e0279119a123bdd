"""Accuracies count what can be graded, each over one scope."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from ka2l_ray import schema
from ka2l_ray.active.outcome import WORDINGS, _share, base_record, eval_scope
from ka2l_ray.config import Config, parse_config
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.results_schema import RoundResult

FILES = {"corpus": {"source": "questions.jsonl"}}


def row(correct: bool | None, scope: str | None = "pool", gold: tuple[str, ...] = ("Ada",)) -> dict[str, Any]:
    return {"correct": correct, "scope": scope, "answers": list(gold)}


def test_failed_rows_are_wrong_and_rows_without_gold_are_left_out_failed_or_not():
    rows = [row(True), row(False), row(None), row(None, gold=()), row(None, "other", ()), row(True, "domain")]
    assert _share(rows, "pool") == 1 / 3
    assert _share(rows, "domain") == 1
    assert _share(rows, "other") is None


def test_without_gold_there_is_no_accuracy():
    assert _share([row(None, gold=()), row(None, gold=())], "pool") is None
    assert _share([], "pool") is None


def test_a_row_without_a_scope_is_refused_rather_than_called_a_pool_fact():
    with pytest.raises(ValueError, match="scope must be one of pool, domain, beyond, other, same, not None"):
        _share([row(True), row(True, None)], "pool")


def record(folder: Path, config: Config, rows: list[dict[str, Any]]) -> RoundResult:
    run = Run(Folder.of(str(folder)), config)
    table = pa.Table.from_pylist([{"id": str(n)} | r for n, r in enumerate(rows)], schema=schema.EVALUATION)
    run.base("evaluation").write((None, table))
    return base_record(run, "ka2l", 0)


def test_accuracy_is_over_other_facts_on_files_and_over_pool_facts_on_the_world(tmp_path: Path):
    rows = [row(True, "other"), row(False, "other"), row(False, "other")]
    files = parse_config(FILES, "test")
    assert eval_scope(files) == "other"
    found = record(tmp_path / "files", files, rows)
    assert (found["accuracy"], found["domain_accuracy"]) == (1 / 3, None)
    assert eval_scope(Config()) == "pool"
    found = record(tmp_path / "world", Config(), [row(True), row(True, "domain"), row(False, "domain")])
    assert (found["accuracy"], found["domain_accuracy"]) == (1.0, 0.5)


REWORDED = {"source": "q.jsonl", "rewordings": {"source": "column"}}


@pytest.mark.parametrize(
    ("tree", "scope", "wording"),
    [
        ({}, "pool", "reserved"),
        (FILES, "other", "other facts"),
        (FILES | {"evaluate": {"same_words": True}}, "same", "same"),
        ({"corpus": REWORDED}, "pool", "reserved"),
        ({"corpus": REWORDED, "evaluate": {"same_words": True}}, "pool", "reserved"),
    ],
)
def test_what_accuracy_is_over_follows_from_how_eval_asks(tree: dict[str, Any], scope: str, wording: str):
    config = parse_config(tree, "test")
    assert (eval_scope(config), WORDINGS[eval_scope(config)]) == (scope, wording)


def test_the_same_words_are_listed_beside_the_reserved_wording(tmp_path: Path):
    rows = [row(True), row(False), row(True, "same"), row(True, "same"), row(False, "domain")]
    config = parse_config({"corpus": REWORDED, "evaluate": {"same_words": True}}, "test")
    found = record(tmp_path, config, rows)
    figures = ("accuracy", "same_words_accuracy", "domain_accuracy")
    assert [found.get(f, "absent") for f in figures] == [0.5, 1.0, 0.0]
    assert record(tmp_path / "plain", config, rows[:2]).get("same_words_accuracy", "absent") is None
