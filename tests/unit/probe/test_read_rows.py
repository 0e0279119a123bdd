"""What the search knows of each row: one without gold leaves the others their grades, and rows are divided by their split group."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ka2l_ray import schema
from ka2l_ray.artifacts import Folder, Table
from ka2l_ray.collect.actor import fixed_size
from ka2l_ray.probe.fit import ProbeRows
from ka2l_ray.probe.search import read_rows

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
    assert read(tmp_path, ROWS)[1].entity.tolist() == ["g1", "g1", "g2", "d"]
