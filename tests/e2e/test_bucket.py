"""The whole loop on an S3 API: corpus, model and decoder come from a bucket, and all that the run keeps goes there.

The driver is killed while it trains, so that training continues from a checkpoint in the bucket.
"""

import io
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from commands import LIGHTER, ka2l, kill_when
from planted_secrets import files, files_with, plant
from pyarrow import fs

from ka2l_ray.config import WorldCorpusSection
from ka2l_ray.corpus.world import world_questions
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.models.loading import ASSETS
from ka2l_ray.world.facts import build_world

SNAPSHOT = "checkpoint_manager_snapshot.json"
"""Ray Train's list of the checkpoints of a training run."""
SEEN_BY_READERS = ["question", "answers", "group", "entity"]
SIZES = WorldCorpusSection(pool_questions=160, probe_questions=260, misconceptions=False)


def upload_inputs(folder: Folder) -> dict[str, str]:
    """Put corpus, model and decoder into the bucket; returns their URIs by field."""
    parts = world_questions(build_world(), SIZES, seed=0)
    lines = "".join(json.dumps(row) + "\n" for row in parts["probe"].select(SEEN_BY_READERS).to_pylist())
    (folder / "corpus/a.jsonl").write_bytes(lines.encode())
    stream = io.BytesIO()
    pq.write_table(parts["pool"].select(SEEN_BY_READERS), stream)
    (folder / "corpus/b.parquet").write_bytes(stream.getvalue())
    (folder / "model").upload(ASSETS / "model")
    (folder / "decoder").upload(ASSETS / "decoder")
    card = (folder / "decoder/decoder.json").read_json() | {"model": (folder / "model").uri}
    (folder / "decoder/decoder.json").write_json(card)
    return {
        "corpus.source": (folder / "corpus").uri,
        "model.name_or_path": (folder / "model").uri,
        "decode.decoder": (folder / "decoder").uri,
    }


def written(folder: Folder, name: str) -> list[Folder]:
    """The files of a name below a folder."""
    selected = fs.FileSelector(folder.path, recursive=True, allow_not_found=True)
    found = (f.path for f in folder.filesystem.get_file_info(selected) if f.base_name == name)
    return [Folder(folder.filesystem, path, folder.query) for path in found]


def checkpoints(folder: Folder) -> Iterator[Any]:
    """What Ray Train lists, while it may be writing it."""
    time.sleep(0.5)  # moto's server, which the run needs too, is one process
    for file in written(folder, SNAPSHOT):
        try:
            yield from json.loads(file.read_bytes())["checkpoint_results"]
        except (ValueError, FileNotFoundError):
            continue


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_the_whole_loop_lives_in_a_bucket(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = plant()
    for name, value in planted.items():
        monkeypatch.setenv(name, value)
    storage = Folder.of(bucket) / "runs"
    run = storage / "smoke"
    settings = upload_inputs(Folder.of(bucket)) | {
        "run.storage": storage.uri,
        "corpus.near_duplicates": "1.0",  # the world's questions are alike
        "finetune.epochs": "8",
        "finetune.checkpoint_every_steps": "2",
    }
    given = [
        word
        for name, value in settings.items()
        for word in ("--set", f"{name}='{value}'" if "//" in value else f"{name}={value}")
    ]
    command = ["run", "jobs/configs/smoke.yaml", *given, *LIGHTER]
    with tempfile.TemporaryDirectory(prefix="ka2l-", ignore_cleanup_errors=True) as scratch:
        monkeypatch.setenv("RAY_TMPDIR", scratch)
        kill_when(command, lambda: any(checkpoints(run / "strategies/ka2l")), timeout_s=900)
        cut_off = ka2l("status", run.uri)
        assert "gone, the same command continues the run" in cut_off.stdout, cut_off.stderr
        assert "strategies/ka2l/seed_0/round_01/finetune: " in cut_off.stdout
        done = ka2l(*command, timeout_s=900)
        assert done.returncode == 0, done.stderr
        assert files_with(Path(scratch), planted) == []
        assert any(file.name == "raylet.out" for file in files(Path(scratch)))

    results = (run / "results.json").read_json()
    assert [(r["strategy"], r["round"]) for r in results["rounds"]] == [
        ("ka2l", 0),
        ("ka2l", 1),
        ("random", 0),
        ("random", 1),
    ]
    assert results["rows"]["collect"]["errors"] == 0
    assert 0.3 < results["label"]["unknown_fraction"] < 0.7, "the model of the bucket knows half of the world"
    assert results["decode"]["exact_match"] > 0.5, "the decoder of the bucket reads its states"
    first, second = sorted(written(run, "training.json"), key=lambda f: f.path)
    assert first.read_json()["resumed_at_steps"] != []
    assert second.read_json()["resumed_at_steps"] == []
    assert list(checkpoints(run / "strategies")) == [], "a finished training run keeps no checkpoint"
    with run.local() as local:
        assert files_with(Path(local), planted) == []

    status = ka2l("status", run.uri, "--json")
    assert status.returncode == 0, status.stderr
    shown = json.loads(status.stdout)
    assert (shown["run"], shown["is_done"], shown["driver"], shown["rounds"]) == (run.uri, True, None, {"done": 2})
    page = run / "report/index.html"
    before = page.read_bytes()
    page.delete()
    report = ka2l("report", run.uri)
    assert report.returncode == 0, report.stderr
    assert report.stdout.strip() == page.path
    assert page.read_bytes() == before
