"""Fitting a layer: entities stay in one part, thresholds compete fairly, and test rows teach nothing."""

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ka2l_ray.config import SearchSection
from ka2l_ray.models.probe import score_states
from ka2l_ray.probe.fit import ProbeRows, calibrated, calibration_error, divide, fit_probe, unknown_of_topic
from ka2l_ray.stats import auroc

SEARCH = SearchSection(bootstrap=100)
LOW, MIDDLE, HIGH = 0.4, 0.9, 1.6
ENTITIES, EACH, WIDTH = 120, 4, 8


@pytest.fixture(scope="module")
def rows():
    """Four entropies; wrong answers are those at HIGH or above; unseen is left out for a third."""
    rng = np.random.default_rng(0)
    entropy = rng.choice([0.0, LOW, MIDDLE, HIGH], size=ENTITIES * EACH)
    wrong = (entropy >= HIGH).astype(int)
    unseen = np.where(rng.random(len(entropy)) < 1 / 3, -1, wrong)
    entity = np.repeat([f"person {i}" for i in range(ENTITIES)], EACH)
    return ProbeRows(entropy, wrong, unseen, entity)


@pytest.fixture(scope="module")
def states(rows):
    """One direction tells entropies of HIGH apart, another those of LOW; scales and means differ by direction."""
    rng = np.random.default_rng(1)
    noise = rng.normal(size=(len(rows.entropy_nats), WIDTH))
    noise[:, 0] = 0.3 * noise[:, 0] + (rows.entropy_nats >= HIGH)
    noise[:, 1] = 0.3 * noise[:, 1] + (rows.entropy_nats >= LOW)
    return noise * np.arange(1, WIDTH + 1) + 5.0


@pytest.fixture(scope="module")
def fit(states, rows):
    return fit_probe(states, rows, LOW, SEARCH, seed=0)


@given(st.lists(st.text(max_size=5), min_size=1, max_size=40), st.integers(0, 5), st.randoms(use_true_random=False))
def test_an_entitys_part_depends_on_its_name_and_the_seed_only(names, seed, rng):
    part = dict(zip(names, divide(np.array(names, dtype=object), 0.2, 0.3, seed).tolist(), strict=True))
    shuffled = names * 2
    rng.shuffle(shuffled)
    again = divide(np.array(shuffled, dtype=object), 0.2, 0.3, seed)
    assert [part[n] for n in shuffled] == again.tolist()


def test_parts_have_about_their_shares_and_change_with_the_seed():
    names = np.array([f"person {i}" for i in range(5000)])
    part = divide(names, 0.2, 0.3, 0)
    assert [float(np.mean(part == i)) for i in range(3)] == pytest.approx([0.5, 0.2, 0.3], abs=0.025)
    assert (divide(names, 0.2, 0.3, 1) != part).any()


def test_a_layer_that_knows_is_found_and_one_that_does_not_is_not(states, rows, fit):
    noise = np.random.default_rng(2).normal(size=states.shape)
    found, lost = fit.auroc, fit_probe(noise, rows, LOW, SEARCH, seed=0).auroc
    assert found is not None
    assert lost is not None
    assert lost < 0.7 < 0.95 < found


def test_correctness_chooses_the_threshold_whose_probe_finds_wrong_answers(fit):
    assert {cell.threshold_nats for cell in fit.heat} == {LOW, MIDDLE, HIGH}
    assert fit.chosen.threshold_nats == HIGH
    assert fit.chosen.auroc == fit.validation_auroc == max(cell.auroc for cell in fit.heat)
    assert len(fit.heat) == 3 * len(SEARCH.inverse_regularization)


def test_a_threshold_of_ones_own_competes_too(states, rows):
    assert 1.1 in {cell.threshold_nats for cell in fit_probe(states, rows, 1.1, SEARCH, seed=0).heat}


@pytest.mark.parametrize("gold", [True, False])
def test_entropy_tries_the_given_threshold_alone(states, rows, gold):
    rows = rows if gold else replace(rows, wrong=None)
    objective = "entropy" if gold else "auto"
    fitted = fit_probe(states, rows, LOW, SEARCH.model_copy(update={"objective": objective}), seed=0)
    assert {cell.threshold_nats for cell in fitted.heat} == {LOW}
    assert fitted.auroc == pytest.approx(1.0, abs=0.05)  # against SE >= LOW


def test_figures_are_those_of_raw_test_states_against_wrong_answers(states, rows, fit):
    test = divide(rows.entity, SEARCH.validation_share, SEARCH.test_share, 0) == 2
    score = states[test] @ fit.probe.weight + fit.probe.bias
    assert fit.auroc == pytest.approx(auroc(rows.wrong[test], score))
    assert fit.auroc_ci[0] <= fit.auroc <= fit.auroc_ci[1]
    compared = rows.unseen[test] >= 0
    assert fit.auroc_vs_truth == pytest.approx(auroc(rows.unseen[test][compared], score[compared]))


def test_test_rows_teach_nothing(states, rows, fit):
    test = divide(rows.entity, SEARCH.validation_share, SEARCH.test_share, 0) == 2
    spoiled = np.where(test[:, None], 0.0, states)
    mislabelled = replace(rows, wrong=np.where(test, 1 - rows.wrong, rows.wrong))
    again = fit_probe(spoiled, mislabelled, LOW, SEARCH, seed=0)
    assert again.probe.weight.tolist() == fit.probe.weight.tolist()
    assert again.heat == fit.heat
    assert again.auroc != fit.auroc


def test_the_order_of_rows_does_not_matter(states, rows, fit):
    order = np.random.default_rng(3).permutation(len(states))
    shuffled = ProbeRows(rows.entropy_nats[order], rows.wrong[order], rows.unseen[order], rows.entity[order])
    again = fit_probe(states[order], shuffled, LOW, SEARCH, seed=0)
    assert again.chosen.threshold_nats == fit.chosen.threshold_nats
    assert again.auroc == pytest.approx(fit.auroc, abs=1e-3)


def test_without_truth_there_is_no_figure_against_it(states, rows):
    assert fit_probe(states, replace(rows, unseen=None), LOW, SEARCH, seed=0).auroc_vs_truth is None


@pytest.mark.parametrize("gold", [True, False])
def test_one_class_only_is_refused(states, rows, gold):
    alike = replace(rows, entropy_nats=np.zeros_like(rows.entropy_nats), wrong=rows.wrong if gold else None)
    with pytest.raises(ValueError, match="one class only"):
        fit_probe(states, alike, LOW, SEARCH, seed=0)


def test_answers_that_are_all_wrong_choose_nothing(states, rows):
    spoiled = replace(rows, wrong=np.ones_like(rows.wrong))
    assert fit_probe(states, spoiled, LOW, SEARCH, seed=0).objective.name == "entropy"
    with pytest.raises(ValueError, match="contain 0 right and"):
        fit_probe(states, spoiled, LOW, with_objective("correctness"), seed=0)


def partly(rows, ungraded):
    """The same rows, those of a mask (N,) without gold."""
    return replace(rows, wrong=np.where(ungraded, -1, rows.wrong))


def with_objective(objective, min_graded=10):
    return SEARCH.model_copy(update={"objective": objective, "min_graded": min_graded})


@pytest.mark.parametrize("objective", ["auto", "correctness"])
def test_one_question_without_gold_changes_no_objective(states, rows, fit, objective):
    ungraded = np.arange(len(rows.entropy_nats)) == 7
    fitted = fit_probe(states, partly(rows, ungraded), LOW, with_objective(objective), seed=0)
    assert (fitted.objective.name, fitted.objective.graded, fitted.objective.note) == (
        "correctness",
        len(ungraded) - 1,
        None,
    )
    assert {cell.threshold_nats for cell in fitted.heat} == {LOW, MIDDLE, HIGH}
    assert fitted.probe.weight.tolist() == fit.probe.weight.tolist(), "a row without gold is not trained on"


def test_figures_of_correctness_are_over_graded_rows_alone(states, rows):
    """Half of the rows have no gold; what their grades would have been plays no part."""
    ungraded = np.arange(len(rows.entropy_nats)) % 2 == 0
    fitted = fit_probe(states, partly(rows, ungraded), LOW, with_objective("auto"), seed=0)
    part = divide(rows.entity, SEARCH.validation_share, SEARCH.test_share, 0)
    for number, found in ((1, fitted.validation_auroc), (2, fitted.auroc)):
        counted = (part == number) & ~ungraded
        assert found == pytest.approx(
            auroc(rows.wrong[counted], states[counted] @ fitted.probe.weight + fitted.probe.bias)
        )
    assert fitted.auroc is not None
    assert fitted.auroc_ci is not None
    low, high = fitted.auroc_ci
    assert low <= fitted.auroc <= high


def graded_few(rows, kind, count):
    """Gold for `count` validation rows whose greedy answer is of one kind, and for all rows of the other."""
    validation = divide(rows.entity, SEARCH.validation_share, SEARCH.test_share, 0) == 1
    of_kind = rows.wrong == kind
    kept = np.flatnonzero(validation & of_kind)[:count]
    return partly(rows, of_kind & ~np.isin(np.arange(len(of_kind)), kept))


@pytest.mark.parametrize("kind", [0, 1])
def test_too_few_graded_validation_questions_of_a_kind_fall_back_and_say_so_or_stop(states, rows, kind):
    enough, few = graded_few(rows, kind, 10), graded_few(rows, kind, 9)
    assert fit_probe(states, enough, LOW, with_objective("auto"), seed=0).objective.name == "correctness"
    fitted = fit_probe(states, few, LOW, with_objective("auto"), seed=0)
    assert fitted.objective.name == "entropy"
    assert {cell.threshold_nats for cell in fitted.heat} == {LOW}
    right, wrong = ("9", "[0-9]+") if kind == 0 else ("[0-9]+", "9")
    counts = rf"search\.min_graded = 10, .* contain {right} right and {wrong} wrong answers"
    assert re.search(counts, fitted.objective.note or "")
    with pytest.raises(
        ValueError,
        match=rf"search\.objective = correctness needs gold answers: {counts}; {fitted.objective.graded} of 480",
    ):
        fit_probe(states, few, LOW, with_objective("correctness"), seed=0)
    assert fit_probe(states, few, LOW, with_objective("correctness", 9), seed=0).objective.name == "correctness"


def test_correctness_without_gold_is_refused(states, rows):
    with pytest.raises(
        ValueError, match=r"search\.objective = correctness needs gold .* 0 of 480 probe questions are graded"
    ):
        fit_probe(states, replace(rows, wrong=None), LOW, with_objective("correctness"), seed=0)


def test_rows_that_abstain_are_unknown_whatever_their_entropy_and_make_no_threshold(states, rows):
    """Half of the rows above HIGH say nothing, and so have no entropy: labels stay the same, γ too."""
    silent = (rows.entropy_nats >= HIGH) & (np.arange(len(states)) % 2 == 0)
    quiet = replace(rows, entropy_nats=np.where(silent, 0.0, rows.entropy_nats), abstains=silent)
    assert (quiet.unknown(LOW) == rows.unknown(LOW)).all()
    assert fit_probe(states, quiet, LOW, SEARCH).auroc == fit_probe(states, rows, LOW, SEARCH).auroc
    low = replace(quiet, entropy_nats=np.where(silent, 0.0, np.where(rows.entropy_nats > 0, 1.6, 1.0)), abstains=silent)
    assert fit_probe(states, low, None, SEARCH.model_copy(update={"objective": "entropy"})).chosen.threshold_nats == 1.6


def test_a_classifier_that_sees_only_the_topic_stands_beside_the_probe(states, rows):
    """A topic that says nothing is at chance; one that says it all leaves the probe nothing to add."""
    rng = np.random.default_rng(2)
    silent = rng.choice(["author", "capital"], len(rows.entropy_nats))
    telling = np.where(rows.unknown(HIGH), "author", "capital")
    found = [
        fit_probe(states, replace(rows, topic=topic), LOW, SEARCH).auroc_topic_alone for topic in (silent, telling)
    ]
    assert found[0] == pytest.approx(0.5, abs=0.1)
    assert found[1] == 1.0
    assert fit_probe(states, rows, LOW, SEARCH).auroc_topic_alone is None


def test_topics_without_training_rows_are_as_unknown_as_all():
    topic, unknown = np.array(["a", "a", "b", "c"]), np.array([1, 1, 0, 1])
    train = np.array([True, True, True, False])
    assert unknown_of_topic(topic, unknown, train).tolist() == pytest.approx([8 / 9, 8 / 9, 1 / 3, 2 / 3])


def test_numbers_are_probabilities_of_gamma_whatever_threshold_ranks_best(states, rows):
    fit = fit_probe(states, rows, LOW, SEARCH, seed=0)
    assert fit.chosen.threshold_nats == HIGH  # a quarter of the rows, where three quarters are unknown
    p = score_states(states, fit.probe)
    held_out = divide(rows.entity, SEARCH.validation_share, SEARCH.test_share, 0) > 0
    assert p[held_out].mean() == pytest.approx(np.mean(rows.entropy_nats[held_out] >= LOW), abs=0.05)
    assert fit.calibration_error is not None
    assert fit.calibration_error < 0.12


def test_calibration_finds_the_odds_that_scores_were_drawn_by_and_keeps_their_order():
    rng = np.random.default_rng(0)
    score = rng.normal(size=20_000)
    unknown = rng.random(len(score)) < 1 / (1 + np.exp(-(2.0 * score - 1.5)))
    slope, offset = calibrated(score, unknown)
    assert (slope, offset) == pytest.approx((2.0, -1.5), abs=0.1)
    assert calibration_error(unknown, 1 / (1 + np.exp(-(slope * score + offset)))) == pytest.approx(0, abs=0.02)
    assert (calibration_error(unknown, 1 / (1 + np.exp(-score))) or 0.0) > 0.1


@pytest.mark.parametrize(
    "unknown", [[True, True, False, False], [True, True, True, True], [False, False, False, False]]
)
def test_scores_that_do_not_rank_the_rows_are_left_as_they_are(unknown):
    assert calibrated(np.array([-2.0, -1.0, 1.0, 2.0]), np.array(unknown)) == (1.0, 0.0)


def test_scores_that_separate_the_rows_get_finite_odds():
    slope, offset = calibrated(np.linspace(-1, 1, 100), np.arange(100) >= 50)
    p = 1 / (1 + np.exp(-(slope * np.array([-1.0, 1.0]) + offset)))
    assert p == pytest.approx([1 / 52, 51 / 52], abs=0.02)
    assert calibration_error(np.zeros(0, bool), np.zeros(0)) is None
