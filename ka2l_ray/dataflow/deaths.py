"""Which rows an actor was at when its process ended, so that what keeps killing actors is found and given up.

In: shards as actors begin and end them. Out: the pieces in which a shard is to be done, the rows that are given up, whether the stage
goes on. A shard that is begun again without having ended was some actor's death. One that has ended two actors is halved, and of its
pieces again the one that ends another, until a single row is found (at most 3 + log2(rows) deaths). A machine that is taken away looks
the same; its shard is then done in pieces, which costs no row.
Refuses to know: Ray, files, what the rows hold. One `Register` serves all actors of a stage; nothing of it outlives an attempt.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ka2l_ray.dataflow.failures import DEATHS_OF_A_SHARD, FOUND_PER_SHARD, Verdict, on_death

Piece = tuple[int, int]
"""Rows [start, stop) of a shard."""


@dataclass(frozen=True)
class Suspicion:
    """What is held against a shard: `deaths` of actors at it, the `pieces` it is done in, the one at which an actor is now (or died), and
    of each row given up why."""

    pieces: tuple[Piece, ...]
    deaths: int = 0
    at: Piece | None = None
    why: str = ""
    given_up: Mapping[int, str] = field(default_factory=dict)

    @classmethod
    def of(cls, rows: int) -> "Suspicion":
        return cls(((0, rows),))

    def after_death(self) -> "Suspicion":
        """Halve the piece at which an actor died, once it has been two; a piece of one row is given up."""
        now = replace(self, deaths=self.deaths + 1, at=None, why="")
        if now.deaths < DEATHS_OF_A_SHARD or self.at is None:
            return now
        start, stop = self.at
        if stop - start == 1:
            why = self.why or f"the actor's process ended at this row without a word; {now.deaths} ended at its shard"
            return replace(now, given_up={**self.given_up, start: why})
        middle = (start + stop) // 2
        halves = [
            p for piece in self.pieces for p in (((start, middle), (middle, stop)) if piece == self.at else (piece,))
        ]
        return replace(now, pieces=tuple(halves))


class Register:
    """What the actors of one stage are at. `actors`: how many the pool may have; `least`: how many deaths are never too many."""

    def __init__(self, actors: int, least: int) -> None:
        self._actors, self._least = actors, least
        self._at: dict[int, Suspicion] = {}
        self._loading: set[str] = set()
        self._deaths = self._finished = self._found = 0
        self._last = ""

    def load(self, actor: str) -> str:
        """An actor begins to load. Returns why the stage must stop, empty where it may go on."""
        self._loading.add(actor)
        return self._stop()

    def loaded(self, actor: str) -> None:
        """A load that never comes to this was a death."""
        self._loading.discard(actor)

    def begin(self, shard: int, rows: int) -> tuple[Suspicion, str]:
        """An actor begins a shard, at its first piece: what is held against it, and why the stage must stop (empty where it goes on)."""
        known = self._at.get(shard)
        if known is not None:
            self._deaths += 1
            self._last = known.why or self._last
        suspicion = Suspicion.of(rows) if known is None else known.after_death()
        if known is not None and len(known.given_up) < len(suspicion.given_up) <= FOUND_PER_SHARD:
            self._found += DEATHS_OF_A_SHARD + 1 + math.ceil(math.log2(rows))
        self._at[shard] = replace(suspicion, at=suspicion.pieces[0])
        return suspicion, self._stop() if known is not None else ""

    def at(self, shard: int, piece: Piece | None) -> None:
        """Its actor goes on to a piece, or has done all."""
        self._change(shard, at=piece)

    def ends(self, shard: int, why: str) -> None:
        """Its actor is about to end."""
        self._change(shard, why=why)

    def _change(self, shard: int, **changes: Any) -> None:
        """Nothing where the shard is over: Ray may have another actor do it a second time, side by side."""
        if (known := self._at.get(shard)) is not None:
            self._at[shard] = replace(known, **changes)

    def over(self, shard: int) -> None:
        """The shard is done, whatever was held against it."""
        self._at.pop(shard, None)
        self._finished += 1

    def _stop(self) -> str:
        loading = max(0, len(self._loading) - self._actors)
        deaths = self._deaths + loading
        if on_death(deaths, self._actors, self._finished, self._found, self._least) != Verdict.STOP_STAGE:
            return ""
        where = f" ({loading} of them while loading)" if loading else ""
        last = f" Last: {self._last}." if self._last else ""
        return f"{deaths} actors have ended{where} while {self._finished:,} shards were finished.{last}"
