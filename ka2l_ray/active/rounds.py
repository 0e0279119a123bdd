"""The rounds of one strategy: acquire, annotate, fine-tune, evaluate.

In: scored pool, base model, a strategy and a draw. Out: per round a folder with its five tables, and `steps.json` with its figures.
Every step skips what is done, so a killed round goes on where it was. A round fine-tunes the base model on everything bought so far;
unless `active.reprobe` finds a better one, every round ranks by the base model's probe, since fine-tuning damages a model's own ignorance.
Refuses to know: how scores, probes or decoders are made, how policies choose, who answers.
"""

import heapq
from collections.abc import Callable, Set
from contextlib import nullcontext
from typing import Any

import pyarrow as pa

from ka2l_ray import schema
from ka2l_ray.active.acquire import Acquisition
from ka2l_ray.active.outcome import evaluate, round_figures
from ka2l_ray.active.replay import replay_counts, replayed_answers, select_replay
from ka2l_ray.active.reprobe import scoring_run
from ka2l_ray.active.round import Round, RoundState, pool_for, pool_rows, replay_samples, scored_pool
from ka2l_ray.active.strategies import STRATEGIES, policy
from ka2l_ray.annotate.annotators import Asked
from ka2l_ray.annotate.stage import annotate as ask
from ka2l_ray.collect.stage import sample_replay
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.decode.stage import SourceQuestion, decode, written_before
from ka2l_ray.errors import ConfigError
from ka2l_ray.finetune.train import Job, finetune
from ka2l_ray.hashing import uniform
from ka2l_ray.models.prompts import finetune_prompt

_EXAMPLES = pa.schema(
    [schema.ID, ("question", pa.string()), ("answers", pa.list_(pa.string())), ("source", pa.string())]
)


def play(a_round: Round, until: RoundState = RoundState.EVALUATE) -> dict[str, Any] | None:
    """Run a round's steps up to and with `until`; a finished round is not touched. Returns its figures with the seconds of each step,
    None as long as it is not evaluated. Raises `Waiting` where people have to answer first.

    Seconds are of all attempts, but for one that ended by SIGKILL.
    """
    records = a_round.records
    for state, step in STEPS.items():
        with nullcontext() if records.is_done(state) else records.timed(state):
            result = step(a_round)
        records.finish(state, result=result)
        if state == until:
            break
    return a_round.record() if a_round.state == RoundState.DONE else None


def acquire(a_round: Round) -> None:
    """Choose what to buy: the policy's best pool questions, and for `decoded` a share generated from their states."""
    if a_round.table("acquired").is_done:
        return
    run, strategy = a_round.run, a_round.strategy
    bought = {i for r in a_round.earlier for i in r.table("acquired").read(["id"])["id"].to_pylist()}
    rows = pool_for(strategy, scoring_run(a_round))
    choices = policy(strategy, run.config.acquire, a_round.seed).choose(rows, bought, a_round.budget)
    if len(choices) < a_round.budget:
        raise ConfigError(
            f"active.budget = {run.config.active.budget}: round {a_round.number} of {a_round.strategy} wants {a_round.budget} "
            f"unbought pool questions, {len(choices)} are left"
        )
    generated = _generated(a_round, choices) if STRATEGIES[strategy].decodes and run.config.decode.enabled else []
    final = [*choices[: a_round.budget - len(generated)], *generated]
    found = [{"id": c.id, "reason": c.reason, "rank": rank} for rank, c in enumerate(final)]
    a_round.table("acquired").write((None, pa.Table.from_pylist(found, schema=schema.ACQUIRED)))


def _generated(a_round: Round, choices: list[Acquisition]) -> list[Acquisition]:
    """Decode the states of the unknown among the choices; for `decoded` the kept ones likeliest unknown, within their budget share."""
    config = a_round.run.config
    chosen = {c.id for c in choices}
    unknown = {
        s.id for s in scored_pool(a_round.run) if s.id in chosen and (s.p_unknown or 0.0) >= config.decode.min_p_unknown
    }
    texts = pool_rows(a_round.run, unknown)
    sources = [SourceQuestion(r["id"], r["question"]) for r in sorted(texts, key=lambda r: r["id"])]
    if not sources:
        return []
    rows = decode(
        a_round.run, sources, a_round.table("decoded"), written_before(r.folder for r in a_round.earlier)
    ).to_pylist()
    kept = sorted((r for r in rows if r["status"] == "kept"), key=lambda r: (-r["p_unknown"], r["id"]))
    share = config.acquire.decoded_share if a_round.strategy == "decoded" else 0.0
    best = kept[: round(a_round.budget * share)]
    return [Acquisition(r["id"], f"decoded from {r['source_id']}, p_unknown {r['p_unknown']:.3f}") for r in best]


def annotate(a_round: Round) -> None:
    """Ask for the answer of every acquired question; unanswered ones are paid for too."""
    target = a_round.table("annotations")
    if target.is_done:
        return
    acquired = a_round.table("acquired").read(["id"])["id"].to_pylist()
    asked = {
        r["id"]: Asked(r["id"], r["question"], tuple(r["answers"]), r["group"])
        for r in pool_rows(a_round.run, set(acquired))
    }
    if a_round.table("decoded").is_done:
        asked |= {
            r["id"]: Asked(r["id"], r["question"], (), None)
            for r in a_round.table("decoded").read(["id", "question"]).to_pylist()
        }
    ask(a_round.run, [asked[i] for i in acquired], target)


def tune(a_round: Round) -> None:
    """Write the table of examples (annotations and replay), then train; neither is done twice."""
    run, examples = a_round.run, a_round.table("finetune/examples")
    if not examples.is_done:
        rows = [{n: r[n] for n in _EXAMPLES.names} for r in _examples(a_round)]
        examples.write((None, pa.Table.from_pylist(rows, schema=_EXAMPLES)))
    planned = sum(r.budget for r in [*a_round.earlier, a_round]) + a_round.table("finetune/replay_questions").rows
    tune, watched = run.config.finetune, _watched(a_round)
    job = Job(run.config.model, finetune_prompt(run), tune, examples, a_round.model, a_round.seed, watched, planned)
    finetune(job, f"finetune-{run.hash}-{a_round.strategy}-{a_round.seed}-{a_round.number}")


def _examples(a_round: Round) -> list[dict[str, Any]]:
    """What was bought and answered in all rounds so far, and what this round replays."""
    annotations = [r for t in [*a_round.earlier, a_round] for r in t.table("annotations").read().to_pylist()]
    bought = [r | {"answers": [r["answer"]], "source": "annotation"} for r in annotations if r["status"] == "answered"]
    candidates = {r["id"]: r for r in replay_samples(a_round.run)}
    chosen = _replayed(a_round, {r["id"] for r in annotations}, candidates.keys())
    return bought + [_replay_example(r, a_round.run) for i, r in candidates.items() if i in chosen]


def _watched(a_round: Round) -> Table | None:
    """Eval questions that training is measured on as it goes, for the record only; None where that is not asked for."""
    run, table = a_round.run, a_round.table("finetune/watched_questions")
    if not run.config.finetune.evaluate_every_epochs:
        return None
    if not table.is_done:
        batches = run.table("questions").batches(["id", "question", "answers"], part="eval")
        rows = (r for batch in batches for r in batch.to_pylist() if r["answers"])
        watched = heapq.nsmallest(run.config.finetune.evaluate_rows, rows, key=lambda r: uniform("watched", r["id"]))
        table.write(
            (
                None,
                pa.Table.from_pylist(
                    watched, schema=pa.schema([schema.QUESTIONS.field(n) for n in ("id", "question", "answers")])
                ),
            )
        )
    return table


def _replay_example(row: dict[str, Any], run: Run) -> dict[str, Any]:
    answers = replayed_answers(row["samples"], row["greedy"], row["answers"], run.config.finetune.replay)
    return row | {"answers": answers, "source": "replay"}


def _replayed(a_round: Round, bought: Set[str], candidates: Set[str]) -> set[str]:
    """Ids of the candidates that this round replays, written as rows of `questions` beside the examples."""
    run, table = a_round.run, a_round.table("finetune/replay_questions")
    if not table.is_done:
        rows = (s for s in scored_pool(run) if s.id in candidates)
        known, unknown = replay_counts(run.config.finetune.replay, run.config.active.budget)
        chosen = select_replay(rows, bought, known, unknown, run.config.run.seed)
        table.write((None, pa.Table.from_pylist(pool_rows(run, set(chosen)), schema=schema.QUESTIONS)))
    return set(table.read(["id"])["id"].to_pylist())


def sample_candidates(run: Run) -> dict[str, Any]:
    """The base model's own answers to every pool question that a round may replay, sampled once for all strategies and rounds.

    Enough of both predicted classes that whatever the budget buys, the wanted number is left: memory and cost grow with
    the budget, not with the pool.
    """
    questions, config = Table(run.folder / "base/replay/questions"), run.config
    if not questions.is_done:
        known, unknown = replay_counts(config.finetune.replay, config.active.budget)
        spare = config.active.budget if known + unknown else 0
        chosen = select_replay(scored_pool(run), set(), known + spare, unknown + spare, config.run.seed)
        questions.write((None, pa.Table.from_pylist(pool_rows(run, set(chosen)), schema=schema.QUESTIONS)))
    return sample_replay(run, questions, run.base("replay"), config.run.seed + 1)


def _evaluate(a_round: Round) -> dict[str, Any]:
    """Evaluate; returns the round's figures."""
    evaluate(a_round)
    return round_figures(a_round)


STEPS: dict[RoundState, Callable[[Round], Any]] = {
    RoundState.ACQUIRE: acquire,
    RoundState.ANNOTATE: annotate,
    RoundState.FINETUNE: tune,
    RoundState.EVALUATE: _evaluate,
}
"""A round's steps by the state they end; what a step returns is its result in the record."""
