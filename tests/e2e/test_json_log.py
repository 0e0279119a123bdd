"""`run.log: json`: every line on stderr can be read by a log collector, and so can what actors say."""

import hashlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from commands import KA2L, ROOT, environment

FIELDS = {"time", "level", "logger", "run", "stage", "id", "message"}
SHORT, LONG = 90, 10
TOO_LONG = " and then" * 600
"""More tokens than the world's model reads."""


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """Where Ray keeps its session, with the workers' own logs; a short path, as its sockets need."""
    folder = tempfile.mkdtemp(prefix="ka2l-")
    yield Path(folder)
    shutil.rmtree(folder, ignore_errors=True)


def collect(folder: Path, ray_folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    fields = ["run.log=json", f"run.storage={folder}", f"corpus.source={folder}/q.jsonl", "run.max_error_fraction=1"]
    options = [word for field in (*fields, *overrides) for word in ("--set", field)]
    return subprocess.run(
        [*KA2L, "collect", "jobs/configs/smoke.yaml", *options],
        cwd=ROOT,
        env=environment() | {"RAY_TMPDIR": str(ray_folder)},
        capture_output=True,
        text=True,
        timeout=600,
    )


def parsed(text: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in text.splitlines()]
    assert all(line.keys() >= FIELDS for line in lines)
    return lines


@pytest.mark.long
def test_every_line_of_a_run_is_json_and_a_failed_row_is_named(tmp_path: Path, ray_folder: Path) -> None:
    unlike = [hashlib.sha256(str(n).encode()).hexdigest()[:30] for n in range(SHORT + LONG)]
    questions = [f"Which river crosses {name}{TOO_LONG if n >= SHORT else ''}?" for n, name in enumerate(unlike)]
    rows = [json.dumps({"question": q, "answers": [f"River {n}"]}) for n, q in enumerate(questions)]
    (tmp_path / "q.jsonl").write_text("\n".join(rows))
    done = collect(tmp_path, ray_folder)
    assert done.returncode == 0, done.stderr
    lines = parsed(done.stderr)
    assert {line["run"] for line in lines} == {"smoke"}
    stages = [line["stage"] for line in lines if line["message"].startswith("done in")]
    assert stages == ["questions", "collect"]

    table = tmp_path / "smoke/base/activations"
    failed = {r["id"] for file in table.glob("errors/*") for r in pq.read_table(file).to_pylist()}
    assert failed
    said = [line for file in ray_folder.rglob("worker-*.err") for line in file.read_text().splitlines()]
    named = [json.loads(line) for line in said if "of shard" in line]
    assert {line["id"] for line in named} <= failed
    assert {(line["level"], line["run"], line["stage"]) for line in named} == {("warning", "smoke", "collect")}
    assert all(f"the first, {line['id']}: ValueError: prompt of" in line["message"] for line in named)

    refused = collect(tmp_path, ray_folder, "collect.samples=5")
    assert refused.returncode == 2
    (line,) = parsed(refused.stderr)
    assert (line["level"], line["run"]) == ("error", "smoke")
    assert "collect.samples: 10 → 5" in line["message"]
