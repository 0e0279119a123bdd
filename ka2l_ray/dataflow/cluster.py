"""Joining or starting a Ray cluster, and checking before any work that it can hold the run.

In: a `Config`. Out: a connected driver. Refuses to know: stages, tables, what a model is.
"""

import logging
import os
import socket
import sys
from pathlib import Path

import ray
from ray.data import DataContext

from ka2l_ray.config import Config, ConfigError, Pool
from ka2l_ray.dataflow.driver import hear_interrupts
from ka2l_ray.dataflow.log import log

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
            ray.init(
                address=address,
                num_cpus=local_cpus,
                logging_level=logging.ERROR,
                log_to_driver=False,  # workers' lines stay in Ray's logs; what matters is a row's `error` or raised
                include_dashboard=False if local_cpus else None,
                runtime_env={"env_vars": WORKER_ENVIRONMENT},
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            first = str(error).splitlines()[0]
            raise ConfigError(f"ray.address = {address!r}: no Ray cluster answers there: {first}") from error
        if local_cpus:
            check_resources(config)
    context = DataContext.get_current()
    context.enable_progress_bars = context.enable_rich_progress_bars = sys.stderr.isatty()
    context.print_on_execution_start = False


def cluster_address(config: Config) -> str:
    """The cluster to join, or `local`: Ray's own default would join any cluster found on this machine."""
    return config.ray.address or os.environ.get("RAY_ADDRESS") or "local"


def _quiet_ray() -> None:
    """Before Ray starts: leave the terminal to our own lines; Ray's own still go to its log files."""
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    for name in ("ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)


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
    """Raise `ConfigError` for a pool or a training run that this cluster, at its present size, cannot hold."""
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


def pools(config: Config) -> dict[str, Pool]:
    """Every actor pool of a run, by section."""
    return {name: getattr(config, name).pool for name in ("collect", "score", "decode", "evaluate")}


def _resources() -> tuple[float, float]:
    """(CPUs, GPUs) of the cluster at its present size."""
    total = ray.cluster_resources()
    return total.get("CPU", 0.0), total.get("GPU", 0.0)


def _needs(config: Config) -> dict[str, tuple[float, float]]:
    """{section: (CPUs, GPUs)} that each pool and a training run take at least.

    Reading and writing take a CPU each, besides the actors.
    """
    tune = config.finetune
    needs = {f"{name}.pool": (pool.min * pool.cpus + 2, pool.min * pool.gpus) for name, pool in pools(config).items()}
    return needs | {"finetune": (tune.workers * tune.cpus_per_worker, float(tune.workers * tune.gpus_per_worker))}
