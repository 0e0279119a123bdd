"""Checking, from every other node of the cluster, that it reaches the run's storage and local folders.

In: a `Config` and a connected driver. Out: nothing, or a `ConfigError` that names the node.
Refuses to know: what is checked, which `reach` decides; stages.
"""

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ka2l_ray.config import Config, ConfigError
from ka2l_ray.dataflow.cluster import cluster_address
from ka2l_ray.dataflow.log import log
from ka2l_ray.dataflow.reach import NodeReport, inspect_from_node, local_paths, problem_of, shared_note
from ka2l_ray.dataflow.tasks import one_line

ANSWER_WITHIN_S = 60.0


def check_nodes(config: Config) -> None:
    """Check from each node other than the driver's that it reaches `run.storage` and the local folders of the run.

    Raises `ConfigError` naming the first node that does not. A node that does not answer within `ANSWER_WITHIN_S` is
    only named in the log: it may be about to leave.
    """
    mine = None if cluster_address(config).startswith("ray://") else ray.get_runtime_context().get_node_id()
    others = {
        n["NodeID"]: f"{n['NodeManagerHostname']} ({n['NodeManagerAddress']})"
        for n in ray.nodes()
        if n["Alive"] and n["NodeID"] != mine
    }
    if not others:
        return
    paths, reports = local_paths(config), []
    inspect = ray.remote(num_cpus=0, max_retries=0)(inspect_from_node)
    with shared_note(config) as folder:
        tasks = {
            inspect.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
                folder.uri, node, paths
            ): node
            for node in others
        }
        answered, silent = ray.wait(list(tasks), num_returns=len(tasks), timeout=ANSWER_WITHIN_S)
        for task in answered:
            name = others[node := tasks[task]]
            if (report := _report(task, name)) is not None:
                reports.append((name, report, (folder / node).exists()))
    for task in silent:
        log.warning(
            "node %s did not report within %.0f s whether it reaches run.storage", others[tasks[task]], ANSWER_WITHIN_S
        )
    if problem := problem_of(config, reports):
        raise ConfigError(problem)


def _report(task: "ray.ObjectRef[NodeReport]", name: str) -> NodeReport | None:
    """What a node reports; None where it has left. Raises `ConfigError` where it cannot run this package."""
    try:
        return ray.get(task)
    except RayTaskError as error:
        raise ConfigError(
            f"node {name} cannot run a task of ka2l-ray; it needs the driver's packages: {one_line(error)}"
        ) from error
    except RayError as error:
        log.warning("node %s did not report whether it reaches run.storage: %s", name, one_line(error))
        return None
