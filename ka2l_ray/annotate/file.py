"""Questions for people, and answers as people leave them.

In: questions and a round's folder; later a CSV or JSONL file that went through a spreadsheet.
Out: `to_annotate.csv` and `to_annotate.jsonl`; then `answers.jsonl` in every waiting round that the file answers.
Refuses to know: how files are parsed, Ray, tables, costs.

The cell `answer` may contain the answer; nothing, which means that nobody has one; `-` or `no such thing`, which means
that the question has none. Otherwise it is read as an endpoint's reply is: `I don't know` is no answer. Every question
keeps its row: a missing one is an error, because it may be lost by accident.
"""

import contextlib
import csv
import io
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice
from pathlib import Path

from ka2l_ray.annotate.annotators import Annotated, Asked, Waiting
from ka2l_ray.chat.endpoint import text_meaning
from ka2l_ray.config import ConfigError, EndpointSection
from ka2l_ray.dataflow.log import log
from ka2l_ray.dataflow.rows import (
    DELIMITERS,
    UTF16_MARKS,
    BadRow,
    Row,
    csv_table,
    json_rows,
    listed,
    most_frequent_delimiter,
    open_stream,
)
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.text.grading import are_equal

ASKED, QUESTIONS_JSONL, QUESTIONS_CSV, ANSWERS = "asked.json", "to_annotate.jsonl", "to_annotate.csv", "answers.jsonl"
COLUMNS: tuple[str, ...] = ("id", "question", "group", "answer")
FORMULA = re.compile(r"'*(?:\s*[=+\-@＝＋－＠]|[\t\r\n])")
"""How a cell begins that a spreadsheet computes instead of showing it (OWASP, CSV injection), perhaps after
apostrophes."""
SPOILT = re.compile(r"\d[.,]\d{4,}E\+\d{2,3}|#(?:N/A|[^\W\d_]+(?:/0)?[!?])|Err:\d+")
"""What a spreadsheet leaves of a number of more than 11 digits, and of a formula that it cannot compute."""
_MONTH = (
    r"(?:jan|feb|fév|mar|mär|mrz|apr|abr|avr|may|mai|jun|jul|aug|aoû|sep|oct|okt|nov|dec|dez|déc|ene|ago|dic)"
    r"[^\W\d_]?\.?"
)
DATED = re.compile(
    rf"\d{{1,2}}-{_MONTH}(?:-\d{{2}})?|\d{{2}}\. {_MONTH}|{_MONTH}[- ]\d{{2}}|\d{{1,2}}([/.])\d{{1,2}}\1\d{{2}}",
    re.IGNORECASE,
)
"""What a spreadsheet makes of `1-2`, `1/2` and `Jan 39`; people may have typed it themselves."""
ENCODINGS = (
    *("cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "cp1258", "cp874"),
    *("cp932", "gb18030", "cp949", "cp950", "mac_roman", "cp850", "cp437"),
)
"""What spreadsheets write besides UTF-8 and UTF-16, by the country of the user; the most frequent first."""
NO_SUCH_THING = ("-", "–", "—", "no such thing")
USUAL = EndpointSection()
"""Which phrases say that there is no answer, where a run has no others."""


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
    for file, data in ((jsonl, _as_jsonl([a | {"answer": ""} for a in asked])), (table, _as_csv(asked))):
        if others or not file.exists():
            file.write_bytes(data)
    record.write_json(asked)
    return Waiting(
        f"{len(asked):,} questions wait for answers in {table.path} (the same as JSONL: {jsonl.path})", table.path
    )


def _as_csv(asked: Sequence[Mapping[str, object]]) -> bytes:
    """A CSV that spreadsheets read as UTF-8, by its byte order mark, and in which they compute and convert nothing that
    is read back."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, restval="")
    writer.writeheader()
    writer.writerows({name: value and _shielded(name, str(value)) for name, value in a.items()} for a in asked)
    return text.getvalue().encode("utf-8-sig")


def _shielded(column: str, text: str) -> str:
    """The text as a cell that spreadsheets leave as it is: an apostrophe comes before what they would change."""
    return f"'{text}" if _is_changed(column, text) else text


def _unshielded(column: str, cell: str) -> str:
    """The text that `_shielded` made a cell of."""
    return cell[1:] if cell.startswith("'") and _is_changed(column, cell) else cell


def _is_changed(column: str, text: str) -> bool:
    """Whether a spreadsheet takes a text for a formula, or an id for a number, a date or a truth value."""
    return FORMULA.match(text) is not None or (column == "id" and _is_converted(text.lstrip("'")))


def _is_converted(text: str) -> bool:
    """Whether the letters of a text are so few that it may be a number (`73928e05`), a date with a month's name in any
    language (`MARCH1`), a time (`7 pm`) or a truth value (`WAHR`)."""
    words = re.findall(r"[^\W\d_]+", text.casefold())
    if not any(c.isdigit() for c in text):
        return len(words) == 1 and len(text) > 3
    return (
        "_" not in text and len(words) < 4 and all(len(w) > 2 or w in ("a", "am", "d", "e", "p", "pm") for w in words)
    )


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
    rows = (json.loads(line) for line in (folder / ANSWERS).read_bytes().decode().split("\n") if line)
    return {r["id"]: Imported(Annotated(r["answer"], r["status"]), r["cached"]) for r in rows}


def import_file(path: str | Path, folders: Sequence[Folder], phrases: EndpointSection = USUAL) -> dict[str, int]:
    """Import a file for every waiting round that it answers completely. `folders` are those of all rounds, waiting or
    not; `phrases` has the run's own words for no answer.

    Several rounds may wait, also for the same question: one answer serves them all. Everything is checked before
    anything is written. Returns how many rounds were imported, how many still wait, and how many questions were
    answered, have no answer (`no_such_thing`), were left blank, or have any other status that occurs. Raises
    `ConfigError` naming file, row, field and what is allowed.
    """
    asked = {f.path: {a["id"]: a["question"] for a in (f / ASKED).read_json()} for f in folders if (f / ASKED).exists()}
    questions = {i: q for asked_there in asked.values() for i, q in asked_there.items()}
    waiting = {f.path: f for f in folders if is_waiting(f)}
    if not waiting:
        raise ConfigError(f"{path}: no round waits for answers")
    answers = check_answers(path, read_answers(path, questions.values()), questions, phrases)
    if not any(answers.values()):
        raise ConfigError(f"{path}: contains no answer at all; fill in the column `answer`")
    complete = [name for name in waiting if asked[name].keys() <= answers.keys()]
    served = set(chain.from_iterable(asked[name] for name in asked if name not in waiting or name in complete))
    unused = answers.keys() - served
    if unused or not complete:
        raise _incomplete(path, answers.keys(), unused, {n: list(asked[n]) for n in waiting if n not in complete})
    meant = {i: meaning(answers[i], phrases) for name in complete for i in asked[name]}
    seen: set[str] = set()
    for name in complete:
        rows = [{"id": i, **asdict(meant[i]), "cached": i in seen} for i in asked[name]]
        seen.update(asked[name])
        (waiting[name] / ANSWERS).write_bytes(_as_jsonl(rows))
    counts = Counter(a.status for a in meant.values())
    return {
        "rounds": len(complete),
        "waiting": len(waiting) - len(complete),
        **{status: counts[status] for status in dict.fromkeys(("answered", "no_such_thing", "blank", *sorted(counts)))},
    }


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


def meaning(cell: str, phrases: EndpointSection = USUAL) -> Annotated:
    """What an answer's cell means: what it would mean as an endpoint's reply, or `-`."""
    return Annotated(None, "no_such_thing") if cell.casefold() in NO_SUCH_THING else text_meaning(phrases, cell)


def check_answers(
    path: str | Path, rows: Sequence[AnswerRow], asked: Mapping[str, str], phrases: EndpointSection = USUAL
) -> dict[str, str]:
    """Answers by id, checked against the questions by id. An id may occur twice where the answers are equal, of which
    the first is kept, or where only one is given. An id that a spreadsheet has changed is known by its question, where
    no other id asks the same.

    Raises `ConfigError` for an id that was not asked, for a row whose question differs (columns sorted separately),
    and for two answers to one question.
    """
    kept: dict[str, AnswerRow] = {}
    ids = defaultdict[str, list[str]](list)
    for own_id, question in asked.items():
        ids[_letters(question)].append(own_id)
    for row in rows:
        where = f"{path}: row {row.number}"
        if row.id not in asked and len(found := ids.get(_letters(row.question), [])) == 1:
            row = replace(row, id=found[0])
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
        before = kept.get(row.id, row)
        if before.answer and row.answer and not _agree(before.answer, row.answer, phrases):
            raise ConfigError(
                f"{where}: answer = {row.answer!r} differs from {before.answer!r} in row {before.number} for the same "
                f"id {row.id!r}; keep one"
            )
        kept[row.id] = before if before.answer else row
    return {i: row.answer for i, row in kept.items()}


def _agree(cell: str, other: str, phrases: EndpointSection) -> bool:
    """Whether two answers' cells mean the same, as answers are compared everywhere."""
    a, b = meaning(cell, phrases), meaning(other, phrases)
    return a.status == b.status and (a.answer is None or b.answer is None or are_equal(a.answer, b.answer))


def _letters(text: str) -> str:
    """What a spreadsheet leaves of a text: letters and digits."""
    return "".join(c for c in text.casefold() if c.isalnum())


def read_answers(path: str | Path, questions: Iterable[str] = ()) -> list[AnswerRow]:
    """Rows of a CSV or JSONL file, whichever it is; `questions` that it may contain show its encoding. Raises
    `ConfigError` naming file, row and field."""
    name = str(path)
    try:
        with open_stream(name) as stream:
            data = stream.read()
    except OSError as error:
        raise ConfigError(f"{name}: cannot be read: {error}") from error
    if data.startswith(b"PK\x03\x04"):
        raise ConfigError(f"{name}: is a workbook, not a text file; save it as `CSV UTF-8` and import that")
    text = _decode(name, data, questions)
    utf8 = io.BytesIO(text.encode())
    rows = json_rows(utf8, name) if text.lstrip().startswith("{") else _spreadsheet_rows(utf8, name)
    answers = [answer for row in rows if (answer := _answer_row(name, row))]
    if dated := [f"row {a.number}: {a.answer!r}" for a in answers if DATED.fullmatch(a.answer)]:
        log.warning("%s: look whether a spreadsheet made these dates of other answers: %s", name, listed(dated))
    return answers


def _decode(name: str, data: bytes, questions: Iterable[str]) -> str:
    """UTF-8 or UTF-16 by byte-order mark, else UTF-8, else the encoding that shows most words of the questions; where
    these have only ASCII, Windows-1252 (which has all of Latin-1's letters)."""
    with contextlib.suppress(UnicodeDecodeError):
        return data.decode("utf-16" if data.startswith(UTF16_MARKS) else "utf-8-sig")
    words = {w for q in islice(questions, 1000) for w in re.findall(r"\w+", q) if not w.isascii()}
    texts: dict[str, str] = {}
    for encoding in ENCODINGS if words else ENCODINGS[:1]:
        with contextlib.suppress(UnicodeDecodeError):
            texts[encoding] = data.decode(encoding)
    shown = {encoding: len(words.intersection(re.findall(r"\w+", text))) for encoding, text in texts.items()}
    best = max(shown, key=lambda encoding: shown[encoding], default=None)
    if best is None:
        raise ConfigError(f"{name}: is neither UTF-8 nor Windows-1252; save it as `CSV UTF-8`")
    if not shown[best]:
        log.warning("%s: is not UTF-8 and is read as Windows-1252; look whether accents in its answers are right", name)
    return texts[best]


def _spreadsheet_rows(stream: io.BytesIO, name: str) -> Iterator[Row]:
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
            yield Row(record.number, record.fields)
        elif any(field.strip() for n, field in enumerate(record.fields) if n >= len(columns) or not columns[n]):
            wanted = f"must have {sum(map(bool, columns))} fields; put a field that contains the delimiter in quotes"
            yield Row(record.number, BadRow("line", wanted, f"{len(record.fields)} fields"))
        else:
            filled = dict(zip(columns, record.fields, strict=False))
            cells = {**dict.fromkeys(columns, ""), **filled}
            if SPOILT.fullmatch(answer := cells["answer"].strip()):
                raise ConfigError(
                    f"{name}: row {record.number}: answer = {answer!r} is what a spreadsheet made of a long number or "
                    "of a formula; format the column as text, and type the answer again"
                )
            ours = {n: _unshielded(n, cells[n].strip()) for n in ("id", "question") if n in cells}
            yield Row(record.number, {**cells, **ours})


def _delimiter(text: str, line: str) -> str:
    """The delimiter that makes `id` a column of the first row that is not empty, which needs no guessing; else the one
    that is most frequent in the first line."""
    for delimiter in (*DELIMITERS, "|"):
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        first = next((row for row in rows if any(cell.strip() for cell in row)), [])
        if any(cell.strip().casefold() == "id" for cell in first):
            return delimiter
    return most_frequent_delimiter(line)


def _answer_row(name: str, row: Row) -> AnswerRow | None:
    """None for a row with neither id nor answer."""
    where, values = f"{name}: row {row.number}", row.values
    if isinstance(values, BadRow):
        raise ConfigError(f"{where}: {values}")
    if "id" not in values or "answer" not in values:
        raise ConfigError(f"{where}: must be an object with `id` and `answer`; it has {listed(values)}")
    own_id, answer, question = (_cell(where, column, values.get(column)) for column in ("id", "answer", "question"))
    if answer and not own_id:
        raise ConfigError(f"{where}: answer = {answer!r} is in a row without an id")
    return AnswerRow(row.number, own_id, answer, question) if own_id else None


def _cell(where: str, column: str, value: object) -> str:
    """A JSON value as a cell would show it."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ConfigError(f"{where}: {column} = {value!r} must be text or a number")
    return str(value).strip()
