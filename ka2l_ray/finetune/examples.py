"""What a fine-tuning step is shown: examples, their order, and the tokens that carry loss.

In: rows (question, answers), a tokenizer. Out: deterministic global batches, sliced by rank and micro-batch.
Refuses to know: DeepSpeed, Ray, where rows come from. Every rank draws the same permutation, so slices never overlap.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ka2l_ray.config import PromptSection
from ka2l_ray.corpus.prompts import render
from ka2l_ray.models.tokens import end_id, ids_of

IGNORED = -100


@dataclass(frozen=True)
class Example:
    """`answers` has one member for an annotation, several for replay; epoch e is shown answer e modulo their number."""

    question: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Tokens:
    """Token ids of prompt + answer + end; the first `prompt` of them carry no loss."""

    ids: list[int]
    prompt: int

    @property
    def answer(self) -> int:
        return len(self.ids) - self.prompt


def tokenize(tokenizer: PreTrainedTokenizerBase, prompt: PromptSection, question: str, answer: str) -> Tokens:
    """The prompt, a space, the answer, the end token: the form in which answers are sampled."""
    head = ids_of(tokenizer, render(prompt, question))
    whole = ids_of(tokenizer, f"{render(prompt, question)} {answer}")
    shared = next((i for i, (a, b) in enumerate(zip(head, whole, strict=False)) if a != b), len(head))
    return Tokens([*whole, end_id(tokenizer)], shared)


def epoch_batches(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, prompt: PromptSection, batch_rows: int, seed: int, epoch: int
) -> Iterator[list[Tokens]]:
    """Global batches of an epoch, permuted by (seed, epoch)."""
    order = np.random.default_rng([seed, epoch]).permutation(len(examples))
    for start in range(0, len(order), batch_rows):
        chosen = [examples[i] for i in order[start : start + batch_rows]]
        yield [tokenize(tokenizer, prompt, e.question, e.answers[epoch % len(e.answers)]) for e in chosen]


def micro_batches(batch: Sequence[Tokens], rank: int, world_size: int, rows: int, accumulation: int) -> list[list[Tokens]]:
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


def answer_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sum (not mean) of the cross-entropy over answer tokens, nats; 0 with a gradient path where there are none."""
    flat = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum"
    )
    return flat + 0.0 * logits.sum()
