"""A question becomes a prompt: token ids that know which of them are the question's own, and which begin every prompt alike.

In: a `PromptSection`, a fast tokenizer, questions. Out: a `Prompt` per question, the tokens that all prompts share.
Refuses to know: models, answers, Ray.
"""

import itertools
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from ka2l_ray.config import PromptSection
from ka2l_ray.models.activations import Encoded, Prompt, pad
from ka2l_ray.models.tokens import pad_id

UNLIKE = ("What", "who", "(a)", "7", "É", "-", '"')
"""Beginnings of questions that share no first character, so what their prompts share is not the question's."""


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
        batch = self._tokenizer([render(self._prompt, q) for q in questions], return_offsets_mapping=True)
        start = self._prompt.template.index("{question}")
        return [
            Prompt(tuple(ids), *_own(offsets, start, start + len(q.rstrip())))
            for q, ids, offsets in zip(questions, batch["input_ids"], batch["offset_mapping"], strict=True)
        ]


def _own(offsets: Sequence[tuple[int, int]], start: int, end: int) -> tuple[int, int]:
    """The tokens [first, after the last) that hold characters of text[start:end]; (0, 0) where none does."""
    own = [n for n, (left, right) in enumerate(offsets) if right > start and left < end and right > left]
    return (own[0], own[-1] + 1) if own else (0, 0)


def encode(tokenizer: PreTrainedTokenizerBase, prompt: PromptSection, questions: Sequence[str]) -> Encoded:
    """Left-padded ids, mask and own-token marks (B, T). Raises `ValueError` for a question that yields no token of its own."""
    prompts = Prompter(tokenizer, prompt)(questions)
    for one in prompts:
        one.check()
    return pad(prompts, pad_id(tokenizer))
