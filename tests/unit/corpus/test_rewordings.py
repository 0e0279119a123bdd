"""A question in other words, from a column, templates or an endpoint's reply; and what cannot be one."""

import json
from typing import Any

import pytest

from ka2l_ray.chat.endpoint import Completion, parse
from ka2l_ray.config import TEMPLATED, ConfigError, CorpusSection, EndpointSection, RewordingsSection, parse_config
from ka2l_ray.corpus.formats import Question, columns_read, missing
from ka2l_ray.corpus.formats import parse as parse_row
from ka2l_ray.corpus.relations import TEMPLATES
from ka2l_ray.corpus.rewordings import our_templates, repeated_wording, request, wordings_in
from ka2l_ray.dataflow.rows import BadRow, shortened
from ka2l_ray.text.duplicates import ngrams

POPQA = {
    "author": "Who is the author of [X]?",
    "capital": "What is the capital of [X]?",
    "capital of": "What is [X] the capital of?",
    "color": "What color is [X]?",
    "composer": "Who was the composer of [X]?",
    "country": "In what country is [X]?",
    "director": "Who was the director of [X]?",
    "father": "Who is the father of [X]?",
    "genre": "What genre is [X]?",
    "mother": "Who is the mother of [X]?",
    "occupation": "What is [X]'s occupation?",
    "place of birth": "In what city was [X] born?",
    "producer": "Who was the producer of [X]?",
    "religion": "What is the religion of [X]?",
    "screenwriter": "Who was the screenwriter for [X]?",
    "sport": "What sport does [X] play?",
}
"""The data set's own questions (Mallen et al., 2023)."""
BY_WHOM, WHOSE = "Emma is by whom?", "Whose novel is Emma?"
ORIGINALS = {"popqa": POPQA, "entity_questions": TEMPLATES}


def repeats(field: str, wording: str) -> BadRow:
    return BadRow(field, "must differ from the question and from each other", shortened(wording))


def no_wordings(group: str | None) -> BadRow:
    return BadRow("group", "has no wordings in corpus.rewordings.templates", shortened(group))


def corpus(**rewordings: Any) -> CorpusSection:
    return CorpusSection.model_validate({"source": "q.jsonl", "rewordings": rewordings})


def wordings(section: CorpusSection, **row: Any) -> tuple[str, ...] | BadRow:
    found = parse_row({"question": "Who wrote Emma?", "answers": ["Austen"]} | row, section, "q.jsonl")
    return found.rewordings if isinstance(found, Question) else found


def test_every_relation_has_two_to_four_wordings_that_are_not_its_own() -> None:
    assert set(our_templates()) == set(TEMPLATED) == set(ORIGINALS)
    for source, groups in our_templates().items():
        assert groups.keys() == ORIGINALS[source].keys()
        RewordingsSection(templates={g: tuple(w) for g, w in groups.items()})
        for group, templates in groups.items():
            assert 2 <= len(templates) <= 4, group
            asked = [t.replace("[X]", "{entity}") for t in ORIGINALS[source].values()]
            asked += [t.replace("[X]", "{entity}") for t in POPQA.values()]
            assert all(repeated_wording(a, templates) is None for a in asked), group


@pytest.mark.parametrize("source", TEMPLATED)
def test_a_reserved_wording_is_unlike_those_that_may_be_taught(source: str) -> None:
    """Otherwise eval would ask nearly in the words of training."""
    for group, (*others, reserved) in our_templates()[source].items():
        said = [t.replace("{entity}", "X") for t in (*others, reserved, ORIGINALS[source][group].replace("[X]", "X"))]
        pieces = ngrams(reserved.replace("{entity}", "X"))
        for other in said[:-2] + said[-1:]:
            alike = len(pieces & ngrams(other)) / len(pieces | ngrams(other))
            assert alike < 0.7, (group, reserved, other, alike)


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("Emma is whose novel?", ("Emma is whose novel?",)),
        (["Emma is whose novel?", " Emma, by whom? ", ""], ("Emma is whose novel?", "Emma, by whom?")),
        ('["a?", "b?"]', ("a?", "b?")),
        (None, BadRow("rewordings", "must contain at least one wording")),
        ([], BadRow("rewordings", "must contain at least one wording")),
        (["who wrote emma"], repeats("rewordings", "who wrote emma")),
        (["a?", "A"], repeats("rewordings", "A")),
        ([{"words": "a?"}], BadRow("rewordings", "must be text, a number, or a list of these", "{'words': 'a?'}")),
    ],
)
def test_a_column_gives_one_wording_or_several(cell: Any, expected: tuple[str, ...] | BadRow) -> None:
    assert wordings(corpus(source="column"), rewordings=cell) == expected


def test_a_column_may_be_inside_another() -> None:
    section = corpus(source="column", column="other.ways")
    assert wordings(section, other={"ways": ["a?", "b?"]}) == ("a?", "b?")
    assert {"other", "other.ways"} <= columns_read(section)
    assert missing({"question": 1, "other": 1}, section) == []
    assert missing({"question": 1}, section) == ["other.ways"]
    assert missing({"question": 1}, corpus()) == []


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"group": "author", "entity": "Emma"}, ("Emma is by whom?", "Which author wrote Emma?")),
        ({"group": "capital", "entity": "Emma"}, no_wordings("capital")),
        ({"entity": "Emma"}, no_wordings(None)),
        ({"group": "author"}, BadRow("entity", "must be known where templates reword", "'Who wrote Emma?'")),
        ({"group": "author", "entity": "Emma", "question": "Emma is by whom"}, repeats("group", "Emma is by whom?")),
    ],
)
def test_the_groups_templates_are_filled_with_the_entity(
    row: dict[str, Any], expected: tuple[str, ...] | BadRow
) -> None:
    templates = {"author": ["{entity} is by whom?", "Which author wrote {entity}?"]}
    found = wordings(corpus(source="templates", templates=templates), **row)
    assert found == expected


def test_known_sets_have_templates_of_ours() -> None:
    section = CorpusSection.model_validate(
        {"source": "q", "format": "popqa", "rewordings": {"source": "templates"}},
    )
    row = {"question": "Who is the author of Emma?", "possible_answers": ["Austen"], "prop": "author", "subj": "Emma"}
    found = parse_row(row, section, "q")
    assert isinstance(found, Question)
    assert found.rewordings[-1] == "Who wrote Emma?"


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"source": "templates", "templates": {"author": []}}, "must give group 'author' at least one wording"),
        (
            {"source": "templates", "templates": {"author": ["Who wrote it?"]}},
            "must contain {entity} exactly once in every wording, not 'Who wrote it?' of group 'author'",
        ),
        ({"templates": {"a": ["{entity}?", "{entity}?"]}}, "must give group 'a' wordings that differ"),
        ({"source": "templates"}, "rewordings.source: templates needs rewordings.templates, because format = generic"),
    ],
)
def test_templates_without_a_wording_are_refused_with_the_file(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config({"corpus": {"source": "q.jsonl", "rewordings": fields}}, "run.yaml")
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("tree", "problem"),
    [
        ({"corpus": {"rewordings": {"source": "column"}}}, "source = world has wordings of its own"),
        ({"evaluate": {"same_words": True}}, "evaluate.same_words: true is for corpora of files"),
    ],
)
def test_the_world_has_wordings_of_its_own(tree: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        parse_config(tree, "run.yaml")


def reply(content: str, finish: str = "stop") -> Completion:
    choice = {"message": {"content": content}, "finish_reason": finish}
    return parse(json.dumps({"choices": [choice]}).encode())


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("Emma is by whom?\nWhose novel is Emma?", [BY_WHOM, WHOSE]),
        ("1. Emma is by whom?\n\n- Whose novel is Emma?\n(3) Emma: whose?", [BY_WHOM, WHOSE]),
        ("Who wrote Emma?\nWHO WROTE EMMA\nWhose novel is Emma?", [WHOSE]),
        ("Who wrote Emmanuelle?\nWhose novel is Emma?", [WHOSE]),
        ("Whose novel is it?\nWhose novel is Emma?", [WHOSE]),
        ("I cannot answer that.", []),
        ("", []),
    ],
)
def test_wordings_in_a_reply(content: str, expected: list[str]) -> None:
    found = wordings_in(EndpointSection(), RewordingsSection(), "Who wrote Emma?", "Emma", reply(content))
    assert found == expected


def test_a_reply_that_is_cut_off_has_no_wordings() -> None:
    cut = reply("Whose novel is Emma?", "length")
    assert wordings_in(EndpointSection(), RewordingsSection(), "Who wrote Emma?", None, cut) == []


def test_a_wording_of_a_question_about_nobody_in_particular_names_nobody() -> None:
    found = wordings_in(EndpointSection(), RewordingsSection(), "Who wrote Emma?", None, reply(WHOSE))
    assert found == [WHOSE]


def test_rewordings_are_asked_for_with_the_fields_that_the_endpoint_is_given() -> None:
    endpoint = EndpointSection(parameters={"reasoning_effort": "low", "temperature": 1.0, "max_tokens": 8})
    posted = request(endpoint, RewordingsSection(max_tokens=99), "Who wrote Emma?")
    assert (posted["reasoning_effort"], posted["temperature"], posted["max_tokens"]) == ("low", 1.0, 99)
