"""A round reads its state from its records, and sees the pool row by row as the stages stored it."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ka2l_ray import schema
from ka2l_ray.active.pool import pool_for, pool_rows, replay_samples, scored_pool
from ka2l_ray.active.round import Round, RoundState
from ka2l_ray.annotate.file import ANSWERS, ASKED
from ka2l_ray.config import parse_config
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.tables import fixed_size


def a_run(storage: str, **sections: dict) -> Run:
    """A run that is not stored: only its tables are."""
    return Run(Folder.of(storage), parse_config(sections, "test"))


@pytest.fixture
def run(tmp_path) -> Run:
    return a_run(str(tmp_path))


def table(schema: pa.Schema, *rows: dict) -> tuple[None, pa.Table]:
    return None, pa.Table.from_pylist([dict.fromkeys(schema.names) | r for r in rows], schema=schema)


def test_a_round_goes_from_state_to_state_as_its_steps_are_done(run):
    round_ = Round(run, "ka2l", 0, 2)
    assert round_.state == RoundState.ACQUIRE
    round_.records.finish(RoundState.ACQUIRE)
    assert round_.state == RoundState.ANNOTATE
    (round_.folder / "annotations" / ASKED).write_json([])
    assert round_.state == RoundState.WAITING
    (round_.folder / "annotations" / ANSWERS).write_bytes(b"")
    assert round_.state == RoundState.ANNOTATE
    round_.records.finish(RoundState.ANNOTATE)
    assert round_.state == RoundState.FINETUNE
    with round_.records.timed(RoundState.FINETUNE):
        assert round_.state == RoundState.FINETUNE
    round_.records.finish(RoundState.FINETUNE)
    assert round_.state == RoundState.EVALUATE
    round_.records.finish(RoundState.EVALUATE, result={"accuracy": 0.5})
    assert round_.state == RoundState.DONE
    assert round_.record() == {"accuracy": 0.5, "seconds": {"finetune": pytest.approx(0, abs=60)}}
    round_.records.reopen(RoundState.EVALUATE)
    assert round_.state == RoundState.EVALUATE
    assert (
        Round(run, "ka2l", 1, 2).state
        == Round(run, "random", 0, 2).state
        == Round(run, "ka2l", 0, 1).state
        == RoundState.ACQUIRE
    )


@given(st.integers(1, 20), st.integers(0, 300))
def test_the_rounds_spend_the_whole_budget_in_almost_equal_parts(rounds, more):
    run = a_run("unused", active={"rounds": rounds, "budget": rounds + more})
    budgets = [Round(run, "ka2l", 0, n).budget for n in range(1, rounds + 1)]
    assert sum(budgets) == rounds + more
    assert budgets == sorted(budgets, reverse=True)
    assert budgets[0] - budgets[-1] <= 1


def test_the_rounds_before_are_of_the_same_strategy_and_draw(run):
    third = Round(run, "random", 2, 3)
    assert third.earlier == [Round(run, "random", 2, 1), Round(run, "random", 2, 2)]
    assert third.earlier[0].seed == third.seed == 2000
    assert Round(run, "ka2l", 0, 1).earlier == []


SCORED = ({"id": "a", "p_unknown": 0.25, "truth": "known", "group": "g"}, {"id": "b"}, {"id": "c", "p_unknown": 1.0})


def test_the_scored_pool_leaves_failed_rows_out(run):
    run.base("scores").write(table(schema.SCORES, *SCORED))
    first, last = pool_for("ka2l", run)
    assert (first.id, first.p_unknown, first.truth, first.group, first.state) == ("a", 0.25, "known", "g", None)
    assert (last.id, last.p_unknown, last.truth, last.group) == ("c", 1.0, None, None)


def test_the_scored_pool_has_its_states_where_the_run_keeps_them(run):
    states = np.arange(6, dtype=np.float32).reshape(3, 2)
    run.base("scores").write((None, table(schema.SCORES, *SCORED)[1].append_column("state", fixed_size(states))))
    rows = list(pool_for("coreset", run))
    assert [r.id for r in rows] == ["a", "c"]
    assert np.array([r.state for r in rows]).tolist() == [[0.0, 1.0], [4.0, 5.0]]


def test_states_are_read_only_for_strategies_that_compare_them(run, monkeypatch):
    run.base("scores").write(
        (None, table(schema.SCORES, *SCORED)[1].append_column("state", fixed_size(np.zeros((3, 2), dtype=np.float32))))
    )
    read, batches = [], Table.batches
    monkeypatch.setattr(
        Table,
        "batches",
        lambda self, columns=None, part=None: (read.extend(columns or ()), batches(self, columns, part))[1],
    )
    assert [r.state for r in (*pool_for("ka2l", run), *pool_for("random", run), *scored_pool(run))] == [None] * 6
    assert "state" not in read
    assert all(r.state is not None for r in pool_for("ka2l_diverse", run))


def test_a_pool_without_rows_is_no_row(run):
    run.base("scores").write(table(schema.SCORES))
    assert list(pool_for("ka2l", run)) == []


def test_strategies_that_sample_see_what_the_samples_show(run):
    known = {"id": "a", "truth": "rare", "group": "g", "entropy_nats": 0.5, "likelihood": 2.0, "quadrant": "shaky"}
    known["abstains"] = False
    run.base("pool_knowledge").write(table(schema.KNOWLEDGE, known, {"id": "failed"}))
    for strategy in ("entropy", "likelihood", "quadrant"):
        (row,) = pool_for(strategy, run)
        assert {n: getattr(row, n) for n in known} == known
        assert row.p_unknown is None


def test_pool_rows_are_of_the_pool_and_in_its_order(run):
    def part(split: str, *ids: str) -> tuple[str, pa.Table]:
        return split, table(schema.QUESTIONS, *({"id": i, "split": split} for i in ids))[1]

    run.table("questions").write(part("probe", "x"), part("pool", "c", "a", "b"), part("eval", "y"))
    assert [r["id"] for r in pool_rows(run, {"a", "c", "x", "y"})] == ["c", "a"]
    assert pool_rows(run, set()) == []


def test_failed_replay_candidates_are_left_out(run):
    columns = schema.join(schema.SAMPLES)
    run.base("replay").write(table(columns, {"id": "a", "samples": ["x"]}, {"id": "b", "error": "out of memory"}))
    assert [r["id"] for r in replay_samples(run)] == ["a"]


def test_a_kept_row_keeps_no_other_rows_state_in_memory(run):
    rows = [{"id": f"q{i}", "p_unknown": 0.5} for i in range(100)]
    run.base("scores").write(
        (None, table(schema.SCORES, *rows)[1].append_column("state", fixed_size(np.zeros((100, 8), dtype=np.float32))))
    )
    row = next(iter(pool_for("coreset", run)))
    assert row.state is not None
    assert row.state.base is None
