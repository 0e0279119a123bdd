"""Whole runs as jobs on a cluster of which only the head is there, submitted from a folder that is no checkout."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from growing import ROOT, Growing
from ray.util.state import list_actors

from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.storage import Folder

pytestmark = pytest.mark.long
LIGHT = ("finetune.workers=1", "model.device=cpu")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as a wheel installs it, in a folder of its own."""
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(ROOT)]
    subprocess.run(command, check=True)
    return target


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "jobs/configs/smoke.yaml", tmp_path / "mine.yaml")
    return tmp_path


def submit(
    cluster: Growing, folder: Path, installed: Path, *options: str, **env: str
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ka2l_ray.cli", "submit", "--address", cluster.dashboard, *options]
    own = cluster.env | {"PYTHONPATH": str(installed), "COLUMNS": "160"} | env
    return subprocess.run(command, cwd=folder, env=own, capture_output=True, text=True, timeout=600)


def run_of(folder: Path, *overrides: str) -> list[str]:
    given = (f"run.storage={folder}/runs", *LIGHT, *overrides)
    return ["mine.yaml", *(part for o in given for part in ("--set", o))]


def actors(cluster: Growing) -> list[Any]:
    """Every actor that the cluster remembers, dead ones too."""
    return list_actors(address=cluster.dashboard, limit=1000)


def ids(table: Path) -> list[str]:
    return Table(Folder.of(str(table))).read(["id"])["id"].to_pylist()


def test_a_run_needs_the_token_and_its_exit_status_is_the_jobs(cluster: Growing, folder: Path, installed: Path) -> None:
    refused = submit(cluster, folder, installed, *run_of(folder), RAY_AUTH_TOKEN="0" * 64)
    assert refused.returncode == 2, refused.stderr
    assert "the dashboard refuses this user" in refused.stderr
    mistaken = submit(cluster, folder, installed, *run_of(folder), "--command", "run --until nothing")
    assert mistaken.returncode == 2, "the job's own status"
    assert "no stage 'nothing'" in mistaken.stdout


def test_a_whole_run_grows_the_cluster_and_lets_it_shrink(cluster: Growing, folder: Path, installed: Path) -> None:
    gpus = "collect.pool={min: 2, max: 2, gpus: 1, batch_rows: 16, shard_rows: 32}"
    done = submit(cluster, folder, installed, *run_of(folder, gpus, "ray.tasks.labels={ka2l/node-type: cpu-spot}"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((folder / "runs/smoke/results.json").read_text())["rounds"]
    assert cluster.largest("gpu-spot") >= 2, cluster.sizes  # the stage alone: test_stage.py
    assert cluster.largest("cpu-spot") >= 1, cluster.sizes
    cluster.wait_until_head_alone()


def test_a_node_in_use_is_taken_away_and_every_id_is_there_once(
    cluster: Growing, folder: Path, installed: Path
) -> None:
    gpus = "collect.pool={min: 2, max: 2, gpus: 1, batch_rows: 16, shard_rows: 16}"
    options = run_of(folder, gpus, "corpus.world.probe_questions=600")
    started = submit(cluster, folder, installed, *options, "--command", "collect", "--no-wait")
    assert started.returncode == 0, started.stderr
    data = folder / "runs/smoke/base/activations/data"
    cluster.wait_for(lambda: len(list(data.glob("*/*.parquet"))) >= 4, "the first shards")
    in_use = [a.node_id for a in actors(cluster) if "collect" in str(a.class_name) and a.state == "ALIVE"]
    assert in_use, "no actor is at work"
    cluster.raylet_of(str(in_use[0])).kill()
    followed = submit(cluster, folder, installed, "--follow", job_of(started))
    assert followed.returncode == 0, followed.stdout + followed.stderr
    found = ids(folder / "runs/smoke/base/activations")
    assert (len(found), len(set(found))) == (600, 600)


def test_a_killed_run_that_is_submitted_again_goes_on(cluster: Growing, folder: Path, installed: Path) -> None:
    options = run_of(folder, "corpus.world.probe_questions=600")
    started = submit(cluster, folder, installed, *options, "--command", "label", "--no-wait")
    assert started.returncode == 0, started.stderr
    data = folder / "runs/smoke/base/activations/data"
    cluster.wait_for(lambda: len(list(data.glob("*/*.parquet"))) >= 4, "the first shards")
    second = submit(cluster, folder, installed, *options)
    assert second.returncode == 2
    assert "is at work on it" in second.stderr
    driver = json.loads((folder / "runs/smoke/driver.json").read_text())
    psutil.Process(driver["pid"]).kill()
    ended = submit(cluster, folder, installed, "--follow", job_of(started))
    assert ended.returncode != 0
    before = {f.name for f in data.glob("*/*.parquet")}
    again = submit(cluster, folder, installed, *options, "--command", "label")
    assert again.returncode == 0, again.stdout + again.stderr
    kept = {f["name"].rpartition("/")[2] for f in Table(Folder.of(str(data.parent))).manifest()["files"]}
    assert len(kept & before) >= 4, "what the killed job had written was not done again"
    assert len(set(ids(data.parent))) == len(ids(data.parent)) == 600


def job_of(started: subprocess.CompletedProcess[str]) -> str:
    return started.stderr.split("job ", 1)[1].split(":", 1)[0]


def test_the_trials_of_a_search_run_on_more_than_one_node(cluster: Growing, folder: Path, installed: Path) -> None:
    done = submit(cluster, folder, installed, *run_of(folder, "search.cpus=4"), "--command", "search")
    assert done.returncode == 0, done.stdout + done.stderr
    trials = [a for a in actors(cluster) if "_trial" in str(a.class_name) or a.class_name == "ImplicitFunc"]
    trials = [a for a in trials if a.job_id == max(str(t.job_id) for t in trials)]
    nodes = {a.node_id for a in trials}
    assert len(json.loads((folder / "runs/smoke/base/search/search.json").read_text())["layers"]) == len(trials) == 3
    assert len(nodes) > 1, trials
    assert cluster.largest("cpu-spot") == 3, cluster.sizes
