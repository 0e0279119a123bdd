"""What a fine-tuning step trains on: examples, their order, and the tokens that carry loss.

In: rows (question, answers), a tokenizer. Out: deterministic global batches, sliced by rank and micro-batch.
Refuses to know: DeepSpeed, Ray, where rows come from. All ranks draw the same permutation, so their slices never
overlap.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from ka2l_ray.config import PromptSection
from ka2l_ray.finetune.losses import IGNORED
from ka2l_ray.text.prompts import render
from ka2l_ray.text.tokens import end_id, ids_of

LENGTH_WINDOW_STEPS = 16
"""Optimiser steps whose rows are sorted by length together: enough to save padding, few enough to keep the order
random."""


@dataclass(frozen=True)
class Example:
    """A question with one answer (an annotation) or several (replay), and perhaps in other words too: epoch e trains on
    wording and answer e modulo their numbers."""

    question: str
    answers: tuple[str, ...]
    replayed: bool = False
    rewordings: tuple[str, ...] = ()

    @property
    def shown(self) -> list[tuple[str, str]]:
        """The pairs (wording, answer) that epochs show in turn."""
        wordings = (self.question, *self.rewordings)
        turns = math.lcm(len(wordings), len(self.answers))
        return [(wordings[n % len(wordings)], self.answers[n % len(self.answers)]) for n in range(turns)]


@dataclass(frozen=True)
class TokenizedRow:
    """Token ids of prompt, answer and end token; the first `prompt_length` of them carry no loss."""

    ids: list[int]
    prompt_length: int
    replayed: bool = False

    @property
    def answer_length(self) -> int:
        """Number of tokens that carry loss: the answer's and the end token."""
        return len(self.ids) - self.prompt_length


def tokenize(tokenizer: PreTrainedTokenizerBase, prompt: PromptSection, question: str, answer: str) -> TokenizedRow:
    """The prompt, a space unless it ends in white space, the answer, the end token (in a chat that of a turn): the form
    in which answers are sampled.

    Raises `ConfigError` where the tokenizer has no end token.
    """
    asked = render(prompt, question)
    head = ids_of(tokenizer, asked, prompt.special_tokens)
    whole = ids_of(tokenizer, f"{asked}{'' if asked[-1:].isspace() else ' '}{answer}", prompt.special_tokens)
    shared = next((i for i, (a, b) in enumerate(zip(head, whole, strict=False)) if a != b), len(head))
    return TokenizedRow([*whole, end_id(tokenizer, prompt.stop)], shared)


def tokenize_all(
    tokenizer: PreTrainedTokenizerBase, prompt: PromptSection, examples: Iterable[Example]
) -> list[list[TokenizedRow]]:
    """Per example a row for each pair that it shows; done once per training run, whatever the number of epochs."""
    return [[replace(tokenize(tokenizer, prompt, q, a), replayed=e.replayed) for q, a in e.shown] for e in examples]


def epoch_batches(
    rows: Sequence[Sequence[TokenizedRow]], batch_rows: int, seed: int, epoch: int, group_by_length: bool = False
) -> Iterator[list[TokenizedRow]]:
    """Global batches of an epoch, from the rows of each example in an order drawn from (seed, epoch). With
    `group_by_length` the rows of a batch are of similar length."""
    rng = np.random.default_rng([seed, epoch])
    shown = [rows[i][epoch % len(rows[i])] for i in rng.permutation(len(rows))]
    yield from batches_by_length(shown, batch_rows, rng) if group_by_length else chunks(shown, batch_rows)


def chunks(rows: list[TokenizedRow], size: int) -> list[list[TokenizedRow]]:
    """Consecutive parts of `size` rows; the last may be shorter."""
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def batches_by_length(rows: list[TokenizedRow], batch_rows: int, rng: np.random.Generator) -> list[list[TokenizedRow]]:
    """Batches of every row once: windows of the shuffled rows are sorted by length and cut into batches, which are then
    shuffled."""
    batches: list[list[TokenizedRow]] = []
    for window in chunks(rows, batch_rows * LENGTH_WINDOW_STEPS):
        batches += chunks(sorted(window, key=lambda r: len(r.ids)), batch_rows)
    return [batches[i] for i in rng.permutation(len(batches))]


def micro_batches(
    batch: Sequence[TokenizedRow], rank: int, world_size: int, rows: int, accumulation: int
) -> list[list[TokenizedRow]]:
    """This rank's share of a global batch, cut into exactly `accumulation` parts of at most `rows` rows; a part may be
    empty at the end of an epoch."""
    own = list(batch[rank::world_size])
    return [own[i * rows : (i + 1) * rows] for i in range(accumulation)]


def collate(rows: Sequence[TokenizedRow], pad_token: int, without: int = 0) -> dict[str, torch.Tensor]:
    """Right-padded `input_ids`, `attention_mask` and `labels`, each (B, T), without the first tokens of every row;
    prompt and padding are `IGNORED` in labels.

    An empty part becomes one padding row without labels, so that every rank still joins the collectives of the step.
    """
    rows = rows or [TokenizedRow([pad_token], prompt_length=1)]
    labels = [[IGNORED] * r.prompt_length + r.ids[r.prompt_length :] for r in rows]
    return {
        "input_ids": _padded([r.ids[without:] for r in rows], pad_token),
        "attention_mask": _padded([[1] * (len(r.ids) - without) for r in rows], 0),
        "labels": _padded([row[without:] for row in labels], IGNORED),
    }


def _padded(rows: list[list[int]], value: int) -> torch.Tensor:
    return pad_sequence([torch.tensor(r) for r in rows], batch_first=True, padding_value=value)


def held_to_base(rows: Iterable[TokenizedRow]) -> torch.Tensor:
    """Which answer tokens of rows, row after row, KL holds to the base model's, bool (A,): those of replayed rows,
    except the end token."""
    return torch.tensor(
        [r.replayed and n < r.answer_length - 1 for r in rows for n in range(r.answer_length)], dtype=torch.bool
    )
