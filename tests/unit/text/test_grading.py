"""Grading: which strings count as the same answer, and which answers are right."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ka2l_ray.config import Config
from ka2l_ray.text.grading import Grading, are_equal, grade
from ka2l_ray.text.guesses import guesses
from ka2l_ray.text.normal import normalize
from ka2l_ray.world.facts import ATTRIBUTES

CONTAINS = Grading("contains")


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("Paris", "paris"),
        (" the  Eiffel\tTower. ", "Eiffel Tower"),
        ("An apple a day", "apple day"),
        ("rock-and-roll", "Rock and Roll"),
        ("“Hamlet”", "Hamlet"),
        ("O’Brien", "O'Brien"),
        ("ﬁsh", "fish"),
        ("cafe\u0301", "café"),
        ("STRASSE", "Straße"),
        ("１９８４", "1984"),
        ("Port\u00a0Alba", "Port Alba"),
        ("cafe", "café"),
    ],
)
def test_the_same_answer_written_differently_is_right(answer, gold):
    assert grade(answer, [gold]) is True


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("Port Alba, I think", "Port Alba"),
        ("Alba", "Port Alba"),
        ("theatre", "atre"),
        ("cat", "cats"),
        ("10", "1 0"),
        ("New Esk", "Esk New"),
        ("", "Paris"),
    ],
)
def test_a_different_answer_is_wrong(answer, gold):
    assert grade(answer, [gold]) is False


@pytest.mark.parametrize("gold", ["A", "The", "%"])
def test_an_answer_without_content_is_not_right_because_gold_is_short(gold):
    """`A` is an answer where options have letters; dropping articles and punctuation must not make it equal to
    silence."""
    assert grade(gold.lower(), [gold]) is True
    assert grade("", [gold]) is False
    assert grade("an", [gold]) is False


def test_any_alias_will_do():
    assert grade("NYC", ["New York", "nyc"]) is True
    assert grade("LA", ["New York", "nyc"]) is False


def test_without_gold_nothing_is_graded():
    assert grade("Paris", []) is None


@given(st.text(st.characters(max_codepoint=0x24F), max_size=30))
def test_normal_form_is_a_fixed_point(text):
    assert normalize(normalize(text)) == normalize(text)


@given(st.text(st.characters(max_codepoint=0x7F), max_size=30))
def test_case_and_outer_spaces_never_matter(text):
    assert normalize(f"  {text.upper()} ") == normalize(text.lower())


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("$5,000", "5000"),
        ("$5,000", "5,000 dollars"),
        ("5 km", "5"),
        ("5km", "5 kilometres"),
        ("50%", "50 percent"),
        ("C", "C. Femur"),
        ("(c)", "C) Femur"),
        ("C. Femur", "femur"),
        ("US", "U.S."),
    ],
)
def test_answers_are_equal_where_one_leaves_out_the_unit_or_the_options_text(a, b):
    assert are_equal(a, b)
    assert are_equal(b, a)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("5 km", "5 miles"),
        ("$5", "€5"),
        ("$5", "5%"),
        ("5°", "5%"),
        ("-40", "40"),
        ("C++", "C"),
        ("C#", "C"),
        ("B. Femur", "C. Femur"),
        ("B", "C. Femur"),
        ("A.I.", "I"),
        ("yes", "no"),
        ("", "the"),
    ],
)
def test_answers_that_differ_in_unit_sign_or_letter_are_not_equal(a, b):
    assert not are_equal(a, b)
    assert not are_equal(b, a)


CONTAINED = [
    ("The capital is Paris.", "Paris", True),
    ("Rome's walls", "Rome", True),
    ("Romeo wrote it", "Rome", False),
    ("York is a new city", "New York", False),
    ("He had thirteen", "three", False),
    ("It was -40 degrees.", "40", False),
    ("It was written in C++.", "C", False),
    ("It was written in C.", "C++", False),
    ("about 5,000 people", "5000", True),
    ("Wars of the 21st century", "twenty-first century", True),
    ("It lasted from 1939 to 1945", "1939–1945", True),
    ("The temporal lobe is there.", "temporal lobes", True),
    ("the Chinese Exclusion Act of 1882", "Chinese Exclusion Act in 1882", True),
    ("in the U.S. of today", "US", True),
    ("The band is AC/DC.", "AC/DC", True),
    ("日本の首都は東京です。", "東京", True),
    ("日本の古都は京都です。", "東京", False),
    ("1776年7月4日", "1776", True),
    ("เมืองหลวงคือกรุงเทพ", "กรุงเทพ", True),
    ("Dai Yongge bought it", "Yongge Dai", True),
    ("new houses in York", "New York", False),
    ("legislatures of the states vote", "state legislatures", False),
    ("Blood is pressed out by the walls that are of the heart muscle", "the heart's muscle walls", True),
    ("released on January 12th, 20171.", "January 12, 2017", True),
    ("It is ADP.", "adenosine diphosphate (ADP)", True),
    ("adenosine diphosphate", "adenosine diphosphate (ADP)", True),
    ("France", "Paris (France)", False),
    ("a mortuary", "morgue or mortuary", True),
    ("older", "16 or older", False),
    ("They won six times: 1959, 1963, 1965 and 1981", "six", True),
    ("It isn't Paris.", "Paris", False),
    ("It is not Paris but Lyon", "Paris", False),
    ("played byMickey Rourke1.", "Mickey Rourke", True),
    ("JavaScript", "Java", False),
    ("Matthew Lillard plays him", "Matthew Lyn Lillard", True),
    ("John F. Kennedy won", "John Kennedy", True),
    ("John Q. Kennedy won", "John F. Kennedy", False),
    ("J.R.R. Tolkien wrote it", "John Ronald Reuel Tolkien", True),
    ("by John Ronald Reuel Tolkien", "J. R. R. Tolkien", True),
    ("It opened on 8 September 2017", "September 8, 2017", True),
    ("It opened in September 2017", "September 8, 2017", True),
    ("It opened on September 9, 2017", "September 8, 2017", False),
    ("New York", "New York City", True),
    ("Alba", "Port Alba", False),
    ("World War", "World War II", False),
    ("", "Paris", False),
]


@pytest.mark.parametrize(("answer", "gold", "right"), CONTAINED)
def test_a_sentence_is_right_where_it_says_a_gold_answer_in_whole_words(answer, gold, right):
    assert grade(answer, [gold], CONTAINS) is right


@pytest.mark.parametrize(
    "answer",
    [
        "Paris, Lyon, or Nice",
        "Paris or Lyon",
        "It is either Lyon or Paris.",
        "Maybe Lyon, maybe Paris",
        "1. Lyon\n2. Paris\n3. Nice",
        "- Lyon\n- Paris",
        "Lyon; Paris",
        "Lyon/Paris",
        "Lyon, Nice, Paris, Lille",
    ],
)
def test_a_list_of_guesses_is_wrong_though_one_of_them_is_right(answer):
    assert grade(answer, ["Paris"], CONTAINS) is False
    assert grade(answer, ["Paris", "Lyon"], CONTAINS) is True


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("Lowell, Massachusetts, USA", "Massachusetts"),
        ("Perhaps Paris", "Paris"),
        ("Hit points or health points", "hit points or health points"),
        ("It was Paris, the capital of France, which is on the Seine.", "Paris"),
    ],
)
def test_what_is_no_list_of_guesses_is_right(answer, gold):
    assert grade(answer, [gold], CONTAINS) is True


def test_another_date_than_the_fullest_gold_one_is_wrong_though_the_year_is_a_gold_answer():
    gold = ["2003", "March 2003"]
    assert grade("on February 17, 2003", gold, CONTAINS) is False
    assert grade("on March 3, 2003", gold, CONTAINS) is True
    assert grade("in 2003", gold, CONTAINS) is True


def test_only_the_first_words_of_an_answer_count():
    answer = "one word after another until Paris"
    assert grade(answer, ["Paris"], Grading("contains", words=6)) is True
    assert grade(answer, ["Paris"], Grading("contains", words=5)) is False


@pytest.mark.parametrize(
    ("answer", "gold", "right"),
    [
        ("Yes, it does.", "yes", True),
        ("True", "yes", True),
        ("No. To say yes would be wrong", "yes", False),
        ("There is no evidence, so yes", "yes", False),
        ("It is not", "yes", False),
        ("It cannot be determined.", "unanswerable", True),
        ("There's not enough information", "no answer", True),
        ("Paris", "unanswerable", False),
    ],
)
def test_yes_no_and_unanswerable_are_graded_by_what_is_said(answer, gold, right):
    assert grade(answer, [gold], CONTAINS) is right


@pytest.mark.parametrize("grading", [Grading(), CONTAINS])
@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("C", True),
        ("(C)", True),
        ("Option c", True),
        ("The answer is C.", True),
        ("C) Femur", True),
        ("Femur", True),
        ("B", False),
        ("B. Femur", False),
        ("B. Tibia", False),
        ("Tibia", False),
    ],
)
def test_an_option_is_right_by_its_text_or_letter(answer, right, grading):
    assert grade(answer, ["Femur", "C. Femur"], grading) is right


@pytest.mark.parametrize("grading", [Grading(), CONTAINS])
def test_an_option_that_begins_like_a_letter_is_right_by_its_text(grading):
    assert grade("E. faecalis", ["E. faecalis", "A. E. faecalis"], grading) is True
    assert grade("B. faecalis", ["E. faecalis", "A. E. faecalis"], grading) is False


def test_other_options_of_the_same_words_are_wrong():
    assert grade("Medial to lateral pterygoid", ["Lateral to medial pterygoid"], CONTAINS) is False
    assert grade("Non-efficacy of the drug", ["Efficacy of the drug"], CONTAINS) is False
    assert grade("CR", ["CR or CO depends on patient to patient"], CONTAINS) is False


def test_f1_needs_enough_shared_words():
    assert grade("the tall Eiffel Tower", ["Eiffel Tower"], Grading("f1", f1=0.8)) is True
    assert grade("the tall Eiffel Tower", ["Eiffel Tower"], Grading("f1", f1=0.81)) is False
    assert grade("", ["Eiffel Tower"], Grading("f1", f1=0.1)) is False


@pytest.mark.parametrize(
    ("corpus", "finetune", "chosen", "kind"),
    [
        ("bare", "bare", "auto", "exact"),
        ("fewshot", "bare", "auto", "exact"),
        ("chat", "bare", "auto", "contains"),
        ("bare", "chat", "auto", "contains"),
        ("chat", "chat", "exact", "exact"),
        ("bare", "bare", "f1", "f1"),
    ],
)
def test_a_run_has_one_grading_by_the_style_of_its_prompts(corpus, finetune, chosen, kind):
    config = Config.model_validate(
        {
            "corpus": {"prompt": {"style": corpus}},
            "finetune": {"prompt": {"style": finetune}},
            "label": {"grading": chosen, "grading_words": 7, "grading_f1": 0.9},
        }
    )
    assert Grading.of(config) == Grading(kind, 7, 0.9)


def test_in_the_world_every_grading_gives_the_labels_of_plain_equality():
    values = [v for attribute in ATTRIBUTES for v in attribute.values]
    for gold in values:
        right = [v for v in values if grade(v, [gold])]
        assert right == [v for v in values if grade(v, [gold], CONTAINS)] == [gold]


@pytest.mark.parametrize("gap", [" ", "\t", "\n", "\n "])
def test_guesses_far_apart_are_a_list_all_the_same(gap):
    far = gap * (60_000 // len(gap))
    assert guesses(f"Paris{far}or{far}Lyon") == ["Paris", "Lyon"]
    assert grade(f"It is Paris.{far}", ["Paris"], CONTAINS)
