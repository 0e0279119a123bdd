"""`make bench-shards`: the files that ten million rows make, and how long a nearly finished stage takes to resume.

In: nothing. Out: `results/shards.json`. A stage over 10^7 stub rows by an actor that computes nothing; then its
manifest and three of its shards are taken away, as a kill just before the end leaves it, and it is run again: on
local disk, and with source and table on a real S3 API (moto's server on this machine). `--rows 200000` shows in a
minute that it runs.
"""

import argparse
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

sys.path.insert(0, str(Path(__file__).parents[1]))  # also in workers, by PYTHONPATH

from object_store import KEYS, bucket_on_moto

from ka2l_ray.config import Config, Pool
from ka2l_ray.dataflow.attempts import Attempt, ShardFile, Shards, listed
from ka2l_ray.dataflow.cluster import connect
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.stage import STATE, Stage, run_stage
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.schema import TABLES

RESULTS = Path(__file__).parent / "results" / "shards.json"
FILE_ROWS, GROUP_ROWS, LOST = 50_000, 8192, 3


class StubActor:
    """Scores by the number in the text: what a stage costs when the model costs nothing."""

    def __init__(self, setup: None) -> None:
        """There is nothing to load."""

    def __call__(self, batch: pa.Table) -> dict[str, Any]:
        return {"p_unknown": pa.array(np.arange(batch.num_rows, dtype=np.float32) % 10 / 10)}


def source(folder: Folder, rows: int) -> Table:
    """A table of made-up questions in files of 50,000."""

    def files() -> Iterator[dict[str, Any]]:
        for start in range(0, rows, FILE_ROWS):
            numbers = np.arange(start, min(start + FILE_ROWS, rows))
            part = pa.table({"id": np.char.mod("q%d", numbers), "question": np.char.mod("What is %d?", numbers)})
            pq.write_table(
                part, (folder / f"{start:09d}.parquet").path, filesystem=folder.filesystem, row_group_size=GROUP_ROWS
            )
            yield {"name": f"{start:09d}.parquet", "rows": len(numbers)}

    folder.make()
    table = Table(folder)
    table.close(list(files()))
    return table


def stage() -> Stage[None]:
    spec = replace(TABLES["scores"], carried=())
    return Stage(name="score", run="bench", spec=spec, actor=StubActor, setup=None, pool=Pool())


def interrupted(target: Table) -> None:
    """Make a finished table look killed just before its end: no manifest, the attempt's state, three shards gone."""
    manifest = target.manifest()
    shards = Shards("score", manifest["rows_in"], manifest["shard_rows"])
    files = [f for e in manifest["files"] if (f := ShardFile.parse(e["name"].removeprefix("data/")))]
    for file in files[:: max(1, len(files) // LOST)][:LOST]:
        (target.folder / "data" / file.name).delete()
    Attempt("", shards, {f.shard: f for f in files}).save(target.folder / STATE)
    target.open_again()


def resumed(source: Table, target: Table) -> dict[str, float]:
    interrupted(target)
    started = time.perf_counter()
    listed(target.folder / "data", Shards("score", source.rows, 4096))
    seconds = time.perf_counter() - started
    started = time.perf_counter()
    manifest = run_stage(stage(), source, target)
    assert manifest["rows"] == source.rows
    return {"resume_s": round(time.perf_counter() - started, 1), "listing_s": round(seconds, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    rows = parser.parse_args().rows
    os.environ |= KEYS
    connect(Config())
    logging.getLogger("ka2l").setLevel(logging.INFO)
    with tempfile.TemporaryDirectory() as scratch:
        local = Folder.of(scratch)
        questions, target = source(local / "questions", rows), Table(local / "scores")
        started = time.perf_counter()
        manifest = run_stage(stage(), questions, target)
        found: dict[str, Any] = {
            "rows": rows,
            "seconds": round(time.perf_counter() - started, 1),
            "files": len(manifest["files"]),
        }
        print(found, flush=True)
        run_stage(stage(), Table(local / "questions"), target)  # done: the check that no file is gone
        found["local"] = resumed(questions, target)
        print(found["local"], flush=True)
        with bucket_on_moto() as uri:
            bucket = Folder.of(uri)
            for name in ("questions", "scores"):
                fs.copy_files(
                    (local / name).path,
                    (bucket / name).path,
                    source_filesystem=local.filesystem,
                    destination_filesystem=bucket.filesystem,
                )
            found["s3"] = resumed(Table(bucket / "questions"), Table(bucket / "scores"))
            print(found["s3"], flush=True)
    if rows == parser.parse_args([]).rows:  # fewer rows show only that it runs
        RESULTS.write_text(json.dumps(found | {"command": "python tests/benchmarks/bench_shards.py"}, indent=1) + "\n")


if __name__ == "__main__":
    main()
