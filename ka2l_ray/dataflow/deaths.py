"""Which rows an actor was working on when its process died, so that rows that keep killing actors are found and given
up.

In: shards as actors begin and finish them. Out: the pieces that a shard is worked on in, the rows that are given up,
whether the stage goes on. A shard that is begun again without having been finished means that an actor died. A shard
that has killed two actors is halved, and then each piece that kills another one, until a single row is found (after at
most 3 + log2(rows) deaths). A machine that is taken away looks the same; its shard is then worked on in pieces, and no
row is lost.
Refuses to know: Ray, files, what the rows contain. One `Register` serves all actors of a stage and lives no longer than
an attempt.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ka2l_ray.dataflow.failures import DEATHS_OF_A_SHARD, FOUND_PER_SHARD, most_deaths

Piece = tuple[int, int]
"""Rows [start, stop) of a shard."""


@dataclass(frozen=True)
class Suspicion:
    """What is known against a shard: how many actors died at it, the `pieces` that it is worked on in, the piece that
    an actor is working on (or died at), and for each row that is given up the reason."""

    pieces: tuple[Piece, ...]
    deaths: int = 0
    piece: Piece | None = None
    why: str = ""
    given_up: Mapping[int, str] = field(default_factory=dict)

    def after_death(self) -> "Suspicion":
        """The suspicion after another death: from the second one on, the piece at which it happened is halved, and a
        piece of one row is given up."""
        now = replace(self, deaths=self.deaths + 1, piece=None, why="")
        if now.deaths < DEATHS_OF_A_SHARD or self.piece is None:
            return now
        start, stop = self.piece
        if stop - start == 1:
            why = self.why or f"the actor's process died at this row without a message; {now.deaths} died at its shard"
            return replace(now, given_up={**self.given_up, start: why})
        middle = (start + stop) // 2
        halves = [
            p for piece in self.pieces for p in (((start, middle), (middle, stop)) if piece == self.piece else (piece,))
        ]
        return replace(now, pieces=tuple(halves))


class Register:
    """What the actors of one stage are working on. `actors`: size of the pool at most; `least`: deaths that are always
    allowed."""

    def __init__(self, actors: int, least: int) -> None:
        self._actors, self._least = actors, least
        self._shards: dict[int, Suspicion] = {}
        self._loading: set[str] = set()
        self._deaths = self._finished = self._deaths_found = 0
        self._last = ""

    def loads(self, actor: str) -> str:
        """An actor begins to load. Returns why the stage must stop, empty if it may go on."""
        self._loading.add(actor)
        return self._stop()

    def loaded(self, actor: str) -> None:
        """The actor has loaded; one that never reports this has died."""
        self._loading.discard(actor)

    def begins(self, shard: int, rows: int) -> tuple[Suspicion, str]:
        """An actor begins a shard at its first piece. Returns what is known against the shard, and why the stage must
        stop (empty if it goes on)."""
        known = self._shards.get(shard)
        if known is not None:
            self._deaths += 1
            self._last = known.why or self._last
        suspicion = Suspicion(pieces=((0, rows),)) if known is None else known.after_death()
        if known is not None and len(known.given_up) < len(suspicion.given_up) <= FOUND_PER_SHARD:
            self._deaths_found += DEATHS_OF_A_SHARD + 1 + math.ceil(math.log2(rows))
        self._shards[shard] = replace(suspicion, piece=suspicion.pieces[0])
        return suspicion, self._stop() if known is not None else ""

    def notes(self, shard: int, **changes: Piece | str | None) -> None:
        """Of the shard's actor: `piece`, to which it goes on, None once it has done all; `why` it is about to end its
        process.

        Does nothing once the shard is finished: Ray may run it a second time in another actor at the same time.
        """
        if (known := self._shards.get(shard)) is not None:
            self._shards[shard] = replace(known, **changes)

    def finishes(self, shard: int) -> None:
        """The shard is finished, whatever was known against it."""
        self._shards.pop(shard, None)
        self._finished += 1

    def _stop(self) -> str:
        loading = max(0, len(self._loading) - self._actors)
        deaths = self._deaths + loading
        if deaths <= most_deaths(self._actors, self._finished, self._deaths_found, self._least):
            return ""
        where = f" ({loading} of them while loading)" if loading else ""
        last = f" Last: {self._last}." if self._last else ""
        return f"{deaths} actors have died{where} while {self._finished:,} shards were finished.{last}"
