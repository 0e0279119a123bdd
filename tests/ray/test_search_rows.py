"""What the search knows of each row: missing gold answers leave other grades alone; rows keep to their split group."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ka2l_ray import schema
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.models.probe import LinearProbe, ProbeCard
from ka2l_ray.probe.fit import ProbeRows
from ka2l_ray.probe.search import SUMMARY, _choose
from ka2l_ray.probe.trial import read_rows, run_trial
from ka2l_ray.tables import fixed_size

ROWS = [
    {"id": "a", "correct": True, "unknown": 0, "entity": "Nile", "split_group": "g1"},
    {"id": "b", "correct": False, "unknown": 1, "entity": "Nile", "split_group": "g1"},
    {"id": "c", "correct": None, "unknown": 1, "entity": None, "split_group": "g2"},
    {"id": "d", "correct": False, "unknown": 1, "entity": None, "split_group": None},
    {"id": "failed"},
]


def read(folder: Path, rows: list[dict[str, Any]]) -> tuple[np.ndarray, ProbeRows]:
    knowledge, activations = (Table(Folder.of(str(folder / name))) for name in ("knowledge", "activations"))
    bounds = {"entropy_nats": 1.0, "entropy_lo": 1.0, "entropy_hi": 1.0}
    knowledge.write((None, pa.Table.from_pylist([bounds | r for r in rows], schema=schema.KNOWLEDGE)))
    states = np.arange(2 * len(rows), dtype=np.float32).reshape(-1, 2)
    activations.write((None, pa.table({"id": [r["id"] for r in rows], "last_001": fixed_size(states)})))
    return read_rows(activations, knowledge, "last_001")


def test_one_question_without_gold_leaves_the_others_their_grades(tmp_path: Path) -> None:
    states, rows = read(tmp_path, ROWS)
    assert rows.wrong is not None
    assert rows.wrong.tolist() == [0, 1, -1, 1]
    assert len(states) == 4


def test_without_any_gold_there_is_no_grade(tmp_path: Path) -> None:
    assert read(tmp_path, [r | {"correct": None} for r in ROWS])[1].wrong is None


def test_rows_are_divided_by_what_the_splits_were_made_by(tmp_path: Path) -> None:
    entity = read(tmp_path, ROWS)[1].entity
    assert entity is not None
    assert entity.tolist() == ["g1", "g1", "g2", "d"]


def fitted(folder: Folder, layer: int, **figures: Any) -> None:
    """A finished trial of a layer, as `run_trial` leaves it."""
    trial = folder / "layers" / schema.state_column("last", layer)
    LinearProbe(np.ones(2), 0.0, ProbeCard("m", "p", layer, "last", 2, 0.5, 1.0)).save(trial)
    names = ("auroc", "auroc_ci", "auroc_vs_truth", "threshold_nats", "note")
    made = dict.fromkeys(names) | {"layer": layer, "position": "last", "validation_auroc": 0.5 + layer / 10, "heat": []}
    (trial / "fit.json").write_json(made | figures)


@pytest.mark.parametrize("note", [None, "chosen by entropy, not by correctness: 3 right"])
def test_the_search_says_how_many_questions_are_graded_and_why_it_fell_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, note: str | None
) -> None:
    folder = Folder.of(str(tmp_path))
    objective = "entropy" if note else "correctness"
    for layer in (1, 2):
        fitted(folder, layer, objective=objective, questions=1200, graded=1199, note=note)
    with caplog.at_level("INFO", "ka2l"):
        found = _choose(folder, [("last", 1), ("last", 2)])
    assert (found["layer"], found["questions"], found["graded"], found["note"], found["objective"]) == (
        2,
        1200,
        1199,
        note,
        objective,
    )
    assert (folder / SUMMARY).read_json() == found
    assert caplog.records[0].getMessage() == f"by {objective}; 1,199 of 1,200 probe questions are graded"
    assert [(r.levelname, r.getMessage()) for r in caplog.records[1:]] == ([("WARNING", note)] if note else [])
    assert {r.__dict__["stage"] for r in caplog.records} == {"search"}


def test_a_whole_search_reports_its_graded_questions(scored: tuple[Run, dict[str, Any]]) -> None:
    """On the world every probe question has gold."""
    run, results = scored
    found = results["search"]
    rows = run.base("knowledge").rows
    assert (found["objective"], found["questions"], found["graded"], found["note"]) == ("correctness", rows, rows, None)
    label = results["label"]
    assert label["right"] + label["wrong"] == rows
    assert results["eval_scope"] == "pool"


def test_a_search_whose_gold_is_too_little_falls_back_in_a_real_trial(
    scored: tuple[Run, dict[str, Any]], tmp_path: Path
) -> None:
    run = scored[0]
    too_many = run.config.search.model_copy(update={"min_graded": 1000})
    config = run.config.model_copy(update={"search": too_many})
    column, gamma = ("last", 4), scored[1]["label"]["threshold_nats"]
    run_trial(
        {"value": column}, config, "p", run.base("activations"), run.base("knowledge"), gamma, Folder.of(str(tmp_path))
    )
    found = (Folder.of(str(tmp_path)) / "last_004/fit.json").read_json()
    assert found["objective"] == "entropy"
    assert "search.min_graded = 1000, but the validation questions contain" in found["note"]
    assert {cell["threshold_nats"] for cell in found["heat"]} == {gamma}
