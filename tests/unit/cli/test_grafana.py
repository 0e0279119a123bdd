"""`cluster/grafana.json`: written from the metrics' own list, importable, and its queries are PromQL."""

import itertools
import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from ka2l_ray.cli.grafana import COLUMNS, dashboard
from ka2l_ray.dataflow.metric_table import METRICS, OF_MODELS, OF_STAGES, OF_TRAININGS, RATIOS
from ka2l_ray.dataflow.tally import Tally

FILE = Path(__file__).parents[3] / "cluster/grafana.json"
PANELS: list[dict[str, Any]] = dashboard()["panels"]
GRAPHS = [panel for panel in PANELS if panel["type"] != "row"]
OF_GRAFANA = {"__range"}
"""Variables that Grafana sets itself."""


def test_the_file_is_the_one_that_the_list_makes():
    assert json.loads(FILE.read_text(encoding="utf-8")) == dashboard(), "run `make docs`"


def test_metrics_have_names_of_their_own_in_prometheus_form():
    listed = (*OF_STAGES, *OF_MODELS, *OF_TRAININGS)
    assert len(METRICS) == len(listed) == len({metric.exported for metric in listed})
    for metric in listed:
        assert re.fullmatch(r"ray_ka2l_[a-z_]+", metric.exported)
        assert metric.exported.endswith("_total") == (metric.kind == "counter") == (metric.drawn in ("rate", "total"))
        assert metric.name.endswith("_s") == (metric.unit == "s")


def test_what_a_model_tallies_is_what_is_listed_of_models():
    assert [metric.name for metric in OF_MODELS] == [field.name for field in fields(Tally)]


def test_every_metric_and_ratio_has_a_panel():
    queries = [panel["targets"][0]["expr"] for panel in GRAPHS]
    assert len(queries) == len(METRICS) + len(RATIOS)
    named = [set(re.findall(r"ray_ka2l_\w+", query)) for query in queries]
    assert set.union(*named) == {metric.exported for metric in METRICS.values()}
    for metric in METRICS.values():
        assert {metric.exported} in named
    for ratio in RATIOS:
        assert {METRICS[name].exported for name in (ratio.above, *ratio.below)} in named


def test_panels_have_what_grafana_needs_and_lie_beside_each_other():
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    titles = [panel["title"] for panel in PANELS]
    assert len({*titles}) == len(titles)
    taken = set()
    for panel in PANELS:
        x, y, width, height = (panel["gridPos"][side] for side in "xywh")
        cells = set(itertools.product(range(x, x + width), range(y, y + height)))
        assert x + width <= COLUMNS
        assert not cells & taken, panel["title"]
        taken |= cells
    for panel in GRAPHS:
        assert panel["type"] == "timeseries"
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}
        assert [target["refId"] for target in panel["targets"]] == ["A"]


def test_every_variable_of_a_query_can_be_chosen():
    page = dashboard()
    variables = {variable["name"]: variable for variable in page["templating"]["list"]}
    assert list(variables) == ["datasource", "run", "stage", "window"]
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(page))) - {"__all"}
    assert used == {*variables, *OF_GRAFANA}
    assert variables["window"]["current"]["value"] in variables["window"]["query"].split(",")


def test_queries_are_promql():
    parser = pytest.importorskip("promql_parser")
    for query in (panel["targets"][0]["expr"] for panel in GRAPHS):
        parser.parse(query.replace("$window", "5m").replace("$__range", "1h"))
    with pytest.raises(ValueError, match="expected type matrix"):
        parser.parse("rate(ray_ka2l_rows_total)")
