"""The `questions` stage: one Ray task per file of the corpus, then one that joins them.

In: the `corpus` section. Out: the `questions` table, one group of files per split, and `questions/dropped`, the rows that cannot be used.
Refuses to know: formats, duplicates.
"""

from collections.abc import Sequence
from typing import Any

import ray

from ka2l_ray import schema
from ka2l_ray.artifacts import Folder, Run, Table
from ka2l_ray.config import ConfigError, CorpusSection
from ka2l_ray.corpus.files import File, files_of
from ka2l_ray.corpus.prepare import Parsed, check_dropped, check_splits, join, medmcqa_first, parse_file, shots
from ka2l_ray.corpus.world import write_world
from ka2l_ray.runtime import fetch, log, telling

SCRATCH, DROPPED = "_parsed", "dropped"


def questions(run: Run) -> dict[str, Any]:
    """Write the `questions` table unless it is there; returns its manifest.

    Raises `ConfigError` for a corpus that cannot be read or split, `StageError` where too many rows cannot be used.
    """
    table, corpus = run.table("questions"), run.config.corpus
    if table.is_done:
        return table.manifest()
    if corpus.source == "world":
        write_world(run.config, table)
    else:
        _from_files(run, table)
    try:
        check_splits(run.config, table)
    except ConfigError:
        table.folder.delete()
        raise
    return table.manifest()


def _from_files(run: Run, table: Table) -> None:
    corpus = run.config.corpus
    files = files_of(corpus.source, corpus.hub)
    table.folder.delete()  # what a killed attempt left
    scratch = (table.folder / SCRATCH).make()
    if corpus.format == "medmcqa" and corpus.medmcqa_first == "auto":
        corpus = corpus.model_copy(update={"medmcqa_first": fetch(ray.remote(medmcqa_first).remote(files))})
        log.info("questions  cop counts from %d", corpus.medmcqa_first)
    parsed = _parse_all(files, corpus, table, scratch)
    check_dropped(parsed, run.config.run.max_error_fraction)
    fetch(ray.remote(join).remote(parsed, scratch, corpus, shots(run.config), run.config.run.seed, table))
    scratch.delete()
    log.info("questions  %s", told(table.manifest()))


def _parse_all(files: Sequence[File], corpus: CorpusSection, table: Table, scratch: Folder) -> list[Parsed]:
    task = ray.remote(parse_file)
    unusable = table.folder / DROPPED
    waiting = {task.remote(file, corpus, scratch, unusable, f"{n:06d}"): n for n, file in enumerate(files)}
    parsed: dict[int, Parsed] = {}
    with telling("questions", lambda: f"{len(parsed):,} of {len(files):,} files read"):
        while len(parsed) < len(files):
            (done,), _ = ray.wait([r for r, n in waiting.items() if n not in parsed])
            parsed[waiting[done]] = fetch(done)
    return [parsed[n] for n in range(len(files))]


def told(manifest: dict[str, Any]) -> str:
    """What happened to the rows, in words."""
    splits = ", ".join(f"{sum(f['rows'] for f in manifest['files'] if f['part'] == s):,} {s}" for s in schema.SPLITS)
    return (
        f"{manifest['rows_in']:,} rows: {manifest['dropped']:,} dropped, {manifest['merged']:,} merged with an equal question; "
        f"{manifest['rows']:,} questions ({splits}), of which {manifest['near_duplicates']:,} repeat another almost word by word"
    )
