"""Questions as prompts: token ids, which of them are the question's own, and which tokens all prompts begin with.

In: a `PromptSection`, solved examples, a fast tokenizer, questions. Out: the section as one template; a `Prompt` per
question; the tokens that all prompts share.
Refuses to know: models, answers, Ray.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
from transformers import BatchEncoding, PreTrainedTokenizerBase

from ka2l_ray.config import ConfigError, PromptSection
from ka2l_ray.text.chat import Chat, chat_prompt


@dataclass(frozen=True)
class Prompt:
    """A prompt's token ids; the question's own tokens are [`own_start`, `own_end`)."""

    ids: tuple[int, ...]
    own_start: int
    own_end: int

    @property
    def is_empty(self) -> bool:
        """Whether the question has no token of its own; see `EMPTY_QUESTION`."""
        return self.own_start == self.own_end


EMPTY_QUESTION = "empty question: it has no token of its own in the prompt"
"""Why such a prompt cannot be read."""
DISSIMILAR_QUESTIONS = ("What", "who", "(a)", "7", "É", "-", '"')
"""No two begin with the same character, so the tokens that their prompts share do not come from the questions."""


Shot = tuple[str, str]
"""A solved example: question, answer."""


def resolve(
    prompt: PromptSection, shots: Sequence[Shot], tokenizer: PreTrainedTokenizerBase | None = None
) -> PromptSection:
    """The same prompt in style `bare`: one template that contains everything except the question.

    Style `chat` needs the tokenizer, and adds to `stop` what ends a turn in its template. Raises `ConfigError` where it
    has no chat template, or where the template cannot be used or changes the question's text.
    """
    if prompt.style == "bare":
        return prompt
    solved, ends = shots[: prompt.solved], ()
    if prompt.style == "fewshot":
        examples = "".join(f"{render(prompt, q)} {a}\n\n" for q, a in solved)
        template = f"{prompt.instruction}\n\n{examples}{prompt.template}"
    elif tokenizer is None or tokenizer.chat_template is None:
        raise ConfigError("prompt.style = chat: the model's tokenizer has no chat template; use fewshot or bare")
    else:
        chat = Chat(prompt.system, prompt.instruction, solved, prompt.template_arguments, prompt.enable_thinking)
        template, ends = chat_prompt(tokenizer, chat)
    try:
        return PromptSection(template=template, stop=(*ends, *prompt.stop), special_tokens=prompt.style == "fewshot")
    except ValueError as error:
        raise ConfigError(
            f"corpus.prompt.style = {prompt.style}: the whole prompt must contain {{question}} exactly once: "
            f"{template!r}"
        ) from error


def render(prompt: PromptSection, question: str) -> str:
    """The prompt of one question."""
    return prompt.template.replace("{question}", question)


class Prompter:
    """Makes prompts with one tokenizer and prompt section.

    `shared` are the tokens that prompts begin with whatever the question: instruction and solved examples. The prompt
    of a question that merges with the text before it may still start differently. `section` is the prompt section.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: PromptSection) -> None:
        self._tokenizer, self.section = tokenizer, prompt
        columns = zip(*(p.ids for p in self(DISSIMILAR_QUESTIONS)), strict=False)
        self.shared = tuple(column[0] for column in itertools.takewhile(lambda c: len(set(c)) == 1, columns))

    def __call__(self, questions: Sequence[str]) -> list[Prompt]:
        """One `Prompt` per question; a blank question has no token of its own."""
        batch, start = self._tokenized(questions), self._start
        return [
            Prompt(tuple(ids), *_own_tokens(offsets, start, start + len(q.rstrip())))
            for q, ids, offsets in zip(questions, batch["input_ids"], batch["offset_mapping"], strict=True)
        ]

    def tokens_at(self, questions: Sequence[str], spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Of each question's prompt the tokens [first, after the last) that contain characters [start, end) of the
        question; (0, 0) where there are none."""
        offsets, start = self._tokenized(questions)["offset_mapping"], self._start
        return [_own_tokens(o, start + left, start + right) for o, (left, right) in zip(offsets, spans, strict=True)]

    @property
    def _start(self) -> int:
        return self.section.template.index("{question}")

    def _tokenized(self, questions: Sequence[str]) -> BatchEncoding:
        return self._tokenizer(
            [render(self.section, q) for q in questions],
            return_offsets_mapping=True,
            add_special_tokens=self.section.special_tokens,
            verbose=False,
        )


def _own_tokens(offsets: Sequence[tuple[int, int]], start: int, end: int) -> tuple[int, int]:
    """The tokens [first, after the last) that contain characters of text[start:end]; (0, 0) where there are none."""
    own = [n for n, (left, right) in enumerate(offsets) if right > start and left < end and right > left]
    return (own[0], own[-1] + 1) if own else (0, 0)


PROMPT_COLUMNS = pa.schema([("prompt_ids", pa.list_(pa.int32())), ("own_start", pa.int32()), ("own_end", pa.int32())])
"""A `Prompt` as columns."""


def prompts_of(batch: pa.Table) -> list[Prompt]:
    """The prompts in a batch with `PROMPT_COLUMNS`."""
    columns = (batch[name].to_pylist() for name in PROMPT_COLUMNS.names)
    return [Prompt(tuple(ids), start, end) for ids, start, end in zip(*columns, strict=True)]
