"""What a round is fine-tuned on: the answers bought so far, and replayed questions with the base model's own answers.

In: a round whose questions are annotated. Out: `finetune/examples`, `finetune/replay_questions` and, on request,
`finetune/watched_questions`; once per run, `base/replay`. Refuses to know: how training works, which policy bought
what.
"""

import heapq
from collections.abc import Iterable, Set
from typing import Any

import pyarrow as pa

from ka2l_ray import schema
from ka2l_ray.active.policies import PoolRow
from ka2l_ray.active.pool import pool_rows, replay_samples, scored_pool
from ka2l_ray.active.replay import replay_counts, replayed_answers, select_replay
from ka2l_ray.active.round import Round
from ka2l_ray.collect.stage import sample_replay
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.hashing import uniform
from ka2l_ray.text.grading import Grading


def sample_candidates(run: Run) -> dict[str, Any]:
    """Sample the base model's own answers to every pool question that a round may replay, once for all strategies and
    rounds; returns the manifest of `base/replay`.

    There are enough candidates of both predicted classes that the wanted number is left whatever the budget buys, so
    memory and cost grow with the budget and not with the pool.
    """
    questions = Table(run.folder / "base/replay/questions")
    if not questions.is_done:
        _write_replayed(run, questions, scored_pool(run), set(), run.config.active.budget)
    return sample_replay(run, questions, run.base("replay"), run.config.run.seed + 1)


def _write_replayed(run: Run, table: Table, pool: Iterable[PoolRow], bought: Set[str], spare: int = 0) -> None:
    """Write the rows of `questions` that are replayed and, if any are, `spare` more of each predicted class."""
    known, unknown = replay_counts(run.config.finetune.replay, run.config.active.budget)
    more = spare if known + unknown else 0
    chosen = select_replay(pool, bought, known + more, unknown + more, run.config.run.seed)
    table.write((None, pa.Table.from_pylist(pool_rows(run, set(chosen)), schema=schema.QUESTIONS)))


def training_examples(a_round: Round) -> Table:
    """The table of examples, written unless it is there: every answer bought so far, and what this round replays."""
    table = a_round.table("finetune/examples")
    if not table.is_done:
        bought = [r for t in [*a_round.earlier, a_round] for r in t.table("annotations").read().to_pylist()]
        answered, rewordings = [r for r in bought if r["status"] == "answered"], dict[str, list[str]]()
        config = a_round.run.config
        if config.finetune.rewordings and config.corpus.rewordings.source != "none":
            rewordings = {r["id"]: r["rewordings"] for r in pool_rows(a_round.run, {r["id"] for r in answered})}
        rows = [
            *(
                {"id": r["id"], "question": r["question"], "answers": [r["answer"]], "source": "annotation"}
                | {"rewordings": rewordings.get(r["id"]) or []}
                for r in answered
            ),
            *_replayed(a_round, {r["id"] for r in bought}),
        ]
        table.write((None, pa.Table.from_pylist(rows, schema=schema.TABLES["examples"].schema)))
    return table


def _replayed(a_round: Round, bought: Set[str]) -> list[dict[str, Any]]:
    """The replayed examples; their questions are kept as rows of `questions` as well."""
    run, table, grading = a_round.run, a_round.table("finetune/replay_questions"), Grading.of(a_round.run.config)
    candidates = {r["id"]: r for r in replay_samples(run)}
    if not table.is_done:
        _write_replayed(run, table, (s for s in scored_pool(run) if s.id in candidates), bought)
    kept = set(table.read(["id"])["id"].to_pylist())
    return [
        {
            "id": i,
            "question": r["question"],
            "answers": replayed_answers(r["samples"], r["greedy"], r["answers"], run.config.finetune.replay, grading),
            "rewordings": [],
            "source": "replay",
        }
        for i, r in candidates.items()
        if i in kept
    ]


def watched_questions(a_round: Round) -> Table | None:
    """Eval questions on which accuracy is recorded during training; None if `finetune.evaluate_every_epochs` is 0."""
    run, table = a_round.run, a_round.table("finetune/watched_questions")
    if not run.config.finetune.evaluate_every_epochs:
        return None
    if not table.is_done:
        columns = schema.TABLES["watched_questions"].schema
        batches = run.table("questions").batches(columns.names, part="eval")
        rows = (r for batch in batches for r in batch.to_pylist() if r["answers"])
        watched = heapq.nsmallest(run.config.finetune.evaluate_rows, rows, key=lambda r: uniform("watched", r["id"]))
        table.write((None, pa.Table.from_pylist(watched, schema=columns)))
    return table
