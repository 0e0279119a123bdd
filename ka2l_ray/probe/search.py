"""Ray Tune over probe layers: one trial is one layer with every threshold inside.

In: `base/activations` and `base/knowledge`. Out: `base/search`: a probe and its card per layer, the chosen probe, the
heat map.
A layer whose card is there is not tried again, so a killed search continues where it stopped.
Refuses to know: how states were collected, what is done with the probe.
"""

import tempfile
from dataclasses import asdict, dataclass
from typing import TypedDict

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
from ka2l_ray.models.probe import LinearProbe, StateSource
from ka2l_ray.models.prompts import corpus_prompt
from ka2l_ray.probe.fit import ProbeRows, fit_probe
from ka2l_ray.tables import matrix, unseen_targets

SUMMARY = "search.json"


@dataclass(frozen=True)
class Trial:
    """What `fit.json` says of one layer's probe: its figures, as in `ProbeFit`, and its row of the heat map."""

    layer: int
    position: str
    objective: str
    questions: int
    graded: int
    note: str | None
    threshold_nats: float
    validation_auroc: float
    auroc: float | None
    auroc_ci: tuple[float, float] | None
    auroc_vs_truth: float | None
    heat: list[dict[str, float | str]]


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
            tune.with_resources(trial, {"cpu": config.search.cpus}),
            param_space={"column": tune.grid_search([list(c) for c in columns])},
            tune_config=tune.TuneConfig(metric="validation_auroc", mode="max"),
            run_config=tune.RunConfig(name=f"search-{run.hash}", storage_path=scratch, verbose=0),
        ).fit()
    if results.errors:
        error = results.errors[0]
        if raised_by_library(error):
            raise error
        raise StageError(f"search: {one_line(error)}") from error


class _Params(TypedDict):
    """What Tune gives a trial: the position and the layer."""

    column: tuple[str, int]


def _trial(
    params: _Params,
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
    source = StateSource(config.model.identity, prompt, layer, position)
    fit = fit_probe(states, rows, gamma, config.search, config.run.seed, source)
    fit.probe.save(output / column)
    trial = Trial(
        layer=layer,
        position=position,
        objective=fit.objective.name,
        questions=len(states),
        graded=fit.objective.graded,
        note=fit.objective.note,
        threshold_nats=fit.chosen.threshold_nats,
        validation_auroc=fit.validation_auroc,
        auroc=fit.auroc,
        auroc_ci=fit.auroc_ci,
        auroc_vs_truth=fit.auroc_vs_truth,
        heat=[asdict(cell) | {"layer": layer, "position": position} for cell in fit.heat],
    )
    (output / column / "fit.json").write_json(asdict(trial))
    tune.report({k: v for k, v in vars(trial).items() if isinstance(v, (int, float))})


def read_rows(activations: Table, knowledge: Table, column: str) -> tuple[np.ndarray, ProbeRows]:
    """States (N, D) of one layer and what is known of their questions, both ordered by id; failed rows are left out.

    Questions are divided by `split_group`, or each one on its own where the corpus was split without groups.
    """
    labels = knowledge.read(
        ["id", "entropy_nats", "entropy_lo", "entropy_hi", "correct", "split_group", "truth", "unknown"]
    )
    labels = labels.filter(labels["unknown"].is_valid())
    states = activations.read(["id", column])
    states = states.filter(states[column].is_valid())
    joined_ids = sorted(set(labels["id"].to_pylist()) & set(states["id"].to_pylist()))
    labels, states = (_in_order(t, joined_ids) for t in (labels, states))
    truth = labels["truth"]
    entity = [g if g is not None else i for g, i in zip(labels["split_group"].to_pylist(), joined_ids, strict=True)]
    wrong = np.array([-1 if c is None else int(not c) for c in labels["correct"].to_pylist()], np.int8)
    return matrix(states[column]).astype(np.float64), ProbeRows(
        entropy_nats=np.where(
            labels["unknown"].to_numpy() == 1, labels["entropy_lo"].to_numpy(), labels["entropy_hi"].to_numpy()
        ),
        wrong=wrong if (wrong >= 0).any() else None,
        unseen=unseen_targets(truth) if truth.null_count < len(truth) else None,
        entity=np.array(entity),
        fully_sampled=labels["entropy_nats"].null_count == 0,
    )


def _in_order(table: pa.Table, ids: list[str]) -> pa.Table:
    row = {i: n for n, i in enumerate(table["id"].to_pylist())}
    return table.take([row[i] for i in ids])


def _choose(folder: Folder, columns: list[tuple[str, int]]) -> dict[str, object]:
    """Write `probe/`, which has the best validation AUROC, `heat.json`, then `search.json`, which is returned."""
    trials = [Trial(**(folder / "layers" / schema.state_column(*c) / "fit.json").read_json()) for c in columns]
    best = max(trials, key=lambda t: t.validation_auroc)
    LinearProbe.load(folder / "layers" / schema.state_column(best.position, best.layer)).save(folder / "probe")
    (folder / "heat.json").write_json([cell for t in trials for cell in t.heat])
    shown = ("layer", "position", "auroc", "auroc_ci", "auroc_vs_truth")
    only_of_best = ("objective", "questions", "graded", "note", "threshold_nats")
    summary: dict[str, object] = {k: getattr(best, k) for k in (*shown, *only_of_best)}
    summary |= {"probe": "linear", "layers": [{k: getattr(t, k) for k in shown} for t in trials]}
    log.info(
        "search     by %s; %s of %s probe questions are graded",
        best.objective,
        f"{best.graded:,}",
        f"{best.questions:,}",
    )
    if best.note:
        log.warning("search     %s", best.note)
    (folder / SUMMARY).write_json(summary)
    return summary
