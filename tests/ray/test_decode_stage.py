"""The status of decoded questions in a run, where eval is searched for slightly reworded ones; and what steering is
fitted on."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ka2l_ray import schema
from ka2l_ray.config import parse_config
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.decode import stage
from ka2l_ray.decode.augment import Augmenter
from ka2l_ray.decode.question_states import token_column
from ka2l_ray.decode.stage import check_decoder, decoded_statuses, is_fitted
from ka2l_ray.errors import StageError
from ka2l_ray.tables import fixed_size

SPLITS = {
    "probe": ["Who founded the city of Lemba?"],
    "pool": ["Who owns the harbour of Lemba?"],
    "eval": ["Which city does Ada Byron call home?", "Which city does Bo Stone call home?"],
}


@pytest.mark.parametrize(
    ("near_duplicates", "reworded", "here"), [(0.8, "eval", 10), (0.8, "eval", 1), (1.0, "kept", 10)]
)
def test_a_slightly_reworded_eval_question_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, near_duplicates: float, reworded: str, here: int
) -> None:
    """Also where there are more questions than the driver looks through itself."""
    monkeypatch.setattr(stage, "SEARCHED_HERE", here)
    run = Run(Folder.of(str(tmp_path)), parse_config({"corpus": {"near_duplicates": near_duplicates}}, "test"))
    rows = {split: [{"id": q, "question": q, "split": split} for q in texts] for split, texts in SPLITS.items()}
    run.table("questions").write(
        *((split, pa.Table.from_pylist(found, schema=schema.QUESTIONS)) for split, found in rows.items())
    )
    Augmenter(run.config.decode, 0, None, np.zeros((0, 2), np.float32)).save(run.folder / "base/augmenter")
    fates = {
        "Which city does Bo Stone call home?": "eval",
        "Which city does Ada Byron call her home?": reworded,
        "Who founded the city of Lemba?": "duplicate",
        "Who owns the harbour of Lemba?": "duplicate",
        "Who was decoded in an earlier round?": "duplicate",
        "Who built the bridge of Lemba?": "kept",
    }
    written = dict.fromkeys(schema.TABLES["written"].schema.names) | {"exhausted": False, "reworded": False}
    rows = [written | {"decoded_question": text, "p_unknown": 0.9, "explained": 1.0} for text in fates]
    assert decoded_statuses(run, rows, ["Who was decoded in an earlier round?"]) == list(fates.values())


def reconstructed(folder: Path, **decode: Any) -> Run:
    """A run whose probe questions were decoded from their own states: forty people, each asked about in two ways."""
    run, rng = Run(Folder.of(str(folder)), parse_config({"decode": decode}, "test")), np.random.default_rng(0)
    people, ways = rng.normal(size=(40, 128)), 3 * rng.normal(size=(2, 128))
    asked = [(p, w) for p in range(40) for w in range(2)]
    questions = [
        {"id": f"{p}-{w}", "question": f"Who is {p} {w}?", "split": "probe", "entity": f"P {p}", "group": f"family {p}"}
        for p, w in asked
    ]
    run.table("questions").write(("probe", pa.Table.from_pylist(questions, schema=schema.QUESTIONS)))
    known = [{"id": q["id"], "unknown": w} for q, (_, w) in zip(questions, asked, strict=True)]
    run.base("knowledge").write((None, pa.Table.from_pylist(known)))
    own = {"variant": 0, "augment": "none", "source_id": None}
    requests = [own | {k: q[k] for k in ("id", "question", "group", "entity")} for q in questions]
    table = pa.Table.from_pylist(requests, schema=schema.TABLES["requests"].schema)
    Table(run.folder / "base/reconstruction/requests").write((None, table))
    errors = [None if p else "ValueError: unreadable" for p, _ in asked]
    found = [r | {"decoded_question": r["question"], "error": e} for r, e in zip(requests, errors, strict=True)]
    run.base("reconstruction").write((None, pa.Table.from_pylist(found)))
    read = [{k: q[k] for k in ("id", "question", "group", "entity")} for q in questions]
    run.base("decoder/probe_questions").write((None, pa.Table.from_pylist(read)))
    states = fixed_size(np.stack([people[p] + ways[w] for p, w in asked]), {0, 1})
    columns = pa.Table.from_pylist([r | {"error": e} for r, e in zip(read, errors, strict=True)])
    columns = columns.append_column("tokens", token_column([np.zeros((0, 128), np.float32)] * len(asked), 128))
    columns = columns.append_column("state", states)
    if "steer" in run.config.decode.augment:
        kinds = fixed_size(rng.normal(size=(len(asked), 128)), {0, 1})
        columns = columns.append_column("kind_state", kinds)
    run.base("decoder/probe_states").write((None, columns))
    return run


def test_what_wanted_states_are_made_with_is_fitted_once_and_again_only_where_it_is_gone(tmp_path: Path) -> None:
    run = reconstructed(tmp_path)
    assert not is_fitted(run)
    found = check_decoder(run)
    assert is_fitted(run)
    assert (found["exact_match"], found["steering_groups"]) == (1.0, 2)
    assert (found["steering_found"] or 0) > 0.9
    fitted = Augmenter.load(run.folder / "base/augmenter", run.config.decode, 0)
    assert fitted.steering is not None
    assert not fitted.steering.by_group, "families say of whom is asked"
    assert len(fitted.unknown) == 39, "readable questions that are labelled unknown"
    card = run.folder / "base/augmenter/augmenter.json"
    card.write_json(card.read_json() | {"steering": None})
    assert check_decoder(run)["steering_groups"] is None, "what rounds have used stays"
    card.delete()
    assert check_decoder(run) == found


def test_nothing_is_fitted_for_ways_that_steer_nothing(tmp_path: Path) -> None:
    run = reconstructed(tmp_path, augment=["noise", "interpolate"])
    assert check_decoder(run)["steering_groups"] is None
    assert Augmenter.load(run.folder / "base/augmenter", run.config.decode, 0).steering is None


def test_names_are_the_corpus_own_or_a_files(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("Ada Byron\n")
    for given, count in (("corpus", 40), (str(tmp_path / "names.txt"), 1)):
        run = reconstructed(tmp_path / str(count), grounding=given)
        check_decoder(run)
        names = Augmenter.load(run.folder / "base/augmenter", run.config.decode, 0).names
        assert names is not None
        assert len(names.names) == count
    (tmp_path / "empty.txt").write_text("\n")
    run = reconstructed(tmp_path / "empty", grounding=str(tmp_path / "empty.txt"))
    with pytest.raises(StageError, match=r"decode\.grounding = .*empty\.txt': contains no name"):
        check_decoder(run)


@pytest.mark.parametrize("reread", [None, {}])
def test_a_run_without_a_question_that_is_new_to_the_decoder_is_not_measured(
    tmp_path: Path, reread: dict[str, Any] | None, caplog: pytest.LogCaptureFixture
) -> None:
    run = reconstructed(tmp_path, reread=reread)
    for name in ("reconstruction", "reconstruction/requests"):
        run.base(name).open_again()
    none = pa.Table.from_pylist([], schema=schema.TABLES["requests"].schema)
    run.base("reconstruction/requests").write((None, none))
    with caplog.at_level(logging.WARNING, "ka2l_ray"):
        found = check_decoder(run)
    assert "no probe question is new to the decoder" in caplog.text
    assert "exact_match" not in found
    assert found["steering_groups"] == 2
    assert run.base("reconstruction").rows == 0
    assert run.base("reconstruction/candidates").is_done == (reread is not None)


@pytest.mark.parametrize(("begun", "reread", "apart"), [("decode", {}, False), ("reread", None, True)])
def test_what_was_begun_in_one_way_is_ended_in_it(
    tmp_path: Path, begun: str, reread: dict[str, Any] | None, apart: bool
) -> None:
    """So that shards that are there stay, whatever `decode.reread` has become."""
    run = Run(Folder.of(str(tmp_path)), parse_config({"decode": {"reread": reread}}, "test"))
    table = run.base("reconstruction")
    assert stage.is_apart(run, table) != apart, "as the configuration says"
    table.close([], stage=begun, rows_in=0, shard_rows=8, errors=0)
    assert stage.is_apart(run, table) == apart
