"""The pool as a round sees it, streamed from the tables of the run.

In: a run. Out: `PoolRow`s, or rows of `questions` and `replay`. Refuses to know: rounds, Ray.
"""

from collections.abc import Iterator, Set
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ka2l_ray.active.policies import PoolRow
from ka2l_ray.active.strategies import Need, needs
from ka2l_ray.config import Strategy
from ka2l_ray.corpus.again import eval_scope
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.tables import matrix


def scored_pool(run: Run, with_state: bool = False) -> Iterator[PoolRow]:
    """Pool questions with their scores, on request with the states that the run keeps, streamed; failed rows are left
    out."""
    scores = run.base("scores")
    state = ["state"] if with_state and scores.rows and "state" in scores.schema().names else []
    for batch in scores.batches(["id", "p_unknown", "truth", "group", *state]):
        batch = batch.filter(batch["p_unknown"].is_valid())
        states = matrix(batch["state"]) if state else [None] * batch.num_rows
        for row, kept in zip(batch.drop_columns(state).to_pylist(), states, strict=True):
            # A copy: a view would keep its whole batch in memory as long as a policy keeps the row.
            yield PoolRow(
                row["id"], row["p_unknown"], row["truth"], row["group"], state=None if kept is None else kept.copy()
            )


def sampled_pool(run: Run) -> Iterator[PoolRow]:
    """Pool questions with what their K samples show, streamed; failed rows are left out."""
    columns = ["id", "truth", "group", "entropy_nats", "likelihood", "quadrant", "abstains"]
    batches = run.base("pool_knowledge").batches(columns)
    return (PoolRow(**row) for batch in batches for row in batch.to_pylist() if row["entropy_nats"] is not None)


def pool_for(strategy: Strategy, run: Run) -> Iterator[PoolRow]:
    """The pool as a strategy sees it: states are read only for those that compare them."""
    if needs(strategy, Need.SAMPLES):
        return sampled_pool(run)
    pool = scored_pool(run, needs(strategy, Need.STATES))
    return _with_eval(pool, run) if needs(strategy, Need.GREEDY) else pool


def _with_eval(pool: Iterator[PoolRow], run: Run) -> Iterator[PoolRow]:
    """The pool with what the base model answers wrong at eval."""
    scope = eval_scope(run.config)
    batches = run.base("evaluation").batches(["scope", "fact_id", "correct"])
    answered = {r["fact_id"]: r["correct"] for b in batches for r in b.to_pylist() if r["scope"] == scope}
    questions = run.table("questions").batches(["id", "fact_id"], part="pool")
    fact_of = {r["id"]: r["fact_id"] for b in questions for r in b.to_pylist()}
    for row in pool:
        correct = answered.get(fact_of[row.id])
        yield replace(row, wrong=None if correct is None else not correct)


def pool_rows(run: Run, ids: Set[str]) -> list[dict[str, Any]]:
    """The rows of some pool questions, in the order of the table: the pool is streamed, only the wanted rows become
    Python objects."""
    wanted = pa.array(list(ids), pa.string())
    batches = run.table("questions").batches(part="pool")
    return [r for batch in batches for r in batch.filter(pc.is_in(batch["id"], wanted)).to_pylist()]  # pyright: ignore


def replay_samples(run: Run) -> list[dict[str, Any]]:
    """Replay candidates with their samples; failed rows are left out."""
    columns = ["id", "question", "samples", "greedy", "answers", "error"]
    rows = (r for batch in run.base("replay").batches(columns) for r in batch.to_pylist())
    return [r for r in rows if r["error"] is None]
