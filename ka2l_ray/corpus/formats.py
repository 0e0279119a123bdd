"""What the columns of known question sets mean: a row becomes a question with its gold answers.

In: a row as its file has it. Out: a `Question`, or a `BadRow` naming the field and what is allowed.
Refuses to know: files, splits, duplicates. Sources of the formats: the data sets' own repositories and their copies
on the hub.
"""

import ast
import hashlib
import io
import json
import math
import tokenize
import warnings
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import PurePosixPath
from typing import cast

from ka2l_ray.config import CorpusSection
from ka2l_ray.corpus.relations import subject
from ka2l_ray.dataflow.rows import BadRow, shortened
from ka2l_ray.text.grading import normalize

LONGEST_QUESTION, LONGEST_ANSWER = 20_000, 2_000
"""Characters. Longer ones are documents, not questions or answers, and would take the memory of a whole batch."""
LONGEST_NAME = 500
"""Characters of an id, a topic or an entity's name."""
MOST_ANSWERS = 1_000
LONGEST_LIST = 1_000_000
"""Characters of a cell that is parsed as a list."""
OPTIONS = ("opa", "opb", "opc", "opd")
LETTERS = "ABCD"


@dataclass(frozen=True)
class Question:
    """A question with its gold answers, empty where there are none.

    `own_id`, `group` (its topic) and `entity` (whom or what it is about) are those of the corpus, where it has them.
    """

    text: str
    answers: tuple[str, ...]
    own_id: str | None = None
    group: str | None = None
    entity: str | None = None

    @property
    def id(self) -> str:
        """The id in the corpus, else the hash of the normalised question."""
        return self.own_id if self.own_id is not None else hashlib.sha256(self.key.encode()).hexdigest()[:16]

    @property
    def key(self) -> str:
        """The normalised question, which equal questions share."""
        return normalize(self.text)


class UnusableError(Exception):
    """A field whose value cannot be used; becomes a `BadRow`."""

    def __init__(self, field: str, problem: str, value: str = "") -> None:
        self.bad = BadRow(field, problem, value)
        super().__init__(str(self.bad))


def parse(row: Mapping[str, object], corpus: CorpusSection, file: str) -> Question | BadRow:
    """The question in a row of `corpus.format`. Which needed columns a file lacks altogether, `missing` says."""
    try:
        return _checked(FORMATS[corpus.format].parse(row, corpus, file))
    except UnusableError as error:
        return error.bad


def missing(columns: Container[str], corpus: CorpusSection) -> list[str]:
    """Columns without which no row of this format can be read and which a file lacks, alternatives joined by ` or `."""
    groups = FORMATS[corpus.format].needs(corpus)
    return [
        " or ".join(names) for names in groups if not any(n in columns or n.split(".")[0] in columns for n in names)
    ]


def columns_read(corpus: CorpusSection) -> frozenset[str]:
    """All columns that a row of this format may be made from; of a dotted path also the column that it starts in."""
    named = (corpus.question_column, corpus.answers_column, corpus.id_column, corpus.group_column, corpus.entity_column)
    names = FORMATS[corpus.format].reads or named
    return frozenset(names) | {n.split(".")[0] for n in names}


def _checked(question: Question) -> Question:
    text = _clean("question", question.text, LONGEST_QUESTION)
    if not text:
        raise UnusableError("question", "must be non-empty text", shortened(question.text))
    if len(question.answers) > MOST_ANSWERS:
        raise UnusableError("answers", f"must be at most {MOST_ANSWERS:,}", f"{len(question.answers):,} answers")
    answers = (_clean("answers", a, LONGEST_ANSWER) for a in question.answers)
    return replace(question, text=text, answers=tuple(dict.fromkeys(a for a in answers if a)))


def _clean(field: str, text: str, longest: int) -> str:
    if len(text) > longest:
        raise UnusableError(field, f"must have at most {longest:,} characters", f"{len(text):,} characters")
    if "\0" in text:
        raise UnusableError(field, "contains a NUL character")
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise UnusableError(field, "contains half of a surrogate pair, which is not a character")
    return text.strip()


def _text(row: Mapping[str, object], field: str) -> str:
    value = row.get(field)
    if not isinstance(value, str) or not value.strip():
        raise UnusableError(field, "must be non-empty text", shortened(value))
    return value


def _optional(row: Mapping[str, object], *fields: str) -> str | None:
    """The first of these fields that has a value, as text. A table with gaps turns 7 into 7.0, which is read as 7."""
    for field in fields:
        value = _plain(row.get(field))
        if isinstance(value, (dict, list)):
            raise UnusableError(field, "must be text or a number", shortened(value))
        if value is not None and (text := _clean(field, str(value), LONGEST_NAME)):
            return text
    return None


def _plain(value: object) -> object:
    """A whole float as an int, and NaN, which tables write for an empty cell, as None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else value
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _answers(field: str, value: object) -> tuple[str, ...]:
    """Texts and numbers: alone, in a list, or in a cell with a list, as JSON or as Python writes it. Empty where
    the field is null, NaN or empty; a NaN in a list is dropped."""
    value = _parsed_cell(field, value, "[")
    if value is None or value == "":
        return ()
    found = []
    for one in value if isinstance(value, (list, tuple)) else [value]:
        if isinstance(one, bool) or not isinstance(one, (str, int, float)):
            raise UnusableError(field, "must be text, a number, or a list of these", shortened(one))
        if (plain := _plain(one)) is not None:
            found.append(_number_text(field, plain))
    return tuple(found)


def _number_text(field: str, value: object) -> str:
    try:
        return str(value)
    except ValueError:  # Python prints no whole number of more than 4,300 digits
        raise UnusableError(field, f"must have at most {LONGEST_ANSWER:,} characters") from None


def _parsed_cell(field: str, value: object, bracket: str) -> object:
    """The value in a cell that starts with this bracket, as JSON or as Python writes it; the text itself where it is
    neither."""
    if not isinstance(value, str) or not value.lstrip().startswith(bracket) or len(value) > LONGEST_LIST:
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        pass
    try:
        with warnings.catch_warnings(action="ignore"):  # of a backslash in a text
            found = ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return value
    if _joins_texts(value):
        raise UnusableError(
            field,
            "contains strings with no commas between them, as numpy prints a list; write it as JSON",
            shortened(value),
        )
    return found


def _joins_texts(code: str) -> bool:
    """Whether two Python strings are adjacent, which Python joins into one."""
    skipped = (tokenize.NL, tokenize.NEWLINE, tokenize.COMMENT, tokenize.INDENT, tokenize.DEDENT)
    kinds = [t.type for t in tokenize.generate_tokens(io.StringIO(code.strip()).readline) if t.type not in skipped]
    return any(a == b == tokenize.STRING for a, b in pairwise(kinds))


def _nq_open(row: Mapping[str, object], corpus: CorpusSection, file: str) -> Question:
    return Question(_text(row, "question"), _answers("answer", row.get("answer")), _optional(row, "id"))


def _trivia_qa(row: Mapping[str, object], corpus: CorpusSection, file: str) -> Question:
    """The rows of the hub (`answer` has `value` and `aliases`), or the flat evaluation copies, whose `context`
    contains the question."""
    answer = _parsed_cell("answer", row.get("answer"), "{")
    given = answer if isinstance(answer, Mapping) else {"value": answer, "aliases": row.get("aliases")}
    text = (
        _text(row, "question")
        if row.get("question")
        else _text(row, "context").removeprefix("Question:").removesuffix("Answer:")
    )
    gold = _answers("answer", given.get("value")) + _answers("aliases", given.get("aliases"))
    return Question(text, gold, _optional(row, "question_id", "id"))


def _medmcqa(row: Mapping[str, object], corpus: CorpusSection, file: str) -> Question:
    """Question and options; gold is the right option's text, alone and after its letter. `cop` counts from
    `corpus.medmcqa_first`."""
    options = [str(o).strip() if (o := _plain(row.get(n))) is not None else "" for n in OPTIONS]
    listed = "\n".join(f"{letter}. {o}" for letter, o in zip(LETTERS, options, strict=True) if o)
    gold: tuple[str, ...] = ()
    number = cop(row)
    if number is not None:
        right = number - int(corpus.medmcqa_first)
        if not 0 <= right < len(OPTIONS) or not options[right]:
            raise UnusableError(
                "cop", f"must name an option, {corpus.medmcqa_first} … {int(corpus.medmcqa_first) + 3}", str(number)
            )
        gold = (options[right], f"{LETTERS[right]}. {options[right]}")
    return Question(
        f"{_text(row, 'question').strip()}\n{listed}", gold, _optional(row, "id"), _optional(row, "subject_name")
    )


def cop(row: Mapping[str, object]) -> int | None:
    """MedMCQA's number of the right option, None where the row has none (-1 on the hub's test split)."""
    value = _plain(row.get("cop"))
    if value is None or value == "" or value == -1 or value == "-1":
        return None
    try:
        return int(str(value))
    except ValueError:
        raise UnusableError("cop", "must be a whole number", shortened(value)) from None


def first_option(numbers: frozenset[int]) -> int | None:
    """What MedMCQA's `cop` counts from, 0 (the hub) or 1 (the authors' files). Only the ends of the range show it;
    None where both fit. Raises `ValueError` where neither does."""
    if numbers <= {1, 2, 3}:
        return None
    if numbers <= {0, 1, 2, 3}:
        return 0
    if numbers <= {1, 2, 3, 4}:
        return 1
    raise ValueError(
        f"cop takes the values {', '.join(map(str, sorted(numbers)))}; it must count four options from 0 or from 1"
    )


def _popqa(row: Mapping[str, object], corpus: CorpusSection, file: str) -> Question:
    field = "answers" if "answers" in row else "possible_answers"
    subj = _optional(row, "subj")
    return Question(
        _text(row, "question"), _answers(field, row.get(field)), _optional(row, "id"), _optional(row, "prop"), subj
    )


def _entity_questions(row: Mapping[str, object], corpus: CorpusSection, file: str) -> Question:
    """Grouped by relation, which is in the names of the authors' files (`P17.dev.json`); about what fills the
    relation's template."""
    stem = PurePosixPath(file.partition("?")[0]).name.split(".")[0]
    relation = _optional(row, "relation") or (stem if stem[:1] == "P" and stem[1:].isdigit() else None)
    text = _text(row, "question")
    return Question(
        text, _answers("answers", row.get("answers")), _optional(row, "id"), relation, subject(text, relation)
    )


def _squad(row: Mapping[str, object], corpus: CorpusSection, file: str) -> Question:
    """Without its paragraph, because the model is asked what it knows. Questions that SQuAD 2 calls impossible
    have no gold."""
    gold = _parsed_cell("answers", _parsed_cell("answers", row.get("answers"), "{"), "[")
    if isinstance(gold, Mapping):
        gold = gold.get("text")
    elif isinstance(gold, list):
        gold = [a.get("text") if isinstance(a, Mapping) else a for a in gold]
    title = _optional(row, "title")
    return Question(_text(row, "question"), _answers("answers", gold), _optional(row, "id"), title, title)


def _simpleqa(row: Mapping[str, object], corpus: CorpusSection, file: str) -> Question:
    """`metadata` is the text of a Python dictionary with the topic."""
    try:
        topic = ast.literal_eval(cast(str, row.get("metadata") or "{}")).get("topic")  # other types raise too
        topic = topic if isinstance(topic, str) else ""
    except (ValueError, SyntaxError, AttributeError, TypeError, MemoryError, RecursionError):
        raise UnusableError("metadata", "must be the text of a dictionary", shortened(row.get("metadata"))) from None
    return Question(
        _text(row, "problem"),
        _answers("answer", row.get("answer")),
        None,
        _clean("metadata", topic, LONGEST_NAME) or None,
    )


def _generic(row: Mapping[str, object], corpus: CorpusSection, file: str) -> Question:
    named = (corpus.question_column, corpus.answers_column, corpus.id_column, corpus.group_column, corpus.entity_column)
    question, answers, *others = named
    cells = {column: value_at(row, column) for column in named}
    text = _text(cells, question)
    own_id, group, entity = (_optional(cells, column) for column in others)
    return Question(text, _answers(answers, cells[answers]), own_id, group, entity)


def value_at(row: Mapping[str, object], path: str) -> object:
    """The value of a column, or inside one by a dotted path; a cell of JSON text is parsed on the way. None where
    there is no value."""
    if path in row:
        return row[path]
    value: object = row
    for step in path.split("."):
        if isinstance(value, str) and value.lstrip().startswith(("{", "[")):
            value = _from_json(path, value)
        if isinstance(value, list) and step.isdigit():
            value = value[int(step)] if int(step) < len(value) else None
        elif isinstance(value, list):
            value = [v.get(step) for v in value if isinstance(v, Mapping)]
        else:
            value = value.get(step) if isinstance(value, Mapping) else None
    return value


def _from_json(field: str, text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise UnusableError(field, "is not JSON", shortened(text)) from None


@dataclass(frozen=True)
class Format:
    """How rows are read, the columns that they need (one of each group of names), and those that they may have."""

    parse: Callable[[Mapping[str, object], CorpusSection, str], Question]
    columns: tuple[tuple[str, ...], ...] = ()
    more: tuple[str, ...] = ()

    @property
    def reads(self) -> tuple[str, ...]:
        """Every column, none for `generic`, whose columns are configured."""
        return tuple(n for names in self.columns for n in names) + self.more

    def needs(self, corpus: CorpusSection) -> tuple[tuple[str, ...], ...]:
        return self.columns or ((corpus.question_column,),)


FORMATS = {
    "generic": Format(_generic),
    "nq_open": Format(_nq_open, (("question",), ("answer",)), ("id",)),
    "trivia_qa": Format(_trivia_qa, (("question", "context"), ("answer",)), ("aliases", "question_id", "id")),
    "medmcqa": Format(_medmcqa, (("question",), *((o,) for o in OPTIONS)), ("cop", "id", "subject_name")),
    "popqa": Format(_popqa, (("question",), ("answers", "possible_answers")), ("id", "prop", "subj")),
    "entity_questions": Format(_entity_questions, (("question",), ("answers",)), ("id", "relation")),
    "squad": Format(_squad, (("question",), ("answers",)), ("id", "title")),
    "simpleqa": Format(_simpleqa, (("problem",), ("answer",)), ("metadata",)),
}
