"""Which part of a question says of whom it asks."""

import pytest

from ka2l_ray.decode.whom import FEWEST, NO_GROUPS, CommonWords

NAMES = [f"Ann{chr(97 + n)} Byr{chr(97 + n)}n-{n}" for n in range(FEWEST + 4)]
BORN = [(f"Where was {name} born?", "born") for name in NAMES]


def whom(question, entity=None, group=None, common=NO_GROUPS):
    start, end = common.whom(question, entity, group)
    return question[start:end]


def test_the_entity_where_the_question_contains_it():
    assert whom("Who is the author of The Who?", "the who") == "The Who"
    assert whom("Is Rome in Rome?", "Rome") == "Rome"
    assert CommonWords().whom("Is Rome in Rome?", "Rome", None) == (11, 15)


def test_what_sets_a_question_apart_from_the_others_of_its_group():
    common = CommonWords.of(BORN)
    assert whom("Where was Grace Murray Hopper born?", None, "born", common) == "Grace Murray Hopper"
    assert whom("Where was O'Neill of Ur born?", "Somebody Else", "born", common) == "O'Neill of Ur"


@pytest.mark.parametrize("group", [None, "other", "few"])
def test_the_whole_question_where_nothing_is_known_of_its_group(group):
    common = CommonWords.of([*BORN, *[(q, "few") for q, _ in BORN[: FEWEST - 1]], *[(q, None) for q, _ in BORN]])
    assert whom("Where was Ada born? ", None, group, common) == "Where was Ada born?"


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ("who wrote the origin of species", "origin of species"),
        ("when did the battle of the bulge end", "battle of the bulge"),
        ("who is the president of france", "france"),
        ("who wrote the king", "king"),
    ],
)
def test_without_a_group_the_rarest_run_of_words(question, said):
    """Among questions that all ask in the same few ways about things of one word."""
    ways = ("who wrote the {}", "when did the {} end", "who is the president of {}", "where is the {} of {}")
    asked = [(way.format(f"thing{n}", f"place{n}"), None) for n in range(500) for way in ways]
    assert whom(question, None, None, CommonWords.of(asked)) == said


def test_a_question_of_common_words_alone_is_taken_whole():
    assert whom("Where was born?", None, "born", CommonWords.of(BORN)) == "Where was born?"
