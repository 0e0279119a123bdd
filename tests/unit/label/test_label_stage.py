"""The driver's part of labelling: a summary read batch by batch is that of the whole table, and a pilot needs no more than ids."""

import numpy as np
import pyarrow as pa
import pytest

from ka2l_ray.active.acquire import unit
from ka2l_ray.artifacts import Folder, Table
from ka2l_ray.collect.stage import pilot_rows
from ka2l_ray.label.stage import BASELINES, summarize
from ka2l_ray.probe.metrics import auroc


@pytest.fixture
def streamed(monkeypatch):
    """A table can be streamed, not read whole."""
    monkeypatch.setattr(Table, "read", lambda *_, **__: pytest.fail("read whole"))


def knowledge(folder) -> tuple[Table, pa.Table]:
    """100 rows in three files: every seventh failed, every fifth stopped early, some without gold or truth."""
    drawn = np.random.default_rng(0)
    rows = []
    for n in range(100):
        row = {
            "id": f"q{n}",
            "unknown": int(drawn.integers(2)),
            "correct": [True, False, None][drawn.integers(3)],
            "quadrant": [None, "known", "shaky"][drawn.integers(3)],
            "truth": [None, "known", "unseen", "rare"][drawn.integers(4)],
            "entropy_nats": None if n % 5 == 0 else float(drawn.integers(4)),
            "likelihood": float(drawn.random()),
            "predictive_entropy": None if n % 5 == 0 else float(drawn.random()),
        }
        rows.append(row if n % 7 else {"id": row["id"], **dict.fromkeys(list(row)[1:])})
    whole = pa.Table.from_pylist(rows)
    table = Table(Folder.of(str(folder)))
    table.write(*((None, whole.slice(start, 40)) for start in (0, 40, 80)))
    return table, whole


def test_a_summary_by_batches_is_that_of_the_whole_table(tmp_path, streamed):
    table, whole = knowledge(tmp_path)
    found = summarize(table)
    rows = [r for r in whole.to_pylist() if r["unknown"] is not None]
    assert (found.questions, found.unknown) == (len(rows), sum(r["unknown"] for r in rows))
    assert found.quadrants == {q: sum(r["quadrant"] == q for r in rows) for q in ("known", "shaky")}
    graded = [r for r in rows if r["correct"] is not None and r["entropy_nats"] is not None]
    for name in ("entropy_nats", *BASELINES):
        mine = auroc(found.wrong[found.wrong >= 0] == 1, found.scores[name][found.wrong >= 0])
        assert mine == auroc(np.array([not r["correct"] for r in graded]), np.array([r[name] for r in graded]))
    compared = [r for r in rows if r["truth"] in ("known", "unseen") and r["entropy_nats"] is not None]
    mine = auroc(found.unseen[found.unseen >= 0], found.scores["entropy_nats"][found.unseen >= 0])
    assert mine == auroc(np.array([r["truth"] == "unseen" for r in compared]), np.array([r["entropy_nats"] for r in compared]))


@pytest.mark.parametrize("count", [10, 1000])
def test_a_pilot_is_drawn_by_ids_alone_in_their_order(tmp_path, streamed, count):
    table = Table(Folder.of(str(tmp_path)))
    rows = {part: [{"id": f"{part}{n}", "question": f"Q {part}{n}?"} for n in range(70)] for part in ("probe", "pool")}
    halves = [(part, pa.Table.from_pylist(rows[part][at : at + 35])) for part in rows for at in (0, 35)]
    table.write(*halves)
    assert pilot_rows(table, count).to_pylist() == sorted(rows["probe"], key=lambda r: unit("pilot", r["id"]))[:count]
