"""A question becomes a prompt: token ids that know which of them are the question's own, and which begin every prompt alike.

In: a `PromptSection`, solved examples, a fast tokenizer, questions. Out: the section as one template; a `Prompt` per question, the tokens
that all prompts share.
Refuses to know: models, answers, Ray.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from ka2l_ray import schema
from ka2l_ray.artifacts import Run, Table
from ka2l_ray.config import ConfigError, ModelSection, PromptSection
from ka2l_ray.models.activations import Encoded, Prompt, pad
from ka2l_ray.models.loading import load_tokenizer
from ka2l_ray.models.tokens import pad_id

UNLIKE = ("What", "who", "(a)", "7", "É", "-", '"')
"""Beginnings of questions that share no first character, so what their prompts share is not the question's."""


Shot = tuple[str, str]
"""A solved example: question, answer."""


def resolve(prompt: PromptSection, shots: Sequence[Shot], tokenizer: PreTrainedTokenizerBase | None = None) -> PromptSection:
    """The same prompt as a `bare` one: a single template with everything in it that does not change from question to question.

    `chat` needs the tokenizer. Raises `ConfigError` where it has no chat template, or where that changes the question's text.
    """
    solved = shots[: prompt.solved]
    if prompt.style == "bare":
        return prompt
    if prompt.style == "fewshot":
        examples = "".join(f"{render(prompt, q)} {a}\n\n" for q, a in solved)
        return _bare(prompt, f"{prompt.instruction}\n\n{examples}{prompt.template}", True)
    if tokenizer is None or tokenizer.chat_template is None:
        raise ConfigError("prompt.style = chat: the model's tokenizer has no chat template; use fewshot or bare")
    turns = []
    for question, answer in [*solved, ("{question}", "")]:
        turns += [{"role": "user", "content": f"{prompt.instruction}\n\n{question}"}, {"role": "assistant", "content": answer}]
    text = tokenizer.apply_chat_template(turns[:-1], tokenize=False, add_generation_prompt=True, enable_thinking=False)
    return _bare(prompt, str(text), False)


def _bare(prompt: PromptSection, template: str, special_tokens: bool) -> PromptSection:
    try:
        return PromptSection(template=template, stop=prompt.stop, special_tokens=special_tokens)
    except ValueError as error:
        raise ConfigError(
            f"corpus.prompt.style = {prompt.style}: the whole prompt must hold {{question}} exactly once: {template!r}"
        ) from error


def corpus_prompt(run: Run) -> PromptSection:
    """The prompt that states and samples are read under, resolved. The `questions` table must be there for solved examples."""
    return _of(run, run.config.corpus.prompt)


def finetune_prompt(run: Run) -> PromptSection:
    """The prompt that the model is trained and evaluated on, resolved."""
    return _of(run, run.config.finetune.prompt)


def _of(run: Run, prompt: PromptSection) -> PromptSection:
    return resolved(prompt, run.table("questions"), load_tokenizer(run.config.model) if prompt.style == "chat" else None)


def resolved(prompt: PromptSection, questions: Table, tokenizer: PreTrainedTokenizerBase | None) -> PromptSection:
    """A prompt with the solved examples that a `questions` table holds."""
    shots: list[Shot] = []
    if prompt.solved:
        rows = questions.read(["id", "question", "answers"], part=schema.SHOTS).sort_by("id").to_pylist()
        shots = [(r["question"], r["answers"][0]) for r in rows]
    return resolve(prompt, shots, tokenizer)


def render(prompt: PromptSection, question: str) -> str:
    """The prompt of one question."""
    return prompt.template.replace("{question}", question)


class Prompter:
    """A prompt section with its tokenizer. `shared` are the first tokens of every prompt, as far as they do not depend on the question:
    instruction and solved examples. A question that merges with the text before it may still begin otherwise."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: PromptSection) -> None:
        self._tokenizer, self._prompt = tokenizer, prompt
        rows = [p.ids for p in self(UNLIKE)]
        alike = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*rows, strict=False))
        self.shared = tuple(column[0] for column in alike)

    def __call__(self, questions: Sequence[str]) -> list[Prompt]:
        """One `Prompt` per question; a blank question has no token of its own."""
        batch = self._tokenizer(
            [render(self._prompt, q) for q in questions],
            return_offsets_mapping=True,
            add_special_tokens=self._prompt.special_tokens,
            verbose=False,
        )
        start = self._prompt.template.index("{question}")
        return [
            Prompt(tuple(ids), *_own(offsets, start, start + len(q.rstrip())))
            for q, ids, offsets in zip(questions, batch["input_ids"], batch["offset_mapping"], strict=True)
        ]


def _own(offsets: Sequence[tuple[int, int]], start: int, end: int) -> tuple[int, int]:
    """The tokens [first, after the last) that hold characters of text[start:end]; (0, 0) where none does."""
    own = [n for n, (left, right) in enumerate(offsets) if right > start and left < end and right > left]
    return (own[0], own[-1] + 1) if own else (0, 0)


PROMPT_COLUMNS = pa.schema([("prompt_ids", pa.list_(pa.int32())), ("own_start", pa.int32()), ("own_end", pa.int32())])
"""A `Prompt` as columns."""


@dataclass(frozen=True)
class Tokenize:
    """Questions → `PROMPT_COLUMNS`, where a shard is read, so that a GPU waits for no tokenizer. The tokenizer is loaded once a process."""

    model: ModelSection
    prompt: PromptSection
    columns: ClassVar[pa.Schema] = PROMPT_COLUMNS

    def load(self) -> Prompter:
        return _prompter(self)

    def __call__(self, batch: pa.Table) -> Mapping[str, Any]:
        prompts = self.load()(batch["question"].to_pylist())
        return {
            "prompt_ids": [p.ids for p in prompts],
            "own_start": [p.own_start for p in prompts],
            "own_end": [p.own_end for p in prompts],
        }

    def add(self, batch: pa.Table) -> pa.Table:
        """The batch with the columns."""
        for name, values in self(batch).items():
            batch = batch.append_column(self.columns.field(name), pa.array(values, self.columns.field(name).type))
        return batch


@lru_cache(maxsize=4)
def _prompter(tokenize: Tokenize) -> Prompter:
    return Prompter(load_tokenizer(tokenize.model), tokenize.prompt)


def prompts_of(batch: pa.Table) -> list[Prompt]:
    """The prompts in a batch with `PROMPT_COLUMNS`."""
    columns = (batch[name].to_pylist() for name in PROMPT_COLUMNS.names)
    return [Prompt(tuple(ids), start, end) for ids, start, end in zip(*columns, strict=True)]


def encode(tokenizer: PreTrainedTokenizerBase, prompt: PromptSection, questions: Sequence[str]) -> Encoded:
    """Left-padded ids, mask and own-token marks (B, T). Raises `ValueError` for a question that yields no token of its own."""
    prompts = Prompter(tokenizer, prompt)(questions)
    for one in prompts:
        one.check()
    return pad(prompts, pad_id(tokenizer))
