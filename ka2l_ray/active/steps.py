"""The steps of one round: acquire, annotate, fine-tune, evaluate.

In: the scored pool, the base model, a round. Out: the round's tables, and `steps.json` with its figures. A round that
was killed goes on where it was. Each round fine-tunes the base model on everything bought so far and, unless
`active.reprobe` finds a better one, ranks by the base model's probe: fine-tuning damages a model's knowledge of its own
ignorance.
Refuses to know: how scores, probes or decoders are made, how policies choose, who answers.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, replace

import pyarrow as pa

from ka2l_ray import schema
from ka2l_ray.active.evaluation import evaluate_round
from ka2l_ray.active.examples import training_examples, watched_questions
from ka2l_ray.active.new_questions import diverse
from ka2l_ray.active.outcome import round_figures
from ka2l_ray.active.policies import Acquisition
from ka2l_ray.active.pool import pool_for, pool_rows, scored_pool
from ka2l_ray.active.reprobe import scoring_run
from ka2l_ray.active.round import Round, RoundState
from ka2l_ray.active.strategies import STRATEGIES, policy
from ka2l_ray.annotate.annotators import Asked
from ka2l_ray.annotate.stage import annotate as ask
from ka2l_ray.decode.stage import decode, decoded_states
from ka2l_ray.errors import ConfigError, StageError
from ka2l_ray.finetune.train import Job
from ka2l_ray.finetune.train import finetune as train
from ka2l_ray.models.examine import abilities_of
from ka2l_ray.models.prompts import finetune_prompt
from ka2l_ray.results_schema import RoundFigures, RoundResult


def play(a_round: Round, until: RoundState = RoundState.EVALUATE) -> RoundResult | None:
    """Run a round's steps up to and including `until`. Returns the round's figures with the seconds of each step, None
    until it is evaluated. Raises `Waiting` if people have to answer first.

    Every step is called again when a round is resumed, and returns at once if its tables are done. Seconds are those of
    all attempts except one that ended by SIGKILL.
    """
    if a_round.state == RoundState.DONE:
        return a_round.record()
    records = a_round.records
    for state, step in STEPS.items():
        with nullcontext() if records.is_done(state) else records.timed(state):
            result = step(a_round)
        records.finish(state, result=result)
        if state == until:
            break
    if until == RoundState.EVALUATE and a_round.state != RoundState.DONE:
        raise StageError(f"{a_round.folder.path}/steps.json: another process has written it too; run again")
    return a_round.record() if a_round.state == RoundState.DONE else None


def acquire(a_round: Round) -> None:
    """Choose what to buy: the policy's best pool questions and, for `decoded`, a share of questions generated from
    their hidden states. Raises `ConfigError` if the pool has too few questions left."""
    if a_round.table("acquired").is_done:
        return
    run, strategy = a_round.run, a_round.strategy
    pool = pool_for(strategy, scoring_run(a_round))
    choices = policy(strategy, run.config.acquire, a_round.seed).choose(pool, a_round.bought_before, a_round.budget)
    if len(choices) < a_round.budget:
        raise ConfigError(
            f"active.budget = {run.config.active.budget}: round {a_round.number} of {a_round.strategy} needs "
            f"{a_round.budget} unbought pool questions, {len(choices)} are left"
        )
    generated = _generated(a_round, choices) if STRATEGIES[strategy].decodes and run.config.decode.enabled else []
    final = [*choices[: a_round.budget - len(generated)], *generated]
    rows = [asdict(choice) | {"rank": rank} for rank, choice in enumerate(final)]
    a_round.table("acquired").write((None, pa.Table.from_pylist(rows, schema=schema.ACQUIRED)))


def _generated(a_round: Round, choices: list[Acquisition]) -> list[Acquisition]:
    """Questions decoded from the states of the choices that are likely unknown. For `decoded`, up to their share of the
    budget, the most diverse ones that are kept; `ka2l` records them and buys not one."""
    run, chosen = a_round.run, {c.id for c in choices}
    least = run.config.decode.min_p_unknown
    unknown = {s.id for s in scored_pool(run) if s.id in chosen and (s.p_unknown or 0.0) >= least}
    sources = sorted(pool_rows(run, unknown), key=lambda r: r["id"])
    if not sources:
        return []
    table = a_round.table("decoded")
    rows = decode(run, sources, table, (r.folder for r in a_round.earlier)).to_pylist()
    wanted = round(a_round.budget * run.config.acquire.decoded_share) if a_round.strategy == "decoded" else 0
    kept = {r["id"]: r for r in rows if r["status"] == "kept"}
    if not wanted:
        return []
    best = diverse(kept, decoded_states(table, kept), wanted)
    return [replace(b, reason=f"decoded from {kept[b.id]['source_id']}, {b.reason}") for b in best]


def annotate(a_round: Round) -> None:
    """Ask for the answer to every acquired question; questions that get no answer are paid for too."""
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


def finetune(a_round: Round) -> None:
    """Fine-tune the base model on everything bought so far and on what is replayed."""
    run, examples, watched = a_round.run, training_examples(a_round), watched_questions(a_round)
    planned = sum(r.budget for r in [*a_round.earlier, a_round]) + a_round.table("finetune/replay_questions").rows
    model, prompt, section = run.config.model, finetune_prompt(run), run.config.finetune
    names = (run.config.run.name, str(a_round))
    prefix = abilities_of(model).prefix
    job = Job(model, prompt, section, examples, a_round.model, a_round.seed, watched, planned, *names, prefix)
    train(job, f"finetune-{run.hash}-{a_round.strategy}-{a_round.seed}-{a_round.number}")


def evaluate(a_round: Round) -> RoundFigures:
    """Evaluate the fine-tuned model; returns the round's figures."""
    evaluate_round(a_round)
    return round_figures(a_round)


STEPS: dict[RoundState, Callable[[Round], RoundFigures | None]] = {
    RoundState.ACQUIRE: acquire,
    RoundState.ANNOTATE: annotate,
    RoundState.FINETUNE: finetune,
    RoundState.EVALUATE: evaluate,
}
"""A round's steps by the state that each one ends; what a step returns is the result in its record."""
