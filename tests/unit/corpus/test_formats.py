"""Known question sets, each in the forms it is passed around in."""

import functools
from typing import Any

import pytest

from ka2l_ray.config import CorpusSection
from ka2l_ray.corpus.formats import Question, columns_read, first_option, missing, parse, value_at
from ka2l_ray.dataflow.rows import BadRow

FORMS: dict[str, tuple[str, dict[str, Any], Question]] = {
    "nq_open": ("nq_open", {"question": "who?", "answer": ["A", "B", "A"]}, Question("who?", ("A", "B"))),
    "trivia_qa, the hub's": (
        "trivia_qa",
        {
            "question": "Who?",
            "question_id": "tc_1",
            "answer": {"value": "Ann", "aliases": ["Anna"], "normalized_aliases": ["ann"]},
        },
        Question("Who?", ("Ann", "Anna"), "tc_1"),
    ),
    "trivia_qa, flat": (
        "trivia_qa",
        {"context": "Question: Who?\nAnswer:", "answer": "Ann", "aliases": ["Anna", "Ann"]},
        Question("Who?", ("Ann", "Anna")),
    ),
    "medmcqa": (
        "medmcqa",
        {
            "question": "Longest bone?",
            "opa": "Femur",
            "opb": "Ulna",
            "opc": "",
            "opd": "Rib",
            "cop": 2,
            "subject_name": "Anatomy",
            "id": "x",
        },
        Question("Longest bone?\nA. Femur\nB. Ulna\nD. Rib", ("Ulna", "B. Ulna"), "x", "Anatomy"),
    ),
    "medmcqa without gold": (
        "medmcqa",
        {"question": "Longest bone?", "opa": "Femur", "opb": "Ulna", "opc": "Toe", "opd": "Rib", "cop": -1},
        Question("Longest bone?\nA. Femur\nB. Ulna\nC. Toe\nD. Rib", ()),
    ),
    "medmcqa, from a table with gaps": (
        "medmcqa",
        {
            "question": "Longest bone?",
            "opa": "Femur",
            "opb": "Ulna",
            "opc": float("nan"),
            "opd": 4.0,
            "cop": 1.0,
            "id": float("nan"),
        },
        Question("Longest bone?\nA. Femur\nB. Ulna\nD. 4", ("Femur", "A. Femur")),
    ),
    "popqa, the authors'": (
        "popqa",
        {"id": 7, "question": "What?", "possible_answers": '["pol", "polit."]', "prop": "occupation"},
        Question("What?", ("pol", "polit."), "7", "occupation"),
    ),
    "popqa, merged": (
        "popqa",
        {
            "question": "What is George Rankin's occupation?",
            "answers": ["pol"],
            "subj": "George Rankin",
            "prop": "occupation",
        },
        Question("What is George Rankin's occupation?", ("pol",), None, "occupation", "George Rankin"),
    ),
    "entity_questions, of its file's relation": (
        "entity_questions",
        {"question": "Which country is Pulkal mandal located in?", "answers": ["India"]},
        Question("Which country is Pulkal mandal located in?", ("India",), None, "P17", "Pulkal mandal"),
    ),
    "entity_questions, of its row's relation": (
        "entity_questions",
        {"relation": "P112", "question": "Who founded Zynga?", "answers": ["Mark Pincus"]},
        Question("Who founded Zynga?", ("Mark Pincus",), None, "P112", "Zynga"),
    ),
    "entity_questions, named by its relation": (
        "entity_questions",
        {"question": "What?", "answers": ["x"]},
        Question("What?", ("x",), None, "P17"),
    ),
    "squad, the hub's": (
        "squad",
        {"id": "1", "title": "Rivers", "question": "Why?", "answers": {"text": ["so", "so"], "answer_start": [1, 2]}},
        Question("Why?", ("so",), "1", "Rivers", "Rivers"),
    ),
    "squad, a text": ("squad", {"id": "1", "question": "Why?", "answers": "so"}, Question("Why?", ("so",), "1")),
    "squad, a number": ("squad", {"id": "1", "question": "Why?", "answers": 42}, Question("Why?", ("42",), "1")),
    "squad, a dictionary in a cell": (
        "squad",
        {"id": "1", "question": "Why?", "answers": "{'text': ['so', 'thus'], 'answer_start': [1, 2]}"},
        Question("Why?", ("so", "thus"), "1"),
    ),
    "trivia_qa, the hub's in a cell": (
        "trivia_qa",
        {"question": "Who?", "question_id": "tc_1", "answer": '{"value": "Ann", "aliases": ["Anna"]}'},
        Question("Who?", ("Ann", "Anna"), "tc_1"),
    ),
    "squad, impossible": ("squad", {"id": "1", "question": "Why?", "answers": []}, Question("Why?", (), "1")),
    "simpleqa": (
        "simpleqa",
        {"problem": "Who?", "answer": "Ann", "metadata": "{'topic': 'Art'}"},
        Question("Who?", ("Ann",), None, "Art"),
    ),
    "simpleqa, a dictionary that was read": (
        "simpleqa",
        {"problem": "Who?", "answer": "Ann", "metadata": {"topic": "Art", "answer_type": None}},
        Question("Who?", ("Ann",), None, "Art"),
    ),
    "trivia_qa, the authors'": (
        "trivia_qa",
        {
            "Question": "Who?",
            "QuestionId": "tc_1",
            "Answer": {"Aliases": ["Anna"], "NormalizedAliases": ["anna"], "Type": "WikipediaEntity", "Value": "Ann"},
        },
        Question("Who?", ("Ann", "Anna"), "tc_1"),
    ),
    "trivia_qa, with holes": (
        "trivia_qa",
        {"question": "Who?", "question_id": "tc_1", "answer": {"value": "Ann", "aliases": [None, "Anna", ""]}},
        Question("Who?", ("Ann", "Anna"), "tc_1"),
    ),
    "squad, lists of objects of lists": (
        "squad",
        {
            "question": "Why?",
            "answers": [{"text": ["so", None], "answer_start": [1]}, {"text": [], "answer_start": []}],
        },
        Question("Why?", ("so",)),
    ),
    "generic, objects with a text": (
        "generic",
        {"question": "Why?", "answers": [{"text": "so", "start": 3}, {"start": 9}, [{"spans": ["thus", 7]}]]},
        Question("Why?", ("so", "thus", "7")),
    ),
    "generic, braces that are no object": (
        "generic",
        {"question": "Why?", "answers": "{'text': array, 'text': ['so'], 'answer_start': [1]}"},
        Question("Why?", ("{'text': array, 'text': ['so'], 'answer_start': [1]}",)),
    ),
    "generic, a set of numbers in braces": (
        "generic",
        {"question": "What is A?", "answers": "{1, 2}"},
        Question("What is A?", ("{1, 2}",)),
    ),
    "kilt": (
        "kilt",
        {
            "id": "k1",
            "input": "Who?",
            "output": [{"answer": "Ann", "provenance": [{"title": "A"}]}, {"provenance": [{"title": "B"}]}],
        },
        Question("Who?", ("Ann",), "k1"),
    ),
    "kilt, provenance alone": ("kilt", {"input": "Who?", "output": [{"provenance": []}]}, Question("Who?", ())),
    "kilt, of a table": (
        "kilt",
        {"input": "Who?", "output": [{"answer": None, "meta": {"score": 1}}, {"answer": "Ann", "meta": None}]},
        Question("Who?", ("Ann",)),
    ),
    "alpaca": (
        "alpaca",
        {"instruction": "Name a river.", "input": "", "output": "The Nile"},
        Question("Name a river.", ("The Nile",)),
    ),
    "alpaca, with an input and an essay": (
        "alpaca",
        {"instruction": "Continue.", "input": " one, two\n", "output": "and so on " * 400},
        Question("Continue.\n\none, two", ()),
    ),
    "alpaca, a reply that looks like a list": (
        "alpaca",
        {"instruction": "List two.", "output": "[1, 2]"},
        Question("List two.", ("[1, 2]",)),
    ),
    "messages": (
        "messages",
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Who?"},
                {"role": "assistant", "content": "Ann"},
                {"role": "user", "content": "And where?"},
                {"role": "assistant", "content": "Here"},
            ]
        },
        Question("Who?", ("Ann",)),
    ),
    "messages, in parts": (
        "messages",
        {
            "messages": [
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Who?"}]},
                {"role": "assistant", "content": [{"type": "text", "text": "Ann"}]},
            ]
        },
        Question("Who?", ("Ann",)),
    ),
    "messages, without a reply": (
        "messages",
        {"messages": [{"role": "user", "content": "Who?"}], "conversations": None},
        Question("Who?", ()),
    ),
    "messages, as ShareGPT has them": (
        "messages",
        {"id": "c1", "conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Ann"}]},
        Question("Who?", ("Ann",), "c1"),
    ),
    "messages, in a cell": (
        "messages",
        {"messages": '[{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ann"}]'},
        Question("Who?", ("Ann",)),
    ),
    "generic": (
        "generic",
        {"question": " Why? ", "answers": "so", "id": 3, "group": "x", "more": 1},
        Question("Why?", ("so",), "3", "x"),
    ),
    "generic, about an entity": (
        "generic",
        {"question": "Why?", "answers": "so", "entity": " The Nile "},
        Question("Why?", ("so",), None, None, "The Nile"),
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_row_of_each_form_becomes_its_question(name: str) -> None:
    kind, row, question = FORMS[name]
    corpus = CorpusSection.model_validate({"format": kind, "medmcqa_first": 1})
    assert parse(row, corpus, "data/P17.dev.json") == question


def test_an_option_counted_from_zero() -> None:
    corpus = CorpusSection(format="medmcqa", medmcqa_first=0)
    row = {"question": "?", "opa": "a", "opb": "b", "opc": "c", "opd": "d", "cop": 0}
    found = parse(row, corpus, "f")
    assert isinstance(found, Question)
    assert found.answers == ("a", "A. a")
    assert parse(row | {"cop": 4}, corpus, "f") == BadRow("cop", "must name an option, 0 … 3", "4")


@pytest.mark.parametrize(
    ("numbers", "first"), [({0, 3}, 0), ({4, 1}, 1), ({1, 2, 3}, None), ({2}, None), (set(), None)]
)
def test_only_the_ends_of_the_range_show_where_options_count_from(numbers: set[int], first: int | None) -> None:
    assert first_option(frozenset(numbers)) == first


@pytest.mark.parametrize("numbers", [{0, 4}, {5}, {-2, 1}])
def test_numbers_that_fit_no_four_options_are_refused(numbers: set[int]) -> None:
    with pytest.raises(ValueError, match="must count four options"):
        first_option(frozenset(numbers))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("a.b", 1),
        ("dotted.name", 2),
        ("cell.x.1", "two"),
        ("list.text", ["p", "q"]),
        ("list.0.text", "p"),
        ("list.9", None),
        ("holes.text", ["p", None]),
        ("gone", None),
        ("a.b.c", None),
    ],
)
def test_dotted_paths_reach_nested_columns_and_cells_of_json(path: str, value: Any) -> None:
    row = {"a": {"b": 1}, "dotted.name": 2, "cell": '{"x": ["one", "two"]}', "list": [{"text": "p"}, {"text": "q"}]}
    row |= {"holes": [{"text": "p"}, {"other": 1}, None, {"text": None}]}
    assert value_at(row, path) == value


def test_equal_questions_share_an_id_and_the_corpus_own_id_takes_precedence() -> None:
    assert Question("The Nile?", ()).id == Question("nile", ()).id
    assert Question("The Nile?", (), "n1").id == "n1"


GOLD: dict[str, tuple[Any, tuple[str, ...]]] = {
    "a list": (["a", "b"], ("a", "b")),
    "a list as JSON": ('["a", "b"]', ("a", "b")),
    "a list as pandas writes it": ("['a', \"b's\"]", ("a", "b's")),
    "a text": ("a", ("a",)),
    "a bracket that opens no list": ("[sic] that", ("[sic] that",)),
    "a number": (7, ("7",)),
    "a whole number in a column with gaps": (1969.0, ("1969",)),
    "a fraction": (2.5, ("2.5",)),
    "numbers": ([1.0, 2.5, 3], ("1", "2.5", "3")),
    "nothing": (None, ()),
    "an empty text": (" ", ()),
    "NaN": (float("nan"), ()),
    "NaN among others": ([float("nan"), "a"], ("a",)),
    "holes in a list": ([None, "a", "", None, "b"], ("a", "b")),
    "a list of holes": ([None, None], ()),
    "lists in a list": ([["a"], [], ["b", None]], ("a", "b")),
    "an object": ({"text": ["a", "b"], "answer_start": [1, 2]}, ("a", "b")),
    "an object in a cell": ("{'text': ['a', 'b'], 'answer_start': [1, 2]}", ("a", "b")),
}
FIELDS = {
    "generic": "answers",
    "nq_open": "answer",
    "trivia_qa": "answer",
    "popqa": "answers",
    "entity_questions": "answers",
    "squad": "answers",
}


@pytest.mark.parametrize("gold", GOLD.values(), ids=GOLD)
@pytest.mark.parametrize(("kind", "field"), FIELDS.items())
def test_gold_is_read_the_same_in_every_format(kind: str, field: str, gold: tuple[Any, tuple[str, ...]]) -> None:
    row = {"problem" if kind == "simpleqa" else "question": "Why?", field: gold[0]}
    found = parse(row, CorpusSection.model_validate({"format": kind}), "f")
    assert isinstance(found, Question)
    assert found.answers == gold[1]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"x": 1}, "must be text, a number"),
        ([{"provenance": []}], "must be text, a number"),
        (True, "must be text, a number"),
        ([[[["a", True]]]], "must be text, a number"),
        (functools.reduce(lambda inner, _: [inner], range(5_000), "a"), "is nested too deeply"),
    ],
)
def test_gold_that_says_nothing_is_refused(value: Any, says: str) -> None:
    found = parse({"question": "Why?", "answers": value}, CorpusSection(), "f")
    assert isinstance(found, BadRow)
    assert found.field == "answers"
    assert says in found.problem


@pytest.mark.parametrize("turns", [None, [], "hello", [{"role": "system", "content": "Be brief."}], ["Who?"]])
def test_a_conversation_in_which_nobody_asks_is_refused(turns: Any) -> None:
    found = parse({"messages": turns}, CorpusSection(format="messages"), "f")
    assert isinstance(found, BadRow)
    assert found.field in ("messages", "conversations")


def test_a_list_as_numpy_prints_it_is_refused_rather_than_glued_together() -> None:
    found = parse({"question": "Why?", "answers": "['a' 'b']"}, CorpusSection(), "f")
    assert isinstance(found, BadRow)
    assert "no commas" in found.problem


def test_an_entity_may_be_in_any_column() -> None:
    found = parse({"question": "Why?", "about": {"name": "The Nile"}}, CorpusSection(entity_column="about.name"), "f")
    assert isinstance(found, Question)
    assert found.entity == "The Nile"


@pytest.mark.parametrize("field", ["id", "group", "entity"])
@pytest.mark.parametrize(
    ("value", "says"), [("a\0b", "NUL"), ("\ud83d", "surrogate"), ("x" * 10_000_000, "at most 500 characters")]
)
def test_ids_groups_and_entities_are_as_clean_and_bounded_as_questions(field: str, value: str, says: str) -> None:
    found = parse({"question": "Why?", field: value}, CorpusSection(), "f")
    assert isinstance(found, BadRow)
    assert found.field == field
    assert says in found.problem


def test_ids_of_a_column_with_gaps_are_whole_numbers() -> None:
    ids = [parse({"question": "Why?", "id": value}, CorpusSection(), "f") for value in (7.0, float("nan"), " 7 ")]
    assert [q.own_id for q in ids if isinstance(q, Question)] == ["7", None, "7"]


def test_a_column_whose_own_name_has_dots_is_found() -> None:
    corpus = CorpusSection(question_column="doc.q", answers_column="doc.gold")
    assert missing({"doc.q": "Why?"}, corpus) == []
    assert missing({"doc": {"q": "Why?"}}, corpus) == []
    assert missing({"q": "Why?"}, corpus) == ["doc.q"]
    assert {"doc.q", "doc", "doc.gold", "id", "group", "entity"} == columns_read(corpus)
