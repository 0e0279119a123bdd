"""A model that reads prompts: the shared prefix once, rows of similar length together, within a memory limit.

In: prompts as token ids. Out: hidden states at some layers and positions, from one pass that ends after the last of the
layers. A row that cannot be read (no token of its own, a token id that the model does not have, too long) fails only
itself.
Refuses to know: text, sampling, Ray.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedConfig, PreTrainedModel

from ka2l_ray.dataflow.failures import BlockLost, Verdict, on_lost_block
from ka2l_ray.dataflow.tally import Tally
from ka2l_ray.models.activations import Capture, Encoded, pad, pool_states
from ka2l_ray.models.batching import AdaptiveLimits, Limits, Load, run_batches
from ka2l_ray.models.prefix import SharedPrefix
from ka2l_ray.text.prompts import Prompt

States = dict[tuple[str, int], np.ndarray]
"""Float32 states (N, D) per (position, layer)."""


@dataclass(frozen=True)
class PromptLimits:
    """What a model can read: token ids below `vocabulary`, and `context` tokens including the answer (None: any number,
    as with ALiBi)."""

    vocabulary: int
    context: int | None

    @classmethod
    def of(cls, config: PreTrainedConfig, vocabulary: int) -> "PromptLimits":
        """The limits of a model with this configuration."""
        text: Any = config.get_text_config()
        has_context = "max_position_embeddings" in {*text.to_dict(), *text.attribute_map}
        return cls(vocabulary, text.max_position_embeddings if has_context else None)

    def check(self, prompt: Prompt, new_tokens: int) -> None:
        """Raises `ValueError` for a prompt that cannot be read, or not with `new_tokens` tokens after it."""
        prompt.check()
        if wrong := [i for i in prompt.ids if not 0 <= i < self.vocabulary]:
            most = self.vocabulary - 1
            raise ValueError(
                f"token id {wrong[0]} is out of range: the model has 0 … {most}; is it another model's tokenizer?"
            )
        length = len(prompt.ids)
        if self.context is not None and length + new_tokens > self.context:
            raise ValueError(
                f"prompt of {length} tokens + {new_tokens} new ones exceed the model's context of {self.context}"
            )

    def rejected(self, prompts: Sequence[Prompt], new_tokens: int) -> dict[int, Exception]:
        """The error of each prompt that `check` refuses, by row."""
        errors: dict[int, Exception] = {}
        for row, prompt in enumerate(prompts):
            try:
                self.check(prompt, new_tokens)
            except ValueError as error:
                errors[row] = error
        return errors


class Engine:
    """A whole model or its first blocks. `pad_token` may be any valid token id; prompts usually begin with the tokens
    `shared`."""

    def __init__(
        self, model: PreTrainedModel, pad_token: int, shared: Sequence[int] = (), limits: Limits = Limits()
    ) -> None:
        self.model, self._pad_token, self._limits = model, pad_token, AdaptiveLimits(limits)
        self.prefix, self.tally = SharedPrefix(model, shared), Tally()
        self.depth: int = model.config.get_text_config().num_hidden_layers
        embeddings: Any = model.get_input_embeddings()
        self.prompt_limits = PromptLimits.of(model.config, embeddings.num_embeddings)

    def for_each_batch(
        self,
        prompts: Sequence[Prompt],
        work: Callable[[list[int], Encoded], None],
        copies: int = 1,
        new_tokens: int = 0,
    ) -> dict[int, Exception]:
        """Do the work batch by batch, given row numbers and the batch on the model's device; returns the error of each
        row that failed.

        `copies`: answers generated per prompt; `new_tokens`: the most tokens of one answer. Raises `ActorBroken` where
        a device is broken, `BlockLost` where every row that could be read fails with an error of an unknown kind.
        """
        rejected = self.prompt_limits.rejected(prompts, new_tokens)
        groups: dict[int, list[int]] = {len(self.prefix.ids): [], 0: []}
        for row, prompt in enumerate(prompts):
            if row not in rejected:
                groups[self._prefix_length(prompt)].append(row)

        def run_one(rows: list[int], prefix_length: int) -> None:
            encoded = pad([prompts[i] for i in rows], self._pad_token, prefix_length)
            started = time.monotonic()
            work(rows, encoded.to(self.model.device))
            self._count(encoded, time.monotonic() - started)

        failed: dict[int, Exception] = {}
        for length, rows in groups.items():
            load = Load([len(prompts[i].ids) - length for i in rows], copies, new_tokens)
            errors = run_batches(
                load, self._limits, lambda part, rows=rows, length=length: run_one([rows[i] for i in part], length)
            )
            failed |= {rows[i]: error for i, error in errors.items()}
        self.tally.out_of_memory = self._limits.out_of_memory
        every_row_failed = failed and len(failed) == len(prompts) - len(rejected)
        if every_row_failed and on_lost_block(failed) == Verdict.REPLACE_ACTOR:
            raise BlockLost(rejected | failed)
        return rejected | failed

    @torch.inference_mode()
    def states(
        self, prompts: Sequence[Prompt], layers: Sequence[int], positions: Sequence[str] = ("last",)
    ) -> tuple[States, dict[int, Exception]]:
        """States (N, D) per (position, layer), and the errors of rows that failed, whose states are zero.

        Raises what `for_each_batch` raises.
        """
        states = self.zero_states(len(prompts), layers, positions)

        def work(rows: list[int], encoded: Encoded) -> None:
            capture = Capture(self.model, self.depth, layers, stop_early=True)
            with self.prefix.attached(encoded, encoded.positions), capture(pooling(encoded, positions)):
                self.model(**self.prefix.first_inputs(encoded))
            store_states(states, rows, capture.states, positions)

        return states, self.for_each_batch(prompts, work)

    def zero_states(self, rows: int, layers: Sequence[int], positions: Sequence[str]) -> States:
        """Arrays (`rows`, D) of zeros, for `store_states` to fill."""
        width = self.model.config.get_text_config().hidden_size
        return {(p, n): np.zeros((rows, width), np.float32) for p in positions for n in layers}

    def _prefix_length(self, prompt: Prompt) -> int:
        """How many tokens of a prompt the prefix replaces: all of its own or, where the question merges with the text
        before it, none."""
        shared = len(self.prefix.ids)
        return shared if prompt.ids[:shared] == self.prefix.ids and prompt.own_start >= shared else 0

    def _count(self, encoded: Encoded, seconds: float) -> None:
        tally, rows, tokens = self.tally, len(encoded.mask), int(encoded.mask.sum())
        tally.questions += rows
        tally.prompt_tokens += tokens
        tally.padding_tokens += encoded.mask.numel() - tokens
        tally.prefix_tokens_saved += rows * encoded.prefix_length
        tally.model_s += seconds


def pooling(encoded: Encoded, positions: Sequence[str]) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function from a stream (B, T, D) to its states (positions, B, D)."""
    return lambda stream: torch.stack([pool_states(stream, p, encoded.question_mask) for p in positions])


def store_states(states: States, rows: list[int], captured: dict[int, torch.Tensor], positions: Sequence[str]) -> None:
    """Copy a batch's captured states (positions, B, D) per layer into `rows` of the arrays (N, D)."""
    for layer, pooled in captured.items():
        for position, values in zip(positions, pooled.cpu().numpy(), strict=True):
            states[position, layer][rows] = values
