"""The real corpus that comes with the package: how rows are chosen, and that the shipped file is what is promised."""

from collections import Counter, defaultdict
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from build_wikifacts import MOST_OF_A_RELATION, RELATIONS, capped, questions
from question_tables import filled, rows_of, scopes

from ka2l_ray.config import parse_config
from ka2l_ray.corpus.files import files_of
from ka2l_ray.corpus.rewordings import our_templates, repeated_wording
from ka2l_ray.dataflow.paths import absolute, sent_with_job
from ka2l_ray.dataflow.reach import local_paths
from ka2l_ray.text.grading import normalize

FOLDER = files("ka2l_ray.corpus") / "wikifacts"
CONFIG = parse_config({"corpus": {"source": "wikifacts", "rewordings": {"source": "column"}}}, "test")


@pytest.fixture(scope="module")
def shipped() -> list[dict[str, Any]]:
    (file,) = files_of(CONFIG.corpus.source, CONFIG.corpus.hub)
    return [row.values for row in file.rows() if isinstance(row.values, dict)]


def test_the_file_is_small_and_names_its_sources_and_licences() -> None:
    assert len((FOLDER / "questions.jsonl.gz").read_bytes()) <= 1_000_000
    said = (FOLDER / "SOURCES.md").read_text(encoding="utf-8")
    for needed in ("EntityQuestions", "PopQA", "MIT License", "Permission is hereby granted", "build_wikifacts.py"):
        assert needed in said


def test_no_answer_holds_more_than_a_tenth_of_its_relation(shipped: list[dict[str, Any]]) -> None:
    held, rows = defaultdict[str, Counter[str]](Counter), Counter(r["group"] for r in shipped)
    for row in shipped:
        held[row["group"]].update({normalize(a) for a in row["answers"]})
    assert rows.keys() == {r.group for r in RELATIONS}
    for group, counts in held.items():
        assert counts.most_common(1)[0][1] <= MOST_OF_A_RELATION * rows[group], group


def test_every_question_has_its_relations_wordings_and_does_not_contain_its_answer(
    shipped: list[dict[str, Any]],
) -> None:
    of = {r.group: our_templates()[r.source][r.name] for r in RELATIONS}
    for row in shipped:
        assert row["rewordings"] == [t.replace("{entity}", row["entity"]) for t in of[row["group"]]]
        assert repeated_wording(row["question"], row["rewordings"]) is None
        assert not [a for a in row["answers"] if f" {normalize(a)} " in f" {normalize(row['question'])} "]


def test_its_pool_has_a_thousand_questions_which_eval_asks_again(tmp_path: Path) -> None:
    config = parse_config(
        {"corpus": CONFIG.corpus.model_dump(mode="json") | {"split": {"probe": 0.35, "pool": 0.45, "eval": 0.2}}},
        "test",
    )
    table = filled(tmp_path, config)
    assert table.manifest()["dropped"] == 0
    assert table.part_rows("pool") >= 1000
    assert scopes(table)["pool"] >= 0.99 * table.part_rows("pool")
    together = {(r["entity"], r["split"]) for s in ("probe", "pool") for r in rows_of(table, s)}
    assert len({entity for entity, _ in together}) == len(together)


def test_its_name_is_no_path(tmp_path: Path) -> None:
    assert absolute(CONFIG, tmp_path).corpus.source == "wikifacts"
    assert (
        sent_with_job(CONFIG.model_copy(update={"run": CONFIG.run.model_copy(update={"storage": "/x"})}), tmp_path)
        == []
    )
    assert not [name for name in local_paths(CONFIG) if "wikifacts" in name]


RELATION = RELATIONS[0]


def of_place(entity: str, *answers: str) -> dict[str, Any]:
    return {"question": f"Which country is {entity} located in?", "answers": list(answers), "entity": entity}


@pytest.mark.parametrize(
    ("row", "taken"),
    [
        (of_place("Oslo", "Norway"), True),
        (of_place("Norway House", "Norway"), False),
        (of_place("Oslo"), False),
        (of_place("Oslo" * 40, "Norway"), False),
        (of_place("Oslo", "Norway") | {"entity": None}, False),
    ],
)
def test_a_row_is_usable_whatever_a_model_says(row: dict[str, Any], taken: bool) -> None:
    assert len(list(questions([row, row], RELATION))) == taken


def test_an_answer_is_capped_by_its_aliases_too_and_the_first_rows_stay() -> None:
    common = [of_place(f"a{n}", "USA", "United States") for n in range(60)]
    rare = [of_place(f"b{n}", f"c{n}") for n in range(45)]
    mixed = [of_place(f"d{n}", "United States", f"e{n}") for n in range(5)]
    found = capped([*common, *rare, *mixed], 100)
    assert [r["entity"] for r in found] == [*(f"a{n}" for n in range(5)), *(f"b{n}" for n in range(45))]
    assert capped(common, 100) == []
    assert len(capped([of_place(f"b{n}", f"c{n}") for n in range(300)], 100)) == 100
