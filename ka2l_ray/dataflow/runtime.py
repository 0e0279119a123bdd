"""Connecting to Ray, and knowing before any work whether the cluster can do it.

In: a `Config`. Out: a connected driver, progress lines, the versions of the stack.
Refuses to know: stages, tables, what a model is.
"""

import importlib.metadata
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.data import DataContext
from ray.exceptions import RayError, RayTaskError
from ray.util.metrics import Counter
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ka2l_ray.config import Config, ConfigError, Pool
from ka2l_ray.dataflow.driver import hear_interrupts
from ka2l_ray.dataflow.reach import Seen, local_paths, look, note, refusal
from ka2l_ray.dataflow.tally import Tally
from ka2l_ray.errors import UserError, last_words, names_a_library, without_type, words_of

STACK = ("ka2l-ray", "ray", "torch", "transformers", "peft", "deepspeed", "pyarrow", "scikit-learn", "numpy")
WORKER_ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "ARROW_DEFAULT_MEMORY_POOL": "system",  # gives back what a block took; pyarrow's own default keeps it
}
NODE_ANSWERS_WITHIN_S = 60.0
log = logging.getLogger("ka2l")
T = TypeVar("T")


class ActorMetrics:
    """Ray metrics `ka2l_…_total` of one actor, tagged with its stage: what it counted, and the seconds it waited between its calls.

    A question's cost in tokens, the padding share (padding / (prompt + padding)) and the share of time in the model are ratios of these.
    """

    def __init__(self, stage: str, tally: Tally) -> None:
        self._tally, self._before, self._idle_since, self._stage = (
            tally,
            replace(tally),
            time.monotonic(),
            {"stage": stage},
        )
        names = [*(f.name for f in fields(tally)), "waiting_s"]
        self._counters = {
            n: Counter(f"ka2l_{n}_total", description=n.replace("_", " "), tag_keys=("stage",)) for n in names
        }

    @contextmanager
    def call(self) -> Iterator[None]:
        """One call of the actor: what it waited before, and what it counted within, are added when it ends."""
        waited = time.monotonic() - self._idle_since
        try:
            yield
        finally:
            for name, value in (*self._counted(), ("waiting_s", waited)):
                if value:
                    self._counters[name].inc(value, self._stage)
            self._before, self._idle_since = replace(self._tally), time.monotonic()

    def _counted(self) -> list[tuple[str, float]]:
        """What the actor counted since its last call ended."""
        before = asdict(self._before)
        return [(n, v - before[n]) for n, v in asdict(self._tally).items()]


def set_up_logging() -> None:
    """Plain lines with seconds on stderr; a terminal gets progress bars from Ray besides."""
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(name)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr
    )
    log.setLevel(logging.INFO)


def connect(config: Config) -> None:
    """Join the cluster at `ray.address`, or start a local one and check that every pool fits it; another cluster may still grow.

    Raises `ConfigError` where there is no cluster at the address, or a local one can never hold a pool.
    """
    if not ray.is_initialized():
        address = _address(config)
        local = config.ray.local_cpus if address == "local" else None
        _set_environment()
        hear_interrupts()
        if local:
            _warn_of_a_gone_cluster()
        try:
            ray.init(
                address=address,
                num_cpus=local,
                logging_level=logging.ERROR,
                log_to_driver=False,  # workers' lines stay in Ray's logs; what matters becomes a row's `error` or an exception
                include_dashboard=False if local else None,
                runtime_env={"env_vars": WORKER_ENVIRONMENT},
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            first = str(error).splitlines()[0]
            raise ConfigError(f"ray.address = {address!r}: no Ray cluster answers there: {first}") from error
        if local:
            check_resources(config)
    context = DataContext.get_current()
    context.enable_progress_bars = sys.stderr.isatty()
    context.enable_rich_progress_bars = sys.stderr.isatty()
    context.print_on_execution_start = False


def check_nodes(config: Config) -> None:
    """Where the cluster has other nodes than the driver's, see from each that it reaches `run.storage` and the local folders of the run.

    Raises `ConfigError` naming the first node that does not. One that gives no answer is only named in the log: it may be about to go.
    """
    mine = None if _address(config).startswith("ray://") else ray.get_runtime_context().get_node_id()
    others = [n for n in ray.nodes() if n["Alive"] and n["NodeID"] != mine]
    if not others:
        return
    paths, seen = local_paths(config), []
    with note(config) as folder:
        looks = {_look_from(n["NodeID"], folder.uri, paths): n for n in others}
        answered, silent = ray.wait(list(looks), num_returns=len(looks), timeout=NODE_ANSWERS_WITHIN_S)
        for answer in answered:
            if (found := _answer(answer, name := _node_name(looks[answer]))) is not None:
                seen.append((name, found, (folder / looks[answer]["NodeID"]).exists()))
    for name in (_node_name(looks[s]) for s in silent):
        log.warning("node %s has not said within %.0f s whether it reaches run.storage", name, NODE_ANSWERS_WITHIN_S)
    if problem := refusal(config, seen):
        raise ConfigError(problem)


def _look_from(node: str, uri: str, paths: dict[str, str]) -> "ray.ObjectRef[Seen]":
    options: dict[str, Any] = {
        "num_cpus": 0,
        "max_retries": 0,
        "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False),
    }
    return ray.remote(**options)(look).remote(uri, node, paths)


def _answer(reference: "ray.ObjectRef[Seen]", name: str) -> Seen | None:
    """What a node saw; None where it went meanwhile. Raises `ConfigError` where it cannot run this package."""
    try:
        return ray.get(reference)
    except RayTaskError as error:
        raise ConfigError(
            f"node {name} cannot run a task of ka2l-ray; it needs the driver's packages: {one_line(error)}"
        ) from error
    except RayError as error:
        log.warning("node %s has not said whether it reaches run.storage: %s", name, one_line(error))
        return None


def _node_name(node: dict[str, Any]) -> str:
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"


def _address(config: Config) -> str:
    """The cluster to join, or `local`: Ray's own None would join any cluster found on this machine."""
    return config.ray.address or os.environ.get("RAY_ADDRESS") or "local"


def _set_environment() -> None:
    """Before Ray starts: leave the terminal to our own lines; Ray's go to its log files all the same."""
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    for name in ("ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _warn_of_a_gone_cluster() -> None:
    """`ray start` leaves a file that names its cluster; where that was killed, Ray Train asks it after every training, 12 s in vain."""
    file = Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray", "ray_current_cluster")
    if not file.exists():
        return
    host, _, port = file.read_text().strip().rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1.0).close()
    except (OSError, ValueError):
        log.warning("%s names a Ray cluster that is gone, which costs 12 s after every training; delete the file", file)


def check_resources(config: Config) -> None:
    """Raise `ConfigError` for a pool or a training that this cluster, as large as it is now, cannot hold."""
    total = ray.cluster_resources()
    has = {"CPU": total.get("CPU", 0.0), "GPU": total.get("GPU", 0.0)}
    needs = {f"{name}.pool": _needs(pool) for name, pool in pools(config).items()}
    tune = config.finetune
    needs["finetune"] = (tune.workers * tune.cpus_per_worker, float(tune.workers * tune.gpus_per_worker))
    for name, (cpus, gpus) in needs.items():
        if cpus > has["CPU"] or gpus > has["GPU"]:
            raise ConfigError(
                f"{name} needs {cpus:g} CPUs and {gpus:g} GPUs; this cluster has {has['CPU']:g} and {has['GPU']:g}. "
                f"Lower {name}'s numbers, raise ray.local_cpus, or join a larger cluster"
            )


def curves_at_once(config: Config) -> int:
    """How many rounds this cluster can play side by side: each takes a training or a pool at a time."""
    total = ray.cluster_resources()
    tune = config.finetune
    needs = [
        (1 + tune.workers * tune.cpus_per_worker, float(tune.workers * tune.gpus_per_worker)),
        *map(_needs, pools(config).values()),
    ]
    fits = [
        total.get(name, 0.0) // most
        for name, most in (("CPU", max(c for c, _ in needs)), ("GPU", max(g for _, g in needs)))
        if most
    ]
    return max(1, int(min(fits)))


def pools(config: Config) -> dict[str, Pool]:
    """Every actor pool of a run, by section."""
    sections = ("collect", "score", "decode", "evaluate")
    return {name: getattr(config, name).pool for name in sections}


def _needs(pool: Pool) -> tuple[float, float]:
    return pool.min * pool.cpus + 2, pool.min * pool.gpus  # reading and writing take a CPU each beside the actors


def fetch(reference: "ray.ObjectRef[T]") -> T:
    """A task's result. An error that a user can do something about is raised as itself, not as Ray's account of another process; a
    library's stays that account, which says where in the task it came from."""
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from error
        raise


def end(references: "Collection[ray.ObjectRef[Any]]", patience_s: float = 30.0) -> None:
    """Cancel tasks and wait until they have ended: first as by Ctrl-C, which a task that sleeps or waits inside a library may not hear, and
    after `patience_s` with their process. Ray tries none of them again."""
    for force in (False, True):
        waiting = list(references)
        for reference in waiting:
            ray.cancel(reference, force=force)
        if not waiting or len(ray.wait(waiting, num_returns=len(waiting), timeout=patience_s)[0]) == len(waiting):
            return
    log.warning("%d cancelled tasks have not ended after %.0f s", len(references), 2 * patience_s)


def one_line(error: BaseException) -> str:
    """What an error of Ray says: its last line, where a traceback ends. An error class of this package is left out, for its words are a
    whole sentence; a library's is named."""
    return without_type(last_words(str(error)) or type(error).__name__)


def is_a_librarys(error: BaseException) -> bool:
    """Whether an error that came through Ray was raised by a library, rather than by this package on purpose (`UserError`) or by Ray, of a
    process or a node that is gone."""
    if isinstance(error, RayTaskError) and error.cause is not None and not isinstance(error.cause, RayError):
        return not isinstance(error.cause, UserError)
    return names_a_library(words_of(error))


@contextmanager
def stage_line(name: str, detail: str = "") -> Iterator[None]:
    """Say when a stage starts and how long it took."""
    log.info("%-10s %s", name, detail or "…")
    started = time.monotonic()
    yield
    log.info("%-10s done in %.1f s", name, time.monotonic() - started)


@contextmanager
def telling(name: str, progress: Callable[[], str | None], every_s: float = 20.0) -> Iterator[None]:
    """Log `progress()` every so often while the work inside runs, whenever it has something new to say."""
    ended = threading.Event()

    def watch() -> None:
        said = None
        while not ended.wait(every_s):
            if (now := progress()) and now != said:
                said = now
                log.info("%-10s %s", name, now)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def versions() -> dict[str, str]:
    """Versions of the stack, for the record."""
    found = {"python": sys.version.split()[0]}
    for name in STACK:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
