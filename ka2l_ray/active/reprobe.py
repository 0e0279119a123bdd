"""A new probe for a round's own model: collect, label, search and score again, and rank by it only if it is good
enough.

In: a finished round. Out: a run folder of its own below the round's, `reprobe/`, and which scores the next round ranks
by. After fine-tuning a model's ignorance is damaged (SE AUROC 0.997 falls to 0.5 … 0.8 on the world, `method.md`), so a
probe is refused below `FIT_AUROC`, and the loop says so. Refuses to know: policies, training.
"""

from ka2l_ray.active.round import Round
from ka2l_ray.active.strategies import Need, needs
from ka2l_ray.collect.stage import collect, sample_pool
from ka2l_ray.dataflow.log import log
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.label.stage import gamma, label, label_pool, label_summary
from ka2l_ray.models.prompts import share_prompts
from ka2l_ray.probe.search import search
from ka2l_ray.probe.stage import score
from ka2l_ray.results_schema import LabelResult

FIT_AUROC = 0.7
"""SE AUROC of the round's own model from which its probe is used."""


def reprobe(a_round: Round) -> dict[str, float | None]:
    """Probe a round's model again; returns (and records last) its SE AUROC and whether its probe is used.

    The AUROC is against the truth where it is known, else against wrong greedy answers of the questions with gold,
    which must hold `search.min_graded` right and as many wrong ones.
    """
    if (verdict := a_round.records.result("reprobe")) is not None:
        return verdict
    run = own_run(a_round)
    collect(run)
    label(run)
    auroc = se_auroc(label_summary(run), run.config.search.min_graded)
    if fit := auroc is not None and auroc >= FIT_AUROC:
        search(run, gamma(run))
        score(run, with_state=needs(a_round.strategy, Need.STATES))
        if needs(a_round.strategy, Need.SAMPLES):
            sample_pool(run)
            label_pool(run)
    log.info(
        "%s: SE AUROC of the tuned model %s, %s",
        a_round,
        "unknown" if auroc is None else f"{auroc:.3f}",
        "its own probe ranks the next round"
        if fit
        else f"below {FIT_AUROC}: the base model's probe ranks the next round",
        extra={"stage": "reprobe"},
    )
    verdict = {"entropy_auroc": auroc, "used": fit}
    a_round.records.finish("reprobe", result=verdict)
    return verdict


def se_auroc(label: LabelResult, min_graded: int) -> float | None:
    """How well semantic entropy separates what the model does not know, from a `label_summary`: against the truth if it
    is known, else against wrong answers; None if there are fewer than `min_graded` right or wrong answers."""
    if label["entropy_auroc_vs_truth"] is not None:
        return label["entropy_auroc_vs_truth"]
    return label["entropy_auroc_vs_incorrect"] if min(label["right"], label["wrong"]) >= min_graded else None


def own_run(a_round: Round) -> Run:
    """The run folder of a round's own model: the same configuration, questions by reference, the same
    prompts, another model.

    `model.adapter` holds one folder: `Config` refuses a LoRA adapter trained on top of another there.
    """
    config = a_round.run.config
    model = config.model.model_copy(update={"adapter": a_round.model.uri})
    run = Run(a_round.folder / "reprobe", config.model_copy(update={"model": model}))
    if not (questions := run.table("questions")).is_done:
        questions.close(a_round.run.table("questions").listed_from(questions.folder))
    share_prompts(a_round.run, run)
    return run


def scoring_run(a_round: Round) -> Run:
    """The run whose scores a round ranks by: that of the round before if its probe is used, else the base model's."""
    if a_round.number == 1 or not a_round.run.config.active.reprobe:
        return a_round.run
    before = a_round.earlier[-1]
    return own_run(before) if reprobe(before)["used"] else a_round.run
