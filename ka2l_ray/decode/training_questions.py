"""Which questions a decoder is trained and measured on.

In: a run with its questions, files of further ones. Out: the table `decoder_questions`: the probe split, then as many
of the files' as training can use, without what pool and eval ask and without their entities.
Refuses to know: states, Ray, training.
"""

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa

from ka2l_ray import schema
from ka2l_ray.config import Config, CorpusSection, Format, RewordingsSection
from ka2l_ray.corpus.files import File, files_of
from ka2l_ray.corpus.formats import Question
from ka2l_ray.corpus.prepare import parsed_rows
from ka2l_ray.dataflow.log import log
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.decode.filters import text_hash
from ka2l_ray.decode.self_decoder import is_held_out
from ka2l_ray.errors import ConfigError, StageError
from ka2l_ray.text.normal import normalize

PROBE = "probe"
"""The split whose questions come before those of files."""


def check_files(config: Config) -> None:
    """Raise `ConfigError` for files in `decode.training.questions` that do not exist."""
    for name in config.decode.training.questions:
        training_files(config, name)


def training_files(config: Config, name: Format) -> tuple[CorpusSection, list[File]]:
    """The files of a format in `decode.training.questions`, and how they are read: columns as those of the corpus, but
    for rewordings, which only eval needs."""
    sources = config.decode.training.questions[name]
    read = {"source": sources, "format": name, "rewordings": RewordingsSection()}
    corpus = config.corpus.model_copy(update=read)
    try:
        return corpus, files_of(sources, corpus.hub, corpus.encoding)
    except ConfigError as error:
        raise ConfigError(str(error).replace("corpus.source", "decode.training.questions")) from error


def collect_questions(run: Run, target: Table) -> None:
    """Write the questions that the decoder is trained and measured on: the probe split, then as many of the files' as
    training can use. Raises `StageError` where there are too few."""
    training = run.config.decode.training
    rows, left_out = _usable(run, training.examples + training.held_out_rows)
    rows.sort(key=lambda r: r["id"])  # ids are hashes, so this is a random order
    for row in rows:
        row["held_out"] = is_held_out(row["question"], row["entity"], training.held_out)
    held = sum(r["held_out"] for r in rows)
    if not held or len(rows) - held < training.batch_rows:
        raise StageError(
            f"{len(rows) - held} questions to train a decoder on and {held} held out; at least "
            f"{training.batch_rows} (decode.training.batch_rows) and 1 are needed. Name files in "
            "decode.training.questions, or raise corpus.split.probe"
        )
    table = pa.Table.from_pylist(rows, schema=schema.TABLES["decoder_questions"].schema)
    target.write((None, table), left_out=left_out, of_format=Counter(r["format"] for r in rows))
    said = "%s questions to train on, %s held out with their entities; %s of files left out, because pool or eval ask "
    said += "about the same"
    counts = (f"{n:,}" for n in (len(rows) - held, held, left_out))
    log.info(said, *counts, extra={"stage": "decode"})


def _usable(run: Run, most: int) -> tuple[list[dict[str, Any]], int]:
    """Distinct questions that pool and eval do not ask, nor anything else about their entities, each with its `format`:
    those of the probe split, and as many of the files' that there are `most`, drawn by their ids; and how many of the
    files were left out for what they ask."""
    source, taken, entities = run.table("questions"), set[int](), set[str]()
    for split in ("pool", "eval"):
        for row in _rows(source, split):
            taken.add(text_hash(row["question"]))
            entities.add(normalize(row["entity"] or ""))
    entities.discard("")
    asked, left_out = set[int](), Counter[str]()

    def usable(name: str, given: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for row in given:
            key = text_hash(row["question"])
            if key in taken or normalize(row["entity"] or "") in entities:
                left_out[name] += key not in asked
            elif key not in asked:
                asked.add(key)
                yield {"id": f"{key:016x}", "format": name, **row}

    own = list(usable(PROBE, _rows(source, PROBE)))
    others = (row for name in run.config.decode.training.questions for row in usable(name, _of_files(run, name)))
    drawn = heapq.nsmallest(max(0, most - len(own)), others, key=lambda r: r["id"])
    return [*own, *drawn], left_out.total() - left_out[PROBE]


def _rows(source: Table, split: str) -> Iterator[dict[str, Any]]:
    for batch in source.batches(["question", "group", "entity"], part=split):
        yield from batch.to_pylist()


def _of_files(run: Run, name: Format) -> Iterator[dict[str, Any]]:
    """The questions in files of a format."""
    corpus, files = training_files(run.config, name)
    for file in files:
        for _, row in parsed_rows(file, corpus):
            if isinstance(row, Question):
                yield {"question": row.text, "group": row.group, "entity": row.entity}
