"""Ray Tune over a list of values: one trial each, with what every search here needs of it.

In: a function of a value, the values, what a trial takes and on which nodes. Out: nothing but what the trials write.
Refuses to know: what is searched for.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from ray import tune
from ray.tune.execution import class_cache

from ka2l_ray.config import NodesSection
from ka2l_ray.dataflow.tasks import one_line, raised_by_library
from ka2l_ray.errors import StageError

KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN")
"""Tune would pass the driver's keys to trials in a `runtime_env`, which Ray writes to its log and shows in its
dashboard. Trials have those of their nodes, as all actors do."""


def run_trials(
    trial: Callable[..., None],
    values: Sequence[Any],
    *,
    name: str,
    stage: str,
    metric: str,
    mode: Literal["min", "max"],
    resources: Mapping[str, float],
    nodes: NodesSection,
    **fixed: Any,
) -> None:
    """Call `trial({"value": …}, **fixed)` with each value, as many at once as the cluster holds.

    Raises a library's error of a trial as it is, and any other as a `StageError` that begins with `stage`.
    """
    class_cache.ENV_VARS_TO_PROPAGATE.difference_update(KEYS)
    labels = dict(nodes.labels)
    placed: dict[str, Any] = {"bundle_label_selector": [labels]} if labels else {}
    bundle = tune.PlacementGroupFactory([{**resources, **nodes.resources}], **placed)
    with tempfile.TemporaryDirectory(prefix="ka2l-tune-") as scratch:
        results = tune.Tuner(
            tune.with_resources(tune.with_parameters(trial, **fixed), bundle),
            param_space={"value": tune.grid_search(list(values))},
            tune_config=tune.TuneConfig(metric=metric, mode=mode),
            run_config=tune.RunConfig(name=name, storage_path=scratch, verbose=0),
        ).fit()
    if results.errors:
        error = results.errors[0]
        if raised_by_library(error):
            raise error
        raise StageError(f"{stage}: {one_line(error)}") from error
