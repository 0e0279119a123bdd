"""Rows that share an entity or are alike stay in one split, chains included, on made and on real question sets."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from question_tables import prepared, questions

from ka2l_ray import schema
from ka2l_ray.config import SearchSection
from ka2l_ray.corpus.relations import subject
from ka2l_ray.corpus.together import large_group, split_groups
from ka2l_ray.hashing import uniform
from ka2l_ray.probe.fit import divide
from ka2l_ray.text.normal import normalize

DATA = Path(__file__).parents[4] / "shared/data"


def by_hand(alike: list[int], entity: list[int]) -> list[int]:
    """The lowest row that each can reach over rows of its group and of its entity."""
    names = list(range(len(alike)))
    linked = [(a, b) for a in names for b in names if alike[a] == alike[b] or (entity[a] and entity[a] == entity[b])]
    for _ in alike:
        for a, b in linked:
            names[a] = names[b] = min(names[a], names[b])
    return names


@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 4)), max_size=10))
def test_groups_are_what_alike_rows_and_entities_connect(rows: list[tuple[int, int]]) -> None:
    """Entity 0 is unknown, and connects nothing."""
    alike = [min(n for n, other in enumerate(rows) if other[0] == row[0]) for row in rows]
    entity = [e for _, e in rows]
    found = split_groups(np.array(alike, int), np.array(entity, np.uint64))
    assert found.tolist() == by_hand(alike, entity)


def by_entity(rows: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found = defaultdict(list)
    for row in rows:
        if row["entity"]:
            found[normalize(row["entity"])].append(row)
    return found


def shared(rows: Iterable[dict[str, Any]], part: str) -> set[str]:
    """Entities that stand in two parts."""
    return {name for name, found in by_entity(rows).items() if len({r[part] for r in found}) > 1}


def with_parts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The probe's rows with the part of the probe's own division that each falls into."""
    search = SearchSection()
    probe = [r for r in rows if r["split"] == "probe"]
    part = divide(np.array([r["split_group"] for r in probe]), search.validation_share, search.test_share, 0)
    return [r | {"part": int(p)} for r, p in zip(probe, part, strict=True)]


def test_no_entity_stands_in_two_splits_nor_in_two_parts_of_the_probe(tmp_path: Path) -> None:
    rows = [q | {"entity": f"{'The ' if n % 2 else ''}Person {n % 60}!"} for n, q in enumerate(questions(600))]
    table = prepared(tmp_path, rows)
    found = table.read().to_pylist()
    assert {len({r["split"] for r in found}), len({r["part"] for r in with_parts(found)})} == {3}
    assert not shared(found, "split")
    assert not shared(with_parts(found), "part")
    assert {r["entity"] for r in found} == {r["entity"] for r in rows}, "the entity's own name is not kept"
    manifest = table.manifest()
    assert (manifest["entities"], manifest["split_groups"], manifest["largest_group"]) == (60, 60, 10)


def test_a_chain_of_an_alike_question_and_an_entity_is_one_group(tmp_path: Path) -> None:
    chain = [
        {"question": "Who sang the national anthem at the super bowl of 2001?", "entity": "first"},
        {"question": "Who sang the national anthem at the super bowl of 2002?", "entity": "second"},
        {"question": "What did the second one eat for breakfast?", "entity": "Second"},
    ]
    found = (
        prepared(tmp_path, [*questions(40), *chain, {"question": "And nobody at all?", "entity": None}])
        .read()
        .to_pylist()
    )
    names = {r["question"]: r["split_group"] for r in found}
    assert len({names[r["question"]] for r in chain}) == 1
    assert len(set(names.values())) == 42


def test_a_group_too_large_to_split_well_is_told_with_the_way_out(tmp_path: Path) -> None:
    for name in ("small", "large"):
        (tmp_path / name).mkdir()
    rows = [q | {"entity": f"e{n % 40}"} for n, q in enumerate(questions(400))]
    assert large_group(prepared(tmp_path / "small", rows).manifest()) is None
    lopsided = [r | ({"entity": "e0"} if n < 60 else {}) for n, r in enumerate(rows)]
    told = large_group(prepared(tmp_path / "large", lopsided).manifest())
    assert told is not None
    assert told.startswith("17% of the questions")
    assert "corpus.near_duplicates" in told


def test_a_merged_row_gives_its_entity_to_the_one_that_stays(tmp_path: Path) -> None:
    same = [
        {"question": "The same?"},
        {"question": "the same", "entity": "Nile"},
        {"question": "Another of it?", "entity": "nile"},
    ]
    found = {
        r["question"]: r for r in prepared(tmp_path, [*questions(30), *same], near_duplicates=1).read().to_pylist()
    }
    assert found["The same?"]["entity"] == "Nile"
    assert found["The same?"]["split_group"] == found["Another of it?"]["split_group"]


def test_eval_rows_of_files_are_about_no_pool_fact_and_say_so(tmp_path: Path) -> None:
    rows = prepared(tmp_path, questions(200)).read().to_pylist()
    assert {(r["split"], r["scope"]) for r in rows} == {("probe", None), ("pool", None), ("eval", "other")}
    assert {s for r in rows if (s := r["scope"])} <= set(schema.SCOPES)


def test_solved_examples_are_found_where_every_question_shares_its_entity(tmp_path: Path) -> None:
    """As in SQuAD, whose articles have a hundred questions each."""
    rows = [q | {"entity": f"article {n % 30}"} for n, q in enumerate(questions(300))]
    table = prepared(tmp_path, rows, shots=5)
    aside, others = (
        table.read(part=schema.SHOTS).to_pylist(),
        [r for s in ("pool", "eval") for r in table.read(part=s).to_pylist()],
    )
    assert len(aside) == 5
    assert {r["entity"] for r in aside}.isdisjoint(r["entity"] for r in others)


def entity_of(line: str) -> str | None:
    row = json.loads(line)
    return row["subj"] if "subj" in row else subject(row["question"], row["relation"])


@pytest.mark.parametrize(
    ("name", "kind"), [("popqa_merged.jsonl", "popqa"), ("entityquestions_dev.jsonl", "entity_questions")]
)
def test_real_question_sets_are_split_by_entity(tmp_path: Path, name: str, kind: str) -> None:
    if not (DATA / name).exists():
        pytest.skip(f"no {DATA / name} on this machine")
    lines = (DATA / name).read_text().splitlines()
    twice = Counter(entity_of(line) for line in lines)
    lines = sorted(lines, key=lambda line: (twice[entity_of(line)] < 2, uniform("some", line)))[:3_000]
    table = prepared(tmp_path, lines, format=kind)
    rows = table.read().to_pylist()
    assert table.manifest()["largest_group"] < 0.02 * table.rows
    assert sum(len(found) > 1 for found in by_entity(rows).values()) > 30, (
        "too few entities are asked twice to tell anything"
    )
    assert not shared(rows, "split")
    assert not shared(with_parts(rows), "part")
    shares = [table.part_rows(s) / table.rows for s in schema.SPLITS]
    assert shares == pytest.approx([0.5, 0.3, 0.2], abs=0.03)
