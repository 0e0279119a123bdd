"""The metrics of one process, as Ray's: what an actor of a stage does, how a training run goes.

In: rows, times, an actor's `Tally`, values of a step. Out: the metrics of `metric_table` at Ray's metrics endpoint.
Refuses to know: models, tables, what a stage does.
"""

import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict

from ray.util.metrics import Counter, Gauge

from ka2l_ray.dataflow.metric_table import OF_MODELS, OF_STAGES, Metric
from ka2l_ray.dataflow.tally import Tallied, Tally

REPEAT_S = 5.0
"""Ray drops a gauge that was not set for twenty seconds, so gauges are set again this often."""


def _instrument(metric: Metric) -> Counter | Gauge:
    kind = Counter if metric.kind == "counter" else Gauge
    return kind(metric.reported, description=metric.about, tag_keys=metric.tags)


class Reporter:
    """Some metrics with the same tags. Counters are raised by a value; gauges keep theirs while this process lives."""

    def __init__(self, metrics: Iterable[Metric], tags: Mapping[str, str]) -> None:
        self._tags, self._instruments = dict(tags), {m.name: _instrument(m) for m in metrics}
        self._kept: dict[Gauge, float] = {}
        if any(isinstance(instrument, Gauge) for instrument in self._instruments.values()):
            threading.Thread(target=self._repeat, daemon=True).start()

    def report(self, values: Mapping[str, float]) -> None:
        """Report values by the metrics' names. A counter that does not grow is left out."""
        for name, value in values.items():
            instrument = self._instruments[name]
            if isinstance(instrument, Gauge):
                self._kept[instrument] = value
                instrument.set(value, self._tags)
            elif value:
                instrument.inc(value, self._tags)

    def _repeat(self) -> None:
        never = threading.Event()
        while not never.wait(REPEAT_S):
            for gauge, value in list(self._kept.items()):
                gauge.set(value, self._tags)


class ActorMetrics:
    """Metrics of one actor of a stage: loading, rows, time at work and waiting and, where the actor tallies, what its
    model did."""

    def __init__(self, run: str, stage: str) -> None:
        self._tags = {"run": run, "stage": stage}
        self._stage = Reporter(OF_STAGES, self._tags)
        self._model: tuple[Tally, Reporter] | None = None
        self._before: dict[str, float] = {}
        self._since = time.monotonic()

    def loaded(self, actor: object) -> None:
        """The actor has loaded, which took the time since this object was made; from now on it waits."""
        if isinstance(actor, Tallied):
            self._model = (actor.tally, Reporter(OF_MODELS, self._tags))
            self._before = asdict(actor.tally)
        self._stage.report({"actors_loaded": 1, "load_s": self._lap(), "actors": 1})

    @contextmanager
    def call(self) -> Iterator[None]:
        """One call of the actor: at its end, the wait before it, its time, and what was tallied since the last one."""
        waiting_s = self._lap()
        try:
            yield
        finally:
            self._stage.report({"waiting_s": waiting_s, "busy_s": self._lap()})
            if self._model is not None:
                tally, model = self._model
                before, self._before = self._before, asdict(tally)
                model.report({name: value - before[name] for name, value in self._before.items()})

    def rows(self, done: int, failed: int) -> None:
        """A shard is finished: rows that this stage did, and how many of them failed in it."""
        self._stage.report({"rows": done, "failed_rows": failed})

    def _lap(self) -> float:
        """Seconds since the last lap."""
        before, self._since = self._since, time.monotonic()
        return self._since - before
