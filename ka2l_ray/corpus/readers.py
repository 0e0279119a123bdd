"""A corpus becomes the `questions` table, split into probe, pool and eval.

In: the `corpus` section. Out: `questions` with one file group per split; the manifest counts what was merged.
Refuses to know: models, prompts. The world is generated; files are read by Ray Data and streamed, never held whole.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray.data

from ka2l_ray import schema
from ka2l_ray.active.acquire import unit
from ka2l_ray.artifacts import Run
from ka2l_ray.config import ConfigError, CorpusSection, SplitSection
from ka2l_ray.corpus.world import world_questions
from ka2l_ray.label.grading import normalize
from ka2l_ray.world.facts import build_world

READERS = {".jsonl": ray.data.read_json, ".json": ray.data.read_json, ".csv": ray.data.read_csv, ".parquet": ray.data.read_parquet}


def questions(run: Run) -> dict[str, Any]:
    """Write the `questions` table unless it is there; returns its manifest. Raises `ConfigError` for a corpus that cannot be split."""
    table, corpus = run.table("questions"), run.config.corpus
    if table.is_done:
        return table.manifest()
    if corpus.source == "world":
        parts = world_questions(build_world(), corpus.world, run.config.run.seed)
        table.write(*parts.items(), merged=0)
    else:
        _from_files(run)
    if empty := [s for s in schema.SPLITS if not table.part_rows(s)]:
        table.folder.delete()
        raise ConfigError(f"corpus.source = {corpus.source!r}: too few questions, the split(s) {', '.join(empty)} would be empty")
    return table.manifest()


def _from_files(run: Run) -> None:
    """Read, check, merge equal questions, split by hash, one Parquet file per block and split."""
    corpus, table, seed = run.config.corpus, run.table("questions"), run.config.run.seed
    files, rows, merged = [], 0, 0
    seen: dict[int, str] = {}
    table.folder.make()
    for number, batch in enumerate(_read(corpus).iter_batches(batch_size=8192, batch_format="pyarrow")):
        by_split: dict[str, list[dict[str, Any]]] = {s: [] for s in schema.SPLITS}
        rows_of: Any = batch
        for raw in rows_of.to_pylist():
            rows += 1
            row = parse_row(raw, corpus, rows)
            key = int.from_bytes(hashlib.blake2b(row["id"].encode(), digest_size=8).digest(), "big")
            if key in seen:
                if raw.get(corpus.id_column) is not None:
                    raise ConfigError(f"{corpus.source}: rows {seen[key]} and {rows} share the id {row['id']!r}; ids must differ")
                merged += 1
                continue
            seen[key] = str(rows)
            by_split[split_of(row, corpus.split, seed)].append(row)
        for split, found in by_split.items():
            if found:
                named = [r | {"split": split, "scope": "pool" if split == "eval" else None} for r in found]
                name = f"{split}-{number:06d}.parquet"
                pq.write_table(
                    pa.Table.from_pylist(named, schema=schema.QUESTIONS), (table.folder / name).path, filesystem=table.folder.filesystem
                )
                files.append({"name": name, "rows": len(named), "part": split})
    table.close(files, rows_in=rows, merged=merged)


def _read(corpus: CorpusSection) -> ray.data.Dataset:
    ending = next((e for e in READERS if corpus.source.endswith(e)), None)
    if ending is None:
        raise ConfigError(f"corpus.source = {corpus.source!r}: must be `world` or end in {', '.join(READERS)}")
    try:
        return READERS[ending](corpus.source)
    except (FileNotFoundError, OSError, ValueError) as error:
        raise ConfigError(f"corpus.source = {corpus.source!r}: cannot be read: {str(error).splitlines()[0]}") from error


def parse_row(raw: Mapping[str, Any], corpus: CorpusSection, number: int) -> dict[str, Any]:
    """One corpus row as a `questions` row without its split. Raises `ConfigError` naming file, row and field."""
    where = f"{corpus.source}: row {number}"
    if corpus.question_column not in raw:
        raise ConfigError(f"{where}: no column {corpus.question_column!r}; there are {', '.join(raw)}. Set corpus.question_column")
    question = raw[corpus.question_column]
    if not isinstance(question, str) or not question.strip():
        raise ConfigError(f"{where}: {corpus.question_column} = {question!r} must be a text that is not empty")
    answers = raw.get(corpus.answers_column)
    if answers is None or (isinstance(answers, str) and not answers.strip()):
        answers = []
    answers = [answers] if isinstance(answers, str) else answers
    if not isinstance(answers, list) or not all(isinstance(a, str) for a in answers):
        raise ConfigError(f"{where}: {corpus.answers_column} = {answers!r} must be a text or a list of texts")
    own, group = raw.get(corpus.id_column), raw.get(corpus.group_column)
    text = normalize(question)
    return {
        "id": hashlib.sha256(text.encode()).hexdigest()[:16] if own is None else str(own),
        "question": question.strip(),
        "answers": answers,
        "group": None if group is None else str(group),
        "entity": text,
        "fact_id": None,
        "truth": None,
    }


def split_of(row: Mapping[str, Any], shares: SplitSection, seed: int) -> str:
    """The split of a row: a hash of its normalised text and the seed, so that equal texts share a split."""
    u = unit(f"split-{seed}", row["entity"])
    return "probe" if u < shares.probe else "pool" if u < shares.probe + shares.pool else "eval"
