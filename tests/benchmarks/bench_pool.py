"""`make bench`: what Ray Data costs around the engine, and whether memory grows with the corpus.

In: the model and questions of `bench_model`. Out: `results/pool.json`.
Throughput: scoring in a pool of two actors of one thread each against the same engine in one plain process of two threads, `PAIRS` pairs in
turn; a pool's rate is that of the blocks after its first ones, so that starting actors is not counted. Memory: the largest resident sets
of driver and actors, each corpus size in a process and cluster of its own, with an actor that holds no model.
"""

import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import pyarrow as pa
import torch
from bench_model import build, prompt, questions

from ka2l_ray.artifacts import Folder, Table
from ka2l_ray.config import Config, ModelSection, Pool
from ka2l_ray.dataflow import Stage, run_stage
from ka2l_ray.models.batching import Limits
from ka2l_ray.models.loading import depth_and_width
from ka2l_ray.probe.model import LinearProbe, ProbeCard
from ka2l_ray.probe.score import ScoreActor
from ka2l_ray.runtime import connect

RESULTS = Path(__file__).parent / "results" / "pool.json"
os.environ.setdefault("RAY_worker_niceness", "0")  # as the plain process; Ray's own default of 15 leaves the machine to others
ACTORS, PAIRS, ROWS, BLOCK = 2, 5, 20_000, 512
SIZES = (10_000, 100_000, 1_000_000)
OUT = pa.schema([pa.field("p_unknown", pa.float32())])


class StubActor:
    """Scores by the length of the text: what a stage costs when the model costs nothing."""

    def __call__(self, batch: pa.Table) -> dict[str, Any]:
        return {"p_unknown": [(len(q) % 10) / 10 for q in batch["question"].to_pylist()]}


def corpus(folder: Path, rows: int) -> Table:
    """A table of real questions, each with an id of its own, in files of 50,000."""
    texts = itertools.cycle(questions(990))
    files = []
    for start in range(0, rows, 50_000):
        ids = [f"q{i}" for i in range(start, min(start + 50_000, rows))]
        files.append((f"p{start}", pa.table({"id": ids, "question": list(itertools.islice(texts, len(ids)))})))
    table = Table(Folder.of(str(folder)))
    table.write(*files)
    return table


def probe(section: ModelSection, folder: Path) -> Folder:
    """A probe of the middle layer; its weights do not matter here."""
    depth, width = depth_and_width(section)
    card = ProbeCard(section.identity, prompt().template, depth // 2, "last", width, 0.5, 1.0)
    LinearProbe(torch.linspace(-0.1, 0.1, width).numpy(), 0.0, card).save(Folder.of(str(folder)))
    return Folder.of(str(folder))


def pool_rate(arguments: dict[str, Any], source: Table, target: Path) -> float:
    """Questions per second of a pool after each actor's first block."""
    pool = Pool(min=ACTORS, max=ACTORS, batch_rows=32, block_rows=BLOCK)
    table = Table(Folder.of(str(target)))
    run_stage(Stage("score", ScoreActor, arguments | {"limits": Limits.of(pool)}, ("question",), OUT, pool), source, table)
    written = sorted((Path(f).stat().st_mtime, n["rows"]) for f, n in zip(table.files(), table.manifest()["files"], strict=True))
    return sum(rows for _, rows in written[ACTORS:]) / (written[-1][0] - written[ACTORS - 1][0])


def plain_rate(actor: ScoreActor, rows: list[dict[str, Any]]) -> float:
    """Questions per second of the engine called in a loop, after one block."""
    blocks = [pa.Table.from_pylist(rows[i : i + BLOCK]) for i in range(0, len(rows), BLOCK)]
    actor(blocks[0])
    started = time.perf_counter()
    for block in blocks[1:]:
        actor(block)
    return (len(rows) - BLOCK) / (time.perf_counter() - started)


def throughput() -> dict[str, Any]:
    torch.set_num_threads(ACTORS)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        section = ModelSection(name_or_path=build(folder / "model"))
        arguments = {"model": section, "prompt": prompt(), "probe": probe(section, folder / "probe")}
        source = corpus(folder / "questions", ROWS)
        rows = source.read().to_pylist()
        actor = ScoreActor(**arguments, limits=Limits(rows=32))
        connect(Config())
        pairs = []
        for n in range(PAIRS):
            pairs.append((pool_rate(arguments, source, folder / f"scores-{n}"), plain_rate(actor, rows)))
            print(f"pair {n + 1}/{PAIRS}: pool {pairs[-1][0]:,.0f} questions/s, plain process {pairs[-1][1]:,.0f}", flush=True)
    ratios = [a / b for a, b in pairs]
    return {
        "ratio": median(ratios),
        "range": [min(ratios), max(ratios)],
        "pool_questions_per_s": median(a for a, _ in pairs),
        "plain_questions_per_s": median(b for _, b in pairs),
        "seconds_of_work": [ROWS / a for a, _ in pairs],
        "actors": ACTORS,
    }


@contextmanager
def watching() -> Iterator[dict[str, int]]:
    """The largest resident set in bytes of this process and of any of Ray's actor processes, sampled ten times a second."""
    peak, done = {"driver": 0, "actor": 0}, threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            peak["driver"] = max(peak["driver"], psutil.Process().memory_info().rss)
            for process in psutil.process_iter(["cmdline", "memory_info"]):
                if "MapWorker" in " ".join(process.info["cmdline"] or ()):
                    peak["actor"] = max(peak["actor"], process.info["memory_info"].rss)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def memory(rows: int) -> dict[str, Any]:
    """Peak memory of one stage over `rows` questions, in this process."""
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run([sys.executable, __file__, "corpus", f"{scratch}/questions", str(rows)], check=True)  # its memory is not the stage's
        source = Table(Folder.of(f"{scratch}/questions"))
        connect(Config())
        pool = Pool(min=ACTORS, max=ACTORS, block_rows=4096)
        started = time.monotonic()
        with watching() as peak:
            run_stage(Stage("stub", StubActor, {}, ("question",), OUT, pool), source, Table(Folder.of(scratch) / "scores"))
    return {"rows": rows, "seconds": round(time.monotonic() - started, 1)} | {k: round(v / 2**20) for k, v in peak.items()}


def memories() -> dict[str, Any]:
    """Each size in a process of its own, in MiB, and the largest against the smallest."""
    found = []
    for rows in SIZES:
        command = [sys.executable, __file__, "memory", str(rows)]
        shown = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ).stdout
        found.append(json.loads(shown.splitlines()[-1]))
        print(found[-1], flush=True)
    return {"sizes": found} | {f"{who}_growth": found[-1][who] / found[0][who] for who in ("driver", "actor")}


def main() -> None:
    if sys.argv[1:2] == ["memory"]:
        print(json.dumps(memory(int(sys.argv[2]))))
        return
    if sys.argv[1:2] == ["corpus"]:
        corpus(Path(sys.argv[2]), int(sys.argv[3]))
        return
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"command": "make bench"}
    results |= {"memory_mib": memories(), "pool_vs_plain": throughput()}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
