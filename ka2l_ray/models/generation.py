"""One prompt pass gives hidden states and starts every answer of a question.

In: prompts and ids. Out: states, and per answer its text, log-probability and token count.
The prompt's key/value cache is repeated once per answer; each answer stops at its own stop string or end token, and then leaves
the batch.
Refuses to know: tables, Ray, what answers mean.
"""

import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ka2l_ray.models.activations import Capture, Encoded, Prompt
from ka2l_ray.models.answers import Answer, Decoding, Ending, Reading
from ka2l_ray.models.engine import Engine, place, pooling
from ka2l_ray.models.sampling import draw, uniforms


@dataclass(frozen=True)
class _Live:
    """The answers of one batch that are still being written: their rows, the mask (R, T) of what they have read, the last logits (R, V)."""

    rows: torch.Tensor
    mask: torch.Tensor
    logits: torch.Tensor

    def keep(self, kept: torch.Tensor) -> "_Live":
        return _Live(self.rows[kept], self.mask[kept], self.logits[kept])


@dataclass(frozen=True)
class _Asked:
    """A batch after its prompt pass: mask (B, T) of what was read, last logits (B, V), positions (B, 1) of the answers' first tokens."""

    mask: torch.Tensor
    logits: torch.Tensor
    position: torch.Tensor

    def repeat(self, kept: list[int], copies: int) -> "_Asked":
        rows = torch.tensor(kept, device=self.mask.device, dtype=torch.long).repeat_interleave(copies)
        return _Asked(self.mask[rows], self.logits[rows], self.position[rows])


class Generator:
    """A whole model ready to answer; `edge_draws` counts the draws that rounding could have changed."""

    def __init__(self, engine: Engine, tokenizer: PreTrainedTokenizerBase, decoding: Decoding) -> None:
        self.engine, self._decoding = engine, decoding
        model: Any = engine.model
        end = model.generation_config.eos_token_id if model.generation_config else None
        self._ending = Ending(tokenizer, end, decoding.stop)
        self._may_end = torch.tensor(self._ending.may_come_with(engine.reach.vocabulary), device=model.device)
        self.edge_draws = 0

    def __call__(self, ids: Sequence[str], prompts: Sequence[Prompt], layers: Sequence[int] = (), positions: Sequence[str] = ()) -> Reading:
        """Read the prompts once and answer them. `ids` name the questions in the draw."""
        reading = Reading(self.engine.no_states(len(prompts), layers, positions), [[] for _ in prompts], {})

        def work(rows: list[int], encoded: Encoded) -> None:
            captured, answers = self._batch([ids[i] for i in rows], encoded, layers, positions)
            place(reading.states, rows, captured, positions)
            for row, written in zip(rows, answers, strict=True):
                reading.answers[row] = written

        copies = 1 + self._decoding.samples
        reading.failed = self.engine.each(prompts, work, copies, self._decoding.max_new_tokens)
        return reading

    @torch.inference_mode()
    def _batch(
        self, ids: Sequence[str], encoded: Encoded, layers: Sequence[int], positions: Sequence[str]
    ) -> tuple[dict[int, torch.Tensor], list[list[Answer]]]:
        """The prompt pass over one batch, then its answers."""
        engine, spans = self.engine, self._spans()
        capture = Capture(engine.model, engine.depth, layers)
        inputs = engine.prefix.start(encoded, keeps=True)
        with engine.prefix.behind(encoded, encoded.positions), capture(pooling(encoded, positions)):
            output: Any = engine.model(**inputs, logits_to_keep=1)
        answers: list[list[Answer]] = [[] for _ in ids]
        asked = _Asked(inputs["attention_mask"], output.logits[:, -1], encoded.positions[:, -1:] + 1)
        for span in spans:
            goes_on = [i for i, row in enumerate(answers) if not (row and self._decoding.enough(row[1:]))]
            cache: Any = output.past_key_values if len(spans) == 1 else copy.deepcopy(output.past_key_values)
            if len(goes_on) < len(ids):
                cache.batch_select_indices(torch.tensor(goes_on, device=asked.mask.device, dtype=torch.long))
            written = self._write([ids[i] for i in goes_on], asked.repeat(goes_on, len(span)), cache, encoded, span) if goes_on else []
            for n, i in enumerate(goes_on):
                answers[i] += written[n * len(span) : (n + 1) * len(span)]
        return capture.states, answers

    def _write(self, ids: Sequence[str], asked: "_Asked", cache: Any, encoded: Encoded, span: range) -> list[Answer]:
        """Answers of the copies in `span` of each question, copies of a question together."""
        cache.batch_repeat_interleave(len(span))
        live = _Live(torch.arange(len(asked.mask), device=asked.mask.device), asked.mask, asked.logits)
        greedy = torch.tensor([c == 0 for c in span] * len(ids), device=asked.mask.device)
        numbers, position = self._numbers(ids, span), asked.position
        prefix, steps = self.engine.prefix, self._decoding.max_new_tokens
        said = np.zeros((len(live.rows), steps), np.int64)
        logprobs = np.zeros((len(live.rows), steps), np.float32)
        answers: list[Answer | None] = [None] * len(live.rows)
        for step in range(steps):
            tokens = self._next(live, numbers[live.rows, step], greedy[live.rows])
            at, logits = live.rows.cpu().numpy(), live.logits.float()
            said[at, step] = tokens.cpu().numpy()
            logprobs[at, step] = (logits.gather(-1, tokens[:, None])[:, 0] - logits.logsumexp(-1)).cpu().numpy()
            self.engine.tally.generated_tokens += len(at)
            last = step + 1 == steps
            for row in at if last else at[self._may_end[tokens].cpu().numpy()]:
                answers[row] = self._ending.close(said[row, : step + 1].tolist(), logprobs[row].tolist(), last)
            kept = torch.tensor([i for i, row in enumerate(at) if answers[row] is None], device=tokens.device, dtype=torch.long)
            if not len(kept):
                break
            if len(kept) < len(at):
                cache.batch_select_indices(kept)
                live, tokens = live.keep(kept), tokens[kept]
            mask = torch.cat([live.mask, live.mask.new_ones(len(kept), 1)], -1)
            here = position[live.rows] + step
            with prefix.behind(encoded, here):
                output: Any = self.engine.model(
                    input_ids=tokens[:, None], attention_mask=mask, position_ids=here, past_key_values=cache, use_cache=True
                )
            live = _Live(live.rows, mask, output.logits[:, -1])
        return [a for a in answers if a is not None]

    def _spans(self) -> list[range]:
        """Copies (0 is the greedy answer) written together, in order."""
        ends = list(itertools.accumulate(self._decoding.waves or (self._decoding.samples,), initial=1))
        return [range(0 if n == 0 else ends[n], end) for n, end in enumerate(ends[1:])]

    def _numbers(self, ids: Sequence[str], span: range) -> torch.Tensor:
        """Uniform numbers (rows, steps), question by question, copy by copy."""
        d = self._decoding
        numbers = np.concatenate([uniforms(d.seed, i, span.stop, d.max_new_tokens)[span.start :] for i in ids])
        return torch.from_numpy(numbers).to(self.engine.model.device)

    def _next(self, live: _Live, numbers: torch.Tensor, greedy: torch.Tensor) -> torch.Tensor:
        """Tokens of the live rows: those marked at the greedy temperature, the others at the sampling one."""
        tokens, d = torch.empty_like(live.rows), self._decoding
        for rows, temperature in ((greedy, d.greedy_temperature), (~greedy, d.temperature)):
            if not rows.any():
                continue
            if temperature == 0:
                tokens[rows] = live.logits[rows].argmax(-1)
            else:
                tokens[rows], near = draw(live.logits[rows].float(), numbers[rows], temperature)
                self.edge_draws += int(near.sum())
        return tokens
