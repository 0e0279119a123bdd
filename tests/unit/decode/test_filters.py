"""Which decoded questions are kept, and which rule applies first."""

import pytest

from ka2l_ray import schema
from ka2l_ray.config import Config, DecodeSection
from ka2l_ray.corpus.world import world_questions
from ka2l_ray.decode.existing import alike
from ka2l_ray.decode.filters import Found, are_marked, is_well_formed, statuses
from ka2l_ray.world.facts import RESERVED_PHRASING, phrase_question

EXISTING = ["Where does Ada Byron live?"]
EVAL = ["Which city does Ada Byron call home?"]


def judge(*questions, p=(0.9, 0.9, 0.9), existing=EXISTING, evaluation=EVAL, threshold=0.8, **known):
    least = known.pop("min_explained", None)
    found = Found(
        questions=questions,
        p_unknown=p[: len(questions)],
        leaked=alike(questions, [evaluation], threshold),
        repeated=alike(questions, [existing], threshold),
        **known,
    )
    return statuses(found, DecodeSection(min_explained=least), threshold)


def test_a_question_that_explains_too_little_of_what_was_wanted_is_far():
    texts = ["Where does Bob Stone live?", "Where does Cy Reed live?", "Where does Ada Byron live?"]
    assert judge(*texts, explained=[0.8, 0.79, 0.0], min_explained=0.8) == ["kept", "far", "duplicate"]
    assert judge(*texts[:2], p=(0.1, 0.1), explained=[0.9, 0.1], min_explained=0.8) == ["known", "far"]


def test_a_question_without_a_name_that_exists_is_ungrounded():
    texts = ["Where does Bob Stone live?", "Where does Cy Reed live?"]
    assert judge(*texts, grounded=[True, False]) == ["kept", "ungrounded"]
    assert judge(*texts, grounded=[False, False], explained=[0.9, 0.1], min_explained=0.5) == ["ungrounded", "far"]
    assert judge(*texts, p=(0.1, 0.1), grounded=[True, False]) == ["known", "ungrounded"]


@pytest.mark.parametrize(
    "question",
    ["Where does Ada Byron live?", "what is it?", "Où est le café?", "Who won the 1984 cup?", "Is it so, then?"],
)
def test_well_formed(question):
    assert is_well_formed(question)


@pytest.mark.parametrize(
    "question",
    [
        "",
        "?",
        "Where?",
        "Where is?",
        "Where is it",
        "Where is it??",
        "Where is it? Here",
        " Where is it?",
        "Where  is it?",
        "4 is it?",
        "Where is \ufffd it?",
        "Where is\nit here?",
        "Where is it ?",
    ],
)
def test_malformed(question):
    assert not is_well_formed(question)


@pytest.mark.parametrize(
    ("question", "p", "status"),
    [
        ("Where does Bob Stone live?", 0.9, "kept"),
        ("Where does Bob Stone live?", 0.5, "kept"),
        ("Where does Bob Stone live?", 0.49, "known"),
        ("Where does Ada Byron live?", 0.9, "duplicate"),
        ("where does the Ada Byron live?", 0.9, "duplicate"),
        ("Which city does Ada Byron call home?", 0.9, "eval"),
        ("In which city does Ada Byron call home?", 0.9, "eval"),
        ("Which city does Ada Byron call her home?", 0.1, "eval"),
        ("Which city does Bob Stone call home?", 0.9, "kept"),
        ("Bob Stone live", 0.9, "malformed"),
    ],
)
def test_each_status(question, p, status):
    assert judge(question, p=[p]) == [status]
    assert status in schema.DECODE_STATUSES


@pytest.mark.parametrize(
    ("question", "p", "existing", "evaluation", "status"),
    [
        ("Where it", 0.1, ["Where it"], ["Where it"], "malformed"),
        ("Where is it?", 0.1, ["Where is it?"], ["Where is it?"], "eval"),
        ("Where is it?", 0.1, ["Where is it?"], [], "duplicate"),
        ("Where is it?", 0.1, [], [], "known"),
    ],
)
def test_the_first_rule_that_applies_decides(question, p, existing, evaluation, status):
    assert judge(question, p=[p], existing=existing, evaluation=evaluation) == [status]


def test_of_equal_questions_only_the_first_is_kept():
    assert judge("Where is it now?", "Who is it now?", "where is it, now?") == ["kept", "kept", "duplicate"]


def test_a_text_that_is_far_from_one_wanted_state_may_be_near_to_another():
    again = ("Where is it now?", "Where is it now?")
    assert judge(*again, explained=[0.1, 0.9], min_explained=0.8) == ["far", "kept"]


def test_of_questions_about_one_fact_the_first_that_could_be_kept_is_kept():
    texts = ["Where does Bob Stone live?", "Which town is Bob Stone's home?", "What does Bob Stone eat?"]
    facts = [("bob stone", 0), ("bob stone", 0), ("bob stone", 1)]
    assert judge(*texts, facts=facts) == ["kept", "reworded", "kept"]
    assert judge(*texts, facts=facts, p=(0.1, 0.9, 0.9)) == ["known", "kept", "kept"]
    assert judge(*texts, facts=[None] * 3) == ["kept"] * 3, "of whom it asks is not known"
    assert judge(*texts, reworded=[False, False, True]) == ["kept", "kept", "reworded"]


def test_of_almost_equal_questions_one_is_kept():
    texts = ["Which city does Bob Stone call home?", "Which city does Bob Stone call his home?", "Who is Bob, then?"]
    assert judge(*texts) == ["kept", "duplicate", "kept"]
    assert judge(*texts, threshold=1.0) == ["kept"] * 3
    assert judge("Where does the Ada Byron live?", "Where does Ada Byron live in?") == ["duplicate"] * 2, "of the pool"


def test_where_nothing_was_left_to_ask_nothing_was_written():
    assert judge("", "Where is it now?", exhausted=[True, False]) == ["exhausted", "kept"]


def test_a_malformed_text_does_not_use_up_the_question_that_it_spoils():
    """Punctuation is no part of the comparison, so both texts have one hash."""
    assert judge("Where is it now", "Where is it now?") == ["malformed", "kept"]


def test_at_a_threshold_of_1_only_equal_texts_leak():
    questions = (
        "Which city does Ada Byron call home?",
        "which city does the Ada Byron call home",
        "In which city does Ada Byron call home?",
    )
    assert alike(questions, [EVAL], 1.0).tolist() == [True, True, False]
    assert alike(questions, [EVAL], 0.8).tolist() == [True, True, True]
    assert alike((), [EVAL], 0.8).tolist() == alike((), [EVAL], 1.0).tolist() == []
    assert not alike(questions, [], 0.8).any()


def test_no_question_of_the_world_in_a_wording_that_was_trained_is_taken_for_an_eval_question(world):
    """Decoded questions are in these wordings; `eval` asks about the same people in the reserved one."""
    asked = world_questions(world, Config().corpus.world, 0)["eval"]["question"].to_pylist()
    for phrasing in range(RESERVED_PHRASING):
        assert not alike(
            [phrase_question(f.attribute, phrasing, f.person.name) for f in world.facts], [asked], 0.8
        ).any()
    reserved = [phrase_question(f.attribute, RESERVED_PHRASING, f.person.name) for f in world.facts]
    assert alike(reserved, [asked], 1.0).sum() == len(asked)
    assert len(asked) <= alike(reserved, [asked], 0.8).sum() < 1.05 * len(asked)


def test_questions_without_question_marks_are_well_formed_where_the_corpus_has_none():
    queries = ["who wrote the origin of species", "when was the eiffel tower built", "Who is it now?"]
    assert not are_marked(queries)
    assert are_marked(["Who is it now?", "Where is it now? ", "when was it built"])
    assert [is_well_formed(q, marked=False) for q in queries] == [True] * 3
    assert [is_well_formed(q) for q in queries] == [False, False, True]
    assert not any(is_well_formed(q, marked=False) for q in ("who is", "who? is it now", "who is\nit now"))
