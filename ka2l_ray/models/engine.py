"""A model that reads prompts: the shared prefix once, rows of like length together, within a memory limit.

In: prompts as token ids. Out: hidden states at chosen layers and positions, from one pass that ends after the last of them.
A row that cannot be read (no token of its own, a token id that the model does not have, too long) costs itself alone.
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
from ka2l_ray.models.batching import Allowance, Limits, Load, run
from ka2l_ray.models.prefix import SharedPrefix
from ka2l_ray.text.prompts import Prompt

States = dict[tuple[str, int], np.ndarray]


@dataclass(frozen=True)
class Reach:
    """What a model can read: token ids below `vocabulary`, `context` tokens with the answer (None: any number, as with ALiBi)."""

    vocabulary: int
    context: int | None

    @classmethod
    def of(cls, config: PreTrainedConfig, vocabulary: int) -> "Reach":
        text: Any = config.get_text_config()
        limited = "max_position_embeddings" in {*text.to_dict(), *text.attribute_map}
        return cls(vocabulary, text.max_position_embeddings if limited else None)

    def check(self, prompt: Prompt, room: int) -> None:
        """Raises `ValueError` for a prompt that cannot be read with `room` tokens after it."""
        prompt.check()
        if wrong := [i for i in prompt.ids if not 0 <= i < self.vocabulary]:
            most = self.vocabulary - 1
            raise ValueError(
                f"token id {wrong[0]} is out of range: the model has 0 … {most}; is it another model's tokenizer?"
            )
        if self.context is not None and len(prompt.ids) + room > self.context:
            length = len(prompt.ids)
            raise ValueError(
                f"prompt of {length} tokens + {room} new ones exceed the model's context of {self.context}"
            )


class Engine:
    """A whole model or its first blocks. `fill` is any valid token id; `shared` the tokens that prompts begin with."""

    def __init__(
        self, model: PreTrainedModel, fill: int, shared: Sequence[int] = (), limits: Limits = Limits()
    ) -> None:
        self.model, self._allowance = model, Allowance(limits)
        self.prefix = SharedPrefix(model, shared)
        self.tally = Tally()
        self.depth: int = model.config.get_text_config().num_hidden_layers
        self._fill = fill
        embeddings: Any = model.get_input_embeddings()
        self.reach = Reach.of(model.config, embeddings.num_embeddings)

    def each(
        self, prompts: Sequence[Prompt], work: Callable[[list[int], Encoded], None], copies: int = 1, room: int = 0
    ) -> dict[int, Exception]:
        """Do the work batch by batch, given row numbers and the batch on the model's device; returns the error of each row that failed.

        `copies` and `room`: answers written per prompt, and tokens of each. Raises `ActorBroken` where a device is broken, `BlockLost`
        where every row that could be read fails with an error of an unknown kind.
        """
        failed: dict[int, Exception] = {}
        groups: dict[int, list[int]] = {len(self.prefix.ids): [], 0: []}
        for row, prompt in enumerate(prompts):
            try:
                self.reach.check(prompt, room)
            except ValueError as error:
                failed[row] = error
            else:
                groups[self._before(prompt)].append(row)

        def batch(rows: list[int], before: int) -> None:
            encoded = pad([prompts[i] for i in rows], self._fill, before)
            started = time.monotonic()
            work(rows, encoded.to(self.model.device))
            self._count(encoded, time.monotonic() - started)

        lost: dict[int, Exception] = {}
        for before, rows in groups.items():
            load = Load([len(prompts[i].ids) - before for i in rows], copies, room)
            errors = run(
                load, self._allowance, lambda part, rows=rows, before=before: batch([rows[i] for i in part], before)
            )
            lost |= {rows[i]: error for i, error in errors.items()}
        self.tally.out_of_memory = self._allowance.out_of_memory
        if lost and len(lost) == len(prompts) - len(failed) and on_lost_block(lost) == Verdict.REPLACE_ACTOR:
            raise BlockLost(failed | lost)
        return failed | lost

    @torch.inference_mode()
    def states(
        self, prompts: Sequence[Prompt], layers: Sequence[int], positions: Sequence[str] = ("last",)
    ) -> tuple[States, dict[int, Exception]]:
        """States (N, D) per (position, layer), zero in the rows whose error is returned beside them."""
        states = self.no_states(len(prompts), layers, positions)

        def work(rows: list[int], encoded: Encoded) -> None:
            capture = Capture(self.model, self.depth, layers, stop_early=True)
            with self.prefix.behind(encoded, encoded.positions), capture(pooling(encoded, positions)):
                self.model(**self.prefix.start(encoded))
            place(states, rows, capture.states, positions)

        return states, self.each(prompts, work)

    def no_states(self, total: int, layers: Sequence[int], positions: Sequence[str]) -> States:
        """Arrays (`total`, D) of zeros, for `place` to fill."""
        width = self.model.config.get_text_config().hidden_size
        return {(p, n): np.zeros((total, width), np.float32) for p in positions for n in layers}

    def _before(self, prompt: Prompt) -> int:
        """How many tokens of a prompt the prefix stands for: all of it or, where the question merges with the text before it, none."""
        shared = len(self.prefix.ids)
        return shared if prompt.ids[:shared] == self.prefix.ids and prompt.own_start >= shared else 0

    def _count(self, encoded: Encoded, seconds: float) -> None:
        tally, rows = self.tally, len(encoded.mask)
        tokens = int(encoded.mask.sum())
        tally.questions += rows
        tally.prompt_tokens += tokens
        tally.padding_tokens += encoded.mask.numel() - tokens
        tally.prefix_tokens_saved += rows * encoded.before
        tally.model_s += seconds


def pooling(encoded: Encoded, positions: Sequence[str]) -> Callable[[torch.Tensor], torch.Tensor]:
    """Takes states (positions, B, D) from a stream."""
    return lambda stream: torch.stack([pool_states(stream, p, encoded.own) for p in positions])


def place(states: States, rows: list[int], captured: dict[int, torch.Tensor], positions: Sequence[str]) -> None:
    """Put a batch's captured states (positions, B, D) per layer into the arrays (N, D) at `rows`."""
    for layer, pooled in captured.items():
        for position, values in zip(positions, pooled.cpu().numpy(), strict=True):
            states[position, layer][rows] = values
