"""`ka2l decode --count`: as many new questions as are wanted, wave by wave."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from runs import copied, small

from ka2l_ray.active import new_questions as module
from ka2l_ray.active.new_questions import new_questions
from ka2l_ray.active.pool import scored_pool
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.decode.stage import check_decoder
from ka2l_ray.world.facts import build_world

STEPS = ("requests", "candidates", "written")


@pytest.fixture(scope="module")
def run(scored: tuple[Run, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Re-embeds in a stage of its own."""
    decode = "decode={check_questions: 20, grounding: corpus, reread: {pool: {max: 2}}}"
    made = copied(scored[0], small(tmp_path_factory.mktemp("wanted"), decode))
    check_decoder(made)
    return made


def test_so_many_are_written_and_more_come_from_further_waves(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "FIRST_WAVE", 10)
    few = new_questions(run, 3)
    folder = Path(run.folder.path, "base/new_questions")
    written = [json.loads(line) for line in (folder / "questions.jsonl").read_text().splitlines()]
    assert written == few["questions"]
    assert len(few["questions"]) == 3
    assert few["file"].endswith("questions.jsonl")
    assert sorted(f.name for f in folder.iterdir()) == ["questions.jsonl", "wave_01"], "the stream stops"
    first = {f: f.stat().st_mtime_ns for f in folder.rglob("*") if f.is_file() and f.name != "questions.jsonl"}
    with caplog.at_level(logging.INFO, "ka2l_ray"):
        every = new_questions(run, 1000)
    assert {f: f.stat().st_mtime_ns for f in first} == first, "a wave is done once"
    assert "pool questions that are likely unknown (decode.min_p_unknown" in caplog.text
    unknown = [row.id for row in scored_pool(run) if (row.p_unknown or 0.0) >= run.config.decode.min_p_unknown]
    assert every["sources"] == len(unknown) > 10
    for wave in ("wave_01", "wave_02"):
        tables = [Table(run.folder / f"base/new_questions/{wave}/decoded/{name}") for name in STEPS]
        asked, between, written = ({*table.read(["id"])["id"].to_pylist()} for table in tables)
        assert asked == between == written
    assert sum(every["statuses"].values()) == run.config.decode.variants * len(unknown), "every request once"
    world, table = build_world(), run.table("questions")
    corpus = [q for s in ("probe", "pool") for q in table.read(["question"], part=s)["question"].to_pylist()]
    facts = [world.ask(q["question"]) for q in every["questions"]]
    found = [f.fact_id for f in facts if f]
    assert len(found) > 0.9 * len(facts), "who is named exists"
    assert len({*found}) > 0.9 * len(found), "another fact each"
    asked = {f.fact_id for q in corpus if (f := world.ask(q))}
    assert sum(f in asked for f in found) < 0.1 * len(found), "which the corpus does not ask"
