"""Where Ray tasks run, their results, errors and cancellation.

In: the nodes wanted, calls, references to tasks, errors that came through Ray. Out: options; a task's own result or
error; tasks that have ended.
Refuses to know: what a task does.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from ka2l_ray.config import NodesSection
from ka2l_ray.dataflow.log import log, log_progress
from ka2l_ray.dataflow.vault import open_vault, vault
from ka2l_ray.errors import UserError, last_line, names_a_library, one_line_with_type, without_type

T = TypeVar("T")


def placed(nodes: NodesSection) -> dict[str, Any]:
    """Options of Ray's tasks and actors, and of Ray Data's, by which they run on these nodes; none for any node."""
    found = {"resources": dict(nodes.resources), "label_selector": dict(nodes.labels)}
    return {name: wanted for name, wanted in found.items() if wanted}


def fetch(reference: "ray.ObjectRef[T]") -> T:
    """A task's result.

    An error for the user (`UserError`) is raised as it is, without Ray's account of another process. A library's error
    keeps that account, which says where in the task it was raised.
    """
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from error
        raise


def cancel(references: "Collection[ray.ObjectRef[Any]]", patience_s: float = 30.0) -> None:
    """Cancel tasks and wait until they have ended; Ray does not retry them.

    Tasks are interrupted first, as by Ctrl-C. One that sleeps or waits inside a library may not notice: after
    `patience_s` seconds its process is killed.
    """
    for force in (False, True):
        waiting = list(references)
        for reference in waiting:
            ray.cancel(reference, force=force)
        if not waiting or len(ray.wait(waiting, num_returns=len(waiting), timeout=patience_s)[0]) == len(waiting):
            return
    log.warning("%d cancelled tasks have not ended after %.0f s", len(references), 2 * patience_s)


def run_tasks(
    nodes: NodesSection, stage: str, function: Callable[..., T], calls: Sequence[tuple[object, ...]]
) -> list[T]:
    """Each call as a Ray task on these nodes, as many at once as they have CPUs, and their results in order; the first
    that fails ends all. A call may open what only the driver has the keys to. Progress is logged."""
    task, token = ray.remote(_with_token).options(name=function.__name__, **placed(nodes)), vault()
    waiting = {task.remote(token, function, *arguments): n for n, arguments in enumerate(calls)}
    done: dict[int, T] = {}
    with log_progress(stage, lambda: f"{len(done):,} of {len(calls):,} files read" if len(calls) > 1 else None):
        try:
            while waiting:
                (ready,), _ = ray.wait(list(waiting))
                number = waiting.pop(ready)
                done[number] = fetch(ready)
        finally:
            cancel(waiting)  # before what they write to is deleted
    return [done[n] for n in range(len(calls))]


def _with_token(token: Any, function: Callable[..., T], *arguments: object) -> T:
    open_vault(token)
    return function(*arguments)


def one_line(error: BaseException) -> str:
    """The last line of an error that came through Ray, where a traceback ends.

    The name of an error class of this package is left out, since its message is a whole sentence.
    """
    return without_type(last_line(str(error)) or type(error).__name__)


def raised_by_library(error: BaseException) -> bool:
    """Whether an error that came through Ray was raised by a library.

    Otherwise this package raised it on purpose (`UserError`), or Ray did because a process or node was lost.
    """
    if isinstance(error, RayTaskError) and error.cause is not None and not isinstance(error.cause, RayError):
        return not isinstance(error.cause, UserError)
    return names_a_library(one_line_with_type(error))
