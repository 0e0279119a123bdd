"""Figures draw what is there and only that; means and savings never average in a number that does not exist."""

import copy
from typing import Any

import pytest

from ka2l_ray.report import figures
from ka2l_ray.report.curves import curves
from ka2l_ray.report.summary import known_changes, savings, spendings

NO_LAYERS: Any = {"layers": []}


def test_figures_are_the_same_bytes_twice(results: dict[str, Any]) -> None:
    first = figures.accuracy_curves(results["rounds"], "pool")
    second = figures.accuracy_curves(copy.deepcopy(results["rounds"]), "pool")
    assert first
    assert second
    assert "<metadata>" not in first.svg()
    assert first.svg() == second.svg()
    assert first.png() == second.png()
    assert first.png().startswith(b"\x89PNG\r\n")


@pytest.mark.parametrize(
    ("eval_scope", "said", "unsaid"),
    [("pool", ">pool facts<", "no pool"), ("other", ">facts that no pool question asks<", "pool facts")],
)
def test_a_curve_says_what_its_accuracy_is_over(
    results: dict[str, Any], eval_scope: str, said: str, unsaid: str
) -> None:
    drawing = figures.accuracy_curves([r | {"domain_accuracy": None} for r in results["rounds"]], eval_scope)
    assert drawing
    assert said in drawing.svg()
    assert unsaid not in drawing.svg()


@pytest.mark.parametrize(
    "made",
    [
        lambda: figures.entropy_histogram({}, 0.8),
        lambda: figures.entropy_histogram({"known": {}}, None),
        lambda: figures.auroc_by_layer(None),
        lambda: figures.auroc_by_layer(NO_LAYERS),
        lambda: figures.layer_threshold_heat(None),
        lambda: figures.layer_threshold_heat([]),
        lambda: figures.accuracy_curves([], "pool"),
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
    rounds: Any = [
        {
            "strategy": "random",
            "seed": s,
            "round": n,
            "annotations": 75 * n,
            "accuracy": 0.5 + 0.1 * s,
            "domain_accuracy": None,
        }
        for s in (0, 1)
        for n in range(3)
    ]
    (curve,) = curves(rounds[:-1], "accuracy")
    assert curve.mean == [(0, pytest.approx(0.55)), (75, pytest.approx(0.55))]
    assert [len(d) for d in curve.draws] == [3, 2]
    assert curves(rounds, "domain_accuracy") == []


def test_savings_count_the_seeds_that_never_reached_random() -> None:
    entries: Any = [
        {"strategy": "ka2l", "seed": s, "saving": v, "of_oracle": None} for s, v in enumerate((0.4, None, 0.2))
    ]
    (found,) = savings([*entries, {"strategy": "random", "seed": 0, "saving": 0.0, "of_oracle": 0.0}])
    assert (found.saving, found.of_oracle, found.reached, found.seeds) == (pytest.approx(0.3), None, 2, 3)
    assert known_changes([]) == []


def test_the_ledger_of_a_curve_is_that_of_its_last_round(results: dict[str, Any]) -> None:
    found = {(s.strategy, s.seed): s for s in spendings(results["rounds"])}
    assert list(found) == [("ka2l", 0), ("random", 0), ("random", 1), ("random", 2), ("oracle", 0)]
    ours = found["ka2l", 0]
    totals = ("asked", "answered", "rejected", "cached", "cost", "paid")
    assert [ours.ledger[name] for name in totals] == [225, 216, 9, 15, 225.0, 210.0]
    assert ours.why == {"refused": 6, "blank": 3}


def test_a_curve_that_bought_nothing_has_no_ledger(results: dict[str, Any]) -> None:
    assert spendings([r for r in results["rounds"] if r["round"] == 0]) == []
    older: Any = [{name: value for name, value in r.items() if name != "ledger"} for r in results["rounds"]]
    assert spendings(older) == []
