"""One prompt pass gives hidden states and starts every answer of a question.

In: prompts and ids. Out: states, and per answer its text, log-probability and token count.
The prompt's key/value cache is repeated once per answer; each answer stops at its own stop string or end token, and then leaves
the batch.
Refuses to know: tables, Ray, what answers mean.
"""

import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ka2l_ray.models.activations import Capture, Encoded
from ka2l_ray.models.answers import Answer, Decoding, Ending, Reading
from ka2l_ray.models.engine import Engine, place, pooling
from ka2l_ray.models.prefix import select_rows
from ka2l_ray.models.sampling import draw, uniforms
from ka2l_ray.text.prompts import Prompt


@dataclass(frozen=True)
class _Live:
    """The answers of one batch that are still being written: their rows, those of them at the greedy temperature and the others (numbers
    within the R live ones), the mask (R, T) of what they have read, the last logits (R, V). `at` are the rows again, on the host, so that
    no step has to ask the device for them."""

    at: np.ndarray
    rows: torch.Tensor
    greedy: torch.Tensor
    drawn: torch.Tensor
    mask: torch.Tensor
    logits: torch.Tensor

    @classmethod
    def of(cls, at: np.ndarray, is_greedy: np.ndarray, mask: torch.Tensor, logits: torch.Tensor) -> "_Live":
        """`is_greedy` (all rows) says which rows are at the greedy temperature."""
        groups = (at, np.flatnonzero(is_greedy[at]), np.flatnonzero(~is_greedy[at]))
        rows, greedy, drawn = (torch.from_numpy(g).to(mask.device) for g in groups)
        return cls(at, rows, greedy, drawn, mask, logits)


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
    """A whole model ready to answer. Its engine's tally counts the draws that rounding could have changed.

    In float32 no other draw depends on the batch. In bfloat16 and float16 a matrix product may round otherwise in a batch of another shape,
    by more than `sampling.EDGE`: answers are then exact samples of the model still, but another batch may draw others.
    """

    def __init__(self, engine: Engine, tokenizer: PreTrainedTokenizerBase, decoding: Decoding) -> None:
        self.engine, self._decoding = engine, decoding
        model: Any = engine.model
        end = model.generation_config.eos_token_id if model.generation_config else None
        self._ending = Ending(tokenizer, end, decoding.stop)
        self._may_end = torch.tensor(self._ending.may_come_with(engine.reach.vocabulary), device=model.device)
        self.tally = engine.tally

    def __call__(
        self, ids: Sequence[str], prompts: Sequence[Prompt], layers: Sequence[int] = (), positions: Sequence[str] = ()
    ) -> Reading:
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
        inputs = engine.prefix.start(encoded, self._decoding.max_new_tokens)
        with engine.prefix.behind(encoded, encoded.positions), capture(pooling(encoded, positions)):
            output: Any = engine.model(**inputs, logits_to_keep=1)
        answers: list[list[Answer]] = [[] for _ in ids]
        asked = _Asked(inputs["attention_mask"], output.logits[:, -1], encoded.positions[:, -1:] + 1)
        for span in spans:
            goes_on = [i for i, row in enumerate(answers) if not (row and self._decoding.enough(row[1:]))]
            if not goes_on:
                break
            cache: Any = output.past_key_values if span is spans[-1] else copy.deepcopy(output.past_key_values)
            if len(goes_on) < len(ids):
                select_rows(cache, torch.tensor(goes_on, device=asked.mask.device))
            written = self._write([ids[i] for i in goes_on], asked.repeat(goes_on, len(span)), cache, encoded, span)
            for n, i in enumerate(goes_on):
                answers[i] += written[n * len(span) : (n + 1) * len(span)]
        return capture.states, answers

    def _write(self, ids: Sequence[str], asked: "_Asked", cache: Any, encoded: Encoded, span: range) -> list[Answer]:
        """Answers of the copies in `span` of each question, copies of a question together. A step waits for the device once."""
        cache.batch_repeat_interleave(len(span))
        rows, steps = len(ids) * len(span), self._decoding.max_new_tokens
        is_greedy = np.array([c == 0 for c in span] * len(ids))
        live = _Live.of(np.arange(rows), is_greedy, asked.mask, asked.logits)
        numbers = self._numbers(ids, span)
        edges = torch.zeros((), dtype=torch.long, device=asked.mask.device)
        said, logprobs = np.zeros((rows, steps), np.int64), np.zeros((rows, steps))
        answers: list[Answer | None] = [None] * rows
        for step in range(steps):
            tokens, near = self._next(live, numbers[live.rows, step])
            edges += near
            at, last = live.at, step + 1 == steps
            said[at, step], logprobs[at, step], may_end = self._look(live, tokens)
            self.tally.generated_tokens += len(at)
            for row in at if last else at[may_end]:
                answers[row] = self._ending.close(said[row, : step + 1].tolist(), logprobs[row].tolist(), last)
            kept = np.array([i for i, row in enumerate(at) if answers[row] is None], np.int64)
            if not len(kept):
                break
            if len(kept) < len(at):
                stay = torch.from_numpy(kept).to(tokens.device)
                select_rows(cache, stay)
                live, tokens = _Live.of(at[kept], is_greedy, live.mask[stay], live.logits), tokens[stay]
            mask = torch.cat([live.mask, live.mask.new_ones(len(kept), 1)], -1)
            here = asked.position[live.rows] + step
            with self.engine.prefix.behind(encoded, here, step + 1):
                output: Any = self.engine.model(
                    input_ids=tokens[:, None],
                    attention_mask=mask,
                    position_ids=here,
                    past_key_values=cache,
                    use_cache=True,
                )
            live = replace(live, mask=mask, logits=output.logits[:, -1])
        self.tally.edge_draws += int(edges)
        return [a for a in answers if a is not None]

    def _look(self, live: _Live, tokens: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of the tokens said: which, their log-probabilities in nats at T = 1, and whether an answer may end with them."""
        logits = live.logits.float()
        logprobs = logits.gather(-1, tokens[:, None])[:, 0] - logits.logsumexp(-1)
        said, nats, may_end = (
            torch.stack([tokens.double(), logprobs.double(), self._may_end[tokens].double()]).cpu().numpy()
        )
        return said.astype(np.int64), nats, may_end > 0

    def _spans(self) -> list[range]:
        """Copies (0 is the greedy answer) written together, in order."""
        ends = list(itertools.accumulate(self._decoding.waves or (self._decoding.samples,), initial=1))
        return [range(0 if n == 0 else ends[n], end) for n, end in enumerate(ends[1:])]

    def _numbers(self, ids: Sequence[str], span: range) -> torch.Tensor:
        """Uniform numbers (rows, steps), question by question, copy by copy."""
        d = self._decoding
        numbers = np.concatenate([uniforms(d.seed, i, span.stop, d.max_new_tokens)[span.start :] for i in ids])
        return torch.from_numpy(numbers).to(self.engine.model.device)

    def _next(self, live: _Live, numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens of the live rows, each at its own temperature, and how many draws were near an edge, still on the device."""
        tokens, near, d = (
            torch.empty_like(live.rows),
            torch.zeros((), dtype=torch.long, device=live.rows.device),
            self._decoding,
        )
        for rows, temperature in ((live.greedy, d.greedy_temperature), (live.drawn, d.temperature)):
            if not len(rows):
                continue
            if temperature == 0:
                tokens[rows] = live.logits[rows].argmax(-1)
            else:
                tokens[rows], edges = draw(live.logits[rows].float(), numbers[rows], temperature)
                near = near + edges.sum()
        return tokens, near
