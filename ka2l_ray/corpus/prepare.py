"""The rows of files become the `questions` table: parsed, merged, grouped, split.

In: files, a `corpus` section, a seed.
Out: first one set of parsed files per source file (`parse_file`, any number at once, each streaming), then the table
(`join`, once), which has numbers of every row in memory, some 400 bytes each, and the normalised questions, and
streams the rest a second time.
Refuses to know: Ray, models, prompts.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ka2l_ray import schema
from ka2l_ray.config import Config, ConfigError, CorpusSection, SplitSection
from ka2l_ray.corpus.files import File
from ka2l_ray.corpus.formats import Question, UnusableError, columns_read, cop, first_option, missing, parse
from ka2l_ray.corpus.together import split_groups
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.rows import BadRow, listed
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.errors import StageError
from ka2l_ray.hashing import uniform
from ka2l_ray.text.duplicates import PERMUTATIONS, groups, signatures
from ka2l_ray.text.grading import normalize

CHUNK, CHUNK_CHARACTERS = 8192, 2**24
"""Rows that are in memory and written together, and characters of their questions and answers."""
PARSED = pa.schema(
    [
        *(schema.QUESTIONS.field(n) for n in ("id", "question", "answers", "group", "entity")),
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
_SCOPE = {"eval": "other"}
"""Scope by split: no pool question asks what files ask in `eval`."""
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


def medmcqa_first(files: Sequence[File]) -> int:
    """What the `cop` of the files counts from, 0 or 1. Raises `ConfigError` where the rows leave it open or
    contradict each other."""
    numbers: set[int | None] = set()
    for row in (row for file in files for row in file.rows(("cop",))):
        if not isinstance(row.values, BadRow):
            with suppress(UnusableError):  # reported when the row is parsed
                numbers.add(cop(row.values))
    known = frozenset(n for n in numbers if n is not None)
    if not known:
        return 1  # no gold, or no such column, which is reported when rows are parsed
    where = f"{files[0].name}{' …' if len(files) > 1 else ''}"
    try:
        first = first_option(known)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
    if first is None:
        raise ConfigError(
            f"{where}: cop takes the values {sorted(known)}, which fit counting from 0 and from 1; "
            "set corpus.medmcqa_first to 0 (the hub's files) or 1 (the authors')"
        )
    return first


def parse_file(file: File, corpus: CorpusSection, target: Folder, unusable: Folder, prefix: str) -> Parsed:
    """Parse one file into `target`, and list the rows that are not questions in `unusable`.

    Raises `ConfigError` where the file cannot be read or lacks a column that its format needs.
    """
    rows, parts, bad, first = 0, [], 0, ""
    for number, chunk in enumerate(_chunks(_parsed_rows(file, corpus))):
        rows += len(chunk)
        good = [(n, q) for n, q in chunk if isinstance(q, Question)]
        if dropped := [{"file": file.name, "row": n, **asdict(q)} for n, q in chunk if isinstance(q, BadRow)]:
            bad += len(dropped)
            first = first or description(dropped[0])
            _write(pa.Table.from_pylist(dropped, schema=DROPPED), unusable.make() / f"{prefix}-{number:06d}.parquet")
        if good:
            parts.append(f"parsed-{prefix}-{number:06d}.parquet")
            _write(_table(good), target / parts[-1])
    return Parsed(file.name, rows, bad, tuple(parts), first)


def _parsed_rows(file: File, corpus: CorpusSection) -> Iterator[tuple[int, Question | BadRow]]:
    """Every row with its number, parsed as it is read, so that no other column of it is kept."""
    columns, checked = file.columns(), False
    for row in file.rows(columns_read(corpus)):
        if isinstance(row.values, BadRow):
            yield row.number, row.values
            continue
        if not checked:
            _check_columns(f"{file.name}: row {row.number}", columns or list(row.values), corpus)
            checked = True
        yield row.number, parse(row.values, corpus, file.name)


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


def check_dropped(parsed: Sequence[Parsed], most: float) -> None:
    """Raise `ConfigError` where there is no row, and `StageError`, which quotes the first, where more rows cannot
    be used than `run.max_error_fraction` allows."""
    rows, dropped = sum(p.rows for p in parsed), sum(p.dropped for p in parsed)
    if not rows:
        raise ConfigError(f"corpus.source: {', '.join(p.name for p in parsed)} contain(s) no row")
    if dropped > most * rows:
        first = next(p.first_problem for p in parsed if p.first_problem)
        raise StageError(
            f"questions: {dropped:,} of {rows:,} rows cannot be used, more than run.max_error_fraction allows "
            f"({most:g}). First: {first}"
        )


def check_splits(config: Config, table: Table) -> None:
    """Raise `ConfigError` where a split got no question."""
    if empty := [s for s in schema.SPLITS if not table.part_rows(s)]:
        manifest = table.manifest()
        alike, largest = manifest.get("near_duplicates", 0), manifest["largest_group"]
        reasons = [f"{alike:,} of them almost the same as another"] if alike else []
        reasons += [f"up to {largest:,} about one entity or alike"] if largest > 1 else []
        raise ConfigError(
            f"corpus.source = {config.corpus.source!r}: {table.rows:,} usable questions"
            + (f", {', '.join(reasons)}," if reasons else "")
            + f" are too few, the split(s) {', '.join(empty)} would be empty"
        )


def check_gold(config: Config, table: Table) -> None:
    """Raise `ConfigError` where a strategy ranks by grades and no pool question has gold."""
    if "quadrant" in config.active.strategies and not table.manifest()["graded"]["pool"]:
        raise ConfigError(
            "active.strategies: `quadrant` needs gold answers, and no pool question has one; leave it out"
        )


def check_budget(config: Config, pool: int) -> None:
    """Raise `ConfigError` where more annotations are to be bought than the pool has questions."""
    if config.active.budget > pool:
        raise ConfigError(
            f"active.budget = {config.active.budget:,} exceeds the pool of {pool:,} questions; buy fewer, or give "
            "corpus.split.pool more"
        )


def _check_columns(where: str, columns: Sequence[str], corpus: CorpusSection) -> None:
    if lacks := missing(columns, corpus):
        hint = (
            ". Set corpus.question_column"
            if corpus.format == "generic"
            else f". Is it corpus.format = {corpus.format}?"
        )
        raise ConfigError(f"{where}: no column {', '.join(lacks)}; there are {listed(columns)}{hint}")


def _table(good: Sequence[tuple[int, Question]]) -> pa.Table:
    questions = [q for _, q in good]
    columns = {
        "id": [q.id for q in questions],
        "question": [q.text for q in questions],
        "answers": [q.answers for q in questions],
        "group": [q.group for q in questions],
        "entity": [q.entity for q in questions],
        "key": [q.key for q in questions],
        "own_id": [q.own_id is not None for q in questions],
        "graded": [bool(q.answers) for q in questions],
        "number": [n for n, _ in good],
        "id_hash": [_hash(q.id) for q in questions],
        "text_hash": [_hash(q.key) for q in questions],
        "entity_hash": [0 if q.entity is None else _hash(normalize(q.entity)) for q in questions],
        "signature": pa.FixedSizeListArray.from_arrays(
            signatures([q.key for q in questions]).reshape(-1), PERMUTATIONS
        ),
    }
    return pa.table(columns, schema=PARSED)


def description(dropped: dict[str, Any]) -> str:
    """A row of `DROPPED` in words."""
    bad = BadRow(dropped["field"], dropped["problem"], dropped["value"])
    return f"{dropped['file']}: row {dropped['row']}: {bad}"


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _write(table: pa.Table, file: Folder) -> None:
    pq.write_table(table, file.path, filesystem=file.filesystem)


class _Rows:
    """Numbers of every parsed row, in the order of files and rows."""

    def __init__(self, scratch: Folder, parsed: Sequence[Parsed]) -> None:
        self.scratch, self.parts = scratch, [(n, part) for n, p in enumerate(parsed) for part in p.parts]
        columns = ["own_id", "graded", "number", "id_hash", "text_hash", "entity_hash", "signature", "key"]
        tables = [self._read(part, columns) for _, part in self.parts]
        whole = pa.concat_tables(tables) if tables else PARSED.empty_table()
        self.keys = whole["key"]
        self.names = [p.name for p in parsed]
        self.file = np.repeat([n for n, _ in self.parts], [t.num_rows for t in tables]) if tables else np.zeros(0, int)
        self.own, self.graded, self.number, self.id_hash, self.text_hash, self.entity_hash = (
            whole[c].to_numpy() for c in columns[:6]
        )
        chunks = [chunk.flatten().to_numpy() for chunk in whole["signature"].chunks]
        self.signature = np.concatenate([np.zeros(0, np.uint32), *chunks]).reshape(len(self.number), PERMUTATIONS)

    def __len__(self) -> int:
        return len(self.number)

    def where(self, row: int) -> str:
        return f"{self.names[self.file[row]]} row {self.number[row]}"

    def name(self, row: int) -> str:
        """The name of the group whose lowest row this is."""
        return f"{self.text_hash[row]:016x}"

    def id(self, row: int) -> str:
        return next(texts[row - start]["id"] for start, texts in self.texts() if start <= row < start + len(texts))

    def texts(self) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        """(index of the first, rows) of every parsed file."""
        start = 0
        for _, part in self.parts:
            rows = self._read(part, ["id", "question", "answers", "group", "entity"]).to_pylist()
            yield start, rows
            start += len(rows)

    def _read(self, part: str, columns: list[str]) -> pa.Table:
        return pq.ParquetFile((self.scratch / part).path, filesystem=self.scratch.filesystem).read(columns)


def join(parsed: Sequence[Parsed], scratch: Folder, corpus: CorpusSection, shots: int, seed: int, table: Table) -> None:
    """Merge equal questions that have no id of their own, keep those that are alike or about one entity in one split,
    set `shots` aside, and write the table.

    Raises `ConfigError` where two rows have the same id of their own, or where no `shots` questions can be set aside.
    """
    rows = _Rows(scratch, parsed)
    kept = _first_of_equals(rows)
    alike = _alike(rows, corpus.near_duplicates)
    group = split_groups(alike, rows.entity_hash)
    united = _united(rows, kept)
    aside = _set_aside(rows, kept, alike, group, corpus, shots, seed)
    files, count, graded = [], 0, Counter[str]()
    table.folder.make()
    for start, texts in rows.texts():
        by_split: dict[str, list[dict[str, Any]]] = {s: [] for s in (*schema.SPLITS, schema.SHOTS)}
        for n, row in enumerate(texts, start):
            if kept[n] != n:
                continue
            name = rows.name(int(group[n]))
            split = schema.SHOTS if n in aside else split_of(name, corpus.split, seed)
            more = united.get(n, _Merged())
            answers, entity = [*dict.fromkeys([*row["answers"], *more.answers])], row["entity"] or more.entity
            facts = {
                "answers": answers,
                "entity": entity,
                "split_group": name,
                "split": split,
                "scope": _SCOPE.get(split),
            }
            by_split[split].append(row | facts)
        for split, found in by_split.items():
            if found:
                graded[split] += sum(bool(r["answers"]) for r in found)
                file = f"{split}-{count:06d}.parquet"
                _write(pa.Table.from_pylist(found, schema=schema.QUESTIONS), table.folder / file)
                files.append({"name": file, "rows": len(found), "part": split})
        count += 1
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
    """For each row (N,) the first row with its id, which is itself where there is none before."""
    _, first, inverse = np.unique(rows.id_hash, return_index=True, return_inverse=True)
    kept = first[inverse]
    for n in np.flatnonzero((kept != np.arange(len(rows))) & (rows.own | rows.own[kept])):
        raise ConfigError(
            f"{rows.where(int(kept[n]))} and {rows.where(int(n))} share the id {rows.id(int(n))!r}; ids must differ"
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


@dataclass
class _Merged:
    """What merged rows add to the row that stays: answers, and an entity where it has none."""

    answers: list[str] = field(default_factory=list)
    entity: str | None = None


def _united(rows: _Rows, kept: np.ndarray) -> dict[int, _Merged]:
    """What merged rows add, by the row that stays."""
    merged = set(np.flatnonzero(kept != np.arange(len(rows))).tolist())
    united: dict[int, _Merged] = {}
    for start, texts in rows.texts() if merged else ():
        for n in sorted(merged.intersection(range(start, start + len(texts)))):
            found = united.setdefault(int(kept[n]), _Merged())
            found.answers += texts[n - start]["answers"]
            found.entity = found.entity or texts[n - start]["entity"]
    return united


def split_of(group: str, shares: SplitSection, seed: int) -> str:
    """The split of a group of questions that stay together: a hash of its name and the seed."""
    u = uniform(f"split-{seed}", group)
    return "probe" if u < shares.probe else "pool" if u < shares.probe + shares.pool else "eval"
