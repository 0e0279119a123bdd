"""The numbers of a comparison, computed by hand. Random buys 100 and 200 annotations, a round of it trains for 30
seconds."""

from typing import Any

import pytest
from scipy.stats import sem, t

from ka2l_ray.active.comparison import area_under, compare_strategies, seed_curve
from ka2l_ray.active.saving import savings
from ka2l_ray.stats import interval

TIMES = {
    "collect": 10.0,
    "label": 1.0,
    "search": 4.0,
    "score": 5.0,
    "replay": 20.0,
    "sample_pool": 100.0,
    "evaluate": 1000.0,
}
RANDOM = {"random": [(0.5, 0.6, 0.7)]}


def one_seed(draws: dict[str, list[tuple]]) -> Any:
    """What a comparison reads of the results.json of one run, from the accuracies of each strategy's draws after 0,
    100, 200 … annotations."""
    rounds: list[Any] = [
        {
            "strategy": strategy,
            "seed": 1000 * draw,
            "round": number,
            "annotations": 100 * number,
            "accuracy": accuracy,
            "known_accuracy": 1.0 - number / 10 - draw / 100,
            "seconds": {"acquire": 1.0, "annotate": 2.0, "finetune": 27.0, "evaluate": 500.0} if number else {},
        }
        for strategy, curves in draws.items()
        for draw, curve in enumerate(curves)
        for number, accuracy in enumerate(curve)
    ]
    return {"eval_scope": "other", "rounds": rounds, "saving": savings(rounds), "time_s": TIMES}


def entries(*seeds: dict[str, list[tuple]]) -> dict[str, dict]:
    return {e["strategy"]: e for e in compare_strategies([one_seed(s) for s in seeds])["strategies"]}


@pytest.fixture
def two_seeds() -> dict[str, dict]:
    """`ka2l` reaches random's 0.7 after 100 annotations on one seed, after 150 on the other."""
    return entries(RANDOM | {"ka2l": [(0.5, 0.7, 0.8)]}, RANDOM | {"ka2l": [(0.5, 0.6, 0.8)]})


def test_a_saving_is_the_mean_over_seeds_with_students_interval(two_seeds):
    found = two_seeds["ka2l"]
    assert found["savings"] == [pytest.approx(0.5), pytest.approx(0.25)]
    assert found["saving"] == pytest.approx(0.375)
    assert found["saving_ci"] == pytest.approx(t.interval(0.95, 1, 0.375, sem([0.5, 0.25])))


def test_a_comparison_says_what_its_accuracies_are_over():
    assert compare_strategies([one_seed(RANDOM)])["eval_scope"] == "other"


def test_a_compute_saving_counts_every_stage_that_a_strategy_needs(two_seeds):
    """Random: 20 s of replay and two rounds of 30 s. `ka2l`: 20 s of probe and 20 s of replay besides one or two
    rounds."""
    assert two_seeds["ka2l"]["compute_savings"] == [pytest.approx(1 - 70 / 80), pytest.approx(1 - 100 / 80)]
    assert two_seeds["ka2l"]["compute_saving"] == pytest.approx(-0.0625)
    assert two_seeds["random"]["compute_saving"] is None


@pytest.mark.parametrize(
    ("strategy", "seconds"),
    [
        ("coreset", 70),
        ("decoded", 70),
        ("ka2l_diverse", 70),
        ("oracle", 50),
        ("entropy", 161),
        ("quadrant", 161),
        ("likelihood", 150),
    ],
)
def test_each_strategy_is_charged_its_own_base_stages(strategy, seconds):
    found = entries(RANDOM | {strategy: [(0.5, 0.7, 0.8)]})[strategy]
    assert found["compute_saving"] == pytest.approx(1 - seconds / 80)


def test_an_area_is_the_mean_accuracy_up_to_what_all_strategies_bought(two_seeds):
    assert two_seeds["random"]["area"] == pytest.approx(0.6)
    assert two_seeds["ka2l"]["area"] == pytest.approx((0.675 + 0.625) / 2)
    assert two_seeds["ka2l"]["area_ci"] == pytest.approx(t.interval(0.95, 1, 0.65, sem([0.675, 0.625])))


def test_a_curve_has_the_mean_and_the_interval_of_every_shared_point(two_seeds):
    first, second, last = two_seeds["ka2l"]["curve"]
    assert (first["annotations"], first["accuracy"], first["ci"]) == (0, 0.5, (0.5, 0.5))
    assert (second["annotations"], second["accuracy"], second["seeds"]) == (100, pytest.approx(0.65), 2)
    assert second["ci"] == pytest.approx(t.interval(0.95, 1, 0.65, sem([0.7, 0.6])))
    assert last["accuracy"] == pytest.approx(0.8)


def test_a_strategy_that_never_reaches_random_has_no_saving_of_any_kind():
    found = entries(RANDOM | {"coreset": [(0.5, 0.5, 0.55)]})["coreset"]
    assert (found["savings"], found["saving"], found["saving_ci"], found["compute_saving"]) == (
        [None],
        None,
        None,
        None,
    )
    assert found["area"] == pytest.approx(0.5125)


def test_every_mean_says_over_how_many_seeds_it_is():
    """Random's 0.7 is reached on two seeds of three; the third has no saving, share of the oracle or compute saving,
    but an area."""
    rise, never, oracle = [(0.5, 0.7, 0.8)], [(0.5, 0.5, 0.55)], {"oracle": [(0.5, 0.75, 0.8)]}
    seeds = [RANDOM | {"ka2l": curve} | oracle for curve in (rise, never, rise)]
    summary = compare_strategies([one_seed(s) for s in seeds])
    found = {e["strategy"]: e for e in summary["strategies"]}
    assert found["ka2l"]["over"] == {"saving": 2, "of_oracle": 2, "compute_saving": 2, "area": 3, "known_accuracy": 3}
    assert found["oracle"]["over"]["saving"] == summary["ceiling_over"] == 3


def test_a_single_seed_has_means_but_no_interval():
    found = entries(RANDOM | {"ka2l": [(0.5, 0.7, 0.8)]})["ka2l"]
    assert (found["saving"], found["saving_ci"], found["area_ci"]) == (pytest.approx(0.5), None, None)
    assert [p["ci"] for p in found["curve"]] == [None] * 3


def test_a_strategy_that_stopped_early_is_compared_over_what_it_bought():
    summary = compare_strategies([one_seed(RANDOM | {"ka2l": [(0.5, 0.8)]})])
    random, ka2l = summary["strategies"]
    assert (summary["area_up_to"], summary["random_budget"]) == (100, 200)
    assert (random["area"], ka2l["area"]) == (pytest.approx(0.55), pytest.approx(0.65))
    assert ka2l["saving"] == pytest.approx(1 - 100 * 0.2 / 0.3 / 200)
    assert [p["annotations"] for p in ka2l["curve"]] == [0, 100]


def test_draws_of_a_seed_are_averaged_before_anything_else():
    seed = {"random": [(0.5, 0.6, 0.66), (0.5, 0.6, 0.74)], "ka2l": [(0.5, 0.7, 0.8)]}
    assert seed_curve(one_seed(seed), "random") == [(0, 0.5), (100, pytest.approx(0.6)), (200, pytest.approx(0.7))]
    found = entries(seed)
    assert found["ka2l"]["saving"] == pytest.approx(0.5)
    assert found["ka2l"]["compute_saving"] == pytest.approx(1 - 70 / 80)
    assert found["random"]["known_accuracy"] == pytest.approx((0.8 + 0.79) / 2)


def test_the_oracle_is_the_ceiling_and_others_are_a_share_of_it():
    seeds = [
        RANDOM | {"ka2l": [(0.5, 0.7, 0.8)], "oracle": [(0.5, 0.75, 0.8)]},
        RANDOM | {"ka2l": [(0.5, 0.6, 0.8)], "oracle": [(0.5, 0.9)]},
    ]
    summary = compare_strategies([one_seed(s) for s in seeds])
    _, ka2l, oracle = summary["strategies"]
    assert summary["ceiling"] == oracle["saving"] == pytest.approx((0.6 + 0.75) / 2)
    assert ka2l["of_oracle"] == pytest.approx((0.5 / 0.6 + 0.25 / 0.75) / 2)
    assert ka2l["of_oracle_lowest"] == pytest.approx(0.25 / 0.75)


def test_strategies_keep_the_order_of_the_run():
    assert list(entries({"oracle": [(0.5, 0.6)], "random": [(0.5, 0.6)], "ka2l": [(0.5, 0.6)]})) == [
        "oracle",
        "random",
        "ka2l",
    ]


@pytest.mark.parametrize("values", [[0.1, 0.4], [0.3, 0.31, 0.5], [1.0, 1.0, 1.0, 1.2]])
@pytest.mark.parametrize("confidence", [0.5, 0.95])
def test_an_interval_is_scipys(values, confidence):
    by_scipy = t.interval(confidence, len(values) - 1, sum(values) / len(values), sem(values))
    assert interval(values, confidence) == pytest.approx(by_scipy)


@pytest.mark.parametrize(
    ("curve", "up_to", "area"),
    [
        ([(0, 0.2), (100, 0.6)], 100, 0.4),
        ([(0, 0.2), (100, 0.6)], 50, 0.3),
        ([(0, 0.2), (100, 0.6), (400, 0.6)], 400, 0.55),
        ([(0, 0.2), (100, 0.6), (400, 0.0)], 100, 0.4),
        ([(0, 0.2), (100, 0.6)], 101, None),
        ([(0, 0.2)], 0, None),
        ([], 10, None),
    ],
)
def test_an_area_is_cut_where_it_shall_end(curve, up_to, area):
    assert area_under(curve, up_to) == (None if area is None else pytest.approx(area))


def test_runs_without_gold_have_no_numbers_but_a_summary():
    found = entries({"random": [(None, None)], "ka2l": [(None, None)]})["ka2l"]
    assert (found["saving"], found["area"], found["curve"]) == (None, None, [])


def test_seconds_and_accuracy_of_random_are_of_the_same_round():
    """One draw stopped after a round, so both strategies need one round: probe 20 s, replay 20 s each, a round 30 s."""
    found = entries({"random": [(0.5, 0.6, 0.7), (0.5, 0.6)], "ka2l": [(0.5, 0.6, 0.8)]})["ka2l"]
    assert found["saving"] == 0
    assert found["compute_saving"] == pytest.approx(1 - 70 / 50)


def test_every_draws_own_last_round_counts_for_what_was_known():
    found = entries({"random": [(0.5, 0.6, 0.7), (0.5, 0.6)]})["random"]
    assert found["known_accuracy"] == pytest.approx((0.8 + 0.89) / 2)
