"""What is refused once a corpus is split: a strategy that ranks by grades, without any."""

import json
from pathlib import Path
from typing import Any

import pytest
from question_tables import questions

from ka2l_ray.config import ConfigError, parse_config
from ka2l_ray.corpus.table import fill
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.storage import Folder


def filled(folder: Path, rows: list[dict[str, Any]], **sections: Any) -> Table:
    (folder / "q.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    config = parse_config({"corpus": {"source": str(folder / "q.jsonl")}} | sections, "test")
    table = Table(Folder.of(str(folder / "questions")))
    fill(config, table, Folder.of(str(folder / "scratch")).make(), Folder.of(str(folder / "dropped")))
    return table


QUADRANT = {"active": {"strategies": ["quadrant", "random"]}}


def test_a_pool_without_any_gold_is_refused_for_a_strategy_that_ranks_by_grades(tmp_path: Path) -> None:
    rows = [q | {"answers": []} for q in questions(100)]
    with pytest.raises(ConfigError, match="`quadrant` needs gold answers, and no pool question has one"):
        filled(tmp_path, rows, **QUADRANT)
    assert filled(tmp_path, rows).rows == 100


def test_a_single_question_without_gold_refuses_nothing(tmp_path: Path) -> None:
    rows = questions(100)
    table = filled(tmp_path, [*rows[:40], rows[40] | {"answers": []}, *rows[41:]], **QUADRANT)
    assert sum(table.manifest()["graded"].values()) == 99
    assert {s: table.part_rows(s) for s in ("probe", "pool", "eval")} != table.manifest()["graded"]


def test_one_entity_for_every_question_is_refused_by_naming_it(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"100 usable questions, up to 100 about one entity or alike, are too few, the split"
    ):
        filled(tmp_path, [q | {"entity": "everything"} for q in questions(100)])
