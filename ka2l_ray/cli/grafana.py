"""The Grafana dashboard of the metrics in `dataflow.metric_table`: `python -m ka2l_ray.cli.grafana > FILE`.

In: the table. Out: a dashboard as JSON, one panel per metric and ratio, for Grafana 9 and later with any Prometheus
that reads the nodes' metrics endpoints. Refuses to know: who counts, where Prometheus is.
"""

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ka2l_ray.dataflow.metric_table import METRICS, OF_MODELS, OF_STAGES, OF_TRAININGS, RATIOS, Metric, Ratio

Json = dict[str, Any]
WIDTH, HEIGHT, COLUMNS = 8, 8, 24
"""Of a panel, and of the whole dashboard, in Grafana's grid."""
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
WINDOW = "5m"
CHOSEN = 'run=~"$run", stage=~"$stage"'
"""Limits every query to what is chosen at the top of the page."""


def dashboard() -> Json:
    """The whole dashboard, as Grafana imports it."""
    groups = {
        "Stages": [*map(_of_metric, OF_STAGES)],
        "Ratios": [*map(_of_ratio, RATIOS)],
        "Models": [*map(_of_metric, OF_MODELS)],
        "Trainings": [*map(_of_metric, OF_TRAININGS)],
    }
    return {
        "uid": "ka2l",
        "title": "KA2L",
        "description": "Written by `make docs` from ka2l_ray/dataflow/metric_table.py.",
        "tags": ["ka2l", "ray"],
        "schemaVersion": 36,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [_source(), _variable("run", ""), _variable("stage", ', run=~"$run"'), _window()]},
        "panels": _placed(groups),
    }


def _of_metric(metric: Metric) -> Json:
    """A metric as `Metric.drawn` says, for each choice of its tags."""
    rate = metric.drawn == "rate"
    about = f"{metric.about} In seconds per second: how many actors at a time." if rate and metric.unit == "s" else ""
    unit = f"suffix:{metric.unit}/s" if rate else f"suffix: {metric.unit}"
    if metric.unit == "s":
        unit = "short" if rate else "s"
    title = re.sub("_s$", " time", metric.name).replace("_", " ").capitalize()
    return _panel(title, about or metric.about, unit, _query(metric), metric.tags)


def _of_ratio(ratio: Ratio) -> Json:
    unit = {"share": "percentunit", "s": "s"}.get(ratio.unit, f"suffix: {ratio.unit}")
    above, below = METRICS[ratio.above], [METRICS[name] for name in ratio.below]
    parts = " + ".join(_query(replace(metric, drawn=above.drawn)) for metric in below)
    return _panel(ratio.title, ratio.about, unit, f"{_query(above)} / ({parts})", above.tags)


def _query(metric: Metric) -> str:
    """PromQL. A total still counts nodes that have left the cluster within the time shown."""
    values, tags = f"{metric.exported}{{{CHOSEN}}}", ", ".join(metric.tags)
    return {
        "rate": f"sum by ({tags}) (rate({values}[$window]))",
        "total": f"sum by ({tags}) (last_over_time({values}[$__range]))",
        "sum": f"sum by ({tags}) ({values})",
        "max": f"max by ({tags}) ({values})",
    }[metric.drawn]


def _panel(title: str, about: str, unit: str, expression: str, tags: Sequence[str]) -> Json:
    legend = " ".join(f"{{{{{tag}}}}}" for tag in tags)
    return {
        "type": "timeseries",
        "title": title,
        "description": about,
        "datasource": SOURCE,
        "fieldConfig": {"defaults": {"unit": unit, "min": 0, "custom": {"fillOpacity": 10}}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [{"refId": "A", "datasource": SOURCE, "expr": expression, "legendFormat": legend, "range": True}],
    }


def _placed(groups: dict[str, list[Json]]) -> list[Json]:
    """A heading per group, below it its panels from left to right, all with their ids and places."""
    placed, y = [], 0
    for heading, panels in groups.items():
        placed.append({"type": "row", "title": heading, "collapsed": False, "panels": [], **_place(0, y, COLUMNS, 1)})
        y += 1
        for n, panel in enumerate(panels):
            row, column = divmod(n, COLUMNS // WIDTH)
            placed.append(panel | _place(column * WIDTH, y + row * HEIGHT, WIDTH, HEIGHT))
        y += -(-len(panels) // (COLUMNS // WIDTH)) * HEIGHT
    return [{"id": n, **panel} for n, panel in enumerate(placed, 1)]


def _place(x: int, y: int, width: int, height: int) -> Json:
    return {"gridPos": {"x": x, "y": y, "w": width, "h": height}}


def _source() -> Json:
    """The choice of a Prometheus, by which the file needs to know none."""
    return {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "refresh": 1}


def _window() -> Json:
    """The choice of the time over which a rate is taken; an actor counts once per shard, which may take minutes."""
    options = [{"text": t, "value": t, "selected": t == WINDOW} for t in ("1m", WINDOW, "15m", "1h")]
    return {
        "name": "window",
        "label": "rates over",
        "type": "interval",
        "query": ",".join(o["value"] for o in options),
        "options": options,
        "current": {"text": WINDOW, "value": WINDOW},
        "auto": False,
        "refresh": 2,
    }


def _variable(tag: str, within: str) -> Json:
    """The choice among the values that a tag has had, all of them at first."""
    values = f'label_values({{__name__=~"ray_ka2l_.+"{within}}}, {tag})'
    return {
        "name": tag,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": values, "refId": tag},
        "definition": values,
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
    }


if __name__ == "__main__":
    json.dump(dashboard(), sys.stdout, indent=1)
    sys.stdout.write("\n")
