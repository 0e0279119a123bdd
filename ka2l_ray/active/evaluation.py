"""Greedy answers to questions whose gold is known: of the base model once, and of each round's tuned model.

In: a run, or a fine-tuned round. Out: the table `evaluation` and, where `corpus.prompt` is not the prompt that the
model is trained on, `evaluation/corpus_prompt`.
Refuses to know: how a model was tuned, what accuracies are made of its answers.
"""

from typing import Any

from ka2l_ray import schema
from ka2l_ray.active.round import Round
from ka2l_ray.config import PromptSection
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.placement import of_actor
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.dataflow.shard_size import row_seconds
from ka2l_ray.dataflow.stage import Stage, run_stage
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.finetune.evaluate import EvaluateActor, EvaluateSetup, SamplingActor
from ka2l_ray.models.batching import Limits
from ka2l_ray.models.examine import abilities_of
from ka2l_ray.models.prompts import Tokenize, corpus_prompt, finetune_prompt
from ka2l_ray.text.grading import Grading


def evaluate_base(run: Run) -> dict[str, Any]:
    """Round 0: greedy answers of the base model to the eval split; returns the manifest."""
    return _evaluate(run, None, run.table("questions"), run.base("evaluation"), "eval")


def evaluate_round(a_round: Round) -> None:
    """Greedy answers of the tuned model to the eval split and to what this round replayed."""
    replay, source = a_round.table("finetune/replay_questions"), a_round.table("evaluation/questions")
    if not source.is_done:
        replayed = [f for f in replay.listed_from(source.folder) if f["rows"]]
        source.close(a_round.run.table("questions").listed_from(source.folder, "eval") + replayed)
    _evaluate(a_round.run, a_round.model, source, a_round.table("evaluation"))


def _evaluate(run: Run, tuned: Folder | None, source: Table, target: Table, part: str | None = None) -> dict[str, Any]:
    """The eval split under `corpus.prompt`, if it is another one, then `source` under the prompt trained on."""
    own, other = finetune_prompt(run), corpus_prompt(run)
    if other != own:
        run_stage(evaluation_stage(run, tuned, other), run.table("questions"), under_corpus_prompt(target), part="eval")
    return run_stage(evaluation_stage(run, tuned, own), source, target, part=part)


def under_corpus_prompt(evaluation: Table) -> Table:
    """The same under `corpus.prompt`; a table that is never done where that is the prompt of `evaluation` itself."""
    return Table(evaluation.folder / "corpus_prompt")


def evaluation_stage(
    run: Run, tuned: Folder | None, prompt: PromptSection, table: str = "evaluation"
) -> Stage[EvaluateSetup]:
    """The stage that grades greedy answers under a prompt; `tuned` is the model's folder, None for the base model,
    whose `table` it writes. For `asked_again` it draws samples of what is right, too."""
    config, pool = run.config, run.config.evaluate.pool
    samples = config.collect.samples if table == "asked_again" else 0
    return Stage(
        name="evaluate",
        run=config.run.name,
        spec=schema.TABLES[table if tuned is None else "round_evaluation"],
        actor=SamplingActor if samples else EvaluateActor,
        setup=EvaluateSetup(
            model=config.model,
            prompt=prompt,
            collect=config.collect,
            seed=config.run.seed + (2 if samples else 0),  # not the samples by which a strategy may have bought
            tuned=tuned,
            grading=Grading.of(config),
            limits=Limits.of(pool),
            placement=of_actor(config.model, pool, "evaluate"),
            abilities=abilities_of(config.model),
        ),
        pool=pool,
        tasks=config.ray.tasks,
        max_error_fraction=config.run.max_error_fraction,
        prepare=Tokenize(config.model, prompt),
        row_seconds=row_seconds(pool, 2 + samples if samples else 1, config.collect.max_new_tokens),
    )
