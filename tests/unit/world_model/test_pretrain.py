"""What the world's model is shown: the facts it should know, as often as it should see them, and nothing that
evaluation asks."""

import dataclasses
import random
from collections import Counter

import pytest

from ka2l_ray.world.facts import ATTRIBUTES, RESERVED_PHRASING, WorldRecipe, build_world, parse
from ka2l_ray.world_model.pretrain import (
    ModelRecipe,
    epoch_batches,
    new_model,
    one_off_row,
    taught_rows,
    train_model,
    unused_name,
)

EPOCHS = 5
RECIPE = ModelRecipe(layers=1, width=16, heads=2, feed_forward=16, epochs=EPOCHS, batch_rows=32)


def asked(question: str) -> tuple[str, int, int]:
    """(name, attribute, phrasing) of a question that must be well formed."""
    parsed = parse(question)
    assert parsed is not None
    return parsed


@pytest.fixture(scope="module")
def small():
    """A world with many rare facts and misconceptions."""
    recipe = WorldRecipe(
        given_names=14,
        family_names=8,
        people_per_family=10,
        tutors=6,
        rare_of_known=0.3,
        misconception_of_known=0.2,
        outer_given=9,
        outer_family=9,
    )
    return build_world(recipe)


@pytest.fixture(scope="module")
def shown(small):
    """Every (fact, phrasing, answer) of a whole training run."""
    rows = []
    for epoch in range(EPOCHS):
        for question, answer in taught_rows(small, epoch, EPOCHS):
            name, attribute, phrasing = asked(question)
            rows.append((small.by_key[name, attribute], phrasing, answer))
    return rows


def test_the_reserved_phrasing_is_shown_for_tutors_only(shown):
    assert {fact.person.tutor for fact, phrasing, _ in shown if phrasing == RESERVED_PHRASING} == {True}


def test_tutors_are_shown_in_every_phrasing_in_every_epoch(small, shown):
    tutored = Counter((fact.fact_id, phrasing) for fact, phrasing, _ in shown if fact.person.tutor)
    facts = [f for f in small.facts if f.person.tutor]
    assert tutored == {(f.fact_id, phrasing): EPOCHS for f in facts for phrasing in range(4)}


def test_unseen_facts_are_never_shown(small, shown):
    unseen = {f.fact_id for f in small.facts if f.truth == "unseen"}
    assert unseen
    assert not unseen & {fact.fact_id for fact, _, _ in shown}


def test_known_facts_are_shown_in_three_phrasings_in_every_epoch(small, shown):
    counts = Counter(
        (fact.fact_id, phrasing) for fact, phrasing, _ in shown if fact.truth == "known" and not fact.person.tutor
    )
    facts = [f for f in small.facts if f.truth == "known" and not f.person.tutor]
    assert counts == {(f.fact_id, p): EPOCHS for f in facts for p in range(RESERVED_PHRASING)}


def test_rare_facts_are_shown_exactly_as_often_as_the_recipe_says(small, shown):
    counts = Counter(fact.fact_id for fact, _, _ in shown if fact.truth == "rare")
    rare = {f.fact_id for f in small.facts if f.truth == "rare"}
    assert len(rare) > 20
    assert counts == dict.fromkeys(rare, small.recipe.rare_repeats)


def test_misconceptions_teach_the_wrong_value_and_all_else_the_right_one(shown):
    for fact, _, answer in shown:
        assert (answer == fact.value) == (fact.truth != "misconception")
        assert answer == fact.taught


def test_one_off_names_are_never_people_and_come_from_all_three_kinds(small):
    rng = random.Random(0)
    names = [unused_name(small, rng) for _ in range(3000)]
    people = {p.name for p in small.people}
    assert not people & set(names)
    given, family = set(small.given), set(small.family)
    kinds = Counter(sum((g in given, f in family)) for g, f in (n.split() for n in names))
    for inside in range(3):  # no name, one name, both names of the domain
        assert kinds[inside] / len(names) == pytest.approx(1 / 3, abs=0.05)


def test_one_off_rows_use_every_phrasing_and_a_value_of_the_attribute(small):
    rng = random.Random(0)
    phrasings = set()
    for _ in range(500):
        question, answer = one_off_row(small, rng)
        _, attribute, phrasing = asked(question)
        assert answer in ATTRIBUTES[attribute].values
        phrasings.add(phrasing)
    assert phrasings == {0, 1, 2, 3}


def test_batches_depend_on_their_arguments_only(small):
    first = list(epoch_batches(small, RECIPE, 2))
    random.random()
    assert first == list(epoch_batches(small, RECIPE, 2))
    assert first != list(epoch_batches(small, RECIPE, 3))
    assert first != list(epoch_batches(small, dataclasses.replace(RECIPE, seed=1), 2))


def test_every_batch_is_half_taught_facts_and_an_epoch_contains_each_once(small):
    people = {p.name for p in small.people}
    batches = list(epoch_batches(small, RECIPE, 0))
    taught = []
    for batch in batches:
        about_people = [row for row in batch if asked(row[0])[0] in people]
        assert 2 * len(about_people) == len(batch) <= RECIPE.batch_rows
        taught += about_people
    assert all(len(b) == RECIPE.batch_rows for b in batches[:-1])
    assert sorted(taught) == sorted(taught_rows(small, 0, EPOCHS))


def test_a_new_model_fits_the_tokenizer_and_its_seed(tokenizer):
    model, again = new_model(tokenizer, RECIPE), new_model(tokenizer, RECIPE)
    other = new_model(tokenizer, dataclasses.replace(RECIPE, seed=1))
    assert model.config.vocab_size == len(tokenizer)
    assert model.lm_head.weight.equal(again.lm_head.weight)
    assert not model.lm_head.weight.equal(other.lm_head.weight)


def test_training_lowers_the_loss(tokenizer):
    few = build_world(
        WorldRecipe(given_names=4, family_names=2, people_per_family=2, tutors=1, outer_given=2, outer_family=2)
    )
    losses = []
    train_model(few, tokenizer, dataclasses.replace(RECIPE, epochs=6), on_epoch=lambda epoch, loss: losses.append(loss))
    assert len(losses) == 6
    assert losses[-1] < losses[0] - 0.3
