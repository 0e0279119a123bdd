"""The questions asked about the world: exact sizes and shares, and splits that share no person."""

from collections import Counter

import pytest

from ka2l_ray import schema
from ka2l_ray.config import ConfigError, WorldCorpusSection
from ka2l_ray.corpus.world import world_questions
from ka2l_ray.schema import SCOPES
from ka2l_ray.world.facts import RESERVED_PHRASING, parse

SIZES = {"pool_questions": 120, "probe_questions": 300, "domain_questions": 50}


def asked(world, seed=0, **fields):
    return world_questions(world, WorldCorpusSection.model_validate(SIZES | fields), seed)


@pytest.fixture(scope="module")
def splits(world):
    return asked(world)


def rows(splits, split, scope=None):
    return [r for r in splits[split].to_pylist() if scope is None or r["scope"] == scope]


def unseen_share(rows):
    return sum(r["truth"] == "unseen" for r in rows) / len(rows)


def test_tables_have_the_schema(splits):
    assert set(splits) == set(schema.SPLITS)
    for split, table in splits.items():
        assert table.schema == schema.QUESTIONS
        assert set(table["split"].to_pylist()) == {split}
    assert {r["scope"] for r in rows(splits, "probe") + rows(splits, "pool")} == {None}


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.8, 0.95])
def test_sizes_are_exact_and_so_is_the_unknown_share(world, share):
    splits = asked(world, unknown_share=share)
    assert splits["pool"].num_rows == 120
    assert splits["probe"].num_rows == 300
    assert len(rows(splits, "eval", "pool")) == 120
    assert len(rows(splits, "eval", "domain")) == 50
    assert unseen_share(rows(splits, "pool")) == round(120 * share) / 120
    assert unseen_share(rows(splits, "eval", "domain")) == round(50 * share) / 50


def test_the_probe_split_is_balanced(splits):
    assert unseen_share(rows(splits, "probe")) == 0.5


def test_the_default_sizes_fit_the_default_world(world):
    sizes = WorldCorpusSection()
    splits = world_questions(world, sizes, 0)
    assert splits["pool"].num_rows == sizes.pool_questions
    assert splits["probe"].num_rows == sizes.probe_questions
    assert splits["eval"].num_rows == sizes.pool_questions + sizes.domain_questions


def test_splits_share_no_person(splits):
    people = [
        {r["entity"] for r in part}
        for part in (rows(splits, "probe"), rows(splits, "pool"), rows(splits, "eval", "domain"))
    ]
    assert all(people)
    for i, a in enumerate(people):
        for b in people[i + 1 :]:
            assert a.isdisjoint(b)


def test_a_person_is_what_is_split_and_divided_by(splits):
    assert all(r["split_group"] == r["entity"] for split in splits for r in rows(splits, split))


def test_every_eval_question_has_a_scope(splits):
    assert {r["scope"] for r in rows(splits, "eval")} == {"pool", "domain"} < set(SCOPES)


def test_eval_asks_every_pool_fact_again_in_the_reserved_phrasing(splits):
    pool, again = rows(splits, "pool"), rows(splits, "eval", "pool")
    assert [r["fact_id"] for r in again] == [r["fact_id"] for r in pool]
    assert {r["question"] for r in again}.isdisjoint(r["question"] for r in pool)


def test_only_eval_uses_the_reserved_phrasing(splits):
    for split in schema.SPLITS:
        phrasings = {parsed[2] for r in rows(splits, split) if (parsed := parse(r["question"]))}
        assert phrasings == ({RESERVED_PHRASING} if split == "eval" else {0, 1, 2})


def test_ids_are_unique_over_all_splits(splits):
    ids = [r["id"] for split in splits for r in rows(splits, split)]
    assert len(set(ids)) == len(ids)


def test_rows_say_what_the_world_says(world, splits):
    for split in splits:
        for row in rows(splits, split):
            fact = world.ask(row["question"])
            assert row["answers"] == [fact.value]
            assert (row["truth"], row["fact_id"], row["entity"]) == (fact.truth, fact.fact_id, fact.person.name)
            assert row["group"] == fact.person.family


def test_tutors_are_never_asked_about(world, splits):
    tutors = {p.name for p in world.people if p.tutor}
    assert tutors.isdisjoint(r["entity"] for split in splits for r in rows(splits, split))


@pytest.mark.parametrize(
    ("wanted", "truths"), [(True, {"known", "unseen", "rare", "misconception"}), (False, {"known", "unseen"})]
)
def test_misconceptions_and_rare_facts_can_be_left_out(world, wanted, truths):
    splits = asked(world, misconceptions=wanted, probe_questions=1000)
    assert {r["truth"] for split in splits for r in rows(splits, split)} == truths


def test_the_same_seed_asks_the_same_and_another_seed_other_questions(world, splits):
    again, other = asked(world), asked(world, seed=1)
    for split in schema.SPLITS:
        assert again[split].equals(splits[split])
        assert set(other[split]["id"].to_pylist()) != set(splits[split]["id"].to_pylist())


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"pool_questions": 2000, "unknown_share": 0.05}, "pool"),
        ({"pool_questions": 1500, "domain_questions": 1000, "unknown_share": 0.2}, "domain"),
        ({"pool_questions": 1000, "domain_questions": 500, "probe_questions": 3000}, "probe"),
    ],
)
def test_more_questions_than_the_world_holds_are_refused(world, fields, name):
    with pytest.raises(ConfigError, match=rf"corpus\.world\.{name}_questions"):
        asked(world, **fields)


@pytest.mark.parametrize("count", [2, 4])
def test_of_each_person_of_the_pool_some_facts_are_asked_and_eval_asks_the_others_too(world, count):
    sizes = {"pool_questions": 600, "probe_questions": 1300, "domain_questions": 200, "facts_per_person": count}
    splits = asked(world, **sizes)
    assert max(Counter(splits["pool"]["entity"].to_pylist()).values()) == count
    assert max(Counter(splits["probe"]["entity"].to_pylist()).values()) == 5
    beyond, elsewhere = rows(splits, "eval", "beyond"), [*rows(splits, "pool"), *rows(splits, "probe")]
    assert not {r["fact_id"] for r in elsewhere} & {r["fact_id"] for r in beyond}
    people = set(splits["pool"]["entity"].to_pylist())
    assert {r["entity"] for r in beyond} == people
    assert len(beyond) + 600 == sum(f.person.name in people for f in world.facts)
    assert (400 < sum(r["truth"] == "unseen" for r in beyond) < 550) == (count == 2)
    assert not rows(asked(world), "eval", "beyond"), "where all facts are asked there are none"


def test_a_probe_split_for_which_too_few_people_are_left_is_refused_with_what_fits(world):
    with pytest.raises(ConfigError, match=r"probe_questions = 2200: the world has only 1,?\d\d\d left"):
        world_questions(world, WorldCorpusSection(facts_per_person=2), 0)
