"""Who may ask a question, where several curves ask at the same time and each question is to be paid for once.

In: names of questions, owners. Out: whether an owner may ask. A claim expires, so that a dead owner holds nobody up for
long.
Refuses to know: Ray, HTTP, files.
"""

import time
from collections.abc import Callable
from typing import Protocol


class Claims:
    """Claims by name: each has one owner, until it is left or `lease_s` seconds have passed since it was last taken."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._held: dict[str, tuple[str, float]] = {}

    def take(self, name: str, owner: str, lease_s: float) -> bool:
        """Whether `owner` has the claim now; taking it again renews it."""
        now = self._clock()
        holder, until = self._held.get(name, (owner, now))
        if holder != owner and until > now:
            return False
        self._held[name] = (owner, now + lease_s)
        return True

    def leave(self, name: str, owner: str) -> None:
        """Let others ask; nothing happens where another owner has the claim."""
        if self._held.get(name, ("", 0.0))[0] == owner:
            del self._held[name]


class Claimer(Protocol):
    """One owner's way to the claims."""

    async def take(self, name: str) -> bool: ...

    async def leave(self, name: str) -> None: ...
