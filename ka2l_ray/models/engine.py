"""A model that reads prompts: the shared prefix once, rows of similar length together, within a memory limit.

In: prompts as token ids. Out: hidden states at some layers and positions, from one pass that ends after the last of the
layers. A row that cannot be read (no token of its own, a token id that the model does not have, too long) fails only
itself.
Refuses to know: text, sampling, Ray.
"""

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedConfig, PreTrainedModel

from ka2l_ray.dataflow.failures import BlockLost, Verdict, on_lost_block
from ka2l_ray.dataflow.tally import Tally
from ka2l_ray.models.abilities import Abilities
from ka2l_ray.models.activations import EVERY, Encoded, capture, pad
from ka2l_ray.models.batching import AdaptiveLimits, Limits, Load, run_batches
from ka2l_ray.models.prefix import SharedPrefix
from ka2l_ray.text.prompts import EMPTY_QUESTION, Prompt

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
        text = config.get_text_config()
        has_context = "max_position_embeddings" in {*text.to_dict(), *text.attribute_map}
        return cls(vocabulary, text.max_position_embeddings if has_context else None)

    def rejected(self, prompts: Sequence[Prompt], new_tokens: int) -> dict[int, Exception]:
        """An error for each row whose prompt cannot be read, or not with `new_tokens` tokens after it."""
        problems = {row: self._problem(prompt, new_tokens) for row, prompt in enumerate(prompts)}
        return {row: ValueError(problem) for row, problem in problems.items() if problem}

    def _problem(self, prompt: Prompt, new_tokens: int) -> str | None:
        length = len(prompt.ids)
        if prompt.is_empty:
            return EMPTY_QUESTION
        if wrong := [i for i in prompt.ids if not 0 <= i < self.vocabulary]:
            return (
                f"token id {wrong[0]} is out of range: the model has 0 … {self.vocabulary - 1}; "
                "is it another model's tokenizer?"
            )
        if self.context is not None and length + new_tokens > self.context:
            return f"prompt of {length} tokens + {new_tokens} new ones exceed the model's context of {self.context}"
        return None


def embedding_rows(model: PreTrainedModel) -> int:
    """How many token ids a model has an embedding for."""
    embeddings: Any = model.get_input_embeddings()
    return embeddings.num_embeddings


def usable(pad_token: int, rows: int) -> int:
    """The padding token or, where it was added to the tokenizer and has no embedding, another: padding is masked, so
    any id that the model has will do."""
    return pad_token if 0 <= pad_token < rows else 0


class Engine:
    """A whole model or its first blocks, run as its `abilities` allow. `pad_token` may be any token id; prompts usually
    begin with the tokens `shared`."""

    def __init__(
        self,
        model: PreTrainedModel,
        pad_token: int,
        shared: Sequence[int] = (),
        limits: Limits = Limits(),
        abilities: Abilities = Abilities(),
    ) -> None:
        self.model, self.abilities, self._limits = model, abilities, AdaptiveLimits(limits)
        self.prefix, self.tally = SharedPrefix(model, shared, abilities.prefix), Tally()
        self.depth: int = model.config.get_text_config().num_hidden_layers
        self.prompt_limits = PromptLimits.of(model.config, embedding_rows(model))
        self._pad_token = usable(pad_token, embedding_rows(model))
        self._arguments = inspect.signature(model.forward).parameters

    def forward(self, **inputs: object) -> Any:
        """A pass of the model, without arguments that it does not know: some have no positions to be told, or always
        return all logits."""
        takes_any = any(p.kind is p.VAR_KEYWORD for p in self._arguments.values())
        return self.model(**{k: v for k, v in inputs.items() if takes_any or k in self._arguments})

    def for_each_batch(
        self,
        prompts: Sequence[Prompt],
        work: Callable[[list[int], Encoded], Mapping[tuple[str, int], torch.Tensor]],
        layers: Sequence[int],
        positions: Sequence[str],
        copies: int = 1,
        new_tokens: int = 0,
    ) -> tuple[States, dict[int, Exception]]:
        """Do the work batch by batch. It is given row numbers and the batch on the model's device, and returns the
        batch's states, (B, D) by position and layer.

        Returns the states (N, D) of all rows, and the errors of rows that failed, whose states are zero. `copies`:
        answers generated per prompt; `new_tokens`: the most tokens of one answer. Raises `ActorBroken` where a device
        is broken, `BlockLost` where every row that could be read fails with an error of an unknown kind.
        """
        width = self.model.config.get_text_config().hidden_size
        states = {(p, n): np.zeros((len(prompts), width), np.float32) for p in positions for n in layers}
        rejected = self.prompt_limits.rejected(prompts, new_tokens)
        groups: dict[tuple[int, int], list[int]] = {(len(self.prefix.ids), 0): [], (0, 0): []}
        for row, prompt in enumerate(prompts):
            if row not in rejected:
                of_one_length = 0 if self.abilities.padding else len(prompt.ids)
                groups.setdefault((self._prefix_length(prompt), of_one_length), []).append(row)

        def run_batch(prefix_length: int, rows: list[int]) -> None:
            encoded = pad([prompts[i] for i in rows], self._pad_token, prefix_length)
            started = time.monotonic()
            for column, values in work(rows, encoded.to(self.model.device)).items():
                states[column][rows] = values.cpu().numpy()
            self._count(encoded, time.monotonic() - started)

        failed: dict[int, Exception] = {}
        for (length, _), rows in groups.items():
            load = Load({i: len(prompts[i].ids) - length for i in rows}, copies, new_tokens)
            failed |= run_batches(load, self._limits, partial(run_batch, length))
        self.tally.out_of_memory = self._limits.out_of_memory
        every_row_failed = failed and len(failed) == len(prompts) - len(rejected)
        if every_row_failed and on_lost_block(failed) == Verdict.REPLACE_ACTOR:
            raise BlockLost(rejected | failed)
        return states, rejected | failed

    @torch.inference_mode()
    def states(
        self, prompts: Sequence[Prompt], layers: Sequence[int], positions: Sequence[str] = ("last",)
    ) -> tuple[States, dict[int, Exception]]:
        """States (N, D) per (position, layer), and the errors of rows that failed, whose states are zero.

        Raises what `for_each_batch` raises.
        """

        def work(rows: list[int], encoded: Encoded) -> Mapping[tuple[str, int], torch.Tensor]:
            attached = self.prefix.attached(encoded, encoded.positions)
            with attached, capture(self.model, self.depth, encoded, layers, positions, stop=True) as captured:
                self.forward(**self.prefix.first_inputs(encoded))
            return captured

        return self.for_each_batch(prompts, work, layers, positions)

    @torch.inference_mode()
    def token_states(
        self,
        prompts: Sequence[Prompt],
        spans: Sequence[tuple[int, int]],
        token_layers: Sequence[int],
        layers: Sequence[int],
        positions: Sequence[str],
    ) -> tuple[dict[int, list[np.ndarray]], States, dict[int, Exception]]:
        """By layer the states (n, D) of the tokens [start, end) of each prompt, and what `states` returns, from one
        pass; those of rows that failed have no tokens. No span may begin within the shared prefix.

        Raises what `for_each_batch` raises.
        """
        width = self.model.config.get_text_config().hidden_size
        tokens = {layer: [np.zeros((0, width), np.float32)] * len(prompts) for layer in token_layers}

        def work(rows: list[int], encoded: Encoded) -> Mapping[tuple[str, int], torch.Tensor]:
            attached = self.prefix.attached(encoded, encoded.positions)
            capturing = capture(self.model, self.depth, encoded, layers, positions, stop=True, whole=token_layers)
            with attached, capturing as captured:
                self.forward(**self.prefix.first_inputs(encoded))
            for layer in token_layers:
                stream = captured[EVERY, layer].cpu().numpy()
                for n, row in enumerate(rows):
                    offset, (start, end) = stream.shape[1] - len(prompts[row].ids), spans[row]
                    tokens[layer][row] = stream[n, offset + start : offset + end].copy()  # not a view of the stream
            return {(p, layer): captured[p, layer] for p in positions for layer in layers}

        return tokens, *self.for_each_batch(prompts, work, layers, positions)

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
