"""Ray Tune over probe layers: one trial is one layer with every threshold inside.

In: `base/activations` and `base/knowledge`. Out: `base/search`: a probe and its card per layer, the chosen probe, the
heat map.
A layer whose card is there is not tried again, so a killed search continues where it stopped.
Refuses to know: how states were collected, what is done with the probe.
"""

import tempfile
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from ray import tune
from ray.tune.execution import class_cache

from ka2l_ray import schema
from ka2l_ray.config import Config, SearchSection
from ka2l_ray.dataflow.log import log
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.dataflow.tasks import one_line, raised_by_library
from ka2l_ray.errors import StageError
from ka2l_ray.models.layers import wanted_layers
from ka2l_ray.models.probe import LinearProbe, StateSource
from ka2l_ray.models.prompts import corpus_prompt
from ka2l_ray.probe.fit import ProbeRows, fit_probe
from ka2l_ray.results_schema import HeatCell, LayerResult, SearchResult
from ka2l_ray.tables import matrix, unseen_targets

SUMMARY = "search.json"
KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN")
"""Tune would pass the driver's keys to trials in a `runtime_env`, which Ray writes to its log and shows in its
dashboard. Trials have those of their nodes, as all actors do."""


class Trial(LayerResult):
    """What `fit.json` says of one layer's probe: its figures, as in `ProbeFit`, and its row of the heat map."""

    objective: str
    questions: int
    graded: int
    note: str | None
    threshold_nats: float
    validation_auroc: float
    auroc_topic_alone: float | None
    heat: list[HeatCell]


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
    config = run.config
    class_cache.ENV_VARS_TO_PROPAGATE.difference_update(KEYS)
    trial = tune.with_parameters(
        _trial,
        config=config,
        prompt=corpus_prompt(run).template,
        activations=run.base("activations"),
        knowledge=run.base("knowledge"),
        gamma=threshold_nats,
        output=run.folder / "base/search/layers",
    )
    with tempfile.TemporaryDirectory(prefix="ka2l-tune-") as scratch:
        results = tune.Tuner(
            tune.with_resources(trial, _resources(config.search)),
            param_space={"column": tune.grid_search([list(c) for c in columns])},
            tune_config=tune.TuneConfig(metric="validation_auroc", mode="max"),
            run_config=tune.RunConfig(name=f"search-{run.hash}", storage_path=scratch, verbose=0),
        ).fit()
    if results.errors:
        error = results.errors[0]
        if raised_by_library(error):
            raise error
        raise StageError(f"search: {one_line(error)}") from error


def _resources(search: SearchSection) -> tune.PlacementGroupFactory:
    """What one trial takes, and on which nodes."""
    labels = dict(search.nodes.labels)
    wanted = {"CPU": search.cpus, **search.nodes.resources}
    placed: dict[str, Any] = {"bundle_label_selector": [labels]} if labels else {}
    return tune.PlacementGroupFactory([wanted], **placed)


def _trial(
    params: dict[str, tuple[str, int]],
    config: Config,
    prompt: str,
    activations: Table,
    knowledge: Table,
    gamma: float,
    output: Folder,
) -> None:
    """`params` is what Tune gives a trial: the position and the layer."""
    position, layer = params["column"]
    column = schema.state_column(position, layer)
    states, rows = read_rows(activations, knowledge, column)
    source = StateSource(config.model.identity, prompt, layer, position)
    fit = fit_probe(states, rows, gamma, config.search, config.run.seed, source)
    fit.probe.save(output / column)
    trial: Trial = {
        "layer": layer,
        "position": position,
        "objective": fit.objective.name,
        "questions": len(states),
        "graded": fit.objective.graded,
        "note": fit.objective.note,
        "threshold_nats": fit.chosen.threshold_nats,
        "validation_auroc": fit.validation_auroc,
        "auroc_topic_alone": fit.auroc_topic_alone,
        "auroc": fit.auroc,
        "auroc_ci": fit.auroc_ci,
        "auroc_vs_truth": fit.auroc_vs_truth,
        "heat": [HeatCell(**asdict(cell), layer=layer, position=position) for cell in fit.heat],
    }
    (output / column / "fit.json").write_json(trial)
    tune.report({k: v for k, v in trial.items() if isinstance(v, (int, float))})


def read_rows(activations: Table, knowledge: Table, column: str) -> tuple[np.ndarray, ProbeRows]:
    """States (N, D) of one layer and what is known of their questions, both ordered by id; failed rows are left out.

    Questions are divided by `split_group`, or each one on its own where the corpus was split without groups.
    """
    labels = knowledge.read(
        [
            *("id", "entropy_nats", "entropy_lo", "entropy_hi", "abstains", "correct"),
            *("split_group", "group", "truth", "unknown"),
        ]
    )
    labels = labels.filter(labels["unknown"].is_valid())
    states = activations.read(["id", column])
    states = states.filter(states[column].is_valid())
    labels, states = _of_both(labels, states), _of_both(states, labels)
    entity = pc.coalesce(labels["split_group"], labels["id"])  # pyright: ignore
    wrong = np.array([-1 if c is None else int(not c) for c in labels["correct"].to_pylist()], np.int8)
    silent = np.array([bool(a) for a in labels["abstains"].to_pylist()])
    return matrix(states[column]).astype(np.float64), ProbeRows(
        entropy_nats=np.where(
            labels["unknown"].to_numpy() == 1, labels["entropy_lo"].to_numpy(), labels["entropy_hi"].to_numpy()
        ),
        wrong=wrong if (wrong >= 0).any() else None,
        unseen=None if labels["truth"].null_count == len(labels) else unseen_targets(labels["truth"]),
        entity=np.array(entity.to_pylist()),
        fully_sampled=labels["entropy_nats"].null_count == 0,
        abstains=silent if silent.any() else None,
        topic=None if labels["group"].null_count else np.array(labels["group"].to_pylist()),
    )


def _of_both(table: pa.Table, other: pa.Table) -> pa.Table:
    """The rows whose id the other table has too, ordered by id."""
    return table.filter(pc.is_in(table["id"], other["id"])).sort_by("id")  # pyright: ignore


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
        "auroc_topic_alone": best["auroc_topic_alone"],
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
