"""Ray Tune over probe layers: one trial is one layer with every threshold inside.

In: `base/activations` and `base/knowledge`. Out: `base/search`: a probe and its card per layer, the chosen probe, the
heat map.
A layer whose card is there is not tried again, so a killed search continues where it stopped.
Refuses to know: how states were collected, what is done with the probe.
"""

from ka2l_ray import schema
from ka2l_ray.dataflow.log import log
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.dataflow.trials import run_trials
from ka2l_ray.errors import StageError
from ka2l_ray.models.layers import wanted_layers
from ka2l_ray.models.probe import LinearProbe
from ka2l_ray.models.prompts import corpus_prompt
from ka2l_ray.probe.trial import Trial, run_trial
from ka2l_ray.results_schema import LayerResult, SearchResult

SUMMARY = "search.json"


def search(run: Run, threshold_nats: float) -> None:
    """Fit a probe for every stored (layer, position) that has none, choose the best, write `search.json` last.

    Raises `StageError` where a trial failed.
    """
    folder = run.folder / "base/search"
    if (folder / SUMMARY).exists():
        return
    columns = [(p, n) for p in run.config.collect.positions for n in wanted_layers(run.config)]
    if missing := _without_probe(folder, columns):
        _tune(run, missing, threshold_nats)
    if failed := _without_probe(folder, columns):
        names = ", ".join(schema.state_column(*c) for c in failed)
        raise StageError(f"search: no probe was fitted for {names}; see the errors above")
    _choose(folder, columns)


def _without_probe(folder: Folder, columns: list[tuple[str, int]]) -> list[tuple[str, int]]:
    return [c for c in columns if not (folder / "layers" / schema.state_column(*c) / "fit.json").exists()]


def _tune(run: Run, columns: list[tuple[str, int]], threshold_nats: float) -> None:
    search = run.config.search
    run_trials(
        run_trial,
        [list(c) for c in columns],
        name=f"search-{run.hash}",
        stage="search",
        metric="validation_auroc",
        mode="max",
        resources={"CPU": search.cpus},
        nodes=search.nodes,
        config=run.config,
        prompt=corpus_prompt(run).template,
        activations=run.base("activations"),
        knowledge=run.base("knowledge"),
        gamma=threshold_nats,
        output=run.folder / "base/search/layers",
    )


def _choose(folder: Folder, columns: list[tuple[str, int]]) -> SearchResult:
    """Write `probe/`, which has the best validation AUROC, `heat.json`, then `search.json`, which is returned."""
    trials: list[Trial] = [(folder / "layers" / schema.state_column(*c) / "fit.json").read_json() for c in columns]
    best = max(trials, key=lambda t: t["validation_auroc"])
    LinearProbe.load(folder / "layers" / schema.state_column(best["position"], best["layer"])).save(folder / "probe")
    (folder / "heat.json").write_json([cell for t in trials for cell in t["heat"]])
    graded, questions = f"{best['graded']:,}", f"{best['questions']:,}"
    said = "by %s; %s of %s probe questions are graded"
    log.info(said, best["objective"], graded, questions, extra={"stage": "search"})
    if best["note"]:
        log.warning("%s", best["note"], extra={"stage": "search"})
    summary: SearchResult = {
        **_shown(best),
        "objective": best["objective"],
        "questions": best["questions"],
        "graded": best["graded"],
        "note": best["note"],
        "threshold_nats": best["threshold_nats"],
        "auroc_topic_alone": best.get("auroc_topic_alone"),
        "calibration_error": best.get("calibration_error"),
        "probe": "linear",
        "layers": [_shown(t) for t in trials],
    }
    (folder / SUMMARY).write_json(summary)
    return summary


def _shown(trial: Trial) -> LayerResult:
    return {
        "layer": trial["layer"],
        "position": trial["position"],
        "auroc": trial["auroc"],
        "auroc_ci": trial["auroc_ci"],
        "auroc_vs_truth": trial["auroc_vs_truth"],
    }
