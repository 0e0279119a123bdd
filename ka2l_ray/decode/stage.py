"""Acquired unknown questions → new questions, through a pool of decoding actors.

In: source questions. Out: the table `decoded` of a round, and `reconstruction`, which measures the decoder.
Refuses to know: who acquires, who annotates. A round's sources are bounded by its budget, so they are read whole.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import chain

import pyarrow as pa

from ka2l_ray import schema
from ka2l_ray.config import DecodeSection
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.placement import of_actor
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.dataflow.shard_size import row_seconds
from ka2l_ray.dataflow.stage import Stage, run_stage
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.decode.actor import DecodeActor, DecodeSetup
from ka2l_ray.decode.filters import hashes, leaks, statuses
from ka2l_ray.decode.metrics import reconstruction
from ka2l_ray.errors import StageError
from ka2l_ray.hashing import uniform
from ka2l_ray.models.batching import Limits
from ka2l_ray.models.examine import abilities_of
from ka2l_ray.models.prompts import Tokenize, corpus_prompt

_REQUESTS = schema.TABLES["requests"].schema


def decoded_id(source_id: str, variant: int) -> str:
    """Id of a decoded question: a hash of its source and variant."""
    return "d" + hashlib.blake2b(f"{source_id}\x1f{variant}".encode(), digest_size=10).hexdigest()


def decode(run: Run, sources: Mapping[str, str], target: Table, already: Iterable[str]) -> pa.Table:
    """Write the table `decoded` of a round and return it. `sources` are the questions whose states are decoded, by id.
    Texts in `already`, decoded in earlier rounds, are duplicates."""
    if target.is_done:
        return target.read()
    requests, written = Table(target.folder / "requests"), Table(target.folder / "written")
    if not requests.is_done:
        rows = [
            {"id": decoded_id(source_id, v), "source_id": source_id, "variant": v, "question": question}
            for source_id, question in sources.items()
            for v in range(run.config.decode.variants)
        ]
        requests.write((None, pa.Table.from_pylist(rows, schema=_REQUESTS)))
    run_stage(_stage(run, "written", run.config.decode), requests, written)
    fine = [r for r in written.read().sort_by("id").to_pylist() if r["error"] is None]
    status = decoded_statuses(run, [r["decoded_question"] for r in fine], [r["p_unknown"] for r in fine], already)
    decoded = [r | {"question": r["decoded_question"], "status": s} for r, s in zip(fine, status, strict=True)]
    table = pa.Table.from_pylist(decoded, schema=schema.DECODED)
    manifest = written.manifest()
    target.write((None, table), rows_in=manifest["rows_in"], errors=manifest["errors"])
    return table


def decoded_statuses(
    run: Run, questions: Sequence[str], p_unknown: Sequence[float], already: Iterable[str]
) -> list[str]:
    """The status of each decoded question, one of `schema.DECODE_STATUSES`, by the run's splits and what was decoded
    before."""
    existing = chain(chain.from_iterable(_texts(run, "probe", "pool")), already)
    leaked = leaks(questions, _texts(run, "eval"), run.config.corpus.near_duplicates)
    return statuses(questions, p_unknown, hashes(existing), leaked, run.config.decode.min_p_unknown)


def check_decoder(run: Run) -> dict[str, float]:
    """How well probe questions are decoded from their own states, without noise, greedily: exact match, token accuracy,
    BLEU and F1. Raises `StageError` where every row failed."""
    source, target = Table(run.folder / "base/reconstruction/requests"), run.base("reconstruction")
    if not source.is_done:
        rows = run.table("questions").read(["id", "question"], part="probe").to_pylist()
        rows = sorted(rows, key=lambda r: uniform("reconstruction", r["id"]))[: run.config.decode.check_questions]
        requests = [{"id": r["id"], "source_id": r["id"], "variant": 0, "question": r["question"]} for r in rows]
        source.write((None, pa.Table.from_pylist(requests, schema=_REQUESTS)))
    exact = run.config.decode.model_copy(update={"noise": 0.0, "temperature": 0.0})
    run_stage(_stage(run, "reconstruction", exact), source, target)
    rows = [r for r in target.read(["question", "decoded_question", "error"]).to_pylist() if r["error"] is None]
    if not rows:
        raise StageError(f"{target.folder.path}: every row failed, so nothing can be compared; see its folder errors")
    return asdict(reconstruction([r["decoded_question"] for r in rows], [r["question"] for r in rows]))


def _stage(run: Run, table: str, decode_section: DecodeSection) -> Stage[DecodeSetup]:
    config, prompt, pool = run.config, corpus_prompt(run), decode_section.pool
    return Stage(
        name="decode",
        run=config.run.name,
        spec=schema.TABLES[table],
        actor=DecodeActor,
        setup=DecodeSetup(
            model=config.model,
            prompt=prompt,
            decode=decode_section,
            probe=run.folder / "base/search/probe",
            seed=config.run.seed,
            limits=Limits.of(pool),
            placement=of_actor(config.model, pool, "decode"),
            abilities=abilities_of(config.model),
        ),
        pool=pool,
        tasks=config.ray.tasks,
        max_error_fraction=config.run.max_error_fraction,
        prepare=Tokenize(config.model, prompt),
        row_seconds=row_seconds(pool),
    )


def _texts(run: Run, *splits: str) -> Iterator[list[str]]:
    """The questions of some splits, streamed; without those of eval that repeat a pool question word by word."""
    table = run.table("questions")
    batches = (b for split in splits for b in table.batches(["question", "scope"], part=split))
    return ([r["question"] for r in b.to_pylist() if r["scope"] != "same"] for b in batches)


def written_before(folders: Iterable[Folder]) -> list[str]:
    """Texts that were decoded in rounds with these folders."""
    tables = [Table(f / "decoded") for f in folders]
    return [q for t in tables if t.is_done for q in t.read(["question"])["question"].to_pylist()]
