"""The files of a corpus and their rows.

In: a source as the configuration names it. Out: `File`s, and of each its rows one at a time, in order.
A file that cannot be read at all raises `ConfigError` naming it.
Refuses to know: what the columns mean, how CSV and JSON lines are parsed, Ray.
"""

import csv
import glob
import itertools
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from ka2l_ray.config import ConfigError, HubSection
from ka2l_ray.dataflow.rows import (
    BadRow,
    RepeatedNameError,
    Row,
    as_utf8,
    csv_table,
    json_rows,
    open_stream,
    parse_json,
    refuse_utf16,
    repeated,
    shortened,
    text_lines,
)
from ka2l_ray.dataflow.source_names import COMPRESSED, ENDINGS, HUB_ID, kind_of
from ka2l_ray.dataflow.storage import Folder


@dataclass(frozen=True)
class File:
    """One file, folder of a data set, or hub id, and how its rows are read."""

    name: str
    kind: str
    hub: HubSection = field(default_factory=HubSection)

    def rows(self, wanted: Iterable[str] | None = None) -> Iterator[Row]:
        """The rows in order; of Parquet files only the `wanted` columns, because the others may be large.

        Raises `ConfigError` where the file itself cannot be read, naming it and the last row that could.
        """
        number = 0
        try:
            for row in _parquet(self, wanted) if self.kind == "parquet" else KINDS[self.kind](self):
                number = row.number
                yield row
        except ConfigError:
            raise
        except (OSError, EOFError, ValueError, zlib.error, pa.ArrowException, csv.Error) as error:
            after = f" after row {number:,}" if number else ""
            raise ConfigError(f"{self.name}: cannot be read{after}: {_first_line(error)}") from error

    def columns(self) -> list[str] | None:
        """All columns of a Parquet file; None for other files, whose rows name them. Raises `ConfigError` as `rows`
        does."""
        if self.kind != "parquet":
            return None
        folder = Folder.of(self.name)
        try:
            return pq.read_schema(folder.path, filesystem=folder.filesystem).names
        except (OSError, pa.ArrowException) as error:
            raise ConfigError(f"{self.name}: cannot be read: {_first_line(error)}") from error


def files_of(source: str | Sequence[str], hub: HubSection) -> list[File]:
    """All files of a source, sorted within each pattern. Raises `ConfigError` for one that does not exist or is of no
    known kind."""
    found = [file for one in ([source] if isinstance(source, str) else source) for file in _files(one, hub)]
    if doubled := [name for name, count in Counter(f.name for f in found).items() if count > 1]:
        raise ConfigError(f"corpus.source names {', '.join(doubled)} twice")
    return found


def _files(source: str, hub: HubSection) -> list[File]:
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
        f"corpus.source = {source!r}: no such folder, and neither `world`, a file that ends in {KNOWN_ENDINGS}, "
        "nor a hub id OWNER/NAME"
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
        return [source] if _is_local_file(source) else sorted(glob.glob(_pattern(source), recursive=True))
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


def _pattern(source: str) -> str:
    """The pattern, with brackets in names of existing folders escaped."""
    folders = list(itertools.takewhile(lambda part: "*" not in part and "?" not in part, Path(source).parts[:-1]))
    parent = Path(*folders)
    return (
        str(Path(glob.escape(str(parent)), *Path(source).parts[len(folders) :]))
        if folders and parent.exists()
        else source
    )


def _text(file: File) -> Iterator[Row]:
    """One question per line, without gold answers."""
    with open_stream(file.name) as stream:
        for number, text in text_lines(stream, file.name):
            yield Row(number, text if isinstance(text, BadRow) else {"question": text})


def _jsonl(file: File) -> Iterator[Row]:
    with open_stream(file.name) as stream:
        yield from json_rows(stream, file.name)


def _csv(file: File) -> Iterator[Row]:
    with open_stream(file.name) as stream:
        names, records = csv_table(stream, file.name)
        for name in names:
            if isinstance(bad := as_utf8(name, "header"), BadRow):
                raise ConfigError(f"{file.name}: the header is not UTF-8: {bad.value}; save the file as UTF-8")
        if doubled := repeated(names):
            raise ConfigError(f"{file.name}: the header names {doubled} twice; columns must differ")
        for record in records:
            yield Row(record.line, _named(names, record.fields))


def _named(names: Sequence[str], fields: Sequence[str] | BadRow) -> dict[str, object] | BadRow:
    """A record of CSV by column."""
    if isinstance(fields, BadRow):
        return fields
    if len(fields) != len(names):
        wanted = f"must have the header's {len(names)} fields; put a field that contains the delimiter in quotes"
        return BadRow("line", wanted, f"{len(fields)} fields")
    bad = (b for name, value in zip(names, fields, strict=True) if isinstance(b := as_utf8(value, name), BadRow))
    return next(bad, None) or dict(zip(names, fields, strict=True))


def _json(file: File) -> Iterator[Row]:
    """One JSON document, read whole: an array of objects, or SQuAD's tree. JSON lines under this name are read as
    such."""
    with open_stream(file.name) as stream:
        data = stream.read()
    refuse_utf16(data, file.name)
    text = as_utf8(data.decode("utf-8-sig", "surrogateescape"), "document")
    if isinstance(text, BadRow):
        raise ConfigError(f"{file.name}: is not UTF-8: {text.value}")
    try:
        document = parse_json(text)
    except RepeatedNameError as error:
        raise ConfigError(f"{file.name}: an object {error}; its members must differ") from error
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            yield from _jsonl(file)
            return
        raise ConfigError(f"{file.name}: is not JSON: {error}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file.name}: cannot be read as JSON: {_first_line(error)}") from error
    rows = squad_rows(document) if isinstance(document, dict) and "data" in document else document
    if isinstance(rows, dict):
        rows = [rows]
    if not isinstance(rows, (list, Iterator)):
        raise ConfigError(f"{file.name}: must contain an array of JSON objects, not {shortened(rows)}")
    for number, row in enumerate(rows, 1):
        yield Row(number, row if isinstance(row, dict) else BadRow("row", "must be a JSON object", shortened(row)))


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


def _parquet(file: File, wanted: Iterable[str] | None) -> Iterator[Row]:
    folder = Folder.of(file.name)
    with pq.ParquetFile(folder.path, filesystem=folder.filesystem) as table:
        names = table.schema_arrow.names
        if doubled := repeated(names):
            raise ConfigError(f"{file.name}: names the column(s) {doubled} twice; columns must differ")
        kept = names if wanted is None else [n for n in names if n in set(wanted)]
        yield from _numbered(r for b in table.iter_batches(batch_size=256, columns=kept) for r in b.to_pylist())


def _hub(file: File) -> Iterator[Row]:
    """A data set on the hub, streamed."""
    import datasets

    part = {"split": file.hub.split, "revision": file.hub.revision}
    yield from _numbered(datasets.load_dataset(file.name, file.hub.subset, **part, streaming=True))


def _dataset(file: File) -> Iterator[Row]:
    """A folder that `datasets` saved."""
    import datasets

    with Folder.of(file.name).local() as folder:
        found = datasets.load_from_disk(folder)
        if isinstance(found, datasets.DatasetDict):
            if file.hub.split not in found:
                splits = ", ".join(map(str, found))
                raise ConfigError(f"{file.name}: contains the splits {splits}; set corpus.hub.split to one of them")
            found = found[file.hub.split]
        yield from _numbered(found)


def _numbered(rows: Iterable[Any]) -> Iterator[Row]:
    for number, row in enumerate(rows, 1):
        yield Row(number, row)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


KNOWN_ENDINGS = f"{', '.join(ENDINGS)} (or these with {', '.join(COMPRESSED)})"
KINDS: dict[str, Callable[[File], Iterator[Row]]] = {
    "jsonl": _jsonl,
    "json": _json,
    "csv": _csv,
    "text": _text,
    "dataset": _dataset,
    "hub": _hub,
}
"""How each kind of file is read; Parquet, of which columns can be left out, besides."""
