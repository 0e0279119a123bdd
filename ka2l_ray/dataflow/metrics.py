"""Ray metrics of an actor: what it counted and how long it waited.

In: an actor's `Tally`. Out: counters on Ray's metrics endpoint. Refuses to know: models, tables, stages.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

from ray.util.metrics import Counter

from ka2l_ray.dataflow.tally import Tally


class ActorMetrics:
    """Counters `ka2l_…_total` of one actor, tagged with its stage: its tally, and the seconds it waited between calls.

    Tokens per question, the share of padding (padding / (prompt + padding)) and the share of time spent in the model
    are ratios of these.
    """

    def __init__(self, stage: str, tally: Tally) -> None:
        self._tally, self._tags = tally, {"stage": stage}
        self._before, self._idle_since = asdict(tally), time.monotonic()
        self._counters = {
            name: Counter(f"ka2l_{name}_total", description=name.replace("_", " "), tag_keys=("stage",))
            for name in (*self._before, "waiting_s")
        }

    @contextmanager
    def call(self) -> Iterator[None]:
        """One call of the actor: at its end, adds the wait before it and what was counted since the last call ended."""
        waited_s = time.monotonic() - self._idle_since
        try:
            yield
        finally:
            now = asdict(self._tally)
            counted = {name: value - self._before[name] for name, value in now.items()} | {"waiting_s": waited_s}
            for name, value in counted.items():
                if value:
                    self._counters[name].inc(value, self._tags)
            self._before, self._idle_since = now, time.monotonic()
