"""Ray Tune over probe layers: one trial is one layer with every threshold inside.

In: `base/activations` and `base/knowledge`. Out: `base/search`: a probe and a card per layer, the chosen probe, the heat map.
A layer whose card is there is not tried again, so a killed search goes on where it was.
Refuses to know: how states were collected, what is done with the probe.
"""

import tempfile
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
from ray import tune

from ka2l_ray import schema
from ka2l_ray.config import Config
from ka2l_ray.dataflow.log import log
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.dataflow.tasks import one_line, raised_by_library
from ka2l_ray.errors import StageError
from ka2l_ray.models.layers import wanted_layers
from ka2l_ray.models.probe import LinearProbe, ProbeCard
from ka2l_ray.models.prompts import corpus_prompt
from ka2l_ray.probe.fit import ProbeRows, fit_layer
from ka2l_ray.tables import matrix, unseen_targets

SUMMARY = "search.json"


def search(run: Run, threshold_nats: float) -> dict[str, Any]:
    """Try every stored (layer, position) that is missing, choose the best, write `search.json` last; returns it."""
    folder = run.folder / "base/search"
    if (folder / SUMMARY).exists():
        return (folder / SUMMARY).read_json()
    columns = [(p, n) for p in run.config.collect.positions for n in wanted_layers(run.config)]
    missing = [c for c in columns if not _trial_done(folder, c)]
    if missing:
        _tune(run, missing, threshold_nats)
    if failed := [c for c in columns if not _trial_done(folder, c)]:
        raise StageError(
            f"search: no probe was fitted for {', '.join(schema.state_column(*c) for c in failed)}; see the errors above"
        )
    return _choose(folder, columns)


def _trial_done(folder: Folder, column: tuple[str, int]) -> bool:
    return (folder / "layers" / schema.state_column(*column) / "fit.json").exists()


def _tune(run: Run, columns: list[tuple[str, int]], threshold_nats: float) -> None:
    config = run.config
    with tempfile.TemporaryDirectory(prefix="ka2l-tune-") as scratch:
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(
                    _trial,
                    config=config,
                    prompt=corpus_prompt(run).template,
                    activations=run.base("activations"),
                    knowledge=run.base("knowledge"),
                    gamma=threshold_nats,
                    output=run.folder / "base/search/layers",
                ),
                {"cpu": config.search.cpus},
            ),
            param_space={"column": tune.grid_search([list(c) for c in columns])},
            tune_config=tune.TuneConfig(metric="validation_auroc", mode="max"),
            run_config=tune.RunConfig(name=f"search-{run.hash}", storage_path=scratch, verbose=0),
        )
        results = tuner.fit()
    if results.errors:
        error = results.errors[0]
        if raised_by_library(error):
            raise error
        raise StageError(f"search: {one_line(error)}") from error


def _trial(
    params: dict[str, Any],
    config: Config,
    prompt: str,
    activations: Table,
    knowledge: Table,
    gamma: float,
    output: Folder,
) -> None:
    position, layer = params["column"]
    column = schema.state_column(position, layer)
    states, rows = read_rows(activations, knowledge, column)
    fit = fit_layer(states, rows, gamma, config.search, config.run.seed)
    card = ProbeCard(
        model=config.model.identity,
        prompt=prompt,
        layer=layer,
        position=position,
        width=states.shape[1],
        threshold_nats=fit.chosen.threshold_nats,
        inverse_regularization=fit.chosen.inverse_regularization,
    )
    LinearProbe(fit.weight, fit.bias, card).save(output / column)
    figures = {
        "layer": layer,
        "position": position,
        "objective": fit.objective.name,
        "questions": len(states),
        "graded": fit.objective.graded,
        "note": fit.objective.note,
        "threshold_nats": fit.chosen.threshold_nats,
        "validation_auroc": fit.validation_auroc,
        "auroc": fit.auroc,
        "auroc_ci": fit.auroc_ci,
        "auroc_vs_truth": fit.auroc_vs_truth,
    }
    heat = [asdict(cell) | {"layer": layer, "position": position} for cell in fit.heat]
    (output / column / "fit.json").write_json(figures | {"heat": heat})
    tune.report({k: v for k, v in figures.items() if isinstance(v, (int, float))})


def read_rows(activations: Table, knowledge: Table, column: str) -> tuple[np.ndarray, ProbeRows]:
    """States (N, D) of one layer and what is known of their questions, both ordered by id; failed rows are left out.

    Questions are divided by `split_group`, or each by itself where the corpus was split without one.
    """
    labels = knowledge.read(
        ["id", "entropy_nats", "entropy_lo", "entropy_hi", "correct", "split_group", "truth", "unknown"]
    )
    labels = labels.filter(labels["unknown"].is_valid())
    states = activations.read(["id", column])
    states = states.filter(states[column].is_valid())
    joined_ids = sorted(set(labels["id"].to_pylist()) & set(states["id"].to_pylist()))
    labels, states = (_in_order(t, joined_ids) for t in (labels, states))
    correct, truth = labels["correct"].to_pylist(), labels["truth"]
    entity = [g if g is not None else i for g, i in zip(labels["split_group"].to_pylist(), joined_ids, strict=True)]
    wrong = np.array([-1 if c is None else int(not c) for c in correct], np.int8)
    return matrix(states[column]).astype(np.float64), ProbeRows(
        entropy_nats=np.where(
            labels["unknown"].to_numpy() == 1, labels["entropy_lo"].to_numpy(), labels["entropy_hi"].to_numpy()
        ),
        wrong=wrong if (wrong >= 0).any() else None,
        unseen=unseen_targets(truth) if truth.null_count < len(truth) else None,
        entity=np.array(entity),
        whole=labels["entropy_nats"].null_count == 0,
    )


def _in_order(table: pa.Table, ids: list[str]) -> pa.Table:
    at = {i: n for n, i in enumerate(table["id"].to_pylist())}
    return table.take([at[i] for i in ids])


def _choose(folder: Folder, columns: list[tuple[str, int]]) -> dict[str, Any]:
    """The layer with the best validation AUROC; its probe is copied to `probe/`, the heat map to `heat.json`."""
    fits = [(folder / "layers" / schema.state_column(*c) / "fit.json").read_json() for c in columns]
    best = max(fits, key=lambda f: f["validation_auroc"])
    LinearProbe.load(folder / "layers" / schema.state_column(best["position"], best["layer"])).save(folder / "probe")
    (folder / "heat.json").write_json([cell for f in fits for cell in f["heat"]])
    shown = ("layer", "position", "auroc", "auroc_ci", "auroc_vs_truth")
    told = ("objective", "questions", "graded", "note", "threshold_nats")
    summary = {k: best[k] for k in (*shown, *told)} | {"probe": "linear"}
    summary["layers"] = [{k: f[k] for k in shown} for f in fits]
    log.info(
        "search     by %s; %s of %s probe questions are graded",
        best["objective"],
        f"{best['graded']:,}",
        f"{best['questions']:,}",
    )
    if best["note"]:
        log.warning("search     %s", best["note"])
    (folder / SUMMARY).write_json(summary)
    return summary
