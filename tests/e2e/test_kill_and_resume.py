"""A run killed three times ends like one that was never interrupted.

The uninterrupted run is the one made as a job (`conftest.py`). With `KA2L_KILL_CONFIG=jobs/configs/world.yaml` and
`KA2L_CALM_RUN=runs/world` the same test uses the demo's configuration and compares with an existing run of it.
"""

import os
import random
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from commands import SMALLEST, JobRun, ka2l, kill_when, listed, results

SMOKE = "jobs/configs/smoke.yaml"
CONFIG = os.environ.get("KA2L_KILL_CONFIG", SMOKE)
FLOAT_TOLERANCE = 1e-4  # states of another batch composition differ in their last bits


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_killed_in_collecting_search_and_finetuning(tmp_path: Path, job_run: JobRun) -> None:
    def arguments(storage: str) -> list[str]:
        return [
            "run",
            CONFIG,
            "--set",
            f"run.storage={tmp_path / storage}",
            "--set",
            "run.name=r",
            *(SMALLEST if CONFIG == SMOKE else []),
        ]

    calm_run = Path(os.environ["KA2L_CALM_RUN"]) if "KA2L_CALM_RUN" in os.environ else job_run.folder
    run, rng = tmp_path / "killed/r", random.Random(7)

    activations = run / "base/activations"

    def written() -> set[str]:
        """Files of finished shards, until the stage is finished."""
        if (activations / "manifest.json").exists():
            return set()
        return {f.name for f in activations.glob("data/*/*.parquet")}

    kill_when(arguments("killed"), lambda: bool(written()))
    if not written():  # collecting ended between the check and the kill
        shutil.rmtree(run)
        kill_when(arguments("killed"), lambda: bool(written()))
    kept = written()
    assert kept, "collecting was never killed with a shard written"

    kill_when(arguments("killed"), lambda: any((run / "base/search/layers").glob("*/fit.json")), rng.uniform(0.0, 2.0))
    collected = (run / "base/activations/manifest.json").read_bytes()
    assert kept <= {Path(n).name for n in listed(run / "base/activations/manifest.json")}, (
        "rows that were written were computed again"
    )
    fitted = {f: f.read_bytes() for f in (run / "base/search/layers").glob("*/fit.json")}

    kill_when(
        arguments("killed"),
        lambda: any(run.glob("strategies/*/*/*/finetune/examples/manifest.json")),
        rng.uniform(0.0, 2.0),
    )
    searched = (run / "base/search/search.json").read_bytes()

    resumed = ka2l(*arguments("killed"), timeout_s=1800)
    assert resumed.returncode == 0, resumed.stderr
    assert (run / "base/activations/manifest.json").read_bytes() == collected
    assert (run / "base/search/search.json").read_bytes() == searched
    assert all(f.read_bytes() == content for f, content in fitted.items())
    for manifest in run.rglob("manifest.json"):
        ids = [i for n in listed(manifest) for i in pq.ParquetFile(manifest.parent / n).read(["id"])["id"].to_pylist()]
        assert len(ids) == len(set(ids)), f"{manifest.parent}: an id twice"
    calm_results, killed_results = results(calm_run), results(run)
    for part in ("label", "search", "decode", "rounds", "saving", "rows"):
        assert_same(without_seconds(killed_results[part]), without_seconds(calm_results[part]), part)


def without_seconds(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {k: without_seconds(v) for k, v in tree.items() if k not in ("seconds", "kept_per_s")}
    return [without_seconds(v) for v in tree] if isinstance(tree, list) else tree


def assert_same(a: Any, b: Any, where: str) -> None:
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list):
        assert len(a) == len(b), where
        for n, pair in enumerate(zip(a, b, strict=True)):
            assert_same(*pair, f"{where}[{n}]")
    elif isinstance(a, float):
        assert a == pytest.approx(b, abs=FLOAT_TOLERANCE), where
    else:
        assert a == b, where
