"""The rounds of one strategy: acquire, decode, annotate, fine-tune, evaluate.

In: scored pool, base model, a strategy and a draw. Out: per round a folder with its five tables and `round.json`.
Every step skips what is done, so a killed round goes on where it was. A round fine-tunes the base model on everything
bought so far, and every round ranks by the base model's probe: after fine-tuning the model's own ignorance is damaged.
Refuses to know: how scores, probes or decoders are made.
"""

import time
from typing import Any

import pyarrow as pa

from ka2l_ray import schema
from ka2l_ray.active.acquire import Choice, Policy, policy, select, select_replay
from ka2l_ray.active.outcome import evaluate, summarize
from ka2l_ray.active.round import Round, pool_rows, replay_samples, scored_pool
from ka2l_ray.annotate.sources import Annotator, ask_reference, ask_world
from ka2l_ray.artifacts import Run, Table
from ka2l_ray.collect.stage import sample_replay
from ka2l_ray.config import Config
from ka2l_ray.decode.stage import Source, decode, written_before
from ka2l_ray.finetune.train import Job, finetune
from ka2l_ray.world.facts import build_world

_EXAMPLES = pa.schema([schema.ID, ("question", pa.string()), ("answers", pa.list_(pa.string())), ("source", pa.string())])


def play(a_round: Round, until: str = "evaluate") -> dict[str, Any] | None:
    """Run a round's steps up to `until`; a finished round is not touched. Returns its figures and the seconds of each step,
    None as long as it is not evaluated."""
    done = a_round.folder / "round.json"
    if done.exists():
        return done.read_json()
    clock = a_round.folder / "seconds.json"
    for name, step in ROUND_STEPS.items():
        before = clock.read_json() if clock.exists() else {}
        started = time.monotonic()
        step(a_round)
        if name not in before:
            clock.write_json(before | {name: round(time.monotonic() - started, 3)})
        if name == until:
            break
    if until != "evaluate":
        return None
    record = summarize(a_round) | {"seconds": clock.read_json()}
    done.write_json(record)
    return record


def acquire(a_round: Round) -> None:
    """Choose what to buy: the policy's best pool questions, and for a decoding policy some generated from their states."""
    if a_round.table("acquired").is_done:
        return
    run = a_round.run
    chosen_by = policy(a_round.strategy, a_round.seed)
    bought = {i for r in a_round.earlier for i in r.table("acquired").read(["id"])["id"].to_pylist()}
    choices = select(chosen_by, scored_pool(run), bought, a_round.budget)
    if len(choices) < a_round.budget:
        raise ValueError(
            f"active.budget = {run.config.active.budget}: round {a_round.number} of {a_round.strategy} wants {a_round.budget} "
            f"unbought pool questions, {len(choices)} are left"
        )
    generated = _generated(a_round, chosen_by, choices) if chosen_by.decodes and run.config.decode.enabled else []
    final = [*choices[: a_round.budget - len(generated)], *generated]
    rows = [{"id": c.id, "reason": c.reason, "rank": rank} for rank, c in enumerate(final)]
    a_round.table("acquired").write((None, pa.Table.from_pylist(rows, schema=schema.ACQUIRED)))


def _generated(a_round: Round, chosen_by: Policy, choices: list[Choice]) -> list[Choice]:
    """Decode the states of the unknown among the choices; the kept ones with the highest P(unknown), within their budget share."""
    section = a_round.run.config.decode
    unknown = {s.id for s in scored_pool(a_round.run) if s.p_unknown >= section.min_p_unknown}
    texts = pool_rows(a_round.run, {c.id for c in choices} & unknown)
    sources = [Source(r["id"], r["question"]) for r in sorted(texts, key=lambda r: r["id"])]
    if not sources:
        return []
    rows = decode(a_round.run, sources, a_round.table("decoded"), written_before(r.folder for r in a_round.earlier)).to_pylist()
    kept = sorted((r for r in rows if r["status"] == "kept"), key=lambda r: (-r["p_unknown"], r["id"]))
    best = kept[: round(a_round.budget * section.budget_share)]
    return [Choice(r["id"], f"decoded from {r['source_id']}, p_unknown {r['p_unknown']:.3f}") for r in best]


def annotate(a_round: Round) -> None:
    """Ask for the answer of every acquired question; unanswered ones are paid for too."""
    target = a_round.table("annotations")
    if target.is_done:
        return
    config = a_round.run.config
    source, annotator = annotator_of(config)
    acquired = a_round.table("acquired").read(["id"])["id"].to_pylist()
    texts = {r["id"]: (r["question"], r["answers"]) for r in pool_rows(a_round.run, set(acquired))}
    if a_round.table("decoded").is_done:
        texts |= {r["id"]: (r["question"], []) for r in a_round.table("decoded").read(["id", "question"]).to_pylist()}
    rows = []
    for i in acquired:
        question, gold = texts[i]
        got = annotator(question, gold)
        rows.append(
            {"id": i, "question": question, "answer": got.answer, "annotator": source, "cost": config.annotate.cost, "status": got.status}
        )
    target.write((None, pa.Table.from_pylist(rows, schema=schema.ANNOTATIONS)))


def annotator_of(config: Config) -> tuple[str, Annotator]:
    """Name and function of the annotator: `auto` is the world on the world, else the corpus' gold answers."""
    source = config.annotate.source
    if source == "auto":
        source = "world" if config.corpus.source == "world" else "reference"
    return source, ask_world(build_world()) if source == "world" else ask_reference


def tune(a_round: Round) -> None:
    """Write the table of examples (annotations and replay), then train; the model folder counts once `done.json` is there."""
    folder, run = a_round.folder / "finetune", a_round.run
    if (folder / "done.json").exists():
        return
    annotations = [r for t in [*a_round.earlier, a_round] for r in t.table("annotations").read().to_pylist()]
    chosen = _replayed(a_round, {r["id"] for r in annotations})
    examples = Table(folder / "examples")
    if not examples.is_done:
        bought = [r | {"answers": [r["answer"]], "source": "annotation"} for r in annotations if r["status"] == "answered"]
        replayed = [r | {"answers": r["samples"], "source": "replay"} for r in replay_samples(run) if r["id"] in chosen]
        rows = [{n: r[n] for n in _EXAMPLES.names} for r in bought + replayed]
        examples.write((None, pa.Table.from_pylist(rows, schema=_EXAMPLES)))
    job = Job(run.config.model, run.config.corpus.prompt, run.config.finetune, examples, folder / "model", a_round.seed)
    figures = finetune(job, f"finetune-{run.hash}-{a_round.strategy}-{a_round.seed}-{a_round.number}")
    (folder / "done.json").write_json(figures)


def _replayed(a_round: Round, bought: set[str]) -> set[str]:
    """Ids of the questions that this round replays, written as rows of `questions` beside the examples."""
    table, run = Table(a_round.folder / "finetune/replay_questions"), a_round.run
    if not table.is_done:
        sampled = {r["id"] for r in replay_samples(run)}
        rows = (s for s in scored_pool(run) if s.id in sampled)
        chosen = select_replay(rows, bought, run.config.finetune.replay.questions, run.config.run.seed)
        table.write((None, pa.Table.from_pylist(pool_rows(run, set(chosen)), schema=schema.QUESTIONS)))
    return set(table.read(["id"])["id"].to_pylist())


def sample_candidates(run: Run) -> dict[str, Any]:
    """The base model's own answers to every pool question that a round may replay, sampled once for all strategies and rounds.

    Enough of both predicted classes that whatever the budget buys, `replay.questions` are left: memory and cost grow with
    the budget, not with the pool.
    """
    questions, config = Table(run.folder / "base/replay/questions"), run.config
    if not questions.is_done:
        wanted = config.finetune.replay.questions and config.finetune.replay.questions + 2 * config.active.budget
        chosen = set(select_replay(scored_pool(run), set(), wanted, config.run.seed))
        questions.write((None, pa.Table.from_pylist(pool_rows(run, chosen), schema=schema.QUESTIONS)))
    return sample_replay(run, questions, run.base("replay"), config.run.seed + 1)


ROUND_STEPS = {"decode": acquire, "annotate": annotate, "finetune": tune, "evaluate": evaluate}
"""A round's steps by the name of the command that stops after them."""
