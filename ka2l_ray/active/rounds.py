"""The rounds of one strategy: acquire, decode, annotate, fine-tune, evaluate.

In: scored pool, base model, a strategy and a draw. Out: per round a folder with its five tables and `round.json`.
Every step skips what is done, so a killed round goes on where it was. A round fine-tunes the base model on everything
bought so far, and every round ranks by the base model's probe: after fine-tuning the model's own ignorance is damaged.
Refuses to know: how scores, probes or decoders are made.
"""

import time
from collections.abc import Iterator, Set
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ka2l_ray import schema
from ka2l_ray.active.acquire import Choice, Policy, Scored, policy, select, select_replay
from ka2l_ray.annotate.sources import Annotator, ask_reference, ask_world
from ka2l_ray.artifacts import Folder, Run, Table
from ka2l_ray.collect.stage import sample_replay
from ka2l_ray.config import Config, Strategy
from ka2l_ray.dataflow import Stage, run_stage
from ka2l_ray.decode.stage import Source, decode, written_before
from ka2l_ray.finetune.evaluate import EvaluateActor
from ka2l_ray.finetune.train import Job, finetune
from ka2l_ray.label.grading import is_correct
from ka2l_ray.world.facts import build_world

_EXAMPLES = pa.schema([schema.ID, ("question", pa.string()), ("answers", pa.list_(pa.string())), ("source", pa.string())])


@dataclass(frozen=True)
class Round:
    """One round of one strategy. `number` counts from 1."""

    run: Run
    strategy: Strategy
    draw: int
    number: int

    @property
    def folder(self) -> Folder:
        return self.run.round(self.strategy, self.draw, self.number)

    @property
    def seed(self) -> int:
        return self.run.draw_seed(self.draw)

    @property
    def earlier(self) -> list["Round"]:
        return [Round(self.run, self.strategy, self.draw, n) for n in range(1, self.number)]

    @property
    def budget(self) -> int:
        """Annotations of this round: equal parts, earlier rounds one more where the budget does not divide."""
        total, rounds = self.run.config.active.budget, self.run.config.active.rounds
        return total // rounds + (self.number <= total % rounds)

    def table(self, name: str) -> Table:
        return Table(self.folder / name)


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


def replay_samples(run: Run) -> list[dict[str, Any]]:
    """Replay candidates with their samples; failed rows are left out."""
    rows = (
        run.base("replay").read(["id", "question", "samples", "greedy", "answers", "error"]).to_pylist() if run.base("replay").rows else []
    )
    return [r for r in rows if r["error"] is None]


def evaluate(a_round: Round) -> None:
    """Greedy answers of the tuned model to the eval split and to what this round replayed."""
    replay = Table(a_round.folder / "finetune/replay_questions")
    source = Table(a_round.folder / "evaluation/questions")
    if not source.is_done:
        questions = a_round.run.table("questions").manifest()["files"]
        listed = [{"name": f"../../../../../../questions/{f['name']}", "rows": f["rows"]} for f in questions if f.get("part") == "eval"]
        listed += [f | {"name": f"../../finetune/replay_questions/{f['name']}"} for f in replay.manifest()["files"] if f["rows"]]
        source.close(listed)
    run_stage(evaluation_stage(a_round.run, a_round.folder / "finetune/model"), source, a_round.table("evaluation"))


ROUND_STEPS = {"decode": acquire, "annotate": annotate, "finetune": tune, "evaluate": evaluate}
"""A round's steps by the name of the command that stops after them."""


def evaluate_base(run: Run) -> dict[str, Any]:
    """Round 0: greedy answers of the base model to the eval split."""
    return run_stage(evaluation_stage(run, None), run.table("questions"), run.base("evaluation"), part="eval")


def evaluation_stage(run: Run, tuned: Folder | None) -> Stage:
    config = run.config
    arguments = {"model": config.model, "prompt": config.corpus.prompt, "collect": config.collect, "seed": config.run.seed, "tuned": tuned}
    columns = pa.schema([f for f in schema.EVALUATION if f.name != "id"])
    return Stage(
        "evaluate",
        EvaluateActor,
        arguments,
        ("question", "answers"),
        columns,
        config.evaluate.pool,
        ("scope", "fact_id"),
        config.run.max_error_fraction,
    )


def base_record(run: Run, strategy: str, seed: int) -> dict[str, Any]:
    """Figures of round 0; what was known is known, and nothing was replayed."""
    rows = run.base("evaluation").read(["correct", "scope"]).to_pylist()
    figures = {
        "accuracy": _share(rows, "pool"),
        "domain_accuracy": _share(rows, "domain"),
        "known_accuracy": 1.0,
        "replayed_accuracy": None,
    }
    return {"strategy": strategy, "seed": seed, "round": 0, "annotations": 0, "cost": 0.0} | figures


def summarize(a_round: Round) -> dict[str, Any]:
    """Cumulative annotations and cost, and the accuracies that the design defines."""
    rounds = [*a_round.earlier, a_round]
    annotations = [r for t in rounds for r in t.table("annotations").read(["id", "cost"]).to_pylist()]
    rows = a_round.table("evaluation").read(["id", "correct", "scope", "fact_id"]).to_pylist()
    replay_ids = set(Table(a_round.folder / "finetune/replay_questions").read(["id"])["id"].to_pylist())
    known_before = {r["id"] for r in replay_samples(a_round.run) if _knew(r)}
    touched = _touched_facts(rounds, {r["id"] for r in annotations})
    base_right = {r["id"] for r in a_round.run.base("evaluation").read(["id", "correct"]).to_pylist() if r["correct"]}
    asked = [r for r in rows if r["id"] not in replay_ids]
    untouched = [r for r in asked if r["id"] in base_right and (r["fact_id"] is None or r["fact_id"] not in touched)]
    return {
        "strategy": a_round.strategy,
        "seed": a_round.seed,
        "round": a_round.number,
        "annotations": len(annotations),
        "cost": sum(r["cost"] for r in annotations),
        "accuracy": _share(asked, "pool"),
        "domain_accuracy": _share(asked, "domain"),
        "known_accuracy": _mean(untouched),
        "replayed_accuracy": _mean([r for r in rows if r["id"] in replay_ids & known_before]),
    }


def _knew(row: dict[str, Any]) -> bool:
    """Whether the base model knew a replayed question: greedy answer and at least half of its samples right, not a lucky guess."""
    right = [bool(is_correct(a, row["answers"])) for a in row["samples"]]
    return bool(is_correct(row["greedy"], row["answers"])) and 2 * sum(right) >= len(right)


def _touched_facts(rounds: list[Round], bought: set[str]) -> set[str]:
    """Facts that any round so far replayed or bought: their other wordings are no evidence of what was left alone."""
    replayed = {
        f for r in rounds for f in Table(r.folder / "finetune/replay_questions").read(["fact_id"])["fact_id"].to_pylist() if f is not None
    }
    return replayed | {r["fact_id"] for r in pool_rows(rounds[-1].run, bought) if r["fact_id"] is not None}


def _share(rows: list[dict[str, Any]], scope: str) -> float | None:
    """Accuracy over one scope; a corpus without scopes counts as `pool`. Failed rows count as wrong."""
    return _mean([r for r in rows if (r["scope"] or "pool") == scope])


def _mean(rows: list[dict[str, Any]]) -> float | None:
    return sum(bool(r["correct"]) for r in rows) / len(rows) if rows else None


def scored_pool(run: Run) -> Iterator[Scored]:
    """Pool questions with their scores, streamed; failed rows have none and are left out."""
    for batch in run.base("scores").batches(["id", "p_unknown", "truth"]):
        for row in batch.to_pylist():
            if row["p_unknown"] is not None:
                yield Scored(row["id"], row["p_unknown"], row["truth"])


def pool_rows(run: Run, ids: Set[str]) -> list[dict[str, Any]]:
    """The rows of some pool questions, in the order of the table: the pool is streamed, only the wanted rows are kept."""
    return [r for batch in run.table("questions").batches(part="pool") for r in batch.to_pylist() if r["id"] in ids]
