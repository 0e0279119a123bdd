"""What the columns of known question sets mean: a raw row becomes a question with its gold answers.

In: a raw row as a file holds it. Out: a `Question`, or a `BadRow` naming the field and what is allowed.
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
from typing import Any

from ka2l_ray.config import CorpusSection
from ka2l_ray.corpus.relations import subject
from ka2l_ray.dataflow.rows import BadRow, shortened
from ka2l_ray.text.grading import normalize

LONGEST_QUESTION, LONGEST_ANSWER = 20_000, 2_000
"""Characters. Longer ones are no questions or answers but texts, and would cost the row's whole batch its memory."""
LONGEST_NAME = 500
"""Characters of an id, a topic or an entity's name."""
MOST_ANSWERS = 1_000
LONGEST_LIST = 1_000_000
"""Characters of a cell that is opened as a list."""
OPTIONS = ("opa", "opb", "opc", "opd")
LETTERS = "ABCD"


@dataclass(frozen=True)
class Question:
    """A question with its gold answers, empty where nobody gave any.

    `own_id`, `group` (its topic) and `entity` (whom or what it is about) are the corpus' own, where it has them.
    """

    text: str
    answers: tuple[str, ...]
    own_id: str | None = None
    group: str | None = None
    entity: str | None = None

    @property
    def id(self) -> str:
        """The corpus' own id, else the hash of the normalised question."""
        return self.own_id if self.own_id is not None else hashlib.sha256(self.key.encode()).hexdigest()[:16]

    @property
    def key(self) -> str:
        """What equal questions share."""
        return normalize(self.text)


class _Unusable(Exception):
    """A field whose value cannot be used; ends in a `BadRow`."""

    def __init__(self, field: str, problem: str, value: str = "") -> None:
        self.bad = BadRow(field, problem, value)
        super().__init__(str(self.bad))


def parse(row: Mapping[str, Any], corpus: CorpusSection, file: str) -> Question | BadRow:
    """A row of `corpus.format`. Of the columns that the format needs, `missing` tells which a file lacks altogether."""
    try:
        return _checked(FORMATS[corpus.format].parse(row, corpus, file))
    except _Unusable as error:
        return error.bad


def missing(columns: Container[str], corpus: CorpusSection) -> list[str]:
    """Columns without which no row of this format can be read and which a file lacks, alternatives joined by ` or `."""
    groups = FORMATS[corpus.format].needs(corpus)
    return [
        " or ".join(names) for names in groups if not any(n in columns or n.split(".")[0] in columns for n in names)
    ]


def columns_read(corpus: CorpusSection) -> frozenset[str]:
    """Every column that a row of this format may be made from; of a dotted path also the column that it begins in."""
    named = (corpus.question_column, corpus.answers_column, corpus.id_column, corpus.group_column, corpus.entity_column)
    names = FORMATS[corpus.format].reads or named
    return frozenset(names) | {n.split(".")[0] for n in names}


def _checked(question: Question) -> Question:
    text = _clean("question", question.text, LONGEST_QUESTION)
    if not text:
        raise _Unusable("question", "must be a text that is not empty", shortened(question.text))
    if len(question.answers) > MOST_ANSWERS:
        raise _Unusable("answers", f"must be at most {MOST_ANSWERS:,}", f"{len(question.answers):,} answers")
    answers = (_clean("answers", a, LONGEST_ANSWER) for a in question.answers)
    return replace(question, text=text, answers=tuple(dict.fromkeys(a for a in answers if a)))


def _clean(field: str, text: str, longest: int) -> str:
    if len(text) > longest:
        raise _Unusable(field, f"must have at most {longest:,} characters", f"{len(text):,} characters")
    if "\0" in text:
        raise _Unusable(field, "holds a NUL character")
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise _Unusable(field, "holds half of a surrogate pair, which is no character")
    return text.strip()


def _text(row: Mapping[str, Any], field: str) -> str:
    value = row.get(field)
    if not isinstance(value, str) or not value.strip():
        raise _Unusable(field, "must be a text that is not empty", shortened(value))
    return value


def _optional(row: Mapping[str, Any], *fields: str) -> str | None:
    """The first of these fields that says anything, as a text. A table with gaps makes 7 a 7.0: it is a 7 all the
    same."""
    for field in fields:
        value = _plain(row.get(field))
        if isinstance(value, (dict, list)):
            raise _Unusable(field, "must be a text or a number", shortened(value))
        if value is not None and (text := _clean(field, str(value), LONGEST_NAME)):
            return text
    return None


def _plain(value: Any) -> Any:
    """A whole float as an int, and NaN, which tables write for nothing, as None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else value
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _answers(field: str, value: Any) -> tuple[str, ...]:
    """Texts and numbers: alone, in a list, or in a cell that holds a list, as JSON or as Python writes it. Nothing
    where the field is null, NaN or empty; a NaN in a list is dropped."""
    value = _opened(field, value, "[")
    if value is None or value == "":
        return ()
    found = []
    for one in value if isinstance(value, (list, tuple)) else [value]:
        if isinstance(one, bool) or not isinstance(one, (str, int, float)):
            raise _Unusable(field, "must be a text, a number, or a list of these", shortened(one))
        if (plain := _plain(one)) is not None:
            found.append(_number_text(field, plain))
    return tuple(found)


def _number_text(field: str, value: str | int | float) -> str:
    try:
        return str(value)
    except ValueError:  # Python writes no whole number of more than 4,300 digits
        raise _Unusable(field, f"must have at most {LONGEST_ANSWER:,} characters") from None


def _opened(field: str, value: Any, bracket: str) -> Any:
    """What a cell that begins with this bracket holds, as JSON or as Python writes it; the text itself where it holds
    neither."""
    if not isinstance(value, str) or not value.lstrip().startswith(bracket) or len(value) > LONGEST_LIST:
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        pass
    try:
        with warnings.catch_warnings(action="ignore"):  # a backslash in a text is no fault of ours
            found = ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return value
    if _joins_texts(value):
        raise _Unusable(
            field, "holds texts without commas between them, as numpy prints a list; write it as JSON", shortened(value)
        )
    return found


def _joins_texts(code: str) -> bool:
    """Whether two Python texts stand side by side, which Python makes one of."""
    skipped = (tokenize.NL, tokenize.NEWLINE, tokenize.COMMENT, tokenize.INDENT, tokenize.DEDENT)
    kinds = [t.type for t in tokenize.generate_tokens(io.StringIO(code.strip()).readline) if t.type not in skipped]
    return any(a == b == tokenize.STRING for a, b in pairwise(kinds))


def _nq_open(row: Mapping[str, Any], corpus: CorpusSection, file: str) -> Question:
    return Question(_text(row, "question"), _answers("answer", row.get("answer")), _optional(row, "id"))


def _trivia_qa(row: Mapping[str, Any], corpus: CorpusSection, file: str) -> Question:
    """The hub's rows (`answer` holds `value` and `aliases`), or the flat evaluation copies with a `context` that
    holds the question."""
    answer = _opened("answer", row.get("answer"), "{")
    given = answer if isinstance(answer, Mapping) else {"value": answer, "aliases": row.get("aliases")}
    text = (
        _text(row, "question")
        if row.get("question")
        else _text(row, "context").removeprefix("Question:").removesuffix("Answer:")
    )
    gold = _answers("answer", given.get("value")) + _answers("aliases", given.get("aliases"))
    return Question(text, gold, _optional(row, "question_id", "id"))


def _medmcqa(row: Mapping[str, Any], corpus: CorpusSection, file: str) -> Question:
    """Question and options; gold is the right option's text, also behind its letter. `cop` counts from
    `corpus.medmcqa_first`."""
    options = [str(o).strip() if (o := _plain(row.get(n))) is not None else "" for n in OPTIONS]
    listed = "\n".join(f"{letter}. {o}" for letter, o in zip(LETTERS, options, strict=True) if o)
    gold: tuple[str, ...] = ()
    number = cop(row)
    if number is not None:
        right = number - int(corpus.medmcqa_first)
        if not 0 <= right < len(OPTIONS) or not options[right]:
            raise _Unusable(
                "cop", f"must name an option, {corpus.medmcqa_first} … {int(corpus.medmcqa_first) + 3}", str(number)
            )
        gold = (options[right], f"{LETTERS[right]}. {options[right]}")
    return Question(
        f"{_text(row, 'question').strip()}\n{listed}", gold, _optional(row, "id"), _optional(row, "subject_name")
    )


def cop(row: Mapping[str, Any]) -> int | None:
    """MedMCQA's number of the right option, None where the row has none (-1 on the hub's test split)."""
    value = _plain(row.get("cop"))
    if value is None or value == "" or value == -1 or value == "-1":
        return None
    try:
        return int(str(value))
    except ValueError:
        raise _Unusable("cop", "must be a whole number", shortened(value)) from None


def first_option(numbers: frozenset[int]) -> int | None:
    """Whether MedMCQA's `cop` counts from 0 (the hub) or 1 (the authors' files): only the ends of the range tell;
    None where both readings fit. Raises `ValueError` where neither does."""
    if numbers <= {1, 2, 3}:
        return None
    if numbers <= {0, 1, 2, 3}:
        return 0
    if numbers <= {1, 2, 3, 4}:
        return 1
    raise ValueError(
        f"cop takes the values {', '.join(map(str, sorted(numbers)))}; it must count four options from 0 or from 1"
    )


def _popqa(row: Mapping[str, Any], corpus: CorpusSection, file: str) -> Question:
    field = "answers" if "answers" in row else "possible_answers"
    subj = _optional(row, "subj")
    return Question(
        _text(row, "question"), _answers(field, row.get(field)), _optional(row, "id"), _optional(row, "prop"), subj
    )


def _entity_questions(row: Mapping[str, Any], corpus: CorpusSection, file: str) -> Question:
    """Grouped by relation, which the authors' files carry in their names (`P17.dev.json`); about what fills the
    relation's template."""
    stem = PurePosixPath(file.partition("?")[0]).name.split(".")[0]
    relation = _optional(row, "relation") or (stem if stem[:1] == "P" and stem[1:].isdigit() else None)
    text = _text(row, "question")
    return Question(
        text, _answers("answers", row.get("answers")), _optional(row, "id"), relation, subject(text, relation)
    )


def _squad(row: Mapping[str, Any], corpus: CorpusSection, file: str) -> Question:
    """Without its paragraph: what the model knows by heart. Questions that SQuAD 2 calls impossible have no gold."""
    gold = _opened("answers", _opened("answers", row.get("answers"), "{"), "[")
    if isinstance(gold, Mapping):
        gold = gold.get("text")
    elif isinstance(gold, list):
        gold = [a.get("text") if isinstance(a, Mapping) else a for a in gold]
    title = _optional(row, "title")
    return Question(_text(row, "question"), _answers("answers", gold), _optional(row, "id"), title, title)


def _simpleqa(row: Mapping[str, Any], corpus: CorpusSection, file: str) -> Question:
    """`metadata` is the text of a Python dictionary, which holds the topic."""
    try:
        topic = ast.literal_eval(row.get("metadata") or "{}").get("topic")
        topic = topic if isinstance(topic, str) else ""
    except (ValueError, SyntaxError, AttributeError, TypeError, MemoryError, RecursionError):
        raise _Unusable("metadata", "must be the text of a dictionary", shortened(row.get("metadata"))) from None
    return Question(
        _text(row, "problem"),
        _answers("answer", row.get("answer")),
        None,
        _clean("metadata", topic, LONGEST_NAME) or None,
    )


def _generic(row: Mapping[str, Any], corpus: CorpusSection, file: str) -> Question:
    question, gold = at(row, corpus.question_column), at(row, corpus.answers_column)
    if not isinstance(question, str) or not question.strip():
        raise _Unusable(corpus.question_column, "must be a text that is not empty", shortened(question))
    own_id, group, entity = (
        _optional({n: at(row, n)}, n) for n in (corpus.id_column, corpus.group_column, corpus.entity_column)
    )
    return Question(question, _answers(corpus.answers_column, gold), own_id, group, entity)


def at(row: Mapping[str, Any], path: str) -> Any:
    """The value of a column, or inside one by a dotted path; a cell of JSON text is opened on the way. None where
    there is nothing."""
    if path in row:
        return row[path]
    value: Any = row
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


def _from_json(field: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise _Unusable(field, "is not JSON", shortened(text)) from None


@dataclass(frozen=True)
class Format:
    """How rows are read, the columns that they cannot do without (of each group of names, one), and those that they
    may have."""

    parse: Callable[[Mapping[str, Any], CorpusSection, str], Question]
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
