"""Stages on the world model: pools, storage and restarts change no number."""

import os
import re
import shutil
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import ray
from runs import copied, small
from safetensors.torch import load_file, save_file

from ka2l_ray import pipeline
from ka2l_ray.artifacts import Run, StageError
from ka2l_ray.collect.stage import collect
from ka2l_ray.corpus.stage import questions
from ka2l_ray.models.loading import WORLD_MODEL


def collected(run: Run) -> dict[str, Any]:
    questions(run)
    collect(run)
    rows = run.base("samples").read(["id", "greedy", "samples", "sample_tokens"]).to_pylist()
    return {r["id"]: (r["greedy"], r["samples"], r["sample_tokens"]) for r in rows}


def test_pool_size_and_batch_size_change_no_sample(scored: tuple[Run, dict[str, Any]], tmp_path: Path) -> None:
    """One actor with blocks of 32 rows in batches of 16, and four with blocks of 13 in batches of 7."""
    pool = "collect.pool={min: 4, max: 4, cpus: 0.5, batch_rows: 7, batch_tokens: 900, block_rows: 13}"
    other = collected(Run.open(small(tmp_path, pool)))
    assert len(other) == 120
    assert other == collected(scored[0])


def test_adaptive_sampling_saves_samples_and_changes_no_label(scored: tuple[Run, dict[str, Any]], tmp_path: Path) -> None:
    """γ found by a pilot of half of the questions; K = 10, of which the labels need a part."""
    run = Run.open(small(tmp_path, "collect.adaptive={threshold: pilot, pilot_rows: 60, wave: 1}"))
    results = pipeline.execute(run, "search", "a test")
    gamma = results["label"]["threshold_nats"]
    columns = ["id", "entropy_nats", "entropy_lo", "entropy_hi", "unknown"]
    stopped, whole = (r.base("knowledge").read(columns).sort_by("id").to_pylist() for r in (run, scored[0]))
    for mine, full in zip(stopped, whole, strict=True):
        assert mine["id"] == full["id"]
        assert mine["unknown"] == int(full["entropy_nats"] >= gamma)
        assert mine["entropy_lo"] <= full["entropy_nats"] <= mine["entropy_hi"]
        assert mine["entropy_nats"] in (None, full["entropy_nats"])
    drawn = sum(map(len, run.base("samples").read(["samples"])["samples"].to_pylist()))
    assert results["label"]["samples_saved"] == pytest.approx(1 - drawn / (10 * len(whole)) - 0.5)
    assert drawn < 10 * len(whole)
    assert {cell["threshold_nats"] for cell in (run.folder / "base/search/heat.json").read_json()} == {gamma}
    assert scored[1]["label"]["samples_saved"] == 0


def test_a_run_on_object_storage_equals_one_scored(scored: tuple[Run, dict[str, Any]], bucket: str) -> None:
    _, here = scored
    remote = Run.open(small(bucket))
    there = pipeline.execute(remote, "score", "a test")
    for part in ("label", "search", "rows"):
        assert there[part] == here[part], part
    assert (remote.folder / "report/index.html").exists()
    assert pipeline.execute(remote, "score", "a test")["label"] == there["label"]


def test_redo_deletes_a_stage_and_all_after_it_only(scored: tuple[Run, dict[str, Any]], tmp_path: Path) -> None:
    made, results = scored
    run = copied(made, small(tmp_path))
    kept = os.stat(Path(run.folder.path) / "base/activations/manifest.json").st_mtime_ns
    pipeline.redo(run, "label")
    assert not run.base("knowledge").is_done
    assert not run.base("clusters").is_done
    assert not run.base("scores").is_done
    assert pipeline.execute(run, "label", "a test")["label"] == results["label"]
    assert os.stat(Path(run.folder.path) / "base/activations/manifest.json").st_mtime_ns == kept


def test_actors_report_what_they_read_as_ray_metrics(scored: tuple[Run, dict[str, Any]]) -> None:
    """From the page that Prometheus reads, which Ray fills every ten seconds."""
    port, deadline, found = ray.nodes()[0]["MetricsExportPort"], time.monotonic() + 60, {}
    while len(found) < 2 and time.monotonic() < deadline:
        page = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
        lines = re.findall(r"^ray_(ka2l_\w+_total)\{.*stage=\"(collect|score)\".*\} (\S+)$", page, re.MULTILINE)
        found = {stage: {n: float(v) for n, s, v in lines if s == stage} for _, stage, _ in lines}
        time.sleep(1)
    collecting, scoring = found["collect"], found["score"]
    assert collecting["ka2l_questions_total"] >= 120
    assert scoring["ka2l_questions_total"] >= 40
    assert collecting["ka2l_generated_tokens_total"] > collecting["ka2l_questions_total"]
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
        StageError, match=r"collect: 120 of 120 rows failed.* First: row \S+: ValueError: hidden state holds NaN or infinity"
    ):
        collect(run)
    assert not run.base("activations").is_done


def test_a_probe_split_of_one_class_ends_the_search_in_one_line(scored: tuple[Run, dict[str, Any]], tmp_path: Path) -> None:
    run = copied(scored[0], small(tmp_path, "label.threshold=99", "search.objective=entropy"))
    pipeline.redo(run, "label")
    with pytest.raises(StageError, match=r"search: .*the probe split holds one class only in train or validation") as failed:
        pipeline.execute(run, "search", "a test")
    assert len(str(failed.value).splitlines()) == 1
