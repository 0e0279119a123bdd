"""Figures draw what is there and only that; means and savings never average in a number that does not exist."""

import copy
from typing import Any

import pytest

from ka2l_ray.report import figures
from ka2l_ray.report.curves import curves
from ka2l_ray.report.summary import known_changes, savings


def test_figures_are_the_same_bytes_twice(results: dict[str, Any]) -> None:
    first = figures.accuracy_curves(results["rounds"])
    assert first
    assert "<metadata>" not in first
    assert first == figures.accuracy_curves(copy.deepcopy(results["rounds"]))


@pytest.mark.parametrize(
    "made",
    [
        lambda: figures.entropy_histogram({}, 0.8),
        lambda: figures.entropy_histogram({"known": {}}, None),
        lambda: figures.auroc_by_layer(None),
        lambda: figures.auroc_by_layer({"layers": []}),
        lambda: figures.layer_threshold_heat(None),
        lambda: figures.layer_threshold_heat([]),
        lambda: figures.accuracy_curves([]),
        lambda: figures.known_curves([]),
        lambda: figures.stage_times({}),
        lambda: figures.stage_times({"label": None}),
    ],
)
def test_nothing_to_draw_is_no_figure(made: Any) -> None:
    assert made() is None


def test_no_bar_crosses_the_threshold() -> None:
    for threshold in (0.0, 0.3, 0.8018, 1.0, 5.0):
        edges = figures._edges(2.303, threshold)
        assert threshold in edges
        assert edges[0] <= 0.0
        assert edges[-1] >= max(2.303, threshold)


def test_the_mean_holds_only_rounds_that_every_draw_has() -> None:
    rounds = [
        {"strategy": "random", "seed": s, "round": n, "annotations": 75 * n, "accuracy": 0.5 + 0.1 * s, "domain_accuracy": None}
        for s in (0, 1)
        for n in range(3)
    ]
    (curve,) = curves(rounds[:-1], "accuracy")
    assert curve.mean == [(0, pytest.approx(0.55)), (75, pytest.approx(0.55))]
    assert [len(d) for d in curve.draws] == [3, 2]
    assert curves(rounds, "domain_accuracy") == []


def test_savings_count_the_seeds_that_never_reached_random() -> None:
    entries = [{"strategy": "ka2l", "seed": s, "saving": v, "of_oracle": None} for s, v in enumerate((0.4, None, 0.2))]
    (found,) = savings([*entries, {"strategy": "random", "seed": 0, "saving": 0.0, "of_oracle": 0.0}])
    assert (found.saving, found.of_oracle, found.reached, found.seeds) == (pytest.approx(0.3), None, 2, 3)
    assert known_changes([]) == []
