"""One trial of the search: the probe of one layer, with every threshold inside.

In: `base/activations` and `base/knowledge`. Out: a folder with the probe and `fit.json`.
Refuses to know: other layers, models. Each trial is a process of its own, so what it imports counts: neither torch nor
transformers, which take longer to import than a probe to fit.
"""

from dataclasses import asdict
from typing import NotRequired

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from ray import tune

from ka2l_ray import schema
from ka2l_ray.config import Config
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.models.probe import StateSource
from ka2l_ray.probe.fit import ProbeRows, fit_probe
from ka2l_ray.results_schema import HeatCell, LayerResult
from ka2l_ray.tables import matrix, unseen_targets


class Trial(LayerResult):
    """What `fit.json` says of one layer's probe: its figures, as in `ProbeFit`, and its row of the heat map."""

    objective: str
    questions: int
    graded: int
    note: str | None
    threshold_nats: float
    validation_auroc: float
    auroc_topic_alone: NotRequired[float | None]
    calibration_error: NotRequired[float | None]
    """Neither is in trials of earlier versions, which a search that was killed may find."""
    heat: list[HeatCell]


def run_trial(
    params: dict[str, tuple[str, int]],
    config: Config,
    prompt: str,
    activations: Table,
    knowledge: Table,
    gamma: float,
    output: Folder,
) -> None:
    """Fit one layer's probe and write it with its card. `params` is what Tune gives a trial: position and layer."""
    position, layer = params["value"]
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
        "calibration_error": fit.calibration_error,
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
