"""Metrics: what actors and trainings report is on the page that Prometheus reads, as the dashboard asks for it."""

import re
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from actors import Setup, Tallying
from prometheus_client.parser import text_string_to_metric_families
from test_dataflow import ROWS, source, stage, table

from ka2l_ray.cli.grafana import dashboard
from ka2l_ray.config import Pool
from ka2l_ray.dataflow.metric_table import METRICS, OF_STAGES, OF_TRAININGS, Metric
from ka2l_ray.dataflow.metrics import ActorMetrics, Reporter
from ka2l_ray.dataflow.stage import run_stage
from ka2l_ray.dataflow.tally import Tally

RUN = "metered-run"
POISON, ACTORS = 7, 2
ASKED = re.compile(r"by \(([^)]*)\) \((?:\w+\()?(ray_ka2l_\w+)\{([^}]*)\}")
"""A metric in a query: the tags that it is added up by, its name, what is chosen of it."""


def shown() -> dict[str, dict[frozenset[tuple[str, str]], float]]:
    """{metric: {tags: value}} of `RUN`, from the node's metrics endpoint."""
    with urllib.request.urlopen(f"http://127.0.0.1:{ray.nodes()[0]['MetricsExportPort']}/metrics", timeout=10) as page:
        families = text_string_to_metric_families(page.read().decode())
    found = defaultdict[str, dict[frozenset[tuple[str, str]], float]](dict)
    for sample in (s for family in families for s in family.samples if s.labels.get("run") == RUN):
        found[sample.name][frozenset(sample.labels.items())] = sample.value
    return found


@pytest.mark.long
def test_every_metric_of_the_dashboard_is_exported_with_its_tags(tmp_path: Path) -> None:
    """Ray exports every ten seconds, and a gauge for twenty after it was set: an actor's end with it, so what was seen
    stays seen here; those of a living process stay."""
    metered = stage(
        tmp_path,
        run=RUN,
        name="metered",
        actor=Tallying,
        setup=Setup(str(tmp_path / "log"), poison=POISON),
        pool=Pool(min=ACTORS, max=ACTORS, shard_rows=5),
    )
    run_stage(metered, source(tmp_path), table(tmp_path))
    training = Reporter(OF_TRAININGS, {"run": RUN, "stage": "finetune", "round": "ka2l seed 0 round 1"})
    training.report({metric.name: n for n, metric in enumerate(OF_TRAININGS, 1)})
    reported = time.monotonic()

    queries = [target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", ())]
    asked = [found for query in queries for found in ASKED.findall(query)]
    assert {name for _, name, _ in asked} == {metric.exported for metric in METRICS.values()}
    seen: dict[str, dict[frozenset[tuple[str, str]], float]] = {}
    deadline = time.monotonic() + 60
    while missing := {name for _, name, _ in asked} - seen.keys() or total(seen, "rows") < ROWS:
        assert time.monotonic() < deadline, (missing, seen)
        time.sleep(1)
        for name, values in shown().items():
            seen.setdefault(name, {}).update(values)
    for by, name, chosen in asked:
        wanted = {*by.split(", "), *re.findall(r"(\w+)=~", chosen)}
        assert all(wanted <= dict(tags).keys() for tags in seen[name]), (name, wanted, seen[name])

    assert (total(seen, "rows"), total(seen, "failed_rows"), total(seen, "actors_loaded")) == (ROWS, 1, ACTORS)
    assert {total(seen, name) for name in asdict(Tally())} == {ROWS - 1}
    assert min(total(seen, name) for name in ("busy_s", "waiting_s", "load_s")) > 0
    assert set(seen[METRICS["actors"].exported].values()) == {1}
    assert [total(seen, metric.name) for metric in OF_TRAININGS] == [1, 2, 3, 4]
    stages = {dict(tags)["stage"] for metric in OF_STAGES for tags in seen[metric.exported]}
    assert stages == {"metered"}
    time.sleep(max(0.0, reported + 35 - time.monotonic()))
    assert total(shown(), "training_loss") == 3


def total(seen: Mapping[str, Mapping[frozenset[tuple[str, str]], float]], name: str) -> float:
    return sum(seen.get(METRICS[name].exported, {}).values())


def test_waiting_is_the_time_between_calls_whatever_a_call_does_besides_its_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A clock by hand: 2 s to load; 3 s before the first call, which takes 10 s, of them 4 in the model; 5 s until the
    second, of 1 s."""
    now, added = [100.0], []

    class Kept(Reporter):
        def __init__(self, metrics: Iterable[Metric], tags: Mapping[str, str]) -> None:
            self._tags = dict(tags)

        def report(self, values: Mapping[str, float]) -> None:
            added.extend((name, value, *self._tags.values()) for name, value in values.items() if value)

    monkeypatch.setattr("ka2l_ray.dataflow.metrics.time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr("ka2l_ray.dataflow.metrics.Reporter", Kept)
    tally, metrics = Tally(model_s=1.0), ActorMetrics("r", "s")
    now[0] += 2.0
    metrics.loaded(SimpleNamespace(tally=tally))
    for wait, work, model in ((3.0, 10.0, 4.0), (5.0, 1.0, 0.0)):
        now[0] += wait
        with metrics.call():
            now[0] += work
            tally.model_s += model
    metrics.rows(5, 1)
    loading = [("actors_loaded", 1, "r", "s"), ("load_s", 2.0, "r", "s"), ("actors", 1, "r", "s")]
    first = [("waiting_s", 3.0, "r", "s"), ("busy_s", 10.0, "r", "s"), ("model_s", 4.0, "r", "s")]
    second = [("waiting_s", 5.0, "r", "s"), ("busy_s", 1.0, "r", "s")]
    assert added == [*loading, *first, *second, ("rows", 5, "r", "s"), ("failed_rows", 1, "r", "s")]
