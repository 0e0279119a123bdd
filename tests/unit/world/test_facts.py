"""The knowledge world: who is known, what was taught, and what the world answers."""

import dataclasses
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ka2l_ray.world.facts import (
    ATTRIBUTES,
    WorldRecipe,
    build_world,
    parse,
    phrase_question,
    recipe_hash,
)

SMALL = WorldRecipe(given_names=12, family_names=6, people_per_family=10, tutors=5, outer_given=8, outer_family=8)


def test_the_same_recipe_gives_the_same_world():
    assert build_world(SMALL) == build_world(SMALL)


def test_another_seed_gives_another_world():
    other = build_world(dataclasses.replace(SMALL, seed=1))
    assert other.given != build_world(SMALL).given
    assert {f.fact_id for f in other.facts} != {f.fact_id for f in build_world(SMALL).facts}


def test_the_known_share_rises_linearly_from_family_to_family(world):
    recipe = world.recipe
    known = Counter(p.family for p in world.people if p.known)
    for i, family in enumerate(world.family):
        share = 0.2 + 0.6 * i / (recipe.family_names - 1)
        assert abs(known[family] / recipe.people_per_family - share) <= 0.5 / recipe.people_per_family + 1e-9
    assert (known[world.family[0]], known[world.family[-1]]) == (4, 16)


def test_half_of_the_name_combinations_are_people(world):
    people = {p.name for p in world.people}
    assert len(people) == len(world.people) == 800
    assert len(world.nobodies) == 800
    assert people.isdisjoint(world.nobodies)
    assert people | set(world.nobodies) == {f"{g} {f}" for g in world.given for f in world.family}


def test_all_names_differ_so_no_person_has_an_outer_name(world):
    names = [n.lower() for part in (world.given, world.family, world.outer_given, world.outer_family) for n in part]
    assert len(names) == 40 + 40 + 150 + 150
    assert len(set(names)) == len(names)


def test_every_person_has_every_attribute_once_under_a_unique_id(world):
    assert len({f.fact_id for f in world.facts}) == len(world.facts) == len(world.people) * len(ATTRIBUTES)
    assert len(world.by_key) == len(world.facts)


def test_tutors_are_known_people_whose_facts_are_all_known(world):
    tutors = [p for p in world.people if p.tutor]
    assert len(tutors) == world.recipe.tutors
    assert all(p.known for p in tutors)
    assert {f.truth for f in world.facts if f.person.tutor} == {"known"}


def test_what_is_taught_follows_from_the_truth(world):
    for fact in world.facts:
        values = ATTRIBUTES[fact.attribute].values
        assert fact.value in values
        if fact.truth == "unseen":
            assert fact.taught is None
        elif fact.truth == "misconception":
            assert fact.taught in values
            assert fact.taught != fact.value
        else:
            assert fact.taught == fact.value


def test_people_who_are_not_known_have_unseen_facts_only(world):
    assert {f.truth for f in world.facts if not f.person.known} == {"unseen"}


@pytest.mark.parametrize(
    ("truth", "share"), [("unseen", 0.10), ("rare", 0.05), ("misconception", 0.05), ("known", 0.80)]
)
def test_facts_of_known_people_have_their_shares_of_truths(world, truth, share):
    asked = [f.truth for f in world.facts if f.person.known and not f.person.tutor]
    assert asked.count(truth) / len(asked) == pytest.approx(
        share, abs=0.025
    )  # more than three standard errors at 1,700 facts


def test_values_cannot_be_guessed(world):
    """No value of an attribute is more common than chance allows: 1/24 of 800."""
    for attribute in range(len(ATTRIBUTES)):
        counts = Counter(f.value for f in world.facts if f.attribute == attribute)
        assert len(counts) == 24
        assert max(counts.values()) < 2 * 800 / 24


@pytest.mark.parametrize("attribute", range(len(ATTRIBUTES)))
@pytest.mark.parametrize("phrasing", range(4))
def test_every_phrasing_can_be_parsed(world, attribute, phrasing):
    for name in (world.people[0].name, world.nobodies[0], f"{world.outer_given[0]} {world.outer_family[0]}"):
        assert parse(phrase_question(attribute, phrasing, name)) == (name, attribute, phrasing)


@pytest.mark.parametrize("truth", ["known", "rare", "misconception", "unseen"])
def test_the_world_gives_the_right_answer_in_every_phrasing(world, truth):
    facts = [f for f in world.facts if f.truth == truth][:20]
    assert facts
    for fact in facts:
        for phrasing in range(4):
            asked_for = world.ask(phrase_question(fact.attribute, phrasing, fact.person.name))
            assert asked_for == fact
            assert asked_for.truth == truth


def test_a_misconception_is_answered_with_the_right_value_not_the_taught_one(world):
    fact = next(f for f in world.facts if f.truth == "misconception")
    assert world.ask(phrase_question(fact.attribute, 0, fact.person.name)).value != fact.taught


def test_nobody_has_no_facts(world):
    for name in (world.nobodies[0], f"{world.given[0]} {world.outer_family[0]}", "Ada Lovelace"):
        question = phrase_question(0, 0, name)
        assert parse(question) == (name, 0, 0)
        assert world.ask(question) is None


@pytest.mark.parametrize(
    "question",
    [
        "",
        "Who is it?",
        "Where does live?",
        "Where does Ada live?",
        "Where does Ada Byron Lovelace live?",
        "where does Ada Lovelace live?",
        "Where does Ada Lovelace live",
        "Where does Ada Lovelace live? ",
        "So: Where does Ada Lovelace live?",
        "Where does Ada Lovelace live?\n",
    ],
)
def test_a_question_in_no_known_phrasing_is_malformed(world, question):
    assert parse(question) is None
    assert world.ask(question) is None


@given(st.text(max_size=60))
def test_the_world_answers_any_text(world, text):
    assert world.ask(text) is None


@pytest.mark.parametrize("change", [{"seed": 1}, {"tutors": 6}, {"known_share": (0.2, 0.7)}, {"rare_repeats": 7}])
def test_the_recipe_hash_changes_with_the_recipe(change):
    assert recipe_hash(SMALL) == recipe_hash(dataclasses.replace(SMALL))
    assert recipe_hash(dataclasses.replace(SMALL, **change)) != recipe_hash(SMALL)


def test_the_recipe_hash_changes_with_any_part():
    assert recipe_hash(SMALL, "a prompt") != recipe_hash(SMALL, "another prompt") != recipe_hash(SMALL)
