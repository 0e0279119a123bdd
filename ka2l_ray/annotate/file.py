"""Questions for people, and answers as people leave them.

In: questions and a round's folder; later a CSV or JSONL file that went through a spreadsheet.
Out: `to_annotate.csv` and `to_annotate.jsonl`; then `answers.jsonl` in every waiting round that the file answers.
Refuses to know: how files are parsed, Ray, tables, costs.

The cell `answer` may contain the answer; nothing, which means that nobody has one; `-` or `no such thing`, which means
that the question has none. Every question keeps its row: a missing one is an error, because it may be lost by accident.
"""

import contextlib
import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from ka2l_ray.annotate.annotators import Annotated, Asked, Waiting
from ka2l_ray.config import ConfigError
from ka2l_ray.dataflow.rows import (
    DELIMITERS,
    UTF16_MARKS,
    BadRow,
    csv_table,
    json_rows,
    listed,
    most_frequent_delimiter,
    open_stream,
)
from ka2l_ray.dataflow.storage import Folder

ASKED, QUESTIONS_JSONL, QUESTIONS_CSV, ANSWERS = "asked.json", "to_annotate.jsonl", "to_annotate.csv", "answers.jsonl"
COLUMNS: tuple[str, ...] = ("id", "question", "group", "answer")
NO_SUCH_THING = ("-", "–", "—", "no such thing")


@dataclass(frozen=True)
class AnswerRow:
    """One row of an answered file: its number as a spreadsheet shows it (the header is 1), or the line of a JSONL
    file."""

    number: int
    id: str
    answer: str
    question: str = ""


@dataclass(frozen=True)
class Imported:
    """One imported answer; `cached` where another round has paid for it."""

    annotated: Annotated
    cached: bool


def write_questions(questions: Sequence[Asked], folder: Folder) -> Waiting:
    """Write the questions for people, unless they are written: a file that somebody has started to fill in is kept."""
    asked = [{"id": q.id, "question": q.question, "group": q.group} for q in questions]
    record, jsonl, table = folder / ASKED, folder / QUESTIONS_JSONL, folder / QUESTIONS_CSV
    others = record.exists() and record.read_json() != asked
    if others or not jsonl.exists():
        jsonl.write_bytes(_as_jsonl([a | {"answer": ""} for a in asked]))
    if others or not table.exists():
        table.write_bytes(_as_csv(asked))
    record.write_json(asked)
    return Waiting(jsonl.path, table.path, len(asked))


def _as_csv(asked: Sequence[Mapping[str, object]]) -> bytes:
    """A CSV that spreadsheets read as UTF-8, by its byte order mark."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, restval="")
    writer.writeheader()
    writer.writerows(asked)
    return text.getvalue().encode("utf-8-sig")


def _as_jsonl(records: Sequence[Mapping[str, object]]) -> bytes:
    return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records).encode()


def is_waiting(folder: Folder) -> bool:
    """Whether a round's questions are written and no answers are imported yet."""
    return (folder / ASKED).exists() and not (folder / ANSWERS).exists()


def asked_in(folder: Folder) -> set[str]:
    """Ids of the questions that a round asks."""
    return {a["id"] for a in (folder / ASKED).read_json()}


def answers_in(folder: Folder) -> dict[str, Imported]:
    """Imported answers by id; empty where nothing is imported."""
    if not (folder / ANSWERS).exists():
        return {}
    lines = (folder / ANSWERS).read_bytes().decode().split("\n")
    rows = [json.loads(line) for line in lines if line]
    return {r["id"]: Imported(Annotated(r["answer"], r["status"]), r["cached"]) for r in rows}


def import_file(path: str | Path, folders: Sequence[Folder]) -> dict[str, int]:
    """Import a file for every waiting round that it answers completely. `folders` are those of all rounds, waiting or
    not.

    Several rounds may wait, also for the same question: one answer serves them all. Everything is checked before
    anything is written. Returns how many rounds were imported, how many still wait, and how many questions were
    answered, have no answer (`no_such_thing`) or were left blank. Raises `ConfigError` naming file, row, field and
    what is allowed.
    """
    asked = {f.path: {a["id"]: a["question"] for a in (f / ASKED).read_json()} for f in folders if (f / ASKED).exists()}
    waiting = {f.path: f for f in folders if is_waiting(f)}
    if not waiting:
        raise ConfigError(f"{path}: no round waits for answers")
    answers = check_answers(
        path, read_answers(path), {i: q for questions in asked.values() for i, q in questions.items()}
    )
    if not any(answers.values()):
        raise ConfigError(f"{path}: contains no answer at all; fill in the column `answer`")
    complete = [name for name in waiting if asked[name].keys() <= answers.keys()]
    served = set(chain.from_iterable(asked[name] for name in asked if name not in waiting or name in complete))
    unused = answers.keys() - served
    if unused or not complete:
        raise _incomplete(path, answers.keys(), unused, {n: list(asked[n]) for n in waiting if n not in complete})
    meant = {i: meaning(answers[i]) for name in complete for i in asked[name]}
    seen: set[str] = set()
    for name in complete:
        rows = [
            {"id": i, "answer": meant[i].answer, "status": meant[i].status, "cached": i in seen} for i in asked[name]
        ]
        seen.update(asked[name])
        (waiting[name] / ANSWERS).write_bytes(_as_jsonl(rows))
    statuses = [a.status for a in meant.values()]
    counts = {status: statuses.count(status) for status in ("answered", "no_such_thing", "blank")}
    return {"rounds": len(complete), "waiting": len(waiting) - len(complete)} | counts


def _incomplete(
    path: str | Path, given: Set[str], unused: Set[str], open_rounds: Mapping[str, Sequence[str]]
) -> ConfigError:
    """Names the missing rows of the waiting round that the file is meant for: the one that shares most ids with it."""
    name, asked = max(open_rounds.items(), key=lambda item: sum(i in (unused or given) for i in item[1]))
    missing = [i for i in asked if i not in given]
    return ConfigError(
        f"{path}: {len(missing):,} of the {len(asked):,} questions of {name} have no row: {listed(missing)}. "
        "Put the rows back; a question without an answer keeps its row, with the answer left blank"
    )


def meaning(cell: str) -> Annotated:
    """What an answer's cell means."""
    if not cell:
        return Annotated(None, "blank")
    return Annotated(None, "no_such_thing") if cell.casefold() in NO_SUCH_THING else Annotated(cell, "answered")


def check_answers(path: str | Path, rows: Sequence[AnswerRow], asked: Mapping[str, str]) -> dict[str, str]:
    """Answers by id, checked against the questions by id. An id may occur twice where the answers agree or only one
    is given.

    Raises `ConfigError` for an id that was not asked, for a row whose question differs (columns sorted separately),
    and for two answers to one question.
    """
    answers: dict[str, str] = {}
    first: dict[str, int] = {}
    for row in rows:
        where = f"{path}: row {row.number}"
        if row.id not in asked:
            raise ConfigError(
                f"{where}: id = {row.id!r} was not asked; allowed are the ids in {QUESTIONS_CSV} of a waiting round "
                "(a spreadsheet may have turned it into a number: import that column as text)"
            )
        if row.question and _letters(row.question) != _letters(asked[row.id]):
            raise ConfigError(
                f"{where}: question = {row.question!r}, but id {row.id!r} asks {asked[row.id]!r}. Were columns sorted "
                "separately? Restore the questions, or delete the column `question` if nothing else was changed"
            )
        before = answers.get(row.id, "")
        if before and row.answer and before != row.answer:
            raise ConfigError(
                f"{where}: answer = {row.answer!r} differs from {before!r} in row {first[row.id]} for the same "
                f"id {row.id!r}; keep one"
            )
        answers[row.id] = before or row.answer
        if not before:
            first[row.id] = row.number
    return answers


def _letters(text: str) -> str:
    """What a spreadsheet leaves of a text: letters and digits."""
    return "".join(c for c in text.casefold() if c.isalnum())


def read_answers(path: str | Path) -> list[AnswerRow]:
    """Rows of a CSV or JSONL file, whichever it is. Raises `ConfigError` naming file, row and field."""
    name = str(path)
    try:
        with open_stream(name) as stream:
            data = stream.read()
    except OSError as error:
        raise ConfigError(f"{name}: cannot be read: {error}") from error
    if data.startswith(b"PK\x03\x04"):
        raise ConfigError(f"{name}: is a workbook, not a text file; save it as `CSV UTF-8` and import that")
    text = _decode(name, data)
    utf8 = io.BytesIO(text.encode())
    if text.lstrip().startswith("{"):
        rows = ((row.number, row.values) for row in json_rows(utf8, name))
    else:
        rows = _spreadsheet_rows(utf8, name)
    return [row for number, values in rows if (row := _answer_row(name, number, values))]


def _decode(name: str, data: bytes) -> str:
    """UTF-8 or UTF-16 by byte-order mark, else UTF-8, else Windows-1252 (which has all of Latin-1's letters)."""
    marked = "utf-16" if data.startswith(UTF16_MARKS) else "utf-8-sig"
    for encoding in (marked, "cp1252"):
        with contextlib.suppress(UnicodeDecodeError):
            return data.decode(encoding)
    raise ConfigError(f"{name}: is neither UTF-8 nor Windows-1252; save it as `CSV UTF-8`")


def _spreadsheet_rows(stream: io.BytesIO, name: str) -> Iterator[tuple[int, dict[str, str] | BadRow]]:
    """Rows by column, with their numbers in a spreadsheet. Blank cells at the end of a row may be missing or too
    many."""
    text = stream.getvalue().decode()
    header, records = csv_table(stream, name, lambda line: _delimiter(text[text.index(line) :], line))
    columns = [c.casefold() for c in header]
    for column in ("id", "answer"):
        if (count := columns.count(column)) != 1:
            raise ConfigError(
                f"{name}: must have exactly one column `{column}` and has {count}; its first row, which must name the "
                f"columns `id` and `answer`, contains: {listed(header)}"
            )
    for record in records:
        if isinstance(record.fields, BadRow):
            yield record.number, record.fields
        elif any(field.strip() for n, field in enumerate(record.fields) if n >= len(columns) or not columns[n]):
            wanted = f"must have {sum(map(bool, columns))} fields; put a field that contains the delimiter in quotes"
            yield record.number, BadRow("line", wanted, f"{len(record.fields)} fields")
        else:
            yield record.number, dict.fromkeys(columns, "") | dict(zip(columns, record.fields, strict=False))


def _delimiter(text: str, line: str) -> str:
    """The delimiter that makes `id` a column of the first row that is not empty, which needs no guessing; else the one
    that is most frequent in the first line."""
    for delimiter in (*DELIMITERS, "|"):
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        first = next((row for row in rows if any(cell.strip() for cell in row)), [])
        if any(cell.strip().casefold() == "id" for cell in first):
            return delimiter
    return most_frequent_delimiter(line)


def _answer_row(name: str, number: int, values: Mapping[str, object] | BadRow) -> AnswerRow | None:
    """None for a row with neither id nor answer."""
    where = f"{name}: row {number}"
    if isinstance(values, BadRow):
        raise ConfigError(f"{where}: {values}")
    if "id" not in values or "answer" not in values:
        raise ConfigError(f"{where}: must be an object with `id` and `answer`; it has {listed(values)}")
    own_id, answer, question = (_cell(where, column, values.get(column)) for column in ("id", "answer", "question"))
    if answer and not own_id:
        raise ConfigError(f"{where}: answer = {answer!r} is in a row without an id")
    return AnswerRow(number, own_id, answer, question) if own_id else None


def _cell(where: str, column: str, value: object) -> str:
    """A JSON value as a cell would show it."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ConfigError(f"{where}: {column} = {value!r} must be text or a number")
    return str(value).strip()
