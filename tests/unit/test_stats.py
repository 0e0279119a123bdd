"""AUROC and its interval over entities."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ka2l_ray.stats import auroc, auroc_interval

RESAMPLES = 50


def interval(target, score, entity, seed=0) -> tuple[float, float]:
    found = auroc_interval(target, score, entity, RESAMPLES, seed)
    assert found is not None
    return found


def rows(entities: int, each: int, seed: int = 0):
    """Targets and scores that agree in part; all rows of an entity are alike."""
    rng = np.random.default_rng(seed)
    target = rng.integers(2, size=entities)
    score = target + rng.normal(size=entities)
    return np.repeat(target, each), np.repeat(score, each), np.repeat(np.arange(entities), each)


@pytest.mark.parametrize("target", [[1, 1, 1], [0, 0], [True], []])
def test_one_class_has_no_auroc_and_no_interval(target):
    score, entity = np.arange(len(target)), np.arange(len(target))
    assert auroc(np.array(target), score) is None
    assert auroc_interval(np.array(target), score, entity, 50, 0) is None


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=2, max_size=20).filter(
        lambda r: len({t for t, _ in r}) == 2
    )
)
def test_auroc_is_the_share_of_pairs_in_order_and_half_of_the_ties(pairs):
    positive, negative = [s for t, s in pairs if t], [s for t, s in pairs if not t]
    wins = [(p > n) + 0.5 * (p == n) for p in positive for n in negative]
    assert auroc(np.array([t for t, _ in pairs]), np.array([s for _, s in pairs])) == pytest.approx(np.mean(wins))


def test_the_interval_contains_the_estimate_and_depends_on_its_seed_only():
    target, score, entity = rows(60, 2)
    low, high = interval(target, score, entity)
    estimate = auroc(target, score)
    assert estimate is not None
    assert 0.0 <= low < estimate < high <= 1.0
    assert interval(target, score, entity) == (low, high)
    assert interval(target, score, entity, seed=1) != (low, high)


def test_copies_of_an_entitys_rows_do_not_narrow_the_interval():
    assert interval(*rows(40, 5)) == pytest.approx(interval(*rows(40, 1)))


def test_the_same_rows_as_separate_entities_give_a_narrower_interval():
    target, score, entity = rows(40, 5)
    low, high = interval(target, score, entity)
    narrow_low, narrow_high = interval(target, score, np.arange(len(entity)))
    assert narrow_high - narrow_low < 0.7 * (high - low)


def test_a_resample_contains_all_rows_of_its_entities_in_any_order():
    target, score, entity = rows(30, 3)
    order = np.random.default_rng(1).permutation(len(entity))
    assert interval(target[order], score[order], entity[order]) == interval(target, score, entity)
