"""The report of a run: one self-contained page, and every figure in files of its own.

In: a run (results.json, its tables, base/search/heat.json; each may be missing where the run was stopped early).
Out: report/index.html, report/NAME.svg and report/NAME.png. Refuses to know: Ray, models, and how any number was
computed; it shows what is stored.
"""

from collections import Counter
from collections.abc import Iterable, Mapping

import yaml
from markupsafe import Markup

from ka2l_ray.active.round import Round, RoundState
from ka2l_ray.active.strategies import draws
from ka2l_ray.annotate.annotators import annotator_of
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.report import figures
from ka2l_ray.report.canvas import Drawing, on_paper
from ka2l_ray.report.folds import fold_numbers
from ka2l_ray.report.headline import Plan, result_sentence
from ka2l_ray.report.knowledge_map import known_map
from ka2l_ray.report.summary import known_changes, last_changes, savings, spendings
from ka2l_ray.report.tables import bought_questions, decoded_questions, entropy_counts, probe_states, topic_counts
from ka2l_ray.report.templates import environment
from ka2l_ray.report.topics import Topic, topic_shares, topics
from ka2l_ray.results_schema import Results
from ka2l_ray.schema import ACCURACY_OVER, DECODE_STATUSES, QUADRANTS

STAGES = (
    "corpus",
    "questions",
    "collect",
    "label",
    "search",
    "score",
    "sample_pool",
    "replay",
    "acquire",
    "decode",
    "annotate",
    "finetune",
    "evaluate",
    "rounds",
)
DECODE_MEASURES = {
    "generated": "questions generated",
    "kept": "kept",
    "exact_match": "exact match with the source",
    "token_accuracy": "token accuracy",
    "bleu": "BLEU",
    "token_f1": "token F1",
    "bert_f1": "BERTScore (F1)",
    "entity_kept": "entity kept",
    "relation_right": "asked in the right words",
    "steering_groups": "groups steered among",
    "steering_found": "things found again under another question",
    "explained": "share of the wanted state's variance explained",
    "explained_after": "the same before any correction and after each",
    "still_unknown_fraction": "share still unknown (probe)",
    "truly_unknown_fraction": "share truly unknown",
    "answerable": "answerable",
    "distinct_2": "distinct pairs of words among the kept",
    "kept_per_s": "kept per second",
    "grounding": "names checked against",
}
_EMPTY = {
    **dict.fromkeys(
        (
            *("config_hash", "model", "seed", "command", "label", "search", "decode", "eval_scope", "eval_wording"),
            *("known", "noise_floor"),
        )
    ),
    **{
        "versions": {},
        "evaluation_ledger": {},
        "prior": {},
        "rounds": [],
        "saving": [],
        "stopped": [],
        "rows": {},
        "time_s": {},
    },
}


def write_report(run: Run) -> Folder:
    """Write report/index.html and its figures; returns the report's folder.

    The page names what the run has not produced yet. Raises `StageError` where results.json or a table is damaged.
    """
    results = stored_results(run)
    shown_topics = topics(topic_counts(run.base("knowledge")))
    report, drawings = run.folder / "report", draw_figures(run, results, shown_topics)
    svgs = {name: _write_figure(report, name, drawing) for name, drawing in drawings.items()}
    (report / "index.html").write_bytes(render(run, results, svgs, shown_topics).encode())
    return report


def stored_results(run: Run) -> Results:
    """The content of results.json, with None or empty parts for what the run has not produced yet."""
    return Results(**(_EMPTY | (run.folder / "results.json").read_json_or_empty()))


def _write_figure(report: Folder, name: str, drawing: Drawing | None) -> str | None:
    """Write a figure's files and return its `<svg>`; without a drawing, delete those of an earlier report."""
    if drawing is None:
        for kind in ("svg", "png"):
            (report / f"{name}.{kind}").delete()
        return None
    svg = drawing.svg()
    (report / f"{name}.svg").write_bytes(on_paper(svg))
    (report / f"{name}.png").write_bytes(drawing.png())
    return svg


def draw_figures(run: Run, results: Results, shown_topics: list[Topic]) -> dict[str, Drawing | None]:
    """{name: drawing}, None where the run has no number for a figure."""
    heat, search, time_s = run.folder / "base/search/heat.json", results["search"], results["time_s"]
    threshold_nats = results["label"] and results["label"]["threshold_nats"]
    return {
        "entropy": figures.entropy_histogram(entropy_counts(run.base("knowledge")), threshold_nats),
        "topics": topic_shares(shown_topics),
        "map": known_map(probe_states(run, search["position"], search["layer"]) if search else None),
        "layers": figures.auroc_by_layer(search),
        "heat": figures.layer_threshold_heat(heat.read_json() if heat.exists() else None),
        "accuracy": figures.accuracy_curves(results["rounds"], results["eval_scope"]),
        "known": figures.known_curves(results["rounds"]),
        "times": figures.stage_times({stage: time_s[stage] for stage in in_order(time_s, STAGES)}),
    }


def render(run: Run, results: Results, svgs: Mapping[str, str | None], shown_topics: list[Topic]) -> str:
    """The page. Everything that comes from a file is escaped; only our own SVG is not."""
    label, decode, bought = results["label"], results["decode"] or {}, bought_questions(run)
    return (
        environment()
        .get_template("page.html")
        .render(
            results,
            title=run.config.report.title,
            sentence=result_sentence(results, plan_of(run)),
            numbers=fold_numbers(results, shown_topics, bought),
            run_name=run.config.run.name,
            figures={name: svg and Markup(svg) for name, svg in svgs.items()},
            absent=_absent(run, results),
            topics=shown_topics,
            decoded=decoded_questions(run),
            bought=bought,
            savings=savings(results["saving"]),
            changes=known_changes(results["rounds"]),
            last_changes=last_changes(results["rounds"]),
            spendings=spendings(results["rounds"]),
            beyond=any(r.get("beyond_accuracy") is not None for r in results["rounds"]),
            other_prompt=any(r.get("corpus_prompt_accuracy") is not None for r in results["rounds"]),
            taught=any(r.get("taught_accuracy") is not None for r in results["rounds"]),
            same_words=results["eval_scope"] == "pool"
            and any(r.get("same_words_accuracy") is not None for r in results["rounds"]),
            objectives=figures.OBJECTIVES,
            accuracy_over=ACCURACY_OVER.get(results["eval_scope"] or ""),
            quadrants=in_order(label["quadrants"] if label else (), QUADRANTS),
            decode_measures=DECODE_MEASURES,
            decode_names=in_order(decode.keys() - {"statuses", "by_augment"}, tuple(DECODE_MEASURES)),
            statuses=in_order(decode.get("statuses") or (), DECODE_STATUSES),
            stages=in_order({**results["rows"], **results["time_s"]}, STAGES),
            settings=yaml.safe_dump(run.config.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
        )
    )


def plan_of(run: Run) -> Plan:
    """What the run's configuration plans, and the rounds that wait for people's answers."""
    active = run.config.active
    people = annotator_of(run.config) == "file" and (run.folder / "strategies").exists()
    planned = (Round(run, s, d, n) for s, d in draws(active) for n in range(1, active.rounds + 1)) if people else ()
    waiting = sum(r.state == RoundState.WAITING for r in planned)
    return Plan(Counter(strategy for strategy, _ in draws(active)), active.rounds, waiting)


def _absent(run: Run, results: Results) -> dict[str, str]:
    """{stage: why the page shows nothing of it}, for stages that have not run or are switched off."""
    ran = {
        "label": run.base("knowledge").is_done,
        "search": results["search"] is not None,
        "decode": results["decode"] is not None,
        "evaluate": bool(results["rounds"]),
    }
    reasons = {stage: f"Stage {stage} has not run." for stage, done in ran.items() if not done}
    if "decode" in reasons and not run.config.decode.enabled:
        reasons["decode"] = "Decoding is switched off (decode.enabled: false)."
    return reasons


def in_order(names: Iterable[str], order: tuple[str, ...]) -> list[str]:
    """Names in the given order, then all others by alphabet: JSON files are sorted by name, not by meaning."""
    return sorted(names, key=lambda name: (order.index(name) if name in order else len(order), name))
