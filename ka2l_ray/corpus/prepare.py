"""The rows of files become the `questions` table: parsed, merged, grouped, split.

In: files, a `corpus` section, a seed.
Out: first one set of parsed files per source file (`parse_file`, any number at once, each streaming), then the table
(`join`, once), which has numbers of every row in memory, some 400 bytes each, and the normalised questions, and
streams the rest a second time.
Refuses to know: Ray, models, prompts.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ka2l_ray import schema
from ka2l_ray.config import Config, ConfigError, CorpusSection, SplitSection
from ka2l_ray.corpus.files import File
from ka2l_ray.corpus.formats import Question, columns_read, missing, parse
from ka2l_ray.corpus.together import split_groups
from ka2l_ray.dataflow.manifests import FileEntry, Table
from ka2l_ray.dataflow.parquet import open_parquet
from ka2l_ray.dataflow.rows import BadRow, listed
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.hashing import uniform
from ka2l_ray.text.duplicates import PERMUTATIONS, groups, signatures
from ka2l_ray.text.normal import normalize

CHUNK, CHUNK_CHARACTERS = 8192, 2**24
"""Rows that are in memory and written together, and characters of their questions and answers."""
KEPT = ("id", "question", "answers", "group", "entity", "rewordings")
"""Columns of a parsed row that the table keeps."""
PARSED = pa.schema(
    [
        *(schema.QUESTIONS.field(n) for n in KEPT),
        pa.field("key", pa.large_string()),
        pa.field("own_id", pa.bool_()),
        pa.field("graded", pa.bool_()),
        pa.field("number", pa.int64()),
        pa.field("id_hash", pa.uint64()),
        pa.field("text_hash", pa.uint64()),
        pa.field("entity_hash", pa.uint64()),
        pa.field("signature", pa.list_(pa.uint32(), PERMUTATIONS)),
    ]
)
DROPPED = pa.schema(
    [pa.field(n, pa.int64() if n == "row" else pa.string()) for n in ("file", "row", "field", "problem", "value")]
)


@dataclass(frozen=True)
class Parsed:
    """A source file after parsing: its rows, how many of them were dropped, its parsed files in order, and why the
    first row was dropped."""

    name: str
    rows: int
    dropped: int
    parts: tuple[str, ...]
    first_problem: str = ""


def shots(config: Config) -> int:
    """Solved examples that the run's prompts need."""
    return max(config.corpus.prompt.solved, config.finetune.prompt.solved)


def parse_file(file: File, corpus: CorpusSection, target: Folder, unusable: Folder, prefix: str) -> Parsed:
    """Parse one file into `target`, and list the rows that are not questions in `unusable`.

    Raises `ConfigError` where the file cannot be read or lacks a column that its format needs.
    """
    rows, parts, dropped, first = 0, [], 0, ""
    for number, chunk in enumerate(_chunks(parsed_rows(file, corpus))):
        rows += len(chunk)
        if bad := [(n, q) for n, q in chunk if isinstance(q, BadRow)]:
            dropped += len(bad)
            first = first or description(file.name, *bad[0])
            told = pa.Table.from_pylist([{"file": file.name, "row": n, **asdict(q)} for n, q in bad], schema=DROPPED)
            _write(told, unusable.make() / f"{prefix}-{number:06d}.parquet")
        if good := [(n, q) for n, q in chunk if isinstance(q, Question)]:
            parts.append(f"parsed-{prefix}-{number:06d}.parquet")
            _write(_table(good), target / parts[-1])
    return Parsed(file.name, rows, dropped, tuple(parts), first)


def parsed_rows(file: File, corpus: CorpusSection) -> Iterator[tuple[int, Question | BadRow]]:
    """Every row with its number, parsed as it is read, so that no other column of it is kept. A column may be missing
    in some rows of JSON, but not in all of the first `CHUNK`."""
    first, seen, n = 0, dict[str, None](), 0
    for n, row in enumerate(file.rows(columns_read(corpus)), 1):
        if n <= CHUNK and not isinstance(row.values, BadRow):
            first = first or row.number
            seen |= dict.fromkeys(row.values)
        if n == CHUNK and first:
            _check_columns(file, first, seen, corpus)
        yield row.number, row.values if isinstance(row.values, BadRow) else parse(row.values, corpus, file.name)
    if n < CHUNK and first:
        _check_columns(file, first, seen, corpus)


def _chunks(rows: Iterable[tuple[int, Question | BadRow]]) -> Iterator[list[tuple[int, Question | BadRow]]]:
    """Rows in lists that are bounded in number and in characters."""
    chunk: list[tuple[int, Question | BadRow]] = []
    characters = 0
    for row in rows:
        chunk.append(row)
        characters += len(row[1].text) + sum(map(len, row[1].answers)) if isinstance(row[1], Question) else 0
        if len(chunk) == CHUNK or characters >= CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def _check_columns(file: File, number: int, columns: Collection[str], corpus: CorpusSection) -> None:
    """Raise `ConfigError` where rows from `number` on lack a column that their format needs."""
    if lacks := missing(columns, corpus):
        hint = "Set corpus.question_column" if corpus.format == "generic" else f"Is it corpus.format = {corpus.format}?"
        raise ConfigError(
            f"{file.name}: row {number}: no column {', '.join(lacks)}; there are {listed(file.columns() or columns)}. "
            + hint
        )


def _table(good: Sequence[tuple[int, Question]]) -> pa.Table:
    questions = [q for _, q in good]
    columns = {
        "id": [q.id for q in questions],
        "question": [q.text for q in questions],
        "answers": [q.answers for q in questions],
        "group": [q.group for q in questions],
        "entity": [q.entity for q in questions],
        "rewordings": [q.rewordings for q in questions],
        "key": [q.key for q in questions],
        "own_id": [q.own_id is not None for q in questions],
        "graded": [bool(q.answers) for q in questions],
        "number": [n for n, _ in good],
        "id_hash": [_hash(q.id) for q in questions],
        "text_hash": [_hash(q.key) for q in questions],
        "entity_hash": [0 if q.entity is None else _hash(normalize(q.entity)) for q in questions],
        "signature": pa.FixedSizeListArray.from_arrays(signatures([q.key for q in questions]).ravel(), PERMUTATIONS),
    }
    return pa.table(columns, schema=PARSED)


def description(file: str, row: int, bad: BadRow) -> str:
    """A row of `DROPPED` in words."""
    return f"{file}: row {row}: {bad}"


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _write(table: pa.Table, file: Folder) -> None:
    pq.write_table(table, file.path, filesystem=file.filesystem)


class _Rows:
    """Numbers of every parsed row, in the order of files and rows."""

    def __init__(self, scratch: Folder, parsed: Sequence[Parsed]) -> None:
        self._scratch, self._parts = scratch, [part for p in parsed for part in p.parts]
        self._names = [p.name for p in parsed for _ in p.parts]
        columns = ["own_id", "graded", "number", "id_hash", "text_hash", "entity_hash"]
        tables = [self._read(part, [*columns, "signature", "key"]) for part in self._parts]
        self._starts = np.cumsum([0, *(t.num_rows for t in tables)])
        whole = pa.concat_tables(tables) if tables else PARSED.empty_table()
        self.own, self.graded, self.number, self.id_hash, self.text_hash, self.entity_hash = (
            whole[c].to_numpy() for c in columns
        )
        self.signature = whole["signature"].combine_chunks().flatten().to_numpy().reshape(-1, PERMUTATIONS)
        self.keys = whole["key"]

    def __len__(self) -> int:
        return len(self.number)

    def where(self, row: int) -> str:
        return f"{self._names[np.searchsorted(self._starts, row, 'right') - 1]} row {self.number[row]}"

    def name(self, row: int) -> str:
        """The name of the group whose lowest row this is."""
        return f"{self.text_hash[row]:016x}"

    def id(self, row: int) -> str:
        return next(found[row - start]["id"] for start, found in self.texts("id") if row < start + len(found))

    def texts(self, *columns: str) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        """(index of the first, rows) of every parsed file."""
        for start, part in zip(self._starts, self._parts, strict=False):
            yield int(start), self._read(part, columns).to_pylist()

    def _read(self, part: str, columns: Sequence[str]) -> pa.Table:
        return open_parquet(self._scratch / part).read(list(columns))


def join(parsed: Sequence[Parsed], scratch: Folder, corpus: CorpusSection, shots: int, seed: int, table: Table) -> None:
    """Merge rows of one id and one question, keep those that are alike or about one entity in one split, set `shots`
    aside, and write the table.

    Raises `ConfigError` where two rows of one id ask different questions, or where no `shots` questions can be set
    aside.
    """
    rows = _Rows(scratch, parsed)
    kept = _first_of_equals(rows)
    alike = _alike(rows, corpus.near_duplicates)
    group = split_groups(alike, rows.entity_hash)
    aside = _set_aside(rows, kept, alike, group, corpus, shots, seed)
    merged = _merged(rows, kept)
    files: list[FileEntry] = []
    graded = Counter[str]()
    table.folder.make()
    for number, (start, texts) in enumerate(rows.texts(*KEPT)):
        by_split: dict[str, list[dict[str, object]]] = {s: [] for s in (*schema.SPLITS, schema.SHOTS)}
        for n, row in enumerate(texts, start):
            if kept[n] != n:
                continue
            name = rows.name(int(group[n]))
            equal = [row, *([merged[n]] if n in merged else [])]
            split = schema.SHOTS if n in aside else split_of(name, corpus.split, seed)
            facts = {
                "answers": list(dict.fromkeys(a for r in equal for a in r["answers"])),
                "entity": next((r["entity"] for r in equal if r["entity"]), None),
                "split_group": name,
                "split": split,
                "scope": "other" if split == "eval" else None,  # no pool question asks what files ask there
            }
            by_split[split].append(row | facts)
        for split, found in by_split.items():
            if found:
                graded[split] += sum(bool(r["answers"]) for r in found)
                files.append({"name": f"{split}-{number:06d}.parquet", "rows": len(found), "part": split})
                _write(pa.Table.from_pylist(found, schema=schema.QUESTIONS), table.folder / files[-1]["name"])
    whole = np.flatnonzero(kept == np.arange(len(rows)))
    sizes = np.unique(group[whole], return_counts=True)[1]
    table.close(
        files,
        rows_in=sum(p.rows for p in parsed),
        dropped=sum(p.dropped for p in parsed),
        merged=len(rows) - len(whole),
        near_duplicate_groups=int((np.unique(alike[whole], return_counts=True)[1] > 1).sum()),
        near_duplicates=int(len(whole) - len(np.unique(alike[whole]))),
        entities=int(np.count_nonzero(np.unique(rows.entity_hash))),
        split_groups=len(sizes),
        largest_group=int(sizes.max(initial=0)),
        graded={split: graded[split] for split in schema.SPLITS},
        sources=[{"file": p.name, "rows": p.rows, "dropped": p.dropped} for p in parsed],
    )


def _first_of_equals(rows: _Rows) -> np.ndarray:
    """For each row (N,) the first row with its id, which is itself where there is none before. Some sets list a
    question once per source of its answers."""
    _, first, inverse = np.unique(rows.id_hash, return_index=True, return_inverse=True)
    kept = first[inverse]
    for n in np.flatnonzero((rows.text_hash != rows.text_hash[kept]) | (rows.own != rows.own[kept])):
        raise ConfigError(
            f"{rows.where(int(kept[n]))} and {rows.where(int(n))} share the id {rows.id(int(n))!r}; ids must differ "
            "where questions do"
        )
    return kept


def _alike(rows: _Rows, threshold: float) -> np.ndarray:
    """The group of alike rows that each row is in (N,), named by its lowest row."""
    if threshold < 1:
        return groups(rows.signature, rows.keys, threshold)
    _, first, inverse = np.unique(rows.text_hash, return_index=True, return_inverse=True)
    return first[inverse]


def _set_aside(
    rows: _Rows, kept: np.ndarray, alike: np.ndarray, group: np.ndarray, corpus: CorpusSection, shots: int, seed: int
) -> set[int]:
    """Rows of the probe split with gold that are like no other row, drawn by the seed: the solved examples of
    prompts. They may share an entity with probe questions, but never with the pool or eval."""
    if not shots:
        return set()
    whole = kept == np.arange(len(rows))
    _, first, count = np.unique(alike[whole], return_index=True, return_counts=True)
    alone = np.flatnonzero(whole)[first[count == 1]]
    usable = [
        int(n) for n in alone if rows.graded[n] and split_of(rows.name(int(group[n])), corpus.split, seed) == "probe"
    ]
    if len(usable) < shots:
        raise ConfigError(
            f"corpus.prompt: {shots} solved examples are wanted, the probe split has {len(usable)} questions with gold"
        )
    return set(sorted(usable, key=lambda n: uniform(f"shots-{seed}", rows.name(n)))[:shots])


def _merged(rows: _Rows, kept: np.ndarray) -> dict[int, dict[str, Any]]:
    """What merged rows add, by the row that stays: their distinct answers in order, and the first entity."""
    gone = set(np.flatnonzero(kept != np.arange(len(rows))).tolist())
    merged: dict[int, dict[str, Any]] = defaultdict(lambda: {"answers": [], "entity": None})
    for start, found in rows.texts("answers", "entity") if gone else ():
        for n in sorted(gone.intersection(range(start, start + len(found)))):
            row, added = found[n - start], merged[int(kept[n])]
            added["answers"] += [a for a in row["answers"] if a not in added["answers"]]
            added["entity"] = added["entity"] or row["entity"]
    return merged


def split_of(group: str, shares: SplitSection, seed: int) -> str:
    """The split of a group of questions that stay together: a hash of its name and the seed."""
    u = uniform(f"split-{seed}", group)
    return "probe" if u < shares.probe else "pool" if u < shares.probe + shares.pool else "eval"
