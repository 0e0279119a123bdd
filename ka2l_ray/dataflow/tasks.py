"""Where Ray tasks run, their results, errors and cancellation.

In: the nodes wanted, references to tasks, errors that came through Ray. Out: options; a task's own result or error;
tasks that have ended.
Refuses to know: what a task does.
"""

from collections.abc import Collection
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from ka2l_ray.config import NodesSection
from ka2l_ray.dataflow.log import log
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
