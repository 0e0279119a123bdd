"""The part `label` of results.json, from tables."""

from pathlib import Path

import pyarrow as pa
from finished_run import knowledge_rows, open_run

from ka2l_ray import schema
from ka2l_ray.label.stage import label_summary


def test_questions_that_the_model_abstains_from_are_counted(tmp_path: Path) -> None:
    run, rows = open_run(tmp_path), knowledge_rows()
    for row in rows[:3]:
        row |= {"abstains": True, "unknown": 1, "quadrant": "abstains"}
    run.base("knowledge").write((None, pa.Table.from_pylist(rows, schema=schema.KNOWLEDGE)), threshold_nats=0.8)
    drawn = [{"id": r["id"], "sample_tokens": [1] * 10} for r in rows]
    run.base("samples").write((None, pa.Table.from_pylist(drawn)))
    label = label_summary(run)
    assert label.get("abstains") == 3
    assert label["quadrants"]["abstains"] == 3
    assert label["questions"] == sum(r.get("unknown") is not None for r in rows)
