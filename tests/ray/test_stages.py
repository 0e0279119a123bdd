"""Stages on the world model: pools, storage and restarts change no number."""

import os
import re
import shutil
import time
import urllib.request
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from runs import copied, small
from safetensors.torch import load_file, save_file

from ka2l_ray import schema
from ka2l_ray.active.evaluation import evaluation_stage
from ka2l_ray.collect.stage import _precision, collect, pilot_rows, sample_pool
from ka2l_ray.corpus.stage import questions
from ka2l_ray.dataflow.attempts import ShardFile
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.dataflow.stage import Stage
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.decode.stage import stages_of
from ka2l_ray.errors import StageError
from ka2l_ray.hashing import uniform
from ka2l_ray.label.stage import BASELINES, count_knowledge, gamma
from ka2l_ray.models.loading import WORLD_MODEL
from ka2l_ray.pipeline import loop, retry
from ka2l_ray.probe.stage import score
from ka2l_ray.stats import auroc
from ka2l_ray.tables import fixed_size


def collected(run: Run) -> dict[str, Any]:
    questions(run)
    collect(run)
    rows = run.base("samples").read(["id", "greedy", "samples", "sample_tokens"]).to_pylist()
    return {r["id"]: (r["greedy"], r["samples"], r["sample_tokens"]) for r in rows}


def test_pool_size_and_batch_size_change_no_sample(scored: tuple[Run, dict[str, Any]], tmp_path: Path) -> None:
    """One actor with shards of 32 rows in batches of 16, and two (on a simulated GPU) with 13 in batches of 7."""
    pool = "collect.pool={min: 2, max: 2, cpus: 0.5, gpus: 0.5, batch_rows: 7, batch_tokens: 900, shard_rows: 13}"
    other = collected(Run.open(small(tmp_path, pool, "model.device=cpu")))
    assert len(other) == 120
    assert other == collected(scored[0])


POOLS = ("collect", "score", "decode", "decode.reread", "evaluate")


@pytest.mark.parametrize(("device", "share"), [("auto", 1.0), ("cpu", 0.0)])
def test_every_stage_places_its_actors_by_its_own_pool(
    scored: tuple[Run, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, device: str, share: float
) -> None:
    overrides = [f"model.device={device}", *(f"{name}.pool.gpus={n}" for n, name in enumerate(POOLS, 1))]
    run = Run(scored[0].folder, small(scored[0].config.run.storage, *overrides))
    stages: list[Stage] = []
    for module in ("collect", "probe"):
        monkeypatch.setattr(f"ka2l_ray.{module}.stage.run_stage", lambda stage, *_, **__: stages.append(stage))
    sample_pool(run)
    score(run)
    stages += [
        *stages_of(run, "reconstruction", apart=True),
        evaluation_stage(run, None, run.config.finetune.prompt),
    ]
    placed = {stage.setup.placement.field: stage.setup.placement.gpus for stage in stages}
    assert placed == {f"{name}.pool.gpus": n * share for n, name in enumerate(POOLS, 1)}


def test_gpus_that_actors_cannot_use_end_the_stage_in_one_line(
    scored: tuple[Run, dict[str, Any]], tmp_path: Path
) -> None:
    """The cluster's are simulated, and this torch is a build for CPUs."""
    run = copied(scored[0], small(tmp_path, "score.pool.gpus=1"))
    run.base("scores").folder.delete()
    says = (
        r"score: .*score\.pool\.gpus = 1: torch .* was built without CUDA; install a CUDA build .* "
        r"set model\.device: cpu, .*simulated$"
    )
    with pytest.raises(StageError, match=says):
        score(run)


@pytest.mark.long
def test_adaptive_sampling_saves_samples_and_changes_no_label(
    scored: tuple[Run, dict[str, Any]], tmp_path: Path
) -> None:
    """γ found by a pilot of half of the questions; K = 10, of which the labels need a part."""
    run = Run.open(small(tmp_path, "collect.adaptive={threshold: pilot, pilot_rows: 60, wave: 1}"))
    labels = loop.execute(run, "search", "a test")["label"]
    assert labels is not None
    gamma = labels["threshold_nats"]
    columns = ["id", "entropy_nats", "entropy_lo", "entropy_hi", "unknown"]
    stopped, whole = (r.base("knowledge").read(columns).sort_by("id").to_pylist() for r in (run, scored[0]))
    for mine, full in zip(stopped, whole, strict=True):
        assert mine["id"] == full["id"]
        assert mine["unknown"] == int(full["entropy_nats"] >= gamma)
        assert mine["entropy_lo"] <= full["entropy_nats"] <= mine["entropy_hi"]
        assert mine["entropy_nats"] in (None, full["entropy_nats"])
    drawn = sum(map(len, run.base("samples").read(["samples"])["samples"].to_pylist()))
    assert labels["samples_saved"] == pytest.approx(1 - drawn / (10 * len(whole)) - 0.5)
    assert drawn < 10 * len(whole)
    assert {cell["threshold_nats"] for cell in (run.folder / "base/search/heat.json").read_json()} == {gamma}
    assert scored[1]["label"]["samples_saved"] == 0


@pytest.mark.long
def test_a_run_on_object_storage_equals_one_scored(scored: tuple[Run, dict[str, Any]], bucket: str) -> None:
    _, here = scored
    remote = Run.open(small(bucket))
    there = loop.execute(remote, "score", "a test")
    for part in ("label", "search", "rows"):
        assert there[part] == here[part], part
    assert (remote.folder / "report/index.html").exists()
    assert loop.execute(remote, "score", "a test")["label"] == there["label"]


def test_redo_deletes_a_stage_and_all_after_it_only(scored: tuple[Run, dict[str, Any]], tmp_path: Path) -> None:
    made, results = scored
    run = copied(made, small(tmp_path))
    kept = os.stat(Path(run.folder.path) / "base/activations/manifest.json").st_mtime_ns
    loop.redo(run, "label")
    assert not run.base("knowledge").is_done
    assert not run.base("clusters").is_done
    assert not run.base("scores").is_done
    assert loop.execute(run, "label", "a test")["label"] == results["label"]
    assert os.stat(Path(run.folder.path) / "base/activations/manifest.json").st_mtime_ns == kept


def test_actors_report_what_they_read_as_ray_metrics(scored: tuple[Run, dict[str, Any]]) -> None:
    """From the page that Prometheus reads, which Ray fills every ten seconds: a line per actor, dead ones too."""
    port, deadline = ray.nodes()[0]["MetricsExportPort"], time.monotonic() + 60
    collecting, scoring = defaultdict[str, float](float), defaultdict[str, float](float)
    while collecting["ka2l_questions_total"] < 120 or scoring["ka2l_questions_total"] < 40:
        assert time.monotonic() < deadline, (collecting, scoring)
        page = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
        for stage, found in (("collect", collecting), ("score", scoring)):
            found.clear()
            for name, value in re.findall(
                rf'^ray_(ka2l_\w+_total)\{{.*stage="{stage}".*\}} (\S+)$', page, re.MULTILINE
            ):
                found[name] += float(value)
        time.sleep(1)
    assert collecting["ka2l_generated_tokens_total"] > collecting["ka2l_questions_total"]
    assert 0 < collecting["ka2l_edge_draws_total"] < 0.1 * collecting["ka2l_generated_tokens_total"]
    assert "ka2l_out_of_memory_total" not in collecting
    assert "ka2l_generated_tokens_total" not in scoring
    assert min(scoring["ka2l_prompt_tokens_total"], scoring["ka2l_model_s_total"], scoring["ka2l_waiting_s_total"]) > 0


def test_weights_that_hold_nan_end_the_stage_by_naming_the_rows_that_show_it(tmp_path: Path) -> None:
    shutil.copytree(WORLD_MODEL, tmp_path / "model")
    weights = load_file(tmp_path / "model/model.safetensors")
    weights["model.layers.2.mlp.down_proj.weight"][0, 0] = float("nan")
    save_file(weights, tmp_path / "model/model.safetensors", {"format": "pt"})
    run = Run.open(small(tmp_path, f"model.name_or_path={tmp_path / 'model'}", "decode.enabled=false"))
    questions(run)
    with pytest.raises(
        StageError,
        match=r"collect: \d+ of 120 rows failed.* First: row \S+: ValueError: hidden state contains NaN or infinity",
    ):
        collect(run)
    assert not run.base("activations").is_done


@pytest.mark.long
def test_a_probe_split_of_one_class_ends_the_search_in_one_line(
    scored: tuple[Run, dict[str, Any]], tmp_path: Path
) -> None:
    run = copied(scored[0], small(tmp_path, "label.threshold=99", "search.objective=entropy"))
    loop.redo(run, "label")
    with pytest.raises(
        StageError, match=r"search: .*the rows for training or for validation have one class only"
    ) as failed:
        loop.execute(run, "search", "a test")
    assert len(str(failed.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("largest", "said", "kept"),
    [
        ([1.0, 2.0], "every state fits float16 and is stored as such", {"float16_files": 2, "float32_files": 0}),
        (
            [1.0, 1e6],
            "states exceed float16's range in 1 of 2 files, which store them as float32",
            {"float16_files": 1, "float32_files": 1},
        ),
    ],
)
def test_the_run_says_in_which_precision_states_are_stored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, largest: list[float], said: str, kept: dict[str, int]
) -> None:
    table = Table(Folder.of(str(tmp_path)))
    table.write(
        *(
            (f"{n}", pa.table({"id": [f"q{n}"], "last_000": fixed_size(np.full((1, 2), v, np.float32))}))
            for n, v in enumerate(largest)
        )
    )
    with caplog.at_level("INFO", "ka2l"):
        found = _precision(table)
    assert [r.getMessage() for r in caplog.records] == [said]
    assert found == kept


@pytest.fixture
def streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table can be streamed, not read whole."""
    monkeypatch.setattr(Table, "read", lambda *_, **__: pytest.fail("read whole"))


def knowledge(folder: Path) -> tuple[Table, pa.Table]:
    """100 rows in three files: every seventh failed, every fifth stopped early, some without gold or truth."""
    drawn = np.random.default_rng(0)
    rows = []
    for n in range(100):
        row = {
            "id": f"q{n}",
            "unknown": int(drawn.integers(2)),
            "abstains": n % 11 == 0,
            "correct": [True, False, None][drawn.integers(3)],
            "quadrant": [None, "known", "shaky"][drawn.integers(3)],
            "truth": [None, "known", "unseen", "rare"][drawn.integers(4)],
            "entropy_nats": None if n % 5 == 0 else float(drawn.integers(4)),
            "likelihood": float(drawn.random()),
            "predictive_entropy": None if n % 5 == 0 else float(drawn.random()),
        }
        rows.append(row if n % 7 else {"id": row["id"], **dict.fromkeys(list(row)[1:])})
    whole = pa.Table.from_pylist(rows)
    table = Table(Folder.of(str(folder)))
    table.write(*((None, whole.slice(start, 40)) for start in (0, 40, 80)))
    return table, whole


def test_a_summary_by_batches_is_that_of_the_whole_table(tmp_path: Path, streamed: None) -> None:
    table, whole = knowledge(tmp_path)
    found = count_knowledge(table)
    rows = [r for r in whole.to_pylist() if r["unknown"] is not None]
    assert (found.questions, found.unknown) == (len(rows), sum(r["unknown"] for r in rows))
    assert found.quadrants == {q: sum(r["quadrant"] == q for r in rows) for q in ("known", "shaky")}
    assert found.abstains == sum(r["abstains"] for r in rows) > 0
    rows = [r for r in rows if not r["abstains"]]
    graded = [r for r in rows if r["correct"] is not None and r["entropy_nats"] is not None]
    for name in ("entropy_nats", *BASELINES):
        mine = auroc(found.wrong[found.wrong >= 0] == 1, found.scores[name][found.wrong >= 0])
        assert mine == auroc(np.array([not r["correct"] for r in graded]), np.array([r[name] for r in graded]))
    compared = [r for r in rows if r["truth"] in ("known", "unseen") and r["entropy_nats"] is not None]
    mine = auroc(found.unseen[found.unseen >= 0], found.scores["entropy_nats"][found.unseen >= 0])
    assert mine == auroc(
        np.array([r["truth"] == "unseen" for r in compared]), np.array([r["entropy_nats"] for r in compared])
    )


@pytest.mark.parametrize("count", [10, 1000])
def test_a_pilot_is_drawn_by_ids_alone_in_their_order(tmp_path: Path, streamed: None, count: int) -> None:
    table = Table(Folder.of(str(tmp_path)))
    rows = {part: [{"id": f"{part}{n}", "question": f"Q {part}{n}?"} for n in range(70)] for part in ("probe", "pool")}
    halves = [(part, pa.Table.from_pylist(rows[part][at : at + 35])) for part in rows for at in (0, 35)]
    table.write(*halves)
    assert (
        pilot_rows(table, count).to_pylist() == sorted(rows["probe"], key=lambda r: uniform("pilot", r["id"]))[:count]
    )


def whole(table: Table) -> dict[str, dict[str, Any]]:
    return {r["id"]: r for r in table.read().to_pylist()}


def lose(table: Table, question: str) -> None:
    """Make a row of a finished table one that failed: its shard in a new file, named in the manifest."""
    manifest = table.manifest()
    for entry in manifest["files"]:
        rows = pq.read_table(f"{table.folder.path}/{entry['name']}")
        if question not in rows["id"].to_pylist():
            continue
        kept = pa.array([None if i == question else n for n, i in enumerate(rows["id"].to_pylist())])
        lost = {
            name: rows[name] if name in ("id", *schema.TABLES["samples"].carried) else rows[name].take(kept)
            for name in rows.column_names
            if name != "error"
        }
        told = pa.array(["RuntimeError: made up" if i == question else None for i in rows["id"].to_pylist()])
        file = ShardFile.new(int(entry["name"][9:15]), "0123abcd", 1, 1)
        pq.write_table(pa.table(lost | {"error": told}), f"{table.folder.path}/data/{file.name}")
        entry["name"] = f"data/{file.name}"
    table.open_again()
    kept_facts = {k: v for k, v in manifest.items() if k not in ("files", "rows", "closed_unix_s")}
    table.close(manifest["files"], **kept_facts | {"errors": 1})


@pytest.mark.long
def test_failed_rows_are_repeated_in_every_stage_as_if_they_had_not_failed(
    scored: tuple[Run, dict[str, Any]], tmp_path: Path
) -> None:
    run, names = copied(scored[0], small(tmp_path)), ("activations", "clusters", "knowledge", "scores")
    before = {name: whole(run.base(name)) for name in (*names, "samples")}
    threshold = gamma(run)
    for name in names:
        lose(run.base(name), sorted(before[name])[5])
    run.base("samples").open_again()
    run.base("samples").close(
        run.base("activations").listed_from(run.base("samples").folder),
        rows_in=120,
        errors=1,
        seconds=0.0,
        threshold_nats=None,
    )
    assert sum(r["error"] is not None for r in whole(run.base("samples")).values()) == 1
    assert retry.retry_errors(run) == dict.fromkeys(names, 1)
    loop.execute(run, "score", "a test")
    after = {name: whole(run.base(name)) for name in before}
    scores = [{i: r.pop("p_unknown") for i, r in tables["scores"].items()} for tables in (before, after)]
    assert scores[1] == pytest.approx(scores[0], abs=1e-5)  # a row in a batch of its own may round otherwise
    assert after == before
    assert {run.base(name).manifest()["errors"] for name in before} == {0}
    assert gamma(run) == threshold
    assert retry.retry_errors(run) == {}


@pytest.mark.long
def test_a_request_that_failed_is_decoded_again_and_re_embedded_in_a_stage_of_its_own(
    scored: tuple[Run, dict[str, Any]], tmp_path: Path
) -> None:
    run = copied(scored[0], small(tmp_path, "decode={check_questions: 30, reread: {}}"))
    loop.execute(run, "decode", "a test")
    names = ("reconstruction/candidates", "reconstruction")
    before = {name: whole(run.base(name)) for name in names}
    lost = sorted(before["reconstruction"])[5]
    for name in names:
        lose(run.base(name), lost)
    assert whole(run.base("reconstruction"))[lost]["error"] is not None
    files = {name: {f["name"] for f in run.base(name).manifest()["files"]} for name in names}
    assert retry.retry_errors(run) == dict.fromkeys(names, 1)
    loop.execute(run, "decode", "a test")
    after = {name: whole(run.base(name)) for name in names}
    for name in names:
        kept = files[name] & {f["name"] for f in run.base(name).manifest()["files"]}
        assert len(kept) == len(files[name]) - 1 > 0, "the others are kept"
    assert after[names[0]][lost]["texts"] == before[names[0]][lost]["texts"]
    for name, exact in ((names[0], "texts"), (names[1], "decoded_question")):
        assert {i: (r["error"], r[exact]) for i, r in after[name].items()} == {
            i: (None, r[exact]) for i, r in before[name].items()
        }
    assert retry.retry_errors(run) == {}
