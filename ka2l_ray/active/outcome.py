"""What a round achieved: greedy answers of the tuned model, and the accuracies that the design defines.

In: a fine-tuned round, or the base model. Out: the `evaluation` table and the round's entry in results.json.
Refuses to know: how questions were chosen, how the model was tuned.
"""

from collections import Counter
from collections.abc import Iterable
from itertools import chain
from typing import Any

from ka2l_ray import schema
from ka2l_ray.active.pool import pool_rows, replay_samples
from ka2l_ray.active.replay import knew, misconceptions
from ka2l_ray.active.round import Round
from ka2l_ray.active.strategies import Need, needs
from ka2l_ray.annotate.ledger import ledger
from ka2l_ray.config import Config, PromptSection, Strategy
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.placement import of_actor
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.dataflow.shard_size import row_seconds
from ka2l_ray.dataflow.stage import Stage, run_stage
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.finetune.evaluate import EvaluateActor, EvaluateSetup
from ka2l_ray.models.batching import Limits
from ka2l_ray.models.prompts import Tokenize, corpus_prompt, finetune_prompt

GRADES = ["correct", "scope", "answers"]
"""Columns of an evaluation that an accuracy is made from."""


def eval_scope(config: Config) -> str:
    """The scope that `accuracy`, and so every saving, is over: the world's `eval` asks pool facts again, that of files
    asks other ones."""
    return "pool" if config.corpus.source == "world" else "other"


def evaluate_round(a_round: Round) -> None:
    """Greedy answers of the tuned model to the eval split and to what this round replayed."""
    replay, source = a_round.table("finetune/replay_questions"), a_round.table("evaluation/questions")
    if not source.is_done:
        replayed = [f for f in replay.listed_from(source.folder) if f["rows"]]
        source.close(a_round.run.table("questions").listed_from(source.folder, "eval") + replayed)
    tuned, target = a_round.model, a_round.table("evaluation")
    if prompt := other_prompt(a_round.run):
        run_stage(
            evaluation_stage(a_round.run, tuned, prompt), a_round.run.table("questions"), _other(target), part="eval"
        )
    run_stage(evaluation_stage(a_round.run, tuned, finetune_prompt(a_round.run)), source, target)


def evaluate_base(run: Run) -> dict[str, Any]:
    """Round 0: greedy answers of the base model to the eval split."""
    questions, target = run.table("questions"), run.base("evaluation")
    if prompt := other_prompt(run):
        run_stage(evaluation_stage(run, None, prompt), questions, _other(target), part="eval")
    return run_stage(evaluation_stage(run, None, finetune_prompt(run)), questions, target, part="eval")


def other_prompt(run: Run) -> PromptSection | None:
    """`corpus.prompt`, under which accuracy is reported too, where it is not the one that the model is trained on."""
    prompt = corpus_prompt(run)
    return None if prompt == finetune_prompt(run) else prompt


def _other(evaluation: Table) -> Table:
    return Table(evaluation.folder / "corpus_prompt")


def evaluation_stage(run: Run, tuned: Folder | None, prompt: PromptSection) -> Stage[EvaluateSetup]:
    """The stage that grades greedy answers under a prompt; `tuned` is the model's folder, None for the base model."""
    config, pool = run.config, run.config.evaluate.pool
    return Stage(
        name="evaluate",
        spec=schema.TABLES["evaluation" if tuned is None else "round_evaluation"],
        actor=EvaluateActor,
        setup=EvaluateSetup(
            model=config.model,
            prompt=prompt,
            collect=config.collect,
            seed=config.run.seed,
            tuned=tuned,
            limits=Limits.of(pool),
            placement=of_actor(config.model, pool, "evaluate"),
        ),
        pool=pool,
        max_error_fraction=config.run.max_error_fraction,
        prepare=Tokenize(config.model, prompt),
        row_seconds=row_seconds(pool, 1, config.collect.max_new_tokens),
    )


def base_record(run: Run, strategy: str, seed: int) -> dict[str, Any]:
    """Figures of round 0: what was known is known by definition, and nothing was replayed."""
    rows = run.base("evaluation").read(GRADES).to_pylist()
    return {
        "strategy": strategy,
        "seed": seed,
        "round": 0,
        "annotations": 0,
        "cost": 0.0,
        "accuracy": _share(rows, eval_scope(run.config)),
        "corpus_prompt_accuracy": _corpus_prompt_accuracy(run, run.base("evaluation")),
        "domain_accuracy": _share(rows, "domain"),
        "known_accuracy": 1.0 if any(r["correct"] for r in rows) else None,
        "replayed_accuracy": None,
        "ledger": {},
        "seconds": {},
        "misconceptions_replayed": None,
    }


def round_figures(a_round: Round) -> dict[str, Any]:
    """Cumulative annotations and cost, and the accuracies that the design defines.

    Other wordings of a fact that any round so far bought or replayed are no evidence of what was left alone.
    """
    rounds = [*a_round.earlier, a_round]
    annotations = [r for t in rounds for r in t.table("annotations").read(["id", "cost"]).to_pylist()]
    rows = a_round.table("evaluation").read(["id", "fact_id", *GRADES]).to_pylist()
    replays = [r.table("finetune/replay_questions").read(["id", "fact_id"]).to_pylist() for r in rounds]
    replay_ids = {r["id"] for r in replays[-1]}
    replayed = [r for r in replay_samples(a_round.run) if r["id"] in replay_ids]
    known_before = {r["id"] for r in replayed if knew(r["samples"], r["greedy"], r["answers"])}
    touched = _facts(chain.from_iterable(replays)) | _facts(pool_rows(a_round.run, {r["id"] for r in annotations}))
    base_right = {r["id"] for r in a_round.run.base("evaluation").read(["id", "correct"]).to_pylist() if r["correct"]}
    asked = [r for r in rows if r["id"] not in replay_ids]
    untouched = [r for r in asked if r["id"] in base_right and (r["fact_id"] is None or r["fact_id"] not in touched)]
    return {
        "strategy": a_round.strategy,
        "seed": a_round.seed,
        "round": a_round.number,
        "annotations": len(annotations),
        "cost": sum(r["cost"] for r in annotations) + sampling_cost(a_round.run, a_round.strategy),
        "ledger": _sum(ledger(r.table("annotations")) for r in rounds),
        "accuracy": _share(asked, eval_scope(a_round.run.config)),
        "corpus_prompt_accuracy": _corpus_prompt_accuracy(a_round.run, a_round.table("evaluation")),
        "domain_accuracy": _share(asked, "domain"),
        "known_accuracy": _mean(untouched),
        "replayed_accuracy": _mean([r for r in rows if r["id"] in known_before]),
        "misconceptions_replayed": misconceptions(replayed),
    }


def _corpus_prompt_accuracy(run: Run, evaluation: Table) -> float | None:
    """Accuracy under `corpus.prompt`; None where that is the prompt of `evaluation` itself."""
    other = _other(evaluation)
    return _share(other.read(GRADES).to_pylist(), eval_scope(run.config)) if other.is_done else None


def sampling_cost(run: Run, strategy: Strategy) -> float:
    """What sampling the pool cost a strategy that ranks by it, in the unit of `annotate.cost`."""
    return run.config.acquire.sampling_cost * run.base("pool_samples").rows if needs(strategy, Need.SAMPLES) else 0.0


def _sum(parts: Iterable[dict[str, float]]) -> dict[str, float]:
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part)
    return dict(total)


def _facts(rows: Iterable[dict[str, Any]]) -> set[str]:
    return {r["fact_id"] for r in rows if r["fact_id"] is not None}


def _share(rows: list[dict[str, Any]], scope: str) -> float | None:
    """Accuracy over one scope. Failed rows count as wrong. Raises `ValueError` for a row whose scope is none of
    `schema.SCOPES`."""
    if unknown := {r["scope"] for r in rows}.difference(schema.SCOPES):
        raise ValueError(
            f"evaluation: scope must be one of {', '.join(schema.SCOPES)}, not {', '.join(sorted(map(str, unknown)))}"
        )
    return _mean([r for r in rows if r["scope"] == scope])


def _mean(rows: list[dict[str, Any]]) -> float | None:
    """Share of right answers; None where no row has gold to grade by."""
    graded = [r for r in rows if r["answers"]]
    return sum(bool(r["correct"]) for r in graded) / len(graded) if graded else None
