"""Eval asks pool facts again: in a wording that is never taught, or in the same words where that is asked for."""

import json
from pathlib import Path
from typing import Any

import pytest
from chat_server import ChatServer
from question_tables import filled, questions, rows_of, scopes

from ka2l_ray import schema
from ka2l_ray.config import Config, parse_config
from ka2l_ray.corpus.preview import preview
from ka2l_ray.errors import StageError
from ka2l_ray.text.grading import normalize

COLUMN = {"rewordings": {"source": "column"}}


def reworded(count: int, start: int = 0) -> list[dict[str, Any]]:
    rows = questions(count, start)
    return [r | {"rewordings": [f"way one: {r['question']}", f"way two: {r['question']}"]} for r in rows]


def config(folder: Path, rows: list[dict[str, Any]], corpus: dict[str, Any], **sections: Any) -> Config:
    (folder / "q.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    return parse_config({"corpus": {"source": str(folder / "q.jsonl")} | corpus} | sections, "test")


def test_every_pool_fact_is_asked_again_in_the_reserved_wording_and_no_other_split_contains_it(tmp_path: Path) -> None:
    plain = filled(tmp_path, config(tmp_path, reworded(200), {}), "plain")
    table = filled(tmp_path, config(tmp_path, reworded(200), COLUMN))
    pool, asked = {r["id"]: r for r in rows_of(table, "pool")}, rows_of(table, "eval")
    assert scopes(table) == {"pool": len(pool), "domain": plain.part_rows("eval")}
    assert scopes(plain) == {"other": plain.part_rows("eval")}
    for row in asked:
        assert row["question"].startswith("way two: ")
        if row["scope"] == "pool":
            own = pool[row["fact_id"]]
            assert row["question"] == f"way two: {own['question']}"
            assert (row["answers"], row["group"], row["entity"]) == (own["answers"], own["group"], own["entity"])
    assert all(r["rewordings"] == [f"way one: {r['question']}"] for r in pool.values())
    assert all(r["fact_id"] == r["id"] for r in rows_of(table, "probe"))
    taught = {
        normalize(q) for s in ("probe", "pool") for r in rows_of(table, s) for q in (r["question"], *r["rewordings"])
    }
    assert taught.isdisjoint(normalize(r["question"]) for r in asked)
    ids = [r["id"] for r in rows_of(table)]
    assert len(ids) == len(set(ids)) == table.rows
    for split in ("probe", "pool"):  # what is bought and probed does not depend on rewordings
        assert [r["id"] for r in rows_of(plain, split)] == [r["id"] for r in rows_of(table, split)]
    assert table.manifest()["graded"] == {s: table.part_rows(s) for s in schema.SPLITS}
    assert (table.manifest()["questions"], table.manifest()["asked_again"]) == (200, len(pool))


def test_the_same_words_are_asked_only_where_that_is_wanted_and_bear_a_scope_of_their_own(tmp_path: Path) -> None:
    same = {"evaluate": {"same_words": True}}
    table = filled(tmp_path, config(tmp_path, questions(200), {}, **same))
    pool = {r["id"]: r["question"] for r in rows_of(table, "pool")}
    assert set(scopes(table)) == {"same", "domain"}
    asked = {r["fact_id"]: r["question"] for r in rows_of(table, "eval") if r["scope"] == "same"}
    assert asked == pool
    both = filled(tmp_path, config(tmp_path, reworded(200), COLUMN, **same), "both")
    assert scopes(both) == {"pool": len(pool), "same": len(pool), "domain": scopes(table)["domain"]}


def test_a_wording_that_another_question_uses_is_not_reserved(tmp_path: Path) -> None:
    rows = reworded(200)
    for row, other in zip(rows[:100], rows[100:], strict=True):
        row["rewordings"][-1] = other["question"].upper()
    table = filled(tmp_path, config(tmp_path, rows, COLUMN))
    asked = {normalize(r["question"]) for r in rows_of(table, "eval")}
    assert asked.isdisjoint(normalize(r["question"]) for r in rows)
    assert table.manifest()["not_reworded"] == 0
    assert {q.split(":")[0] for q in (r["question"] for r in rows_of(table, "eval"))} == {"way one", "way two"}
    for row in rows[:100]:
        row["rewordings"] = row["rewordings"][-1:]
    table = filled(tmp_path, config(tmp_path, rows, COLUMN), "none")
    lacking = [r for s in ("pool", "eval") for r in rows_of(filled(tmp_path, config(tmp_path, rows, {}), "all"), s)]
    firsts = {r["question"] for r in rows[:100]}
    assert table.manifest()["not_reworded"] == sum(r["question"] in firsts for r in lacking) > 10
    assert scopes(table)["pool"] < table.part_rows("pool")


def test_rows_without_a_usable_wording_end_the_run_where_they_are_too_many(tmp_path: Path) -> None:
    rows = [r | {"rewordings": r["question"]} for r in questions(100)]
    with pytest.raises(StageError, match=r"100 of 100 rows cannot be used.*row 1: rewordings = .* must differ"):
        filled(tmp_path, config(tmp_path, rows, COLUMN))


def test_the_preview_counts_no_question_twice(tmp_path: Path) -> None:
    rows = [r | {"group": "g"} for r in reworded(150)]
    found = preview(config(tmp_path, rows, COLUMN), with_tokens=False)
    assert (found.questions, found.with_gold, found.groups) == (150, 150, [("g", 150)])
    assert found.asked_again == found.splits["pool"] == sum(found.splits.values()) - 150


def endpoint(server: ChatServer) -> dict[str, Any]:
    return {"endpoint": {"url": server.url, "backoff_s": 0.01, "cost_per_million_prompt_tokens": 1e6}}


def test_an_endpoint_rewords_pool_and_eval_questions_once_and_its_cost_is_booked(tmp_path: Path) -> None:
    asked_for = {"rewordings": {"source": "endpoint", "cost": 0.5}}
    rows = questions(120)
    with ChatServer().running() as server:
        server.says = {r["question"]: f"1. way one: {r['question']}\n2. way two: {r['question']}" for r in rows}
        made = config(tmp_path, rows, asked_for, annotate=endpoint(server))
        planned = preview(made, with_tokens=False)
        assert not server.asked
        table = filled(tmp_path, made)
        again = filled(tmp_path, made, "again")
    assert set(server.asked.values()) == {1}
    assert len(server.asked) == table.part_rows("eval")
    assert all(r["question"].startswith("way two: ") for r in rows_of(table, "eval"))
    assert planned.splits == {s: table.part_rows(s) for s in schema.SPLITS}
    assert planned.asked_again == table.part_rows("pool")
    assert (planned.questions, planned.with_gold) == (120, 120)
    ledger = table.manifest()["rewordings_ledger"]
    read = sum(10 + len(q.split()) for q in server.asked)
    assert ledger["asked"] == ledger["answered"] == len(server.asked)
    assert ledger["cost"] == ledger["paid"] == pytest.approx(0.5 * len(server.asked) + read)
    assert rows_of(again) == rows_of(table)
    assert again.manifest()["rewordings_ledger"] == ledger


def test_a_question_that_the_endpoint_does_not_reword_is_bought_but_not_asked_by_eval(tmp_path: Path) -> None:
    rows = questions(120)
    with ChatServer().running() as server:
        server.says = {r["question"]: f"way two: {r['question']}" for r in rows[:60]}
        server.says |= {r["question"]: r["question"] for r in rows[60:]}
        made = config(tmp_path, rows, {"rewordings": {"source": "endpoint"}}, annotate=endpoint(server))
        table = filled(tmp_path, made)
    firsts, manifest = {r["question"] for r in rows[:60]}, table.manifest()
    assert manifest["not_reworded"] == manifest["rewordings_ledger"]["rejected"] > 0
    assert {r["question"].removeprefix("way two: ") for r in rows_of(table, "eval")} <= firsts
    assert not {r["question"] for r in rows_of(table, "pool")} <= firsts


def test_an_endpoint_that_answers_nothing_ends_the_run(tmp_path: Path) -> None:
    with ChatServer().running() as server:
        rows = questions(100)
        server.troubles |= {r["question"]: ["status 400"] for r in rows}
        made = config(tmp_path, rows, {"rewordings": {"source": "endpoint"}}, annotate=endpoint(server))
        with pytest.raises(StageError, match=r"questions: http.* answered none of \d+ questions. First: HTTP 400"):
            filled(tmp_path, made)
