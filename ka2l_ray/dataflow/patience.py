"""Loading an actor again where it failed: storage or a model hub may not answer for a moment.

In: what loads it. Out: what that returns. Refuses to know: what is loaded, Ray.
"""

from collections.abc import Callable
from typing import TypeVar

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    retry_if_not_exception_type,
    stop_after_attempt,
    wait_chain,
    wait_fixed,
)

from ka2l_ray.dataflow.log import log
from ka2l_ray.errors import UserError

PAUSES_S = (1.0, 5.0)
Loaded = TypeVar("Loaded")


def patiently(load: Callable[[], Loaded], stage: str) -> Loaded:
    """What `load` returns, tried again after each of `PAUSES_S` unless the failure is the user's mistake."""

    def warn(tried: RetryCallState) -> None:
        error, pause_s = tried.outcome and tried.outcome.exception(), tried.next_action and tried.next_action.sleep
        log.warning("%s: an actor cannot load (%s); trying again in %.0f s", stage, error, pause_s or 0.0)

    patient = Retrying(
        retry=retry_if_exception_type(Exception) & retry_if_not_exception_type(UserError),
        stop=stop_after_attempt(1 + len(PAUSES_S)),
        wait=wait_chain(*map(wait_fixed, PAUSES_S)),
        before_sleep=warn,
        reraise=True,
    )
    return patient(load)
