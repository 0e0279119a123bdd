"""What a run starts at once: the processes of every pool, of the search, of a training run, and the tasks beside them.

In: a configuration. Out: `Processes`, which checks and the dry run compare with a cluster. Refuses to know: Ray.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from ka2l_ray.config import ANY_NODE, Config, NodesSection

POOLS = ("collect", "score", "decode", "evaluate")
"""Sections with a pool of actors, beside `decode.reread` where that is set."""
BESIDE_POOLS = 2
"""CPUs that reading and writing take besides the actors of a pool."""


@dataclass(frozen=True)
class Processes:
    """What a section runs at once: `least` to `most` processes, each with the same resources."""

    section: str
    least: int
    most: int
    cpus: float
    gpus: float
    nodes: NodesSection

    @property
    def resources(self) -> dict[str, float]:
        """What one process takes, by Ray's names: `CPU`, `GPU`, custom ones."""
        return {"CPU": self.cpus, "GPU": self.gpus, **self.nodes.resources}

    @property
    def cpus_at_once(self) -> float:
        """CPUs that the section takes at least, with what reads and writes for a pool."""
        return self.least * self.cpus + (BESIDE_POOLS if self.section.endswith(".pool") else 0)

    @property
    def gpus_at_once(self) -> float:
        return float(self.least * self.gpus)


def processes(config: Config) -> Iterator[Processes]:
    """What each section starts at once, first the pools and the training run; the layers of `all` count as one trial,
    and the driver only where it has a place of its own."""
    yield from computing(config)
    layers = 1 if config.collect.layers == "all" else len(config.collect.layers)
    trials = layers * len(config.collect.positions)
    yield Processes("search", 1, trials, config.search.cpus, 0.0, config.search.nodes)
    yield Processes("ray.tasks", BESIDE_POOLS, BESIDE_POOLS, 1.0, 0.0, config.ray.tasks)
    if (driver := config.ray.driver).cpus or driver.nodes != ANY_NODE:
        yield Processes("ray.driver", 1, 1, driver.cpus, 0.0, driver.nodes)


def computing(config: Config) -> Iterator[Processes]:
    """The pools and the training run, which take most of a cluster."""
    pools = {name: getattr(config, name).pool for name in POOLS}
    if config.decode.reread is not None:
        pools["decode.reread"] = config.decode.reread.pool
    for name, pool in pools.items():
        yield Processes(f"{name}.pool", pool.min, pool.max, pool.cpus, pool.gpus, pool.nodes)
    tune = config.finetune
    yield Processes("finetune", tune.workers, tune.workers, tune.cpus_per_worker, tune.gpus_per_worker, tune.nodes)


def used(found: Iterator[Processes], config: Config) -> list[Processes]:
    """Those that the run starts: no decoding where it is switched off."""
    return [p for p in found if config.decode.enabled or not p.section.startswith("decode.")]
