"""A corpus' files as raw rows, each under the file and number that a person finds it by.

In: a source as the configuration names it. Out: `File`s; of each, `Raw` rows in order, one at a time, or a `BadRow` in its place.
A file that cannot be read at all raises `ConfigError` naming it. Refuses to know: what the columns mean, Ray.
"""

import codecs
import csv
import glob
import io
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
from ka2l_ray.dataflow.source_names import COMPRESSED, ENDINGS, HUB_ID, kind_of
from ka2l_ray.dataflow.storage import Folder

DELIMITERS = (",", ";", "\t")
LONGEST_LINE = 64 * 2**20
MOST_NAMED = 20
"""Names that an error message lists."""
csv.field_size_limit(LONGEST_LINE)


@dataclass(frozen=True)
class BadRow:
    """Why a row cannot be used: the field, what is wrong with it, and its value, shortened, where that helps."""

    field: str
    problem: str
    value: str = ""

    def __str__(self) -> str:
        return f"{self.field}{f' = {self.value}' if self.value else ''} {self.problem}"


@dataclass(frozen=True)
class Raw:
    """A row as it stands in its file; `number` is the line it begins on in text files and counts rows of the others, from 1."""

    number: int
    values: dict[str, Any] | BadRow


@dataclass(frozen=True)
class File:
    """One file, folder of a data set, or hub id, and how its rows are read."""

    name: str
    kind: str
    hub: HubSection = field(default_factory=HubSection)

    def rows(self, wanted: Iterable[str] | None = None) -> Iterator[Raw]:
        """The rows in order, of Parquet files with the `wanted` columns alone, for the others may be large.

        Raises `ConfigError` where the file itself cannot be read, naming it and the last row that could.
        """
        number = 0
        try:
            if self.kind in TEXTS:
                _refuse_utf16(self)
            for raw in _parquet(self, wanted) if self.kind == "parquet" else KINDS[self.kind](self):
                number = raw.number
                yield raw
        except ConfigError:
            raise
        except (OSError, EOFError, ValueError, zlib.error, pa.ArrowException, csv.Error) as error:
            after = f" after row {number:,}" if number else ""
            raise ConfigError(f"{self.name}: cannot be read{after}: {_first_line(error)}") from error

    def columns(self) -> list[str] | None:
        """Every column of a Parquet file, None where the rows themselves tell. Raises `ConfigError` as `rows` does."""
        if self.kind != "parquet":
            return None
        folder = Folder.of(self.name)
        try:
            return pq.read_schema(folder.path, filesystem=folder.filesystem).names
        except (OSError, pa.ArrowException) as error:
            raise ConfigError(f"{self.name}: cannot be read: {_first_line(error)}") from error


def files_of(source: str | Sequence[str], hub: HubSection) -> list[File]:
    """Every file of a source, sorted within each pattern. Raises `ConfigError` for what is not there or of no known kind."""
    found: list[File] = []
    for one in [source] if isinstance(source, str) else source:
        found += _files(one, hub)
    names = [f.name for f in found]
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise ConfigError(f"corpus.source names {', '.join(twice)} twice")
    return found


def _files(source: str, hub: HubSection) -> list[File]:
    if ("*" in source and not _stands_there(source)) or kind_of(source):
        found = [File(p, kind) for p in _matching(source) if (kind := kind_of(p))]
        if not found:
            raise ConfigError(f"corpus.source = {source!r}: no such file")
        return found
    folder = _folder(source)
    if folder is not None:
        if any((folder / name).exists() for name in ("dataset_info.json", "dataset_dict.json")):
            return [File(source, "dataset", hub)]
        inside = [File(_inside(source, n), kind) for n in folder.names() if (kind := kind_of(n))]
        if not inside:
            raise ConfigError(
                f"corpus.source = {source!r}: the folder holds no file that ends in {_endings()} and no saved data set"
            )
        return inside
    if "://" not in source and HUB_ID.fullmatch(source):
        return [File(source, "hub", hub)]
    raise ConfigError(
        f"corpus.source = {source!r}: no such folder, and neither `world`, a file that ends in {_endings()}, nor a hub id OWNER/NAME"
    )


def _inside(folder: str, name: str) -> str:
    """Path or URI of a file in a folder; the options of a URI stay at its end, and its name is quoted as URIs want."""
    if "://" not in folder:
        return f"{folder.rstrip('/')}/{name}"
    address, mark, query = folder.partition("?")
    return f"{address.rstrip('/')}/{quote(name)}{mark}{query}"


def _endings() -> str:
    return f"{', '.join(ENDINGS)} (or these with {', '.join(COMPRESSED)})"


def _folder(source: str) -> Folder | None:
    folder = Folder.of(source)
    info = folder.filesystem.get_file_info(folder.path)
    return folder if info.type == fs.FileType.Directory else None


def _matching(source: str) -> list[str]:
    """Paths or URIs that a pattern matches; a name that is there is no pattern, whatever it holds."""
    if "://" not in source:
        return [source] if _stands_there(source) else sorted(glob.glob(_pattern(source), recursive=True))
    if "*" not in source:
        return [source] if _there(source) else []
    address, mark, query = source.partition("?")
    parent, _, pattern = address.rpartition("/")
    if "*" in parent:
        raise ConfigError(f"corpus.source = {source!r}: `*` may stand in the last part of a URI only")
    wanted = re.compile(".*".join(re.escape(p) for p in pattern.split("*")))
    folder = f"{parent}{mark}{query}"
    return [_inside(folder, n) for n in Folder.of(folder).names() if wanted.fullmatch(n)]


def _stands_there(path: str) -> bool:
    return "://" not in path and Path(path).exists()


def _pattern(source: str) -> str:
    """The pattern, with brackets of folders that are there taken as they stand."""
    folders = list(itertools.takewhile(lambda part: "*" not in part and "?" not in part, Path(source).parts[:-1]))
    parent = Path(*folders)
    return (
        str(Path(glob.escape(str(parent)), *Path(source).parts[len(folders) :]))
        if folders and parent.exists()
        else source
    )


def _there(uri: str) -> bool:
    return Folder.of(uri).exists()


def _refuse_utf16(file: File) -> None:
    with _open(file) as stream:
        if stream.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise ConfigError(f"{file.name}: is UTF-16; save it as UTF-8")


def _open(file: File) -> pa.NativeFile:
    """The file's bytes, unpacked where its name says that they are packed."""
    folder = Folder.of(file.name)
    packing = next((c for e, c in COMPRESSED.items() if folder.path.lower().endswith(e)), None)
    return folder.filesystem.open_input_stream(folder.path, compression=packing)


def _lines(file: File) -> Iterator[tuple[int, bytes]]:
    """Lines with their numbers, without line ends, blank ones left out; a byte-order mark at the beginning is dropped."""
    with _open(file) as stream:
        rest, number = b"", 0
        while block := stream.read(2**20):
            *whole, rest = (rest + block).split(b"\n")
            for line in whole:
                number += 1
                if number == 1:
                    line = line.removeprefix(codecs.BOM_UTF8)
                if line.strip():
                    yield number, line.rstrip(b"\r")
            if len(rest) > LONGEST_LINE:
                raise ConfigError(
                    f"{file.name}: line {number + 1} exceeds {LONGEST_LINE // 2**20} MiB; each row must stand on a line of its own"
                )
        if rest.strip():
            yield number + 1, rest.removeprefix(codecs.BOM_UTF8) if number == 0 else rest


def _decoded(line: bytes) -> str | BadRow:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        return BadRow("line", "is not UTF-8", f"… {line[error.start]:#04x} at byte {error.start + 1}")


def _jsonl(file: File) -> Iterator[Raw]:
    for number, line in _lines(file):
        text = _decoded(line)
        yield Raw(number, text if isinstance(text, BadRow) else _object(text))


class _NamedTwice(ValueError):
    """A JSON object that names a member twice, so that one value would hide the other."""


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise _NamedTwice(f"names {twice(name for name, _ in pairs)} twice")
    return members


def twice(names: Iterable[str]) -> str:
    """The names that occur more than once, as an error message shows them; empty where all differ."""
    return ", ".join(shortened(n) for n, count in Counter(names).items() if count > 1)


def listed(names: Iterable[str]) -> str:
    """Names as an error message shows them: some of them, odd and long ones in quotes and shortened."""
    found = list(names)
    shown = [n if n.isprintable() and len(n) <= 60 else shortened(n) for n in found[:MOST_NAMED]]
    return ", ".join(shown) + (f" and {len(found) - MOST_NAMED:,} more" if len(found) > MOST_NAMED else "")


def _object(text: str) -> dict[str, Any] | BadRow:
    try:
        value = json.loads(text, object_pairs_hook=_members)
    except _NamedTwice as error:
        return BadRow("line", str(error))
    except (ValueError, RecursionError):  # also of a number of too many digits
        return BadRow("line", "is not JSON", shortened(text))
    return value if isinstance(value, dict) else BadRow("line", "must be a JSON object", shortened(text))


def _json(file: File) -> Iterator[Raw]:
    """One JSON document: an array of objects, or SQuAD's tree; read whole. A file of JSON lines under this name is read as such."""
    with _open(file) as stream:
        data = stream.read().removeprefix(codecs.BOM_UTF8)
    try:
        document = json.loads(data.decode(), object_pairs_hook=_members)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file.name}: is not UTF-8: byte {data[error.start]:#04x} at {error.start + 1}") from error
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            yield from _jsonl(file)
            return
        raise ConfigError(f"{file.name}: is not JSON: {error}") from error
    except _NamedTwice as error:
        raise ConfigError(f"{file.name}: an object {error}; its members must differ") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file.name}: cannot be read as JSON: {_first_line(error)}") from error
    rows = squad_rows(document) if isinstance(document, dict) and "data" in document else document
    if isinstance(rows, dict):
        rows = [rows]
    if not isinstance(rows, (list, Iterator)):
        raise ConfigError(f"{file.name}: must hold an array of JSON objects, not {shortened(rows)}")
    for number, row in enumerate(rows, 1):
        yield Raw(number, row if isinstance(row, dict) else BadRow("row", "must be a JSON object", shortened(row)))


def squad_rows(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The questions of SQuAD's own tree (articles, paragraphs, questions) as flat rows with their article's title."""
    try:
        for article in document["data"]:
            for paragraph in article["paragraphs"]:
                yield from ({"title": article.get("title")} | qa for qa in paragraph["qas"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"a document with `data` must be SQuAD's (data, paragraphs, qas): {type(error).__name__}: {error}"
        ) from error


def _csv(file: File) -> Iterator[Raw]:
    """Comma, semicolon or tab, whichever parts the header into most columns.

    Raises `ConfigError` for a quote that takes further lines with it before it is closed wrongly, or never: what those lines were meant
    to be cannot be told. Where all of it is on one line, that row alone is bad.
    """
    with _open(file) as stream:
        text = io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="")
        header = text.readline()
        if not header.strip():
            return
        delimiter = max(DELIMITERS, key=header.count)
        reader = csv.reader(itertools.chain([header], text), delimiter=delimiter, strict=True)
        names: list[str] | None = None
        while True:
            number = reader.line_num + 1
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                if reader.line_num > number or names is None or "end of data" in str(error):
                    raise ConfigError(f"{file.name}: {_unclosed(number, reader.line_num, error)}") from error
                yield Raw(number, BadRow("line", f"is no CSV ({error}); a quote inside quotes is written twice"))
                continue
            if names is None:
                names = _header(file, fields)
            elif any(f.strip() for f in fields):
                yield Raw(number, _csv_row(names, fields))


def _unclosed(first: int, last: int, error: csv.Error) -> str:
    how = "is never closed" if "end of data" in str(error) else f"is closed wrongly in line {last:,} ({error})"
    return f"row {first}: a quote opens there that {how}: the rows after it cannot be told apart. A quote inside quotes is written twice"


def _header(file: File, fields: Sequence[str]) -> list[str]:
    names = [n.strip() for n in fields]
    if wrong := [n for n in names if _escaped(n)]:
        raise ConfigError(
            f"{file.name}: the header is not UTF-8: {shortened(_shown(wrong[0]))}; save the file as UTF-8"
        )
    if doubled := twice(names):
        raise ConfigError(f"{file.name}: the header names {doubled} twice; columns must differ")
    return names


def _escaped(text: str) -> bool:
    """Whether a text holds bytes that are not UTF-8, as `surrogateescape` keeps them."""
    return any("\udc80" <= c <= "\udcff" for c in text)


def _shown(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _csv_row(names: Sequence[str], fields: Sequence[str]) -> dict[str, Any] | BadRow:
    if len(fields) != len(names):
        return BadRow(
            "line",
            f"must have the header's {len(names)} fields; one that holds the delimiter must stand in quotes",
            f"{len(fields)} fields",
        )
    for name, value in zip(names, fields, strict=True):
        if _escaped(value):
            return BadRow(name, "is not UTF-8", shortened(_shown(value)))
    return dict(zip(names, fields, strict=True))


def _parquet(file: File, wanted: Iterable[str] | None = None) -> Iterator[Raw]:
    folder, number = Folder.of(file.name), 0
    with pq.ParquetFile(folder.path, filesystem=folder.filesystem) as table:
        names = table.schema_arrow.names
        if doubled := twice(names):
            raise ConfigError(f"{file.name}: names the column(s) {doubled} twice; columns must differ")
        kept = names if wanted is None else [n for n in names if n in set(wanted)]
        for batch in table.iter_batches(batch_size=256, columns=kept):
            for row in batch.to_pylist():
                number += 1
                yield Raw(number, row)


def _text(file: File) -> Iterator[Raw]:
    """A question a line, without gold."""
    for number, line in _lines(file):
        text = _decoded(line)
        yield Raw(number, text if isinstance(text, BadRow) else {"question": text})


def _dataset(file: File) -> Iterator[Raw]:
    """A folder that `datasets` saved, or a hub id, streamed."""
    import datasets

    if file.kind == "hub":
        yield from _numbered(
            datasets.load_dataset(
                file.name, file.hub.subset, split=file.hub.split, revision=file.hub.revision, streaming=True
            )
        )
        return
    with Folder.of(file.name).local() as folder:
        yield from _numbered(_of_split(datasets.load_from_disk(folder), file))


def _of_split(found: Any, file: File) -> Any:
    if hasattr(found, "keys") and not hasattr(found, "features"):
        if file.hub.split not in found:
            raise ConfigError(f"{file.name}: holds the splits {', '.join(found)}; set corpus.hub.split to one of them")
        found = found[file.hub.split]
    return found


def _numbered(rows: Iterable[dict[str, Any]]) -> Iterator[Raw]:
    for number, row in enumerate(rows, 1):
        yield Raw(number, row)


def shortened(value: Any) -> str:
    """A value as an error message shows it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


KINDS: dict[str, Callable[[File], Iterator[Raw]]] = {
    "jsonl": _jsonl,
    "json": _json,
    "csv": _csv,
    "parquet": _parquet,
    "text": _text,
    "dataset": _dataset,
    "hub": _dataset,
}
TEXTS = ("jsonl", "json", "csv", "text")
