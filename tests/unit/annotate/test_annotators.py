"""Annotators: the world knows every person, the corpus its own gold answers."""

from ka2l_ray.annotate.annotators import Annotated, ask_reference, ask_world
from ka2l_ray.world.facts import World, word


def test_the_world_answers_with_the_truth_even_where_the_model_was_taught_wrong(world: World):
    fact = next(f for f in world.facts if f.truth == "misconception")
    question = word(fact.attribute, 1, fact.person.name)
    assert ask_world(world)(question, []) == Annotated(fact.value, "answered")
    assert fact.value != fact.taught


def test_the_world_says_when_there_is_no_such_person_or_no_such_question(world: World):
    assert ask_world(world)(word(0, 0, world.nobodies[0]), []) == Annotated(None, "no_such_thing")
    assert ask_world(world)("Why is the sky blue?", []) == Annotated(None, "no_such_thing")


def test_the_reference_is_the_first_gold_answer():
    assert ask_reference("q", ["Paris", "City of Light"]) == Annotated("Paris", "answered")
    assert ask_reference("q", []) == Annotated(None, "no_reference")
