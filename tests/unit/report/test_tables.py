"""What is read from tables: bounded, streamed, in the order the page shows."""

from pathlib import Path

import finished_run
import numpy as np
import pyarrow as pa
import pytest
from finished_run import EACH, open_run, write, write_knowledge, write_round, write_states

from ka2l_ray import schema
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.report.tables import (
    bought_questions,
    decoded_questions,
    entropy_counts,
    fair_shares,
    probe_states,
    topic_counts,
)

ABSTAINING = [(True, False), (False, False), (False, True), (None, True)]
"""(greedy answer right, abstains) of four questions."""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = open_run(tmp_path)
    write_knowledge(run)
    write_states(run)
    return run


def test_entropy_is_counted_by_truth_else_by_grade(run: Run) -> None:
    counts = entropy_counts(run.base("knowledge"))
    assert counts["unseen"] == dict.fromkeys((1.97, 2.303, 2.164, 0.8018, 1.6), EACH)
    assert counts["right"] == {0.0: 1}
    assert "no gold" not in counts  # the failed row has no entropy, so it is not counted


def test_questions_that_the_model_abstains_from_are_a_group_of_their_own(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    rows = [{"entropy_nats": 0.0, "correct": c, "unknown": int(a), "abstains": a} for c, a in ABSTAINING]
    rows = [{"id": f"p{n:04d}", "quadrant": "known" if r["correct"] else None} | r for n, r in enumerate(rows)]
    write(run.base("knowledge"), rows, schema.KNOWLEDGE)
    assert {g: sum(c.values()) for g, c in entropy_counts(run.base("knowledge")).items()} == {
        "right": 1,
        "wrong": 1,
        "abstains": 2,
    }
    states = [{"id": r["id"], "last_006": [float(n)] * finished_run.WIDTH} for n, r in enumerate(rows)]
    columns = schema.states(["last"], [6], finished_run.WIDTH, half=True)
    table = pa.Table.from_pylist(states, schema=schema.join(pa.schema([schema.ID]), columns, error=False))
    run.base("activations").write((None, table))
    found = probe_states(run, "last", 6)
    assert found
    assert sorted(found.kinds) == ["abstains", "abstains", "known", "not stated"]


def test_topics_are_counted_without_failed_rows(run: Run) -> None:
    counts = topic_counts(run.base("knowledge"))
    rows = [r for r in finished_run.knowledge_rows() if r["entropy_nats"] is not None]
    assert counts[None] == (1, 0)
    assert sum(n for n, _ in counts.values()) == len(rows)
    own = [r["unknown"] for r in rows if r.get("group") == "topic 3"]
    assert counts["topic 3"] == (len(own), sum(own))


def test_states_are_those_of_labelled_questions_each_with_its_kind(run: Run) -> None:
    found = probe_states(run, "last", 6)
    assert found
    labelled = [r for r in finished_run.knowledge_rows() if r["entropy_nats"] is not None]
    assert found.states.shape == (len(labelled), finished_run.WIDTH)
    assert found.by == "truth"
    assert sorted(set(found.kinds)) == ["known", "misconception", "not stated", "rare", "unseen"]
    high = found.states[:, 2] > 3  # where the unknown lie
    assert {k for k, h in zip(found.kinds, high, strict=True) if h} == {"rare", "unseen"}


def test_the_states_kept_are_bounded_and_the_same_every_time(run: Run) -> None:
    few, again, more = (probe_states(run, "last", 6, most) for most in (20, 20, 60))
    assert few
    assert again
    assert more
    assert len(few.kinds) == 20
    assert few.questions == len(finished_run.knowledge_rows())
    assert (few.states == again.states).all()
    assert (more.states[:20] == few.states).all()


def test_kinds_are_the_truth_else_the_quadrant_else_the_label(run: Run) -> None:
    rows = finished_run.knowledge_rows()
    for hidden, by, kinds in (
        (["truth"], "quadrant", {"known", "unknown"}),
        (["truth", "quadrant"], "label", {"known", "unknown"}),
    ):
        finished_run.write(
            run.base("knowledge"),
            [{k: v for k, v in r.items() if k not in hidden} for r in rows],
            finished_run.schema.KNOWLEDGE,
        )
        found = probe_states(run, "last", 6)
        assert found
        assert (found.by, set(found.kinds)) == (by, kinds)


def test_without_states_or_labels_there_are_none(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    assert probe_states(run, "last", 6) is None
    write_knowledge(run)
    assert probe_states(run, "last", 6) is None


def test_bought_questions_come_by_curve_and_rank_with_their_answers(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    write_round(run, "random", 1, 1)
    write_round(run, "ka2l", 0, 2)
    found = bought_questions(run)
    assert found.total == len(found.rows) == 20
    first, last = found.rows[0], found.rows[-1]
    assert [first[k] for k in ("strategy", "seed", "round", "rank", "id")] == ["ka2l", 0, 2, 0, "ka2l-0-2-0"]
    assert first["question"] == "Who is ka2l-0-2-0? "
    assert first["answer"] == "baker of ka2l-0-2-0 "
    assert (last["strategy"], last["seed"], last["rank"]) == ("random", 1000, 9)


def test_decoded_questions_stand_beside_their_sources(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    write_round(run, "ka2l", 0, 1, decoded=7)
    found = decoded_questions(run)
    assert found.total == 7
    assert [r["source"] for r in found.rows] == [f"Who is ka2l-0-1-{n}? " for n in range(7)]
    assert [r["similarity"] for r in found.rows if r["status"] == "malformed"] == [None]


def test_rows_are_bounded_and_every_round_is_among_them(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    write_round(run, "ka2l", 0, 1, bought=40)
    write_round(run, "ka2l", 0, 2, bought=3)
    write_round(run, "random", 0, 1, bought=40)
    found = bought_questions(run, most=20)
    assert found.total == 83
    assert [
        sum((r["strategy"], r["round"]) == key for r in found.rows) for key in (("ka2l", 1), ("ka2l", 2), ("random", 1))
    ] == [8, 3, 9]
    assert [r["rank"] for r in found.rows[:8]] == list(range(8))


def test_a_run_without_rounds_lists_nothing(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    assert bought_questions(run).rows == decoded_questions(run).rows == []


def test_shares_use_what_is_allowed_and_no_more() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        sizes, most = rng.integers(0, 30, size=rng.integers(0, 9)).tolist(), int(rng.integers(0, 100))
        shares = fair_shares(sizes, most)
        assert sum(shares) == min(sum(sizes), most)
        assert all(share <= size for share, size in zip(shares, sizes, strict=True))
