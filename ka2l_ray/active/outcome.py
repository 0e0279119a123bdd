"""What a round achieved: the figures that the design defines.

In: an evaluated round, or the evaluated base model. Out: the round's entry in results.json.
Refuses to know: how questions were chosen, how the model was tuned, how its answers were made.
"""

from collections import Counter
from collections.abc import Mapping
from itertools import chain
from typing import Any

from ka2l_ray import schema
from ka2l_ray.active.evaluation import under_corpus_prompt
from ka2l_ray.active.forgetting import lost_and_gained
from ka2l_ray.active.pool import pool_rows, replay_samples
from ka2l_ray.active.replay import knew, misconceptions
from ka2l_ray.active.round import Round
from ka2l_ray.active.strategies import Need, needs
from ka2l_ray.annotate.ledger import ledger
from ka2l_ray.corpus.again import eval_scope
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.results_schema import EvalWording, NoiseFloor, RoundFigures, RoundResult
from ka2l_ray.text.grading import Grading

GRADES = ["correct", "scope", "answers"]
"""Columns of an evaluation that an accuracy is made from."""
WORDINGS: Mapping[str, EvalWording] = {"pool": "reserved", "same": "same", "other": "other facts"}
"""`eval_wording` of results.json by `eval_scope`."""
Graded = dict[str, Any]
"""A row of an evaluation."""


def base_record(run: Run, strategy: str, seed: int) -> RoundResult:
    """Figures of round 0: what was known is known by definition, nothing was lost or replayed."""
    rows = run.base("evaluation").read(GRADES).to_pylist()
    return {
        "strategy": strategy,
        "seed": seed,
        "round": 0,
        "annotations": 0,
        "cost": 0.0,
        "accuracy": _share(rows, eval_scope(run.config)),
        "corpus_prompt_accuracy": _corpus_prompt_accuracy(run, run.base("evaluation")),
        "same_words_accuracy": _share(rows, "same"),
        "domain_accuracy": _share(rows, "domain"),
        "beyond_accuracy": _share(rows, "beyond"),
        "beyond_unknown_accuracy": 0.0 if any(r["scope"] == "beyond" and not r["correct"] for r in rows) else None,
        "known_accuracy": 1.0 if (known_counts(run) or {}).get("known") else None,
        "lost": None,
        "gained": None,
        "replayed_accuracy": None,
        "ledger": {},
        "seconds": {},
        "misconceptions_replayed": None,
    }


def round_figures(a_round: Round) -> RoundFigures:
    """Cumulative annotations and cost, and the accuracies that the design defines.

    Other wordings of a fact that any round so far bought or replayed are no evidence of what was left alone.
    """
    run, rounds, booked = a_round.run, [*a_round.earlier, a_round], Counter[str]()
    grading = Grading.of(run.config)
    for one in rounds:
        booked.update(ledger(one.table("annotations")))
    annotations = [r for one in rounds for r in one.table("annotations").read(["id", "cost"]).to_pylist()]
    replays = [one.table("finetune/replay_questions").read(["id", "fact_id"]).to_pylist() for one in rounds]
    replay_ids = {r["id"] for r in replays[-1]}
    replayed = [r for r in replay_samples(run) if r["id"] in replay_ids]
    known_before = {r["id"] for r in replayed if knew(r["samples"], r["greedy"], r["answers"], grading)}
    bought = pool_rows(run, {r["id"] for r in annotations})
    bought_facts = {r["fact_id"] for r in bought} - {None}
    touched = bought_facts | {r["fact_id"] for r in chain(*replays)} - {None}
    rows = a_round.table("evaluation").read(["id", "fact_id", *GRADES]).to_pylist()
    asked = [r for r in rows if r["id"] not in replay_ids]
    scope, before = eval_scope(run.config), run.base("evaluation").read(["id", "correct"]).to_pylist()
    wrong_before = {r["id"] for r in before if r["correct"] is False}
    changed = lost_and_gained(_classes(run), asked, touched)
    taught = [r for r in asked if r["fact_id"] in bought_facts]
    sampled = run.base("pool_samples").rows if needs(a_round.strategy, Need.SAMPLES) else 0
    return {
        "strategy": a_round.strategy,
        "seed": a_round.seed,
        "round": a_round.number,
        "annotations": len(annotations),
        "cost": sum(r["cost"] for r in annotations) + run.config.acquire.sampling_cost * sampled,
        "ledger": dict(booked),
        "accuracy": _share(asked, scope),
        "taught_accuracy": _share(taught, scope),
        "taught_same_words": _share(taught, "same"),
        "same_words_accuracy": _share(asked, "same"),
        "corpus_prompt_accuracy": _corpus_prompt_accuracy(run, a_round.table("evaluation")),
        "domain_accuracy": _share(asked, "domain"),
        "beyond_accuracy": _share(asked, "beyond"),
        "beyond_unknown_accuracy": _share([r for r in asked if r["id"] in wrong_before], "beyond"),
        "known_accuracy": None if (share := changed["lost"]["share"]) is None else 1 - share,
        **changed,
        "replayed_accuracy": _mean([r for r in rows if r["id"] in known_before]),
        "misconceptions_replayed": misconceptions(replayed, grading, run.config.label.refusals),
    }


def known_counts(run: Run) -> dict[str, int] | None:
    """How many facts of the `eval_scope` are in each of `schema.KNOWN_CLASSES`; None before they were classified."""
    if not run.base("known").is_done:
        return None
    counts = Counter(_classes(run).values())
    return {name: counts[name] for name in schema.KNOWN_CLASSES}


def noise_floor(run: Run) -> NoiseFloor | None:
    """What the base model loses and gains when its prompt shows other solved examples; None where it has none."""
    after = run.base("noise_floor")
    if not (after.is_done and run.base("known").is_done):
        return None
    return lost_and_gained(_classes(run), after.read(["id", "fact_id", "correct"]).to_pylist())


def _classes(run: Run) -> dict[str, str]:
    """The class of each eval question that has one, by id."""
    return {r["id"]: r["class"] for r in run.base("known").read(["id", "class"]).to_pylist()}


def _corpus_prompt_accuracy(run: Run, evaluation: Table) -> float | None:
    """Accuracy under `corpus.prompt`; None where that is the prompt of `evaluation` itself."""
    other = under_corpus_prompt(evaluation)
    return _share(other.read(GRADES).to_pylist(), eval_scope(run.config)) if other.is_done else None


def _share(rows: list[Graded], scope: str) -> float | None:
    """Accuracy over one scope. Failed rows count as wrong. Raises `ValueError` for a row whose scope is none of
    `schema.SCOPES`."""
    if unknown := {r["scope"] for r in rows}.difference(schema.SCOPES):
        raise ValueError(
            f"evaluation: scope must be one of {', '.join(schema.SCOPES)}, not {', '.join(sorted(map(str, unknown)))}"
        )
    return _mean([r for r in rows if r["scope"] == scope])


def _mean(rows: list[Graded]) -> float | None:
    """Share of right answers; None where no row has gold to grade by."""
    graded = [r for r in rows if r["answers"]]
    return sum(bool(r["correct"]) for r in graded) / len(graded) if graded else None
