"""The entity of an EntityQuestions question: one example of each relation, and every question of the real set."""

import json
from collections import Counter
from pathlib import Path

import pytest

from ka2l_ray.corpus.relations import LONGEST, TEMPLATES, subject

EXAMPLES = {
    "P17": ("Which country is Schott NYC located in?", "Schott NYC"),
    "P19": ("Where was Michael Jack born?", "Michael Jack"),
    "P20": ("Where did John Thynne die?", "John Thynne"),
    "P26": ("Who is Sharon Osbourne married to?", "Sharon Osbourne"),
    "P36": ("What is the capital of Gmina Lipnik?", "Gmina Lipnik"),
    "P40": ("Who is Herbert Beerbohm Tree's child?", "Herbert Beerbohm Tree"),
    "P50": ("Who is the author of The Perfect Matrimony?", "The Perfect Matrimony"),
    "P69": ("Where was C. Ellis Moore educated?", "C. Ellis Moore"),
    "P106": ("What kind of work does Pon. Muthuramalingam do?", "Pon. Muthuramalingam"),
    "P112": ("Who founded Armadillo Aerospace?", "Armadillo Aerospace"),
    "P127": ("Who owns MS Regina della Pace?", "MS Regina della Pace"),
    "P131": ("Where is Zittard, North Brabant located?", "Zittard, North Brabant"),
    "P136": ("What type of music does Neal Coty play?", "Neal Coty"),
    "P159": ("Where is the headquarter of Turgutluspor?", "Turgutluspor"),
    "P170": ("Who was Thumbelina created by?", "Thumbelina"),
    "P175": ("Who performed This Is Regina!?", "This Is Regina!"),
    "P176": ("Which company is Lexus NX produced by?", "Lexus NX"),
    "P264": ("What music label is Canned Funk represented by?", "Canned Funk"),
    "P276": ("Where is Prinsenbeek located?", "Prinsenbeek"),
    "P407": ("Which language was HP/De Tijd written in?", "HP/De Tijd"),
    "P413": ("What position does Hélio Sousa play?", "Hélio Sousa"),
    "P495": ("Which country was Chef Roblé & Co. created in?", "Chef Roblé & Co."),
    "P740": ("Where was Atom Smash founded?", "Atom Smash"),
    "P800": ("What is William Steig famous for?", "William Steig"),
}


def test_every_relation_has_an_example() -> None:
    assert EXAMPLES.keys() == TEMPLATES.keys()
    assert len(TEMPLATES) == 24


@pytest.mark.parametrize("relation", EXAMPLES)
def test_what_fills_a_relations_template_is_the_entity(relation: str) -> None:
    question, entity = EXAMPLES[relation]
    assert subject(question, relation) == entity
    assert subject(f" {question.lower()} ", relation) == entity.lower()
    assert subject(question, None) == entity, "without its relation the question fits other templates too"


@pytest.mark.parametrize(
    ("question", "relation"),
    [
        ("Who is Ann?", "P26"),
        ("Where was Ann born?", "P20"),
        ("Where was Ann born?", "P999"),
        ("Where was  born?", "P19"),
        (f"Where was {'x' * (LONGEST + 1)} born?", "P19"),
        ("Who is the author of Who is Ann married to?", None),
    ],
)
def test_a_question_that_fits_no_template_or_several_has_no_entity(question: str, relation: str | None) -> None:
    assert subject(question, relation) is None


def test_every_question_of_the_real_set_names_its_entity() -> None:
    file = Path(__file__).parents[4] / "shared/data/entityquestions_dev.jsonl"
    if not file.exists():
        pytest.skip(f"no {file} on this machine")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    found = Counter((r["relation"], subject(r["question"], r["relation"]) is None) for r in rows)
    assert {r for r, _ in found} == TEMPLATES.keys()
    assert not [r for r, without in found if without]
    bare = [subject(r["question"], None) == subject(r["question"], r["relation"]) for r in rows]
    assert sum(bare) > 0.999 * len(rows)
