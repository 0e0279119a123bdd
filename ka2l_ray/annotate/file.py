"""Questions for people, and answers as people leave them.

In: questions and a round's folder; later a CSV or JSONL file that went through a spreadsheet. Out: `to_annotate.csv` and
`to_annotate.jsonl`; then `answers.jsonl` in every waiting round that the file answers.
Refuses to know: Ray, tables, costs.

What may be in the answer's cell: the answer; nothing, which means that nobody has one; `-` or `no such thing`, which means that
the question has none. Every question keeps its row: one that is missing is an error, for it may have been lost by accident.
"""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from ka2l_ray.annotate.sources import Annotated, Asked, Waiting
from ka2l_ray.config import ConfigError
from ka2l_ray.dataflow.storage import Folder

ASKED, QUESTIONS_JSONL, QUESTIONS_CSV, ANSWERS = "asked.json", "to_annotate.jsonl", "to_annotate.csv", "answers.jsonl"
COLUMNS: tuple[str, ...] = ("id", "question", "group", "answer")
DELIMITERS = (",", ";", "\t", "|")
NO_SUCH_THING = ("-", "–", "—", "no such thing")
NAMED_AT_MOST = 5


@dataclass(frozen=True)
class Row:
    """One row of an answered file: its number as a spreadsheet shows it (the header is 1), or the line of a JSONL file."""

    number: int
    id: str
    answer: str
    question: str | None = None


@dataclass(frozen=True)
class Given:
    """One imported answer; `cached` where the same answer also serves another round, so that it is paid for once."""

    got: Annotated
    cached: bool


def pose(questions: Sequence[Asked], folder: Folder) -> Waiting:
    """Write the questions for people, unless they are written: a file that somebody has begun to fill in is never replaced."""
    asked = [{"id": q.id, "question": q.question, "group": q.group} for q in questions]
    record, jsonl, table = folder / ASKED, folder / QUESTIONS_JSONL, folder / QUESTIONS_CSV
    others = record.exists() and record.read_json() != asked
    if others or not jsonl.exists():
        jsonl.write_bytes(_as_jsonl([a | {"answer": ""} for a in asked]))
    if others or not table.exists():
        table.write_bytes(_as_csv(asked))
    record.write_json(asked)
    return Waiting(jsonl.path, table.path, len(asked))


def _as_csv(asked: Sequence[Mapping[str, Any]]) -> bytes:
    """A CSV that spreadsheets read as UTF-8, by its byte order mark."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, restval="")
    writer.writeheader()
    writer.writerows(asked)
    return text.getvalue().encode("utf-8-sig")


def _as_jsonl(records: Sequence[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records).encode()


def is_waiting(folder: Folder) -> bool:
    """Whether a round's questions were posed and no answers are imported yet."""
    return (folder / ASKED).exists() and not (folder / ANSWERS).exists()


def asked_in(folder: Folder) -> set[str]:
    """Ids of the questions that a round posed."""
    return {a["id"] for a in (folder / ASKED).read_json()}


def answers_in(folder: Folder) -> dict[str, Given]:
    """Imported answers by id; none where nothing is imported."""
    if not (folder / ANSWERS).exists():
        return {}
    lines = (folder / ANSWERS).read_bytes().decode().split("\n")
    rows = [json.loads(line) for line in lines if line]
    return {r["id"]: Given(Annotated(r["answer"], r["status"]), r["cached"]) for r in rows}


def import_file(path: str | Path, folders: Sequence[Folder]) -> dict[str, int]:
    """Import a file for every waiting round that it answers completely. `folders` are those of all rounds, waiting or not.

    Several rounds may wait, also for the same question: one answer serves them all. Everything is checked before anything is
    written. Returns how many rounds were imported, how many still wait, and how many questions were answered, have no answer
    (`no_such_thing`) or were left blank. Raises `ConfigError` naming file, row, field and what is allowed.
    """
    posed = {f.path: {a["id"]: a["question"] for a in (f / ASKED).read_json()} for f in folders if (f / ASKED).exists()}
    waiting = {f.path: f for f in folders if is_waiting(f)}
    if not waiting:
        raise ConfigError(f"{path}: no round waits for answers")
    answers = check_answers(path, read_answers(path), {i: q for asked in posed.values() for i, q in asked.items()})
    if not any(answers.values()):
        raise ConfigError(f"{path}: holds no answer at all; fill in the column `answer`")
    covered = [name for name in waiting if posed[name].keys() <= answers.keys()]
    served = set(chain.from_iterable(posed[name] for name in posed if name not in waiting or name in covered))
    unused = {i for i in answers if i not in served}
    if unused or not covered:
        raise _incomplete(
            path, answers.keys(), unused, {name: list(posed[name]) for name in waiting if name not in covered}
        )
    judged = {i: judge(answers[i]) for name in covered for i in posed[name]}
    seen: set[str] = set()
    for name in covered:
        rows = [
            {"id": i, "answer": judged[i].answer, "status": judged[i].status, "cached": i in seen} for i in posed[name]
        ]
        seen.update(posed[name])
        (waiting[name] / ANSWERS).write_bytes(_as_jsonl(rows))
    counts = {
        status: sum(a.status == status for a in judged.values()) for status in ("answered", "no_such_thing", "blank")
    }
    return {"rounds": len(covered), "waiting": len(waiting) - len(covered)} | counts


def _incomplete(
    path: str | Path, given: Set[str], unused: Set[str], open_rounds: Mapping[str, Sequence[str]]
) -> ConfigError:
    """Names the rows that lack for the waiting round that the file is meant for: the one that shares most ids with it."""
    name, asked = max(open_rounds.items(), key=lambda item: sum(i in (unused or given) for i in item[1]))
    missing = [i for i in asked if i not in given]
    return ConfigError(
        f"{path}: {len(missing):,} of the {len(asked):,} questions of {name} have no row: {_some(missing)}. "
        "Put the rows back; a question without an answer keeps its row, with the answer left blank"
    )


def judge(text: str) -> Annotated:
    """What an answer's cell means."""
    if not text:
        return Annotated(None, "blank")
    return Annotated(None, "no_such_thing") if text.casefold() in NO_SUCH_THING else Annotated(text, "answered")


def check_answers(path: str | Path, rows: Sequence[Row], asked: Mapping[str, str]) -> dict[str, str]:
    """Answers by id, against the questions asked by id. The same id twice is fine where the answers agree or only one is given.

    Raises `ConfigError` for an id that was not asked, for a row whose question is another one (columns sorted apart), and for
    two answers to one question.
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
                f"{where}: question = {row.question!r}, but id {row.id!r} asks {asked[row.id]!r}. "
                "Were columns sorted apart? Restore the questions, or delete the column `question` if only they were changed"
            )
        before = answers.get(row.id, "")
        if before and row.answer and before != row.answer:
            raise ConfigError(
                f"{where}: answer = {row.answer!r} differs from {before!r} in row {first[row.id]} for the same id {row.id!r}; keep one"
            )
        answers[row.id] = before or row.answer
        if not before:
            first[row.id] = row.number
    return answers


def _letters(text: str) -> str:
    """What a spreadsheet leaves of a text: letters and digits."""
    return "".join(c for c in text.casefold() if c.isalnum())


def read_answers(path: str | Path) -> list[Row]:
    """Rows of a CSV or JSONL file, whichever it is. Raises `ConfigError` naming file, row and field."""
    try:
        data = Folder.of(str(path)).read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    if data.startswith(b"PK\x03\x04"):
        raise ConfigError(f"{path}: is a workbook, not a text file; save it as `CSV UTF-8` and import that")
    text = _decode(path, data)
    return list(_jsonl_rows(path, text) if text.lstrip().startswith("{") else _csv_rows(path, text))


def _decode(path: str | Path, data: bytes) -> str:
    """UTF-8 or UTF-16 by byte order mark, else UTF-8, else Windows-1252 (which holds all of Latin-1's letters)."""
    marked = "utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    for encoding in (marked, "cp1252"):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise ConfigError(f"{path}: is neither UTF-8 nor Windows-1252; save it as `CSV UTF-8`")


def _csv_rows(path: str | Path, text: str) -> Iterator[Row]:
    delimiter, names = _header(path, text)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    number, header_passed = 0, False
    try:
        for number, fields in enumerate(rows, 1):
            if not any(f.strip() for f in fields) or (not header_passed and _is_separator_line(fields)):
                continue
            if header_passed and (row := _csv_row(path, number, names, fields, delimiter)):
                yield row
            header_passed = True
    except csv.Error as error:
        raise ConfigError(
            f'{path}: row {number + 1}: {error}; an answer with a quote in it is written as "say ""yes"""'
        ) from error


def _is_separator_line(fields: Sequence[str]) -> bool:
    """Excel's own first line `sep=;`, cut or whole."""
    return fields[0].strip().casefold().startswith("sep=")


def _header(path: str | Path, text: str) -> tuple[str, list[str]]:
    """The delimiter and the column names. The delimiter is the one that makes `id` a column, which needs no guessing."""
    seen: list[str] = []
    for delimiter in DELIMITERS:
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        header = next((r for r in rows if any(f.strip() for f in r) and not _is_separator_line(r)), [])
        names = [f.strip().casefold() for f in header]
        if "id" in names:
            break
        seen = max(seen, names, key=len)
    else:
        raise ConfigError(
            f"{path}: has no column `id`; its first row must name the columns `id` and `answer`, it holds {_some(seen)}"
        )
    for name in ("id", "answer"):
        if names.count(name) != 1:
            raise ConfigError(f"{path}: must have one column `{name}`, has {names.count(name)} in {_some(names)}")
    return delimiter, names


def _csv_row(path: str | Path, number: int, names: Sequence[str], fields: Sequence[str], delimiter: str) -> Row | None:
    """One row; None for one that holds neither id nor answer. Blank cells at the end may be missing."""
    cells = [f.strip() for f in fields]
    unnamed = [c for n, c in enumerate(cells) if n >= len(names) or not names[n]]
    if any(unnamed):
        raise ConfigError(
            f"{path}: row {number}: has {len(cells)} fields for {sum(map(bool, names))} columns; "
            f"an answer with `{delimiter}` in it must stand in double quotes"
        )
    by_name = dict(zip(names, cells, strict=False))
    return _row(path, number, by_name.get("id", ""), by_name.get("answer", ""), by_name.get("question"))


def _jsonl_rows(path: str | Path, text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), 1):
        where = f"{path}: row {number}"
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{where}: is not JSON: {error}; each line holds one object") from error
        if not isinstance(record, dict) or "id" not in record or "answer" not in record:
            raise ConfigError(f"{where}: must be an object with `id` and `answer`, got {line.strip()[:80]!r}")
        texts = {name: _text(where, name, record.get(name)) for name in ("id", "answer", "question")}
        if row := _row(path, number, texts["id"], texts["answer"], texts["question"]):
            yield row


def _text(where: str, name: str, value: object) -> str:
    """A JSON value as a cell would show it."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ConfigError(f"{where}: {name} = {value!r} must be a text")
    return str(value).strip()


def _row(path: str | Path, number: int, own_id: str, answer: str, question: str | None) -> Row | None:
    if own_id:
        return Row(number, own_id, answer, question)
    if answer:
        raise ConfigError(f"{path}: row {number}: answer = {answer!r} stands in a row without an id")
    return None


def _some(texts: Sequence[str]) -> str:
    """The first few, for a message."""
    return ", ".join(repr(t) for t in texts[:NAMED_AT_MOST]) + (", …" if len(texts) > NAMED_AT_MOST else "")
