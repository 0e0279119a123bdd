"""Tables of `questions` made from a test's own rows, as a run makes them."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from alike_questions import words

from ka2l_ray.config import Config, CorpusSection
from ka2l_ray.corpus.files import files_of
from ka2l_ray.corpus.prepare import join, parse_file
from ka2l_ray.corpus.table import fill
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.storage import Folder


def prepared(folder: Path, *files: list[Any], shots: int = 0, seed: int = 0, **fields: Any) -> Table:
    for n, rows in enumerate(files):
        (folder / f"{n}.jsonl").write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))
    corpus = CorpusSection.model_validate({"source": f"{folder}/*.jsonl"} | fields)
    scratch, table = Folder.of(str(folder / "scratch")).make(), Table(Folder.of(str(folder / "questions")))
    found = files_of(corpus.source, corpus.hub, corpus.encoding)
    parsed = [parse_file(f, corpus, scratch, Folder.of(str(folder / "dropped")), str(n)) for n, f in enumerate(found)]
    join(parsed, scratch, corpus, shots, seed, table)
    return table


def questions(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"question": words(n), "answers": [f"a{n}"]} for n in range(start, start + count)]


def filled(folder: Path, made: Config, name: str = "questions") -> Table:
    table = Table(Folder.of(str(folder / name)))
    scratch = Folder.of(str(folder / f"{name}-scratch")).make()
    fill(made, table, scratch, Folder.of(str(folder / "dropped")), replies=Folder.of(str(folder / "replies")))
    return table


def rows_of(table: Table, part: str | None = None) -> list[dict[str, Any]]:
    return table.read(part=part).to_pylist()


def scopes(table: Table) -> dict[str, int]:
    return dict(Counter(r["scope"] for r in rows_of(table, "eval")))
