"""Rows of CSV and JSON-lines files, both for corpora and for the spreadsheets that people fill in.

In: a stream of bytes, and the file's name for errors. Out: rows one at a time, each with the number by which a person
finds it, or a `BadRow` in its place. Raises `ConfigError` where no row after some point can be trusted.
Refuses to know: what columns mean, sources, Ray.

Python's own `csv` and `json` do the parsing. pyarrow and pandas were tried, and their errors are worse: neither says
on which line a row starts; pyarrow takes a stray quote as text and changes the value; pandas silently drops every row
after an unclosed quote; pyarrow's JSON fails the whole file for one bad line, and for two rows whose values differ in
type.
"""

import codecs
import csv
import io
import itertools
import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import IO, Any

import pyarrow as pa

from ka2l_ray.config import ConfigError
from ka2l_ray.dataflow.source_names import COMPRESSED
from ka2l_ray.dataflow.storage import Folder

DELIMITERS = (",", ";", "\t")
LONGEST_LINE = 64 * 2**20
MOST_LINES = 100
"""Lines of one record in a table with tabs; a quote that is still open then belongs to the text."""
MOST_LISTED = 20
"""Names that an error message lists."""
UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
QUOTES = "a quote inside quotes is written twice"
NOT_UTF8 = "is not UTF-8; if its file has another encoding, name that in corpus.encoding (cp1252, say)"
csv.field_size_limit(LONGEST_LINE)

Stream = IO[bytes] | pa.NativeFile


@dataclass(frozen=True)
class BadRow:
    """Why a row cannot be used: the field, what is wrong with it, and its value, shortened, where that helps."""

    field: str
    problem: str
    value: str = ""

    def __str__(self) -> str:
        return f"{self.field}{f' = {self.value}' if self.value else ''} {self.problem}"


@dataclass(frozen=True)
class Row:
    """A row by column. `number` is the line that it starts on in a text file and counts rows in other files, from 1."""

    number: int
    values: dict[str, object] | BadRow


@dataclass(frozen=True)
class Record:
    """A row of CSV. `line` is the line that it starts on; `number` counts like a spreadsheet, with header and blank
    rows."""

    line: int
    number: int
    fields: list[str] | BadRow


class RepeatedNameError(ValueError):
    """A JSON object has two members of one name, so that one value would hide the other."""


def open_stream(name: str) -> pa.NativeFile:
    """The bytes of a path or URI, decompressed where its name says that they are compressed. Raises `OSError`."""
    folder = Folder.of(name)
    compression = next((c for ending, c in COMPRESSED.items() if folder.path.lower().endswith(ending)), None)
    return folder.filesystem.open_input_stream(folder.path, compression=compression)


class Utf8(io.RawIOBase):
    """A stream of text in some encoding, read as UTF-8.

    `auto` is UTF-16 where the text starts with its byte-order mark, else UTF-8. What the encoding does not know becomes
    bytes that are not UTF-8 in the same row. Raises `UnicodeDecodeError` where no later byte can be read.
    """

    def __init__(self, stream: Stream, encoding: str = "auto") -> None:
        self._bytes = io.BufferedReader(stream, 2**20)  # pyright: ignore[reportArgumentType]
        if encoding == "auto" and self._bytes.peek(2).startswith(UTF16_MARKS):
            encoding = "utf-16"
        self._text, self._errors = None, "surrogateescape"
        if encoding != "auto":
            if codecs.lookup(encoding).name.startswith(("utf-16", "utf-32")):
                self._errors = "surrogatepass"
            self._text = io.TextIOWrapper(self._bytes, encoding, self._errors, newline="")
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._text is None:
            return self._bytes.readinto(buffer)
        if not self._rest:
            self._rest = self._text.read(2**16).encode("utf-8", self._errors)
        taken = self._rest[: len(buffer)]
        buffer[: len(taken)], self._rest = taken, self._rest[len(taken) :]
        return len(taken)


def text_lines(stream: Stream, name: str) -> Iterator[tuple[int, str | BadRow]]:
    """Lines with their numbers, without line ends; blank ones are left out."""
    for number, line in enumerate(_lines(stream, name, newline="\n"), 1):
        if line.strip():
            yield number, as_utf8(line.rstrip("\r\n"), "line")


def json_rows(stream: Stream, name: str) -> Iterator[Row]:
    """One JSON object per line."""
    for number, text in text_lines(stream, name):
        yield Row(number, text if isinstance(text, BadRow) else _json_object(text))


def most_frequent_delimiter(header: str) -> str:
    """The delimiter that occurs most often in a header line; tabs, which texts seldom contain, where none does and the
    table has one column."""
    return max(DELIMITERS, key=lambda d: (header.count(d), d == "\t"))


def csv_table(
    stream: Stream, name: str, delimiter_of: Callable[[str], str] = most_frequent_delimiter
) -> tuple[list[str], Iterator[Record]]:
    """Column names, stripped, and the records below them; both are empty for an empty file. `delimiter_of` gets the
    header's line. Blank lines and Excel's own `sep=;` may come before the header.

    A quote that swallows further lines before it is closed wrongly, or is never closed, makes its own line a bad
    record, and the lines after it are read as records of their own. In a table with tabs, most writers of which quote
    nothing, a quote that is no CSV is part of the text. Raises `ConfigError` for a header that is bad.
    """
    lines = _lines(stream, name, newline="")
    for skipped, header in enumerate(lines):
        if header.strip() and not header.strip(' "').casefold().startswith("sep="):
            whole, delimiter = itertools.chain([header], lines), delimiter_of(header)
            records = _tab_records(whole, skipped) if delimiter == "\t" else _records(whole, delimiter, skipped)
            break
    else:
        records = iter(())
    first = next(records, None)
    if first is None:
        return [], records
    if isinstance(first.fields, BadRow):
        raise ConfigError(f"{name}: row {first.line}: {first.fields}")
    return [f.strip() for f in first.fields], records


def as_utf8(text: str, field: str) -> str | BadRow:
    """The text of a field, unless it contains bytes that are not UTF-8, which `surrogateescape` keeps."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        shown = shortened(text.encode("utf-8", "backslashreplace").decode())
        byte, place = ord(text[error.start]) & 0xFF, len(text[: error.start].encode()) + 1
        return BadRow(field, NOT_UTF8, f"{shown} ({byte:#04x} at byte {place})")
    return text


def parse_json(text: str) -> Any:
    """A JSON value. Raises `RepeatedNameError`, and `ValueError` or `RecursionError` where the text cannot be read."""
    return json.loads(text, object_pairs_hook=_members)


def repeated(names: Iterable[str]) -> str:
    """The names that occur more than once, as an error message shows them; empty where all differ."""
    return ", ".join(shortened(n) for n, count in Counter(names).items() if count > 1)


def listed(names: Iterable[str]) -> str:
    """Names as an error message shows them: some of them, odd and long ones quoted and shortened."""
    found = list(names)
    shown = [n if n.isprintable() and n and len(n) <= 60 else shortened(n) for n in found[:MOST_LISTED]]
    return ", ".join(shown) + (f" and {len(found) - MOST_LISTED:,} more" if len(found) > MOST_LISTED else "")


def shortened(value: object) -> str:
    """A value as an error message shows it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _lines(stream: Stream, name: str, newline: str) -> Iterator[str]:
    """Lines with their ends, without a byte-order mark; bytes that are not UTF-8 stay, as `surrogateescape` keeps
    them."""
    text = io.TextIOWrapper(io.BufferedReader(stream, 2**20), "utf-8-sig", "surrogateescape", newline)  # pyright: ignore
    for number, line in enumerate(iter(partial(text.readline, LONGEST_LINE + 1), ""), 1):
        if len(line) > LONGEST_LINE:
            raise ConfigError(
                f"{name}: line {number} exceeds {LONGEST_LINE // 2**20} MiB; each row must be on a line of its own"
            )
        yield line


def _records(lines: Iterator[str], delimiter: str, skipped: int) -> Iterator[Record]:
    """The records of a table whose first line comes after `skipped` others."""
    again, taken, line, after_bad = deque[str](), list[str](), skipped + 1, False

    def remembered() -> Iterator[str]:
        while text := again.popleft() if again else next(lines, ""):
            taken.append(text)
            yield text

    for number in itertools.count(line):
        taken.clear()
        try:
            fields = next(csv.reader(remembered(), delimiter=delimiter, strict=True), None)
        except csv.Error as error:
            fields = BadRow("line", _quote_problem(error, line, len(taken)))
            again.extendleft(reversed(taken[1:]))
            del taken[1:]
        if fields is None:
            return
        if after_bad and "".join(taken).count('"') % 2:  # the end of the text that the bad record began
            fields = BadRow("line", f"closes a quote that no line opens rightly; {QUOTES}")
        after_bad = isinstance(fields, BadRow)
        if isinstance(fields, BadRow) or any(f.strip() for f in fields):
            yield Record(line, number, fields)
        line += len(taken)


def _quote_problem(error: csv.Error, line: int, lines: int) -> str:
    if "end of data" in str(error):
        return f"opens a quote that is never closed; {QUOTES}"
    if lines > 1:
        return f"opens a quote that is closed wrongly on line {line + lines - 1:,} ({error}); {QUOTES}"
    return f"is not valid CSV ({error}); {QUOTES}"


def _tab_records(lines: Iterator[str], skipped: int) -> Iterator[Record]:
    """The records of a table with tabs, in which a quote may be CSV's or a text's."""
    ahead, line, ended = deque[str](), skipped + 1, False
    for number in itertools.count(line):
        if not ahead and not (ahead := deque(itertools.islice(lines, 1))):
            return
        fields, taken = None, 1
        if any(f.startswith('"') for f in ahead[0].split("\t")):
            if not ended and len(ahead) < MOST_LINES:
                ahead.extend(found := list(itertools.islice(lines, MOST_LINES - len(ahead))))
                ended = not found
            reader = csv.reader(ahead, delimiter="\t", strict=True)
            with suppress(csv.Error):
                fields = next(reader)
                taken = reader.line_num
        fields = ahead[0].rstrip("\r\n").split("\t") if fields is None else fields
        if any(f.strip() for f in fields):
            yield Record(line, number, fields)
        for _ in range(taken):
            ahead.popleft()
        line += taken


def _json_object(text: str) -> dict[str, object] | BadRow:
    try:
        value = parse_json(text)
    except RepeatedNameError as error:
        return BadRow("line", str(error))
    except json.JSONDecodeError as error:
        return BadRow("line", "is not JSON", f"{shortened(text)} ({error.msg} at character {error.pos + 1})")
    except (ValueError, RecursionError):  # a number of too many digits, a nest too deep
        return BadRow("line", "is not JSON", shortened(text))
    return value if isinstance(value, dict) else BadRow("line", "must be a JSON object", shortened(text))


def _members(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise RepeatedNameError(f"names {repeated(name for name, _ in pairs)} twice")
    return members
