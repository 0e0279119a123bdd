"""Joining or starting a Ray cluster, and checking before any work that it can hold the run.

In: a `Config`. Out: a connected driver. Refuses to know: stages, tables, what a model is.
"""

import logging
import os
import socket
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import ray
from ray._private import worker as ray_worker
from ray.data import DataContext

from ka2l_ray.config import Config, ConfigError
from ka2l_ray.config.base import HOLDS_KEY
from ka2l_ray.dataflow.driver import hear_interrupts
from ka2l_ray.dataflow.log import FORMAT_VARIABLE, log, native_lines_logged, write_json_lines, writes_json
from ka2l_ray.dataflow.processes import computing, processes

WORKER_ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "ARROW_DEFAULT_MEMORY_POOL": "system",  # returns a block's memory; pyarrow's default pool keeps it
}


def connect(config: Config) -> None:
    """Join the cluster at `ray.address`, or start a local one and check that every pool fits on it.

    A cluster that was joined is not checked, since it may still grow. Does not connect again where the process is
    connected. Raises `ConfigError` where no cluster answers, or a local one can never hold a pool.
    """
    if not ray.is_initialized():
        address = cluster_address(config)
        local_cpus = config.ray.local_cpus if address == "local" else None
        _quiet_ray()
        hear_interrupts()
        if local_cpus:
            _warn_of_dead_cluster()
        try:
            with native_lines_logged():
                ray.init(
                    address=address,
                    num_cpus=local_cpus,
                    logging_level=logging.ERROR,
                    log_to_driver=False,  # workers' lines stay in Ray's logs; what matters is a row's `error` or raised
                    include_dashboard=False if local_cpus else None,
                    runtime_env={"env_vars": WORKER_ENVIRONMENT | hub_address() | {FORMAT_VARIABLE: config.run.log}},
                )
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"ray.address = {address!r}: no Ray cluster answers there: {str(error).splitlines()[0]}"
            ) from error
        if local_cpus:
            check_resources(config)
    if writes_json():
        write_json_lines()
    context = DataContext.get_current()
    context.enable_progress_bars = context.enable_rich_progress_bars = sys.stderr.isatty() and not writes_json()
    context.print_on_execution_start = False


def hub_address() -> dict[str, str]:
    """HF_ENDPOINT of the driver, for its workers: they get its token, which is for that hub and no other.

    Raises `ConfigError` where it contains a key, because Ray logs and shows the environment of workers.
    """
    address = os.environ.get("HF_ENDPOINT")
    if address and HOLDS_KEY.search(address):
        raise ConfigError(
            "HF_ENDPOINT contains a key or password, which Ray would write to its logs; set HF_TOKEN instead"
        )
    return {"HF_ENDPOINT": address} if address else {}


def cluster_address(config: Config) -> str:
    """The cluster to join, or `local`: Ray's own default would join any cluster found on this machine."""
    return config.ray.address or os.environ.get("RAY_ADDRESS") or "local"


def _quiet_ray() -> None:
    """Before Ray starts: leave the terminal to our own lines; Ray's own still go to its log files."""
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    for name in ("ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if not hasattr(ray_worker.print_worker_logs, "__wrapped__"):
        ray_worker.print_worker_logs = _without_counts(ray_worker.print_worker_logs)


def _without_counts(show: Callable[..., None]) -> Callable[..., None]:
    """Ray's printing of a cluster's messages without those that count its idle processes, for which it has no switch:
    on two cores eight are enough for a warning."""

    @wraps(show)
    def shown(data: dict[str, Any], *rest: object, **named: object) -> None:
        lines = [line for line in data["lines"] if "worker processes have been started" not in line]
        if lines:
            show(data | {"lines": lines}, *rest, **named)

    return shown


def _warn_of_dead_cluster() -> None:
    """Warn where `ray start` left a file that names its cluster, and that cluster was killed.

    Ray Train tries to reach that cluster after every training run, which takes 12 s each time.
    """
    file = Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray", "ray_current_cluster")
    if not file.exists():
        return
    host, _, port = file.read_text().strip().rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1.0).close()
    except (OSError, ValueError):
        log.warning(
            "%s names a Ray cluster that is gone, which costs 12 s after every training run; delete the file", file
        )


def check_resources(config: Config) -> None:
    """Raise `ConfigError` for what this local cluster can never hold: more than its resources, or other nodes."""
    for p in processes(config):
        elsewhere = p.nodes.resources or any(not wanted.startswith("!") for wanted in p.nodes.labels.values())
        if elsewhere and p.section != "ray.driver":  # it is this process
            name = p.section if p.section == "ray.tasks" else f"{p.section}.nodes"
            raise ConfigError(
                f"{name}: the only node of a local cluster has no labels and no resources of its own, so nothing would "
                "ever run; leave it out, or join a cluster by ray.address"
            )
    has_cpus, has_gpus = _resources()
    for name, (cpus, gpus) in _needs(config).items():
        if cpus > has_cpus or gpus > has_gpus:
            raise ConfigError(
                f"{name} needs {cpus:g} CPUs and {gpus:g} GPUs; this cluster has {has_cpus:g} and {has_gpus:g}. "
                f"Lower {name}'s numbers, raise ray.local_cpus, or join a larger cluster"
            )


def curves_at_once(config: Config) -> int:
    """How many learning curves this cluster can run side by side: each uses one pool or one training run at a time.

    At least 1.
    """
    needs = _needs(config)
    cpus, gpus = needs["finetune"]
    needs["finetune"] = (1 + cpus, gpus)
    fits = [has // most for has, most in zip(_resources(), map(max, *needs.values()), strict=True) if most]
    return max(1, int(min(fits)))


def _resources() -> tuple[float, float]:
    """(CPUs, GPUs) of the cluster at its present size."""
    total = ray.cluster_resources()
    return total.get("CPU", 0.0), total.get("GPU", 0.0)


def _needs(config: Config) -> dict[str, tuple[float, float]]:
    """{section: (CPUs, GPUs)} that each pool and a training run take at least."""
    return {p.section: (p.cpus_at_once, p.gpus_at_once) for p in computing(config)}
