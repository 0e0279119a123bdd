"""The files of a corpus and their rows.

In: a source as the configuration names it. Out: `File`s, and of each its rows one at a time, in order.
A file that cannot be read at all raises `ConfigError` naming it.
Refuses to know: what the columns mean, how CSV and JSON lines are parsed, Ray.
"""

import codecs
import csv
import glob
import gzip
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.resources import files
from itertools import starmap
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from ka2l_ray.config import ConfigError, HubSection
from ka2l_ray.dataflow.parquet import open_parquet
from ka2l_ray.dataflow.paths import glob_pattern
from ka2l_ray.dataflow.rows import (
    BadRow,
    RepeatedNameError,
    Row,
    Utf8,
    as_utf8,
    csv_table,
    json_rows,
    open_stream,
    parse_json,
    repeated,
    shortened,
    text_lines,
)
from ka2l_ray.dataflow.source_names import COMPRESSED, ENDINGS, HUB_ID, WIKIFACTS, kind_of
from ka2l_ray.dataflow.storage import Folder

if TYPE_CHECKING:
    import datasets

Rows = Iterator[dict[str, object]]


@dataclass(frozen=True)
class File:
    """One file, folder of a data set, or hub id, and how its rows are read."""

    name: str
    kind: str
    hub: HubSection = field(default_factory=HubSection)
    encoding: str = "auto"

    def rows(self, wanted: Iterable[str] | None = None) -> Iterator[Row]:
        """The rows in order; of Parquet files and data sets only the `wanted` columns, because the others may be large,
        or images and sounds that cannot be decoded here.

        Raises `ConfigError` where the file itself cannot be read, naming it and the last row that could.
        """
        number = 0
        try:
            for row in self._rows(wanted):
                number = row.number
                yield row
        except ConfigError:
            raise
        except (OSError, EOFError, ValueError, zlib.error, pa.ArrowException, csv.Error) as error:
            after = f" after row {number:,}" if number else ""
            raise ConfigError(f"{self.name}: cannot be read{after}: {_first_line(error)}") from error

    def _rows(self, wanted: Iterable[str] | None) -> Iterator[Row]:
        if self.kind in STREAMS:
            with open_stream(self.name) as stream:
                utf8 = io.BufferedReader(Utf8(stream, self.encoding), 2**20)
                only = None if wanted is None else frozenset(wanted)
                yield from STREAMS[self.kind](utf8, self.name, only)  # pyright: ignore[reportArgumentType]
        else:
            yield from starmap(Row, enumerate(TABLES[self.kind](self, wanted), 1))

    def columns(self) -> list[str] | None:
        """All columns of a Parquet file or saved data set that has been read; None for other files, whose rows name
        them."""
        if self.kind == "dataset":
            with _saved_set(self) as found:
                return found.column_names
        if self.kind != "parquet":
            return None
        folder = Folder.of(self.name)
        try:
            return pq.read_schema(folder.path, filesystem=folder.filesystem).names
        except (OSError, pa.ArrowException) as error:
            raise ConfigError(f"{self.name}: {error}") from error


def files_of(source: str | Sequence[str], hub: HubSection, encoding: str = "auto") -> list[File]:
    """All files of a source, sorted within each pattern. Raises `ConfigError` for one that does not exist or is of no
    known kind."""
    sources = [source] if isinstance(source, str) else source
    found = [replace(file, encoding=encoding) for one in sources for file in _files(one, hub)]
    if doubled := [name for name, count in Counter(f.name for f in found).items() if count > 1]:
        raise ConfigError(f"corpus.source names {', '.join(doubled)} twice")
    return found


def _files(source: str, hub: HubSection) -> list[File]:
    if source == WIKIFACTS:
        return [File(source, "shipped")]
    if ("*" in source and not _is_local_file(source)) or kind_of(source):
        found = [File(p, kind) for p in _matching(source) if (kind := kind_of(p))]
        if not found:
            raise ConfigError(f"corpus.source = {source!r}: no such file")
        return found
    folder = Folder.of(source)
    if folder.filesystem.get_file_info(folder.path).type == fs.FileType.Directory:
        if any((folder / name).exists() for name in ("dataset_info.json", "dataset_dict.json")):
            return [File(source, "dataset", hub)]
        inside = [File(_inside(source, n), kind) for n in folder.names() if (kind := kind_of(n))]
        if not inside:
            raise ConfigError(
                f"corpus.source = {source!r}: the folder contains no file that ends in {KNOWN_ENDINGS} and no saved "
                "data set"
            )
        return inside
    if "://" not in source and HUB_ID.fullmatch(source):
        return [File(source, "hub", hub)]
    raise ConfigError(
        f"corpus.source = {source!r}: no such folder, and neither `world`, `wikifacts`, a file that ends in "
        f"{KNOWN_ENDINGS}, nor a hub id OWNER/NAME"
    )


def _inside(folder: str, name: str) -> str:
    """Path or URI of a file in a folder; the options of a URI stay at its end, and the name in it is quoted."""
    if "://" not in folder:
        return f"{folder.rstrip('/')}/{name}"
    address, mark, query = folder.partition("?")
    return f"{address.rstrip('/')}/{quote(name)}{mark}{query}"


def _matching(source: str) -> list[str]:
    """Paths or URIs that a pattern matches; a name that exists is not a pattern, whatever it contains."""
    if "://" not in source:
        return [source] if _is_local_file(source) else sorted(glob.glob(glob_pattern(source), recursive=True))
    if "*" not in source:
        return [source] if Folder.of(source).exists() else []
    address, mark, query = source.partition("?")
    parent, _, pattern = address.rpartition("/")
    if "*" in parent:
        raise ConfigError(f"corpus.source = {source!r}: `*` is allowed only in the last part of a URI")
    wanted = re.compile(".*".join(re.escape(p) for p in pattern.split("*")))
    folder = f"{parent}{mark}{query}"
    return [_inside(folder, n) for n in Folder.of(folder).names() if wanted.fullmatch(n)]


def _is_local_file(path: str) -> bool:
    return "://" not in path and Path(path).exists()


def _text(stream: io.BufferedReader, name: str, _: Set[str] | None) -> Iterator[Row]:
    """One question per line, without gold answers."""
    for number, text in text_lines(stream, name):
        yield Row(number, text if isinstance(text, BadRow) else {"question": text})


def _csv(stream: io.BufferedReader, name: str, wanted: Set[str] | None) -> Iterator[Row]:
    columns, records = csv_table(stream, name)
    for column in columns:
        if isinstance(bad := as_utf8(column, "header"), BadRow):
            raise ConfigError(f"{name}: {bad}")
    if doubled := repeated(c for c in columns if wanted is None or c in wanted):
        raise ConfigError(f"{name}: the header names {doubled} twice; columns must differ")
    for record in records:
        yield Row(record.line, _by_column(columns, record.fields))


def _by_column(names: Sequence[str], fields: Sequence[str] | BadRow) -> dict[str, object] | BadRow:
    """A record of CSV by column."""
    if isinstance(fields, BadRow):
        return fields
    if len(fields) != len(names):
        wanted = f"must have the header's {len(names)} fields; put a field that contains the delimiter in quotes"
        return BadRow("line", wanted, f"{len(fields)} fields")
    bad = (b for name, value in zip(names, fields, strict=True) if isinstance(b := as_utf8(value, name), BadRow))
    return next(bad, None) or dict(zip(names, fields, strict=True))


def _json_lines(stream: io.BufferedReader, name: str, wanted: Set[str] | None) -> Iterator[Row]:
    """JSON lines; one array of objects under this name is read as such."""
    is_array = stream.peek().removeprefix(codecs.BOM_UTF8).lstrip()[:2].rstrip() in (b"[", b"[{")
    yield from _json(stream, name, wanted) if is_array else json_rows(stream, name)


def _json(stream: io.BufferedReader, name: str, wanted: Set[str] | None) -> Iterator[Row]:
    """One JSON document, read whole. JSON lines under this name are read as such."""
    data = stream.read()
    text = as_utf8(data.decode("utf-8-sig", "surrogateescape"), "document")
    if isinstance(text, BadRow):
        raise ConfigError(f"{name}: {text}")
    try:
        document = parse_json(text)
    except RepeatedNameError as error:
        raise ConfigError(f"{name}: an object {error}; its members must differ") from error
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            yield from json_rows(io.BytesIO(data), name)
            return
        raise ConfigError(f"{name}: is not JSON: {error}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{name}: cannot be read as JSON: {_first_line(error)}") from error
    rows = _rows_of_object(document, wanted or frozenset()) if isinstance(document, dict) else document
    if not isinstance(rows, (list, Iterator)):
        raise ConfigError(f"{name}: must contain an array of JSON objects, not {shortened(rows)}")
    for number, row in enumerate(rows, 1):
        yield Row(number, row if isinstance(row, dict) else BadRow("row", "must be a JSON object", shortened(row)))


def _rows_of_object(document: dict[str, Any], wanted: Set[str]) -> Iterable[object]:
    """The rows in a JSON object: a list of objects inside it, objects by id, columns as pandas writes them, or itself,
    whichever has a `wanted` column."""
    if not wanted.isdisjoint(document):
        columns = list(document.values())
        if not all(isinstance(c, dict) and c.keys() == columns[0].keys() for c in columns):
            return [document]
        return [{name: column[row] for name, column in document.items()} for row in columns[0]]
    lists = [v for v in document.values() if isinstance(v, list) and _is_row(next(iter(v), None), wanted)]
    if len(lists) == 1:
        return lists[0]
    if "data" in document:
        return squad_rows(document)
    by_id = list(document.values())
    return by_id if by_id and all(_is_row(v, wanted) for v in by_id) else [document]


def _is_row(value: object, wanted: Set[str]) -> bool:
    return isinstance(value, dict) and not wanted.isdisjoint(value)


def squad_rows(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The questions of SQuAD's own tree (articles, paragraphs, questions) as flat rows with their article's title.

    Raises `ConfigError` for a document of another shape.
    """
    try:
        for article in document["data"]:
            for paragraph in article["paragraphs"]:
                yield from ({"title": article.get("title")} | qa for qa in paragraph["qas"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"a document with `data` must be SQuAD's (data, paragraphs, qas): {type(error).__name__}: {error}"
        ) from error


def _parquet(file: File, wanted: Iterable[str] | None) -> Rows:
    wanted = None if wanted is None else set(wanted)
    with open_parquet(Folder.of(file.name), wanted) as table:
        names = table.schema_arrow.names
        if doubled := repeated(n for n in names if wanted is None or n in wanted):
            raise ConfigError(f"{file.name}: names the column(s) {doubled} twice; columns must differ")
        kept = names if wanted is None else [n for n in names if n in wanted]
        for batch in table.iter_batches(batch_size=256, columns=kept):
            yield from batch.to_pylist()


def _hub(file: File, wanted: Iterable[str] | None) -> Rows:
    """A data set on the hub, streamed."""
    import datasets

    hub = file.hub
    found = datasets.load_dataset(file.name, hub.subset, split=hub.split, revision=hub.revision, streaming=True)
    yield from undecoded(cast("datasets.IterableDataset", found), wanted)


def undecoded(found: "datasets.Dataset | datasets.IterableDataset", wanted: Iterable[str] | None) -> Rows:
    """The rows of a data set, of which only `wanted` columns are read, and no image, sound or video is decoded."""
    if found.features is None:  # of a stream of JSON lines, say, which has no such columns
        yield from cast(Rows, found)
        return
    names = list(found.features)
    kept = names if wanted is None else [n for n in names if n in wanted] or names[:1]
    for batch in found.select_columns(kept).with_format("arrow").iter(256):
        yield from cast(pa.Table, batch).to_pylist()


def _saved(file: File, wanted: Iterable[str] | None) -> Rows:
    """A folder that `datasets` saved."""
    with _saved_set(file) as found:
        yield from undecoded(found, wanted)


@contextmanager
def _saved_set(file: File) -> Iterator["datasets.Dataset"]:
    """The data set in a folder, or its split. Raises `ConfigError` where it has no such split."""
    import datasets

    with Folder.of(file.name).local() as folder:
        found = datasets.load_from_disk(folder)
        if isinstance(found, datasets.DatasetDict):
            if file.hub.split not in found:
                splits = ", ".join(map(str, found))
                raise ConfigError(f"{file.name}: contains the splits {splits}; set corpus.hub.split to one of them")
            found = found[file.hub.split]
        yield found


def _shipped(file: File, _: Iterable[str] | None) -> Rows:
    """The package's own questions, read where the package is installed on this node."""
    text = gzip.decompress((files("ka2l_ray.corpus") / file.name / "questions.jsonl.gz").read_bytes())
    return (json.loads(line) for line in io.BytesIO(text))


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


KNOWN_ENDINGS = f"{', '.join(ENDINGS)} (or these with {', '.join(COMPRESSED)})"
STREAMS: dict[str, Callable[[io.BufferedReader, str, Set[str] | None], Iterator[Row]]] = {
    "jsonl": _json_lines,
    "json": _json,
    "csv": _csv,
    "text": _text,
}
TABLES: dict[str, Callable[[File, Iterable[str] | None], Rows]] = {
    "parquet": _parquet,
    "dataset": _saved,
    "hub": _hub,
    "shipped": _shipped,
}
"""How each kind of text file is read, given the wanted columns, and each kind that has columns."""
