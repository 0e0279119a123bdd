"""Eval asks the pool's facts again: in the reserved wording, and on request in the pool question's own words.

In: a `questions` table whose splits share no fact, wordings per question. Out: the table that a run asks.
Refuses to know: where wordings come from, Ray.
A wording that the corpus asks elsewhere cannot be reserved, because the model might be taught in it: then an earlier
one is. A question without a reserved wording stays in the pool and is not asked by eval. `fact_id` is the id of the
corpus' own question, so that figures know which facts were bought or replayed.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ka2l_ray import schema
from ka2l_ray.config import Config
from ka2l_ray.dataflow.manifests import FileEntry, Table
from ka2l_ray.text.grading import normalize

Row = dict[str, Any]
"""A row of `schema.QUESTIONS`."""
Wordings = Callable[[Row], Sequence[str]]
"""The wordings of a question, the one to be reserved last; none where there are none."""


def questions_again(config: Config) -> int:
    """Eval questions of each pool fact, on corpora from files: in the reserved wording, in the same words."""
    return (config.corpus.rewordings.source != "none") + config.evaluate.same_words


def eval_scope(config: Config) -> str:
    """The scope that `accuracy`, and so every saving, is over: pool facts in the reserved wording where there is one,
    in the pool question's own words where those are asked, else facts that no pool question asks."""
    if config.corpus.source == "world" or config.corpus.rewordings.source != "none":
        return "pool"
    return "same" if config.evaluate.same_words else "other"


def given_wordings(row: Row) -> Sequence[str]:
    """The wordings that a column or templates gave when the row was parsed."""
    return row["rewordings"]


def ask_again(joined: Table, config: Config, wordings: Wordings, table: Table, facts: dict[str, Any]) -> None:
    """Write `table` from `joined`, with `facts` in its manifest besides those of `joined`."""
    rule = _Rule(config.corpus.rewordings.source != "none", config.evaluate.same_words, _Asked.of(joined))
    files: list[FileEntry] = []
    graded, count = Counter[str](), Counter[str]()
    table.folder.make()
    for part in (*schema.SPLITS, schema.SHOTS):
        for batch in joined.batches(part=part):
            found = [r for row in batch.to_pylist() for r in rule.rows(row, wordings(row), count)]
            for split in dict.fromkeys(r["split"] for r in found):
                rows = [r for r in found if r["split"] == split]
                graded[split] += sum(bool(r["answers"]) for r in rows)
                files.append({"name": f"{split}-{len(files):06d}.parquet", "rows": len(rows), "part": split})
                file = table.folder / files[-1]["name"]
                pq.write_table(
                    pa.Table.from_pylist(rows, schema=schema.QUESTIONS), file.path, filesystem=file.filesystem
                )
    kept = {name: fact for name, fact in joined.manifest().items() if name not in schema.MANIFEST_FACTS}
    again = {"questions": joined.rows, "asked_again": count["again"], "not_reworded": count["not reworded"]}
    table.close(files, **kept | {"graded": {split: graded[split] for split in schema.SPLITS}} | again | facts)


@dataclass(frozen=True)
class _Asked:
    """The hashes of all normalised questions of a corpus, sorted (N,)."""

    hashes: np.ndarray

    @classmethod
    def of(cls, table: Table) -> "_Asked":
        parts = [_hashes(batch["question"].to_pylist()) for batch in table.batches(["question"])]
        return cls(np.unique(np.concatenate(parts)) if parts else np.empty(0, np.uint64))

    def __contains__(self, text: str) -> bool:
        (wanted,) = _hashes([text])
        place = int(np.searchsorted(self.hashes, wanted))
        return place < len(self.hashes) and self.hashes[place] == wanted


@dataclass(frozen=True)
class _Rule:
    """What becomes of a question."""

    reworded: bool
    same_words: bool
    asked: _Asked

    def rows(self, row: Row, wordings: Sequence[str], count: Counter[str]) -> Iterable[Row]:
        """The rows that stand in its place; `count` is told of those asked again, and of those without a wording."""
        reserved = next((w for w in reversed(wordings) if w not in self.asked), None)
        rest = [w for w in wordings if w != reserved]
        row = row | {"rewordings": rest, "fact_id": row["id"]}
        again = row | {"split": "eval", "rewordings": []}
        if row["split"] in ("pool", "eval") and self.reworded and reserved is None:
            count["not reworded"] += 1
        if row["split"] != "eval":
            yield row
        elif reserved is not None:
            yield again | {"question": reserved, "scope": "domain"}
        elif not self.reworded:
            yield again | {"scope": "domain"}
        if row["split"] == "pool":
            found = [("pool", reserved)] if reserved is not None else []
            for scope, words in [*found, *([("same", row["question"])] if self.same_words else [])]:
                count["again"] += 1
                yield again | {"id": _id(scope, row["id"]), "question": words, "scope": scope}


def _id(scope: str, fact: str) -> str:
    """The id under which eval asks a fact again."""
    return hashlib.sha256(f"{scope}\x1f{fact}".encode()).hexdigest()[:16]


def _hashes(texts: Iterable[str]) -> np.ndarray:
    digests = (hashlib.blake2b(normalize(t).encode(), digest_size=8).digest() for t in texts)
    return np.fromiter((int.from_bytes(d, "big") for d in digests), np.uint64)
