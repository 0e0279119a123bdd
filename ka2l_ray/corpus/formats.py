"""What the columns of known question sets mean: a row becomes a question with its gold answers.

In: a row as its file has it. Out: a `Question`, or a `BadRow` naming the field and what is allowed.
Refuses to know: files, splits, duplicates. Sources of the formats: the data sets' own repositories and their copies
on the hub.
"""

import hashlib
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import PurePosixPath
from types import NoneType

from ka2l_ray.config import CorpusSection
from ka2l_ray.corpus.cells import UnusableError, parsed_cell, plain, value_at
from ka2l_ray.corpus.relations import subject
from ka2l_ray.corpus.rewordings import repeated_wording, templates_of
from ka2l_ray.dataflow.rows import BadRow, shortened
from ka2l_ray.text.normal import normalize

LONGEST_QUESTION, LONGEST_ANSWER = 20_000, 2_000
"""Characters. Longer ones are documents, not questions or answers, and would take the memory of a whole batch."""
LONGEST_NAME = 500
"""Characters of an id, a topic or an entity's name."""
MOST_ANSWERS = 1_000
ANSWER_MEMBERS = ("text", "value", "answer", "answers", "Value", "aliases", "Aliases", "spans")
"""Members of an object that question sets keep the texts of an answer in."""
UNANSWERING = ("system", "developer", "tool", "function")
"""Roles whose turns in a conversation neither ask nor answer."""
OPTIONS = ("opa", "opb", "opc", "opd")
LETTERS = "ABCD"


@dataclass(frozen=True)
class Question:
    """A question with its gold answers, empty where there are none.

    `own_id`, `group` (its topic) and `entity` (whom or what it is about) are those of the corpus, where it has them.
    `rewordings` ask the same in other words, the reserved one last.
    """

    text: str
    answers: tuple[str, ...]
    own_id: str | None = None
    group: str | None = None
    entity: str | None = None
    rewordings: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """The id in the corpus, else the hash of the normalised question."""
        return self.own_id if self.own_id is not None else hashlib.sha256(self.key.encode()).hexdigest()[:16]

    @property
    def key(self) -> str:
        """The normalised question, which equal questions share."""
        return normalize(self.text)


def parse(row: Mapping[str, object], corpus: CorpusSection, file: str) -> Question | BadRow:
    """The question in a row of `corpus.format`. Which needed columns a file lacks altogether, `missing` says."""
    try:
        return _reworded(_checked(FORMATS[corpus.format].parse(row, corpus, file)), row, corpus)
    except UnusableError as error:
        return error.bad


def missing(columns: Container[str], corpus: CorpusSection) -> list[str]:
    """Columns without which no row of this format can be read and which a file lacks, alternatives joined by ` or `."""
    groups = FORMATS[corpus.format].columns or ((corpus.question_column,),)
    groups = (*groups, *([(corpus.rewordings.column,)] if corpus.rewordings.source == "column" else []))
    return [
        " or ".join(names) for names in groups if not any(n in columns or n.split(".")[0] in columns for n in names)
    ]


def columns_read(corpus: CorpusSection) -> frozenset[str]:
    """All columns that a row of this format may be made from; of a dotted path also the column that it starts in."""
    known = FORMATS[corpus.format]
    names = [*chain.from_iterable(known.columns), *known.more] or [*_configured(corpus)]
    names += [corpus.rewordings.column] if corpus.rewordings.source == "column" else []
    return frozenset(names) | {n.split(".")[0] for n in names}


def _configured(corpus: CorpusSection) -> tuple[str, str, str, str, str]:
    """The columns of `generic`: question, answers, id, group, entity."""
    return corpus.question_column, corpus.answers_column, corpus.id_column, corpus.group_column, corpus.entity_column


def _checked(question: Question) -> Question:
    text = _clean("question", question.text, LONGEST_QUESTION)
    if not text:
        raise UnusableError("question", "must be non-empty text", shortened(question.text))
    if len(question.answers) > MOST_ANSWERS:
        raise UnusableError("answers", f"must be at most {MOST_ANSWERS:,}", f"{len(question.answers):,} answers")
    answers = (_clean("answers", a, LONGEST_ANSWER) for a in question.answers)
    return replace(question, text=text, answers=tuple(dict.fromkeys(a for a in answers if a)))


def _reworded(question: Question, row: Mapping[str, object], corpus: CorpusSection) -> Question:
    """The question with the wordings that its row or its topic's templates give."""
    if (source := corpus.rewordings.source) == "column":
        field = corpus.rewordings.column
        given = [_clean(field, w, LONGEST_QUESTION) for w in _answers(field, value_at(row, field))]
        wordings = tuple(w for w in given if w)
    elif source == "templates":
        field, entity = "group", question.entity
        if not (templates := templates_of(corpus).get(question.group or "")):
            raise UnusableError(field, "has no wordings in corpus.rewordings.templates", shortened(question.group))
        if entity is None:
            raise UnusableError("entity", "must be known where templates reword", shortened(question.text))
        wordings = tuple(t.replace("{entity}", entity) for t in templates)
    else:
        return question
    if not wordings:
        raise UnusableError(field, "must contain at least one wording")
    if repeated := repeated_wording(question.text, wordings):
        raise UnusableError(field, "must differ from the question and from each other", shortened(repeated))
    return replace(question, rewordings=wordings)


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
        value = plain(row.get(field))
        if isinstance(value, (dict, list)):
            raise UnusableError(field, "must be text or a number", shortened(value))
        if value is not None and (text := _clean(field, str(value), LONGEST_NAME)):
            return text
    return None


def _answers(field: str, value: object) -> tuple[str, ...]:
    """Texts and numbers: alone, in lists, in objects (`ANSWER_MEMBERS`), or in a cell with any of these, as JSON or as
    Python writes it. Empty where the field is null, NaN or empty; holes in lists are skipped."""
    value = parsed_cell(field, value)
    try:
        return () if value == "" else tuple(_texts(field, value))
    except RecursionError:
        raise UnusableError(field, "is nested too deeply") from None


def _texts(field: str, value: object) -> Iterator[str]:
    if isinstance(value, (list, tuple)):
        named = [v for v in value if not isinstance(v, Mapping) or _answering(v)]
        for one in named or value:  # an object that holds no answer is a hole among others that do
            yield from _texts(field, one)
    elif isinstance(value, Mapping) and (members := _answering(value)):
        for name in members:
            yield from _texts(field, value[name])
    elif isinstance(value, bool) or not isinstance(value, (str, int, float, NoneType)):
        raise UnusableError(field, "must be text, a number, or a list of these", shortened(value))
    elif (found := plain(value)) is not None:
        try:
            yield str(found)
        except ValueError:  # Python prints no whole number of more than 4,300 digits
            raise UnusableError(field, f"must have at most {LONGEST_ANSWER:,} characters") from None


def _answering(value: Mapping[str, object]) -> list[str]:
    """The members of an object that contain an answer's texts."""
    return [name for name in ANSWER_MEMBERS if name in value]


def _nq_open(row: Mapping[str, object], corpus: CorpusSection, file: str) -> Question:
    return Question(_text(row, "question"), _answers("answer", row.get("answer")), _optional(row, "id"))


def _trivia_qa(row: Mapping[str, object], corpus: CorpusSection, file: str) -> Question:
    """The rows of the hub (`answer` has `value` and `aliases`), the authors' files, which write these names in
    capitals, or the flat evaluation copies, whose `context` contains the question."""
    question, answer = ("Question", "Answer") if "Question" in row else ("question", "answer")
    text = (
        _text(row, question)
        if row.get(question)
        else _text(row, "context").removeprefix("Question:").removesuffix("Answer:")
    )
    gold = _answers(answer, row.get(answer)) + _answers("aliases", row.get("aliases"))
    return Question(text, gold, _optional(row, "question_id", "QuestionId", "id"))


def _medmcqa(row: Mapping[str, object], corpus: CorpusSection, file: str) -> Question:
    """Question and options; gold is the right option's text, alone and after its letter. `cop` counts from
    `corpus.medmcqa_first`."""
    options = [str(o).strip() if (o := plain(row.get(n))) is not None else "" for n in OPTIONS]
    listed = "\n".join(f"{letter}. {o}" for letter, o in zip(LETTERS, options, strict=True) if o)
    gold: tuple[str, ...] = ()
    if (number := cop(row)) is not None:
        first = int(corpus.medmcqa_first)
        right = number - first
        if not 0 <= right < len(OPTIONS) or not options[right]:
            raise UnusableError("cop", f"must name an option, {first} … {first + 3}", str(number))
        gold = (options[right], f"{LETTERS[right]}. {options[right]}")
    return Question(
        f"{_text(row, 'question').strip()}\n{listed}", gold, _optional(row, "id"), _optional(row, "subject_name")
    )


def cop(row: Mapping[str, object]) -> int | None:
    """MedMCQA's number of the right option, None where the row has none (-1 on the hub's test split)."""
    value = plain(row.get("cop"))
    if value in (None, "", -1, "-1"):
        return None
    try:
        return int(str(value))
    except ValueError:
        raise UnusableError("cop", "must be a whole number", shortened(value)) from None


def first_option(numbers: frozenset[int]) -> int | None:
    """What MedMCQA's `cop` counts from, 0 (the hub) or 1 (the authors' files). Only the ends of the range show it;
    None where both fit. Raises `ValueError` where neither does."""
    fitting = [first for first in (0, 1) if numbers <= {*range(first, first + len(OPTIONS))}]
    if not fitting:
        raise ValueError(
            f"cop takes the values {', '.join(map(str, sorted(numbers)))}; it must count four options from 0 or from 1"
        )
    return fitting[0] if len(fitting) == 1 else None


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
    title = _optional(row, "title")
    gold = _answers("answers", row.get("answers"))
    return Question(_text(row, "question"), gold, _optional(row, "id"), title, title)


def _simpleqa(row: Mapping[str, object], corpus: CorpusSection, file: str) -> Question:
    """`metadata` is a dictionary with the topic, or its text."""
    given = row.get("metadata")
    metadata = parsed_cell("metadata", given) if plain(given) not in (None, "") else {}
    if not isinstance(metadata, Mapping):
        raise UnusableError("metadata", "must be the text of a dictionary", shortened(given))
    topic = metadata.get("topic")
    return Question(
        _text(row, "problem"),
        _answers("answer", row.get("answer")),
        None,
        _clean("metadata", topic if isinstance(topic, str) else "", LONGEST_NAME) or None,
    )


def _kilt(row: Mapping[str, object], corpus: CorpusSection, file: str) -> Question:
    """`output` lists answers and their provenance; an item with provenance alone has no answer."""
    return Question(_text(row, "input"), _answers("output", value_at(row, "output.answer")), _optional(row, "id"))


def _alpaca(row: Mapping[str, object], corpus: CorpusSection, file: str) -> Question:
    """The instruction, below it its input where there is one."""
    instruction, more = _text(row, "instruction").strip(), row.get("input")
    text = f"{instruction}\n\n{more.strip()}" if isinstance(more, str) and more.strip() else instruction
    return Question(text, _replies("output", row.get("output")), _optional(row, "id"))


def _messages(row: Mapping[str, object], corpus: CorpusSection, file: str) -> Question:
    """The first question of a conversation and the reply to it; later turns cannot be asked alone."""
    field = "messages" if row.get("messages") else "conversations"
    given = parsed_cell(field, row.get(field))
    turns = [t for t in given if isinstance(t, Mapping)] if isinstance(given, list) else []
    said = [(role, t) for t in turns if (role := t.get("role", t.get("from"))) not in UNANSWERING]
    if not said:
        raise UnusableError(field, "must be a list of turns, each with a role and what was said", shortened(given))
    asked = "\n".join(_texts(field, said[0][1].get("content", said[0][1].get("value"))))
    replies = [t.get("content", t.get("value")) for role, t in said[1:2] if role != said[0][0]]
    return Question(asked, _replies(field, "\n".join(_texts(field, replies))), _optional(row, "id"))


def _replies(field: str, value: object) -> tuple[str, ...]:
    """Gold of a set that is no question set: a reply too long to grade by is none."""
    return tuple(text for text in _texts(field, value) if len(text) <= LONGEST_ANSWER)


def _generic(row: Mapping[str, object], corpus: CorpusSection, file: str) -> Question:
    question, answers, *others = _configured(corpus)
    cells = {column: value_at(row, column) for column in (question, answers, *others)}
    text = _text(cells, question)
    own_id, group, entity = (_optional(cells, column) for column in others)
    return Question(text, _answers(answers, cells[answers]), own_id, group, entity)


@dataclass(frozen=True)
class Format:
    """How rows are read, the columns that they need (one of each group of names), and those that they may have; no
    columns for `generic`, whose columns are configured."""

    parse: Callable[[Mapping[str, object], CorpusSection, str], Question]
    columns: tuple[tuple[str, ...], ...] = ()
    more: tuple[str, ...] = ()


FORMATS = {
    "generic": Format(_generic),
    "nq_open": Format(_nq_open, (("question",), ("answer",)), ("id",)),
    "trivia_qa": Format(
        _trivia_qa,
        (("question", "context", "Question"), ("answer", "Answer")),
        ("aliases", "question_id", "QuestionId", "id"),
    ),
    "medmcqa": Format(_medmcqa, (("question",), *((o,) for o in OPTIONS)), ("cop", "id", "subject_name")),
    "popqa": Format(_popqa, (("question",), ("answers", "possible_answers")), ("id", "prop", "subj")),
    "entity_questions": Format(_entity_questions, (("question",), ("answers",)), ("id", "relation")),
    "squad": Format(_squad, (("question",), ("answers",)), ("id", "title")),
    "simpleqa": Format(_simpleqa, (("problem",), ("answer",)), ("metadata",)),
    "kilt": Format(_kilt, (("input",),), ("output", "id")),
    "alpaca": Format(_alpaca, (("instruction",), ("output",)), ("input", "id")),
    "messages": Format(_messages, (("messages", "conversations"),), ("id",)),
}
