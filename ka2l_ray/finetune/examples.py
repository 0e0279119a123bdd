"""What a fine-tuning step is shown: examples, their order, and the tokens that carry loss.

In: rows (question, answers), a tokenizer. Out: deterministic global batches, sliced by rank and micro-batch.
Refuses to know: DeepSpeed, Ray, where rows come from. Every rank draws the same permutation, so slices never overlap.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ka2l_ray.config import PromptSection
from ka2l_ray.finetune.losses import IGNORED
from ka2l_ray.text.prompts import render
from ka2l_ray.text.tokens import end_id, ids_of

LENGTH_WINDOW_STEPS = 16
"""Optimiser steps whose rows are sorted by length together: long enough to save padding, short enough to keep the order random."""


@dataclass(frozen=True)
class Example:
    """`answers` has one member for an annotation, several for replay; epoch e is shown answer e modulo their number."""

    question: str
    answers: tuple[str, ...]
    replayed: bool = False


@dataclass(frozen=True)
class Tokens:
    """Token ids of prompt + answer + end; the first `prompt` of them carry no loss."""

    ids: list[int]
    prompt: int
    replayed: bool = False

    @property
    def answer(self) -> int:
        return len(self.ids) - self.prompt

    @property
    def before_end(self) -> int:
        """Answer tokens at which a replayed row is held to the base model: all but the end token."""
        return self.answer - 1


def tokenize(tokenizer: PreTrainedTokenizerBase, prompt: PromptSection, question: str, answer: str) -> Tokens:
    """The prompt, a space where it does not end in one, the answer, the end token: the form in which answers are sampled."""
    asked = render(prompt, question)
    head = ids_of(tokenizer, asked, prompt.special_tokens)
    whole = ids_of(tokenizer, f"{asked}{'' if asked[-1:].isspace() else ' '}{answer}", prompt.special_tokens)
    shared = next((i for i, (a, b) in enumerate(zip(head, whole, strict=False)) if a != b), len(head))
    return Tokens([*whole, end_id(tokenizer)], shared)


def tokenize_all(
    tokenizer: PreTrainedTokenizerBase, prompt: PromptSection, examples: Iterable[Example]
) -> list[list[Tokens]]:
    """Per example the tokens of each of its answers: once for a training, however many epochs it takes."""
    return [
        [replace(tokenize(tokenizer, prompt, e.question, a), replayed=e.replayed) for a in e.answers] for e in examples
    ]


def epoch_batches(
    rows: Sequence[Sequence[Tokens]], batch_rows: int, seed: int, epoch: int, group_by_length: bool = False
) -> Iterator[list[Tokens]]:
    """Global batches of an epoch from each example's answers, permuted by (seed, epoch); `group_by_length` fills each with rows of like
    length."""
    rng = np.random.default_rng([seed, epoch])
    shown = [rows[i][epoch % len(rows[i])] for i in rng.permutation(len(rows))]
    yield from by_length(shown, batch_rows, rng) if group_by_length else in_order(shown, batch_rows)


def in_order(rows: list[Tokens], size: int) -> list[list[Tokens]]:
    """Cut rows into parts of `size`; the last may be shorter."""
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def by_length(rows: list[Tokens], batch_rows: int, rng: np.random.Generator) -> list[list[Tokens]]:
    """Cut windows of the shuffled rows, sort each by length, cut steps from it, and shuffle the steps; every row stays once."""
    window = batch_rows * LENGTH_WINDOW_STEPS
    batches: list[list[Tokens]] = []
    for part in in_order(rows, window):
        batches += in_order(sorted(part, key=lambda r: len(r.ids)), batch_rows)
    return [batches[i] for i in rng.permutation(len(batches))]


def micro_batches(
    batch: Sequence[Tokens], rank: int, world_size: int, rows: int, accumulation: int
) -> list[list[Tokens]]:
    """This rank's share of a global batch, cut into exactly `accumulation` parts; a part may be empty at the end of an epoch."""
    own = list(batch[rank::world_size])
    return [own[i * rows : (i + 1) * rows] for i in range(accumulation)]


def collate(rows: Sequence[Tokens], pad: int) -> dict[str, torch.Tensor]:
    """Right-padded `input_ids`, `attention_mask` and `labels`, each (B, T); prompt and padding are `IGNORED` in labels.

    An empty part becomes one padding row without labels, so that every rank still takes part in the step's communication.
    """
    width = max((len(r.ids) for r in rows), default=1)
    ids = torch.full((max(1, len(rows)), width), pad)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORED)
    if not rows:
        mask[0, 0] = 1
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)] = torch.tensor(row.ids)
        mask[i, : len(row.ids)] = 1
        labels[i, row.prompt : len(row.ids)] = torch.tensor(row.ids[row.prompt :])
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def replayed_rows(rows: Sequence[Tokens]) -> torch.Tensor:
    """Which rows of a collated part (B,) are replayed ones."""
    return torch.tensor([r.replayed for r in rows] or [False])
