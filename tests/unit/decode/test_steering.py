"""Steering: what is asked changes, of whom stays; which groups there are, and which may be steered to."""

import numpy as np
import pytest

from ka2l_ray.decode.steering import (
    KIN_NAMES,
    KIN_ROWS,
    SHARED_ENTITIES,
    Steering,
    fit_steering,
    names_asked,
    nearest,
    same_thing,
)

GROUPS, WIDTH = ("city", "dish", "pet"), 24
RNG = np.random.default_rng(0)
ENTITY = {f"Person {n}": RNG.normal(size=WIDTH) for n in range(60)}
ASKED = {group: 3 * RNG.normal(size=WIDTH) for group in GROUPS}


def questions(asked=lambda n, group: True):
    """(states, groups, entities) of every question about every entity that is `asked`; a state is the sum of both parts
    and a little noise."""
    found = [(e, g) for n, e in enumerate(ENTITY) for g in GROUPS if asked(n, g)]
    states = np.stack([ENTITY[e] + ASKED[g] + 0.1 * RNG.normal(size=WIDTH) for e, g in found])
    return states.astype(np.float32), [g for _, g in found], [e for e, _ in found]


def fitted(*rows) -> Steering:
    steering = fit_steering(*rows)
    assert steering is not None
    return steering


def test_a_steered_state_is_that_of_the_same_thing_in_the_other_group():
    states, groups, entities = questions()
    steering = fitted(states, groups, entities)
    assert steering.names == GROUPS
    at = dict(zip(zip(entities, groups, strict=True), range(len(states)), strict=True))
    own, to = [GROUPS.index(g) for g in groups], [(GROUPS.index(g) + 1) % 3 for g in groups]
    found = nearest(steering.steered(states, own, to), states)
    assert found.tolist() == [at[e, GROUPS[t]] for e, t in zip(entities, to, strict=True)]
    kept = steering.steered(states, own, [None] * len(own))
    np.testing.assert_allclose(kept, states, atol=1e-5)


@pytest.mark.parametrize("has_entities", [True, False])
@pytest.mark.parametrize("group", [lambda g, e: None, lambda g, e: e])
def test_without_groups_that_share_entities_states_are_clustered(group, has_entities):
    """Groups such as families say of whom is asked. The number of clusters is found, also where no entities are
    named."""
    states, asked, entities = questions()
    groups = [group(g, e) for g, e in zip(asked, entities, strict=True)]
    steering = fitted(states, groups, entities if has_entities else [None] * len(entities))
    assert len(steering.names) == len(GROUPS)
    clusters = steering.group_of(states)
    assert len({*zip(asked, clusters.tolist(), strict=True)}) == len(GROUPS), "one cluster for each group"
    assert (steering.found is not None) == has_entities
    assert all(len(t) == len(GROUPS) - 1 for t in steering.targets)


def test_only_groups_that_share_entities_are_steered_to_those_with_most_first():
    """Pets are asked of the first 30, dishes of two of those and of the last 30, cities of all."""
    states, groups, entities = questions(
        lambda n, g: g == "city" or (n < 30) == (g == "pet") or (g, n) in {("dish", 0), ("dish", 1)}
    )
    steering = fitted(states, groups, entities)
    city, dish, pet = range(3)
    assert SHARED_ENTITIES > 2
    assert steering.targets[city] == (dish, pet)
    assert steering.targets[dish] == steering.targets[pet] == (city,)


def test_turns_about_a_thing_ask_different_things_until_nothing_is_left():
    steering = Steering(GROUPS, np.zeros((3, WIDTH)), ((1, 2), (0, 2), ()))
    for name in ("a", "b", "c", "d"):
        assert {steering.target(0, name, turn) for turn in (0, 1)} == {1, 2}
        assert steering.target(0, name, 2) is steering.target(2, name, 0) is None
        assert steering.target(0, name, 0, {1}) == 2, "what is asked of it already is not asked again"
        assert steering.target(0, name, 1, {1}) is steering.target(0, name, 0, {1, 2}) is None
    assert len({steering.target(0, name, 0) for name in map(str, range(20))}) == 2, "things begin at different ones"


def test_of_groups_that_ask_the_same_one_is_steered_to():
    names, targets = ("home", "town", "dish", "meal"), ((1, 2, 3), (), (), ())
    steering = Steering(names, np.zeros((4, WIDTH)), targets, same=(1, 1, 2, 2))
    found = {name: steering.target(0, name, 0) for name in map(str, range(20))}
    assert {*found.values()} == {2, 3}, "another way of asking for the dish, from thing to thing"
    assert steering.target(0, "a", 1) is steering.target(0, "a", 0, {2}) is None


def test_clusters_whose_entities_avoid_each_other_ask_the_same():
    """Each group is asked in two ways, which are as far apart as groups are, of every entity in one of them."""
    rng, people = np.random.default_rng(0), {f"Person {n}": RNG.normal(size=WIDTH) for n in range(120)}
    ways = {(group, way): 4 * RNG.normal(size=WIDTH) for group in GROUPS for way in range(2)}
    asked = [(e, (g, int(rng.integers(2)))) for e in people for g in GROUPS]
    states = np.stack([people[e] + ways[w] + 0.1 * rng.normal(size=WIDTH) for e, w in asked]).astype(np.float32)
    steering = fitted(states, [None] * len(asked), [e for e, _ in asked])
    assert len(steering.names) == len(ways), "the fewest clusters that find a thing again"
    aspect = {w: steering.aspects[int(steering.group_of(states[[n]])[0])] for n, (_, w) in enumerate(asked)}
    assert len({*aspect.values()}) == len(GROUPS)
    assert all(aspect[group, 0] == aspect[group, 1] for group in GROUPS)
    alone = fitted(states, [None] * len(asked), [f"{n}" for n in range(len(asked))])
    assert len({*alone.aspects}) == len(alone.names), "nothing tells where each entity is asked about once"


def test_too_few_questions_give_no_steering():
    states, _, entities = questions(lambda n, g: n < 3)
    assert fit_steering(states, [None] * len(states), entities) is None


def test_the_thing_is_found_by_what_its_group_does_not_explain():
    states, groups, entities = questions()
    good = fitted(states, groups, entities)
    own = np.array([GROUPS.index(g) for g in groups])
    assert (same_thing(good.centroids, states, own, entities) or 0) > 0.95
    assert same_thing(states.mean(0)[None], states, np.zeros(len(states), int), entities) == 0.0
    random = RNG.integers(0, 3, len(states))
    centroids = np.stack([states[random == g].mean(0) for g in range(3)])
    assert (same_thing(centroids, states, random, entities) or 0) < 0.5
    assert same_thing(good.centroids, states, own, [None] * len(states)) is None


def test_where_no_entity_is_asked_about_twice_all_other_clusters_may_be_steered_to():
    states, _, entities = questions()
    steering = fitted(states, [None] * len(states), [f"{e} {n}" for n, e in enumerate(entities)])
    assert (len(steering.names), steering.found) == (3, None)
    assert all(len(t) == 2 for t in steering.targets)


def test_groups_of_which_few_questions_could_be_steered_give_way_to_clusters():
    """Three in four questions are in a group of their own."""
    states, groups, entities = questions()
    own = [g if n % 4 == 0 else f"topic {n}" for n, g in enumerate(groups)]
    assert not fitted(states, own, entities).by_group
    assert fitted(states, groups, entities).by_group


def test_a_seed_may_be_large():
    states, _, entities = questions()
    assert fit_steering(states, [None] * len(states), entities, 2**40) is not None


def test_groups_about_one_kind_of_thing_are_told_by_the_states_of_names():
    """Two ways of asking about people, two about places, and no name is asked about twice."""
    rng = np.random.default_rng(0)
    kinds, ways = 4 * rng.normal(size=(2, WIDTH)), 3 * rng.normal(size=(4, WIDTH))
    groups = [g for g in range(4) for _ in range(40)]
    names = np.stack([kinds[g // 2] + rng.normal(size=WIDTH) for g in groups]).astype(np.float32)
    states = np.stack([n + ways[g] for n, g in zip(names, groups, strict=True)]).astype(np.float32)
    labels = [f"group {g}" for g in groups]
    entities = [f"E {n}" for n in range(len(groups))]
    steering = fit_steering(states, labels, entities, 0, names, names)
    assert steering is not None
    assert steering.by_group
    assert steering.targets == ((1,), (0,), (3,), (2,))
    assert steering.token_centroids is not None
    assert np.allclose(steering.token_centroids[0], names[:40].mean(0), atol=1e-5)
    blind = fit_steering(states, labels, entities, 0, np.zeros_like(names))
    assert blind is None or not blind.by_group, "without states of tokens nothing tells the kinds"


def test_the_kind_of_a_group_of_few_questions_is_not_told():
    rng = np.random.default_rng(0)
    groups = [g for g, count in enumerate((40, 40, KIN_ROWS - 1)) for _ in range(count)]
    names = rng.normal(size=(len(groups), WIDTH)).astype(np.float32)  # all of one kind
    ways = 3 * rng.normal(size=(3, WIDTH))
    states = np.stack([n + ways[g] for n, g in zip(names, groups, strict=True)]).astype(np.float32)
    steering = fit_steering(states, [f"group {g}" for g in groups], [None] * len(groups), 0, names, names)
    assert steering is not None
    assert steering.targets == ((1,), (0,), ())


def test_so_many_names_of_each_group_are_asked_what_they_are_and_the_others_say_nothing():
    counts = {"many": KIN_NAMES + 50, "enough": KIN_ROWS, "few": KIN_ROWS - 1, None: KIN_ROWS}
    groups = [g for g, count in counts.items() for _ in range(count)]
    entities = [f"E {n}" for n in range(len(groups))]
    asked = names_asked(groups, entities)
    assert [groups[n] for n in asked] == ["many"] * KIN_NAMES + ["enough"] * KIN_ROWS
    twice = names_asked([*groups, *groups], [*entities, *entities])
    assert twice == asked, "a name is asked once"
    assert names_asked(["few"] * KIN_ROWS, ["one"] * KIN_ROWS) == [], "one name tells nothing"
    rng = np.random.default_rng(0)
    names, ways = rng.normal(size=(len(groups), WIDTH)), 3 * rng.normal(size=(4, WIDTH))
    states = (names + ways[[list(counts).index(g) for g in groups]]).astype(np.float32)
    kinds = np.full_like(states, np.nan)
    kinds[asked] = names[asked]
    steering = fit_steering(states, groups, [None] * len(groups), 0, None, kinds)
    assert steering is not None
    assert dict(zip(steering.names, steering.targets, strict=True)) == {"enough": (2,), "few": (), "many": (0,)}
