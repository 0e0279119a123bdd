"""`make bench`: what Ray Data costs around the engine, and whether memory grows with the corpus.

In: the model and questions of `bench_model`. Out: `results/pool.json`.
Throughput: scoring in a pool of one actor of one thread against the same engine in a plain process of one thread that
knows nothing of Ray, with a core to spare for either: Ray reads, tokenises and writes there, the plain process leaves
it alone. Both sides after their first block, so that starting and loading are not counted; `--pairs` pairs, every
second of which begins with the plain process: a machine with neighbours changes its speed by a tenth from minute to
minute.
Memory: the most that the driver and any of Ray's worker processes (actors, tasks that read and write, idle ones) hold
of their own, and the most that one maps of Ray's object store, which they share and Ray bounds; each corpus size in a
process and cluster of its own, with an actor that holds no model. `--rows 400 --pairs 1 --sizes 1000 2000` shows in
two minutes that it runs.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

import psutil
import pyarrow as pa
import torch
from bench_model import build, prompt, questions

from ka2l_ray.config import Config, ModelSection, Pool
from ka2l_ray.dataflow.cluster import connect
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.shard_size import SHARDS_PER_ACTOR
from ka2l_ray.dataflow.stage import Stage, run_stage
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.models.batching import Limits
from ka2l_ray.models.loading import depth_and_width
from ka2l_ray.models.probe import LinearProbe, ProbeCard
from ka2l_ray.models.prompts import Tokenize
from ka2l_ray.probe.score import ScoreActor, ScoreSetup
from ka2l_ray.schema import TABLES
from ka2l_ray.stats import interval

RESULTS = Path(__file__).parent / "results" / "pool.json"
os.environ.setdefault(
    "RAY_worker_niceness", "0"
)  # as the plain process; Ray's own default of 15 leaves the machine to others
ACTORS, BLOCK = 1, 512
LIMITS = Limits(rows=32)
SPEC = replace(TABLES["scores"], carried=())


class StubActor:
    """Scores by the length of the text: what a stage costs when the model costs nothing."""

    def __init__(self, setup: None) -> None:
        """There is nothing to load."""

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


def pool_rate(setup: ScoreSetup, source: Table, target: Path) -> float:
    """Questions per second of a pool after each actor's first block."""
    pool = Pool(min=ACTORS, max=ACTORS, batch_rows=LIMITS.rows, shard_rows=BLOCK)
    table = Table(Folder.of(str(target)))
    tokenize, setup = Tokenize(setup.model, setup.prompt), replace(setup, limits=Limits.of(pool))
    stage = Stage(name="score", run="bench", spec=SPEC, actor=ScoreActor, setup=setup, pool=pool, prepare=tokenize)
    run_stage(stage, source, table)
    written = sorted(
        (Path(f).stat().st_mtime, n["rows"]) for f, n in zip(table.files(), table.manifest()["files"], strict=True)
    )
    return sum(rows for _, rows in written[ACTORS:]) / (written[-1][0] - written[ACTORS - 1][0])


def plain_rate(folder: Path, rows: int) -> float:
    """Questions per second of as many plain processes together, from the moment that each has done its first block."""
    command = [sys.executable, __file__, "plain", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([*command, str(n)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        for n in range(ACTORS)
    ]
    warmed = sum(int(told(p)) for p in processes)
    started = time.perf_counter()
    for process in processes:
        print("go", file=process.stdin, flush=True)
    done = sum(int(told(p)) for p in processes)
    elapsed = time.perf_counter() - started
    if any(p.wait() for p in processes) or warmed + done != rows:
        raise RuntimeError("a plain process failed")
    return done / elapsed


def told(process: "subprocess.Popen[str]") -> str:
    """The next line of a process."""
    assert process.stdout
    return process.stdout.readline()


def plain(folder: Path, share: int) -> None:
    """One plain process: its share of the questions, block by block; after the first it waits for the other process."""
    torch.set_num_threads(1)
    actor = ScoreActor(replace(engine_of(folder), limits=LIMITS))
    rows = Table(Folder.of(str(folder / "questions"))).read()
    block, tokenize = (
        min(BLOCK, -(-rows.num_rows // (SHARDS_PER_ACTOR * ACTORS))),
        Tokenize(ModelSection(name_or_path=str(folder / "model")), prompt()),
    )
    blocks = [rows.slice(at, block) for at in range(0, rows.num_rows, block)][share::ACTORS]
    actor(tokenize.add(blocks[0]))
    print(blocks[0].num_rows, flush=True)
    sys.stdin.readline()
    for part in blocks[1:]:
        actor(tokenize.add(part))
    print(sum(b.num_rows for b in blocks[1:]), flush=True)


def engine_of(folder: Path) -> ScoreSetup:
    """What either side's `ScoreActor` is made of."""
    model, probe = ModelSection(name_or_path=str(folder / "model")), Folder.of(str(folder / "probe"))
    return ScoreSetup(model=model, prompt=prompt(), probe=probe)


def throughput(rows: int, pairs: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        probe(ModelSection(name_or_path=build(folder / "model")), folder / "probe")
        source = corpus(folder / "questions", rows)
        connect(Config())
        found = []
        for n in range(pairs):
            sides = [
                lambda n=n: pool_rate(engine_of(folder), source, folder / f"scores-{n}"),
                lambda: plain_rate(folder, rows),
            ]
            order = (0, 1) if n % 2 == 0 else (1, 0)
            rates = {side: sides[side]() for side in order}
            found.append((rates[0], rates[1]))
            print(
                f"pair {n + 1}/{pairs}: pool {found[-1][0]:,.0f} questions/s, plain processes {found[-1][1]:,.0f}",
                flush=True,
            )
    ratios = [a / b for a, b in found]
    return {
        "ratio": median(ratios),
        "range": [min(ratios), max(ratios)],
        "mean": fmean(ratios),
        "mean_ci": interval(ratios),
        "pool_questions_per_s": median(a for a, _ in found),
        "plain_questions_per_s": median(b for _, b in found),
        "seconds_of_work": [rows / a for a, _ in found],
        "actors": ACTORS,
        "threads_per_actor_and_process": 1,
    }


def held(process: psutil.Process) -> tuple[int, int]:
    """Resident memory in bytes: of its own (heap, code), and shared pages, which are the object store's."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines())
    anonymous, file, shared = (int(lines[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile", "RssShmem"))
    return anonymous + file, shared


@contextmanager
def watching() -> Iterator[dict[str, int]]:
    """The most that this process and any worker process of its cluster hold in bytes, sampled ten times a second."""
    peak, done = {"driver": 0, "worker": 0, "store": 0}, threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            peak["driver"] = max(peak["driver"], held(psutil.Process())[0])
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError, KeyError):  # it has ended
                    if "ray::" in " ".join(process.cmdline()):
                        own, shared = held(process)
                        peak["worker"], peak["store"] = max(peak["worker"], own), max(peak["store"], shared)

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
        subprocess.run(
            [sys.executable, __file__, "corpus", f"{scratch}/questions", str(rows)], check=True
        )  # its memory is not the stage's
        source = Table(Folder.of(f"{scratch}/questions"))
        connect(Config())
        pool = Pool(min=ACTORS, max=ACTORS, shard_rows=4096)
        started = time.monotonic()
        with watching() as peak:
            stage = Stage(name="stub", run="bench", spec=SPEC, actor=StubActor, setup=None, pool=pool)
            run_stage(stage, source, Table(Folder.of(scratch) / "scores"))
    return {"rows": rows, "seconds": round(time.monotonic() - started, 1)} | {
        k: round(v / 2**20) for k, v in peak.items()
    }


def memories(sizes: list[int]) -> dict[str, Any]:
    """Each size in a process of its own, in MiB, and the largest against the smallest."""
    found = []
    for rows in sizes:
        command = [sys.executable, __file__, "memory", str(rows)]
        shown = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ).stdout
        found.append(json.loads(shown.splitlines()[-1]))
        print(found[-1], flush=True)
    return {"sizes": found} | {f"{who}_growth": found[-1][who] / found[0][who] for who in ("driver", "worker")}


def main() -> None:
    if sys.argv[1:2] == ["memory"]:
        print(json.dumps(memory(int(sys.argv[2]))))
        return
    if sys.argv[1:2] == ["corpus"]:
        corpus(Path(sys.argv[2]), int(sys.argv[3]))
        return
    if sys.argv[1:2] == ["plain"]:
        plain(Path(sys.argv[2]), int(sys.argv[3]))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--rows", type=int, default=6_000, help="questions of a round, each of which takes half of a pair"
    )
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], help="corpora of the memory part"
    )
    arguments = parser.parse_args()
    found = {"pool_vs_plain": throughput(arguments.rows, arguments.pairs), "memory_mib": memories(arguments.sizes)}
    print(json.dumps(found, indent=1))
    if arguments == parser.parse_args([]):  # other sizes show only that it runs
        results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        RESULTS.write_text(
            json.dumps(results | found | {"command": "python tests/benchmarks/bench_pool.py"}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
