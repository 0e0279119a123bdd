"""A tokenizer's chat template, as the text before and after a question, and what ends a turn of the model.

In: a tokenizer with a template, a `PromptSection`, solved examples. Out: a template with `{question}`, whose next token
begins the answer; the marks that end it. Both are read off what the template itself writes around an answer.
Refuses to know: answers, models.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from ka2l_ray.errors import ConfigError
from ka2l_ray.text.answers import closed
from ka2l_ray.text.tokens import special_tokens

QUESTION, ANSWER, NEXT = "{question}", "{answer}", "{next}"
"""Texts that stand for a question, its answer and the question after it."""


@dataclass(frozen=True)
class Chat:
    """What is said: the system's text and an instruction, which may be empty, and solved examples. `arguments` are
    those of the template; `thinks` leaves the model its thoughts."""

    system: str
    instruction: str
    solved: Sequence[tuple[str, str]]
    arguments: dict[str, bool | int | float | str]
    thinks: bool


def chat_prompt(tokenizer: PreTrainedTokenizerBase, chat: Chat) -> tuple[str, tuple[str, ...]]:
    """The prompt, in which `{question}` stands for the question, and the marks that end an answer to it.

    Where thoughts are not wanted, what the template writes before an answer is written too (a line break, an empty
    thought, the name of a channel), and a thought that it opens is closed. Raises `ConfigError` where the template
    cannot be used.
    """
    form = _working_form(tokenizer, chat)
    asked = form.render(form.turns(), open_answer=True)
    answered = form.render(form.turns(ANSWER))
    head, _, tail = answered.rpartition(ANSWER)
    written = head.removeprefix(asked) if head.startswith(asked) else ""
    prompt = asked if chat.thinks else closed(asked + written.rstrip(" "))  # a space is part of the next token
    try:
        following = form.render(form.turns(ANSWER, NEXT)).rpartition(ANSWER)[2].partition(NEXT)[0]
    except (TemplateError, TypeError):  # a template for one question
        following = ""
    ends = (_end(tokenizer, text) for text in ((tail, following) if head else ()))
    return prompt, tuple(dict.fromkeys(end for end in ends if end))


@dataclass(frozen=True)
class _Form:
    """How a template takes what is said: the system's text as a turn of its own or before the first question; contents
    as texts or as lists of parts."""

    tokenizer: PreTrainedTokenizerBase
    chat: Chat
    has_system_turn: bool
    has_parts: bool

    def turns(self, *more: str) -> list[tuple[str, str]]:
        """(role, text) of every turn up to the question, then of `more`, which the roles take in turn."""
        chat = self.chat
        said = [t for q, a in chat.solved for t in (_joined(chat.instruction, q), a)]
        said += [_joined(chat.instruction, QUESTION), *more]
        if chat.system and not self.has_system_turn:
            said[0] = _joined(chat.system, said[0])
        turns = list(zip(itertools.cycle(("user", "assistant")), said, strict=False))
        return [("system", chat.system), *turns] if chat.system and self.has_system_turn else turns

    def render(self, turns: Sequence[tuple[str, str]], open_answer: bool = False) -> str:
        """What the template makes of the turns; with `open_answer` up to where the model's own begins."""
        conversation: list[Any] = [
            {"role": role, "content": [{"type": "text", "text": text}] if self.has_parts else text}
            for role, text in turns
        ]
        thinks = self.chat.thinks
        arguments: dict[str, Any] = {"enable_thinking": thinks, "thinking": thinks} | self.chat.arguments
        return str(
            self.tokenizer.apply_chat_template(
                conversation, tokenize=False, add_generation_prompt=open_answer, **arguments
            )
        )


def _joined(*texts: str) -> str:
    return "\n\n".join(text for text in texts if text)


def _working_form(tokenizer: PreTrainedTokenizerBase, chat: Chat) -> _Form:
    """The first form that the template accepts and in which it leaves out nothing that is said."""
    failures: list[str] = []
    for form in _forms(tokenizer, chat):
        try:
            text = form.render(form.turns(), open_answer=True)
        except (TemplateError, TypeError) as error:
            failures.append(str(error))
            continue
        if all(said.strip() in text for said in (chat.system, QUESTION)):
            return form
        failures.append("it leaves out what is said")
    raise ConfigError(f"corpus.prompt.style = chat: the model's chat template cannot be used: {failures[0]}")


def _forms(tokenizer: PreTrainedTokenizerBase, chat: Chat) -> Iterator[_Form]:
    for has_parts in (False, True):
        for has_system_turn in (True, False) if chat.system else (True,):
            yield _Form(tokenizer, chat, has_system_turn, has_parts)


def _end(tokenizer: PreTrainedTokenizerBase, tail: str) -> str:
    """What ends an answer, from the text after it: the special token that it begins with, else all of it."""
    text = tail.strip()
    ids = tokenizer(text, add_special_tokens=False).input_ids if text else []
    return next((mark for mark, i in special_tokens(tokenizer).items() if ids[:1] == [i]), text)
