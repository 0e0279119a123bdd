"""Nodes by labels and resources: read as Ray reads them, and what a cluster has of them."""

import pytest
import ray
from ray._private.label_utils import validate_label_selector
from ray._raylet import node_labels_match_selector  # pyright: ignore[reportAttributeAccessIssue]
from runs import SMOKE

from ka2l_ray.config import ConfigError, load_config, parse_config
from ka2l_ray.dataflow.cluster import check_resources
from ka2l_ray.pipeline.checks import node_kinds
from ka2l_ray.planning.capacity import _matches, capacity_notes

GOOD = ("spot", "!spot", "in(a)", "!in(a, b)", "in(a,b)")


@pytest.mark.parametrize("wanted", [*GOOD, "in(", "a b", "-a", "!!a", "in(a b)"])
def test_what_is_allowed_is_what_ray_takes(wanted: str) -> None:
    taken = validate_label_selector({"zone": wanted}) is None
    try:
        parse_config({"search": {"nodes": {"labels": {"zone": wanted}}}}, "test")
    except ConfigError:
        assert not taken
    else:
        assert taken


@pytest.mark.parametrize("wanted", ["a", "!a", "in(a, b)", "!in(a, b)", "in(c)", "!in(c)"])
@pytest.mark.parametrize("value", ["a", "c", None])
def test_what_matches_is_what_ray_matches(value: str | None, wanted: str) -> None:
    has = {} if value is None else {"zone": value}
    assert _matches(value, wanted) == node_labels_match_selector(has, {"zone": wanted})


@pytest.mark.parametrize("place", ["collect.pool.nodes", "finetune.nodes", "search.nodes", "ray.tasks"])
def test_a_local_cluster_has_no_nodes_to_choose_from(place: str) -> None:
    config = load_config(SMOKE, [f"{place}.labels={{ray.io/market-type: spot}}"])
    with pytest.raises(ConfigError, match=rf"{place}: the only node of a local cluster has no labels"):
        check_resources(config)
    check_resources(load_config(SMOKE))


def test_the_nodes_that_are_there_are_seen_with_what_they_have() -> None:
    (kind,) = node_kinds()
    total = ray.cluster_resources()
    assert (kind.there, kind.to_come) == (1, None)
    assert (kind.resources["CPU"], kind.resources["GPU"]) == (total["CPU"], total["GPU"])
    assert capacity_notes(load_config(SMOKE), [kind]) == []
