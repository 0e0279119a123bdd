"""One prompt pass gives hidden states and starts every answer of a question.

In: encoded prompts and ids. Out: states, and per answer its text, log-probability and token count.
The prompt's key/value cache is repeated once per answer; each answer stops at its own stop string or end token.
Refuses to know: tables, Ray, what answers mean.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import CausalLMOutputWithPast

from ka2l_ray.models.activations import Capture, Encoded, pool_states, position_ids
from ka2l_ray.models.sampling import draw, uniforms
from ka2l_ray.models.tokens import text_of


@dataclass(frozen=True)
class Answer:
    """`logprob` in nats at T = 1, summed over `tokens`: up to and including the end token or the stop string's first token."""

    text: str
    logprob: float
    tokens: int


@dataclass(frozen=True)
class Decoding:
    """How answers are drawn. A temperature of 0 is argmax."""

    seed: int
    samples: int
    temperature: float
    greedy_temperature: float
    max_new_tokens: int
    stop: tuple[str, ...]


@dataclass
class _Row:
    """One answer being written."""

    tokens: list[int]
    logprobs: list[float]
    text: str | None = None
    counted: int = 0


class Generator:
    """A model ready to answer; `edge_draws` counts the draws that rounding could have changed."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, decoding: Decoding) -> None:
        self._model, self._tokenizer, self._decoding = model, tokenizer, decoding
        end = model.generation_config.eos_token_id if model.generation_config else None
        ends = end if isinstance(end, list) else [end]
        self._ends = {e for e in [*ends, tokenizer.eos_token_id] if e is not None}
        self.edge_draws = 0

    @torch.inference_mode()
    def __call__(
        self, ids: Sequence[str], encoded: Encoded, layers: Sequence[int] = (), positions: Sequence[str] = ()
    ) -> tuple[dict[tuple[str, int], np.ndarray], list[list[Answer]]]:
        """States (B, D) per (position, layer), and 1 + K answers per question: the greedy one first.

        Raises `ValueError` for a prompt that leaves no room for an answer.
        """
        self._check_room(encoded)
        prompt = encoded.to(self._model.device)
        capture = Capture(self._model, self._model.config.num_hidden_layers, layers)
        with capture():
            output = self._model(**prompt.inputs(), use_cache=True, logits_to_keep=1)
        states = {(p, n): pool_states(capture.streams[n], p, prompt.own).cpu().numpy() for p in positions for n in layers}
        return states, self._answers(ids, output, prompt.mask)

    def _check_room(self, encoded: Encoded) -> None:
        room = self._model.config.max_position_embeddings
        longest = int(encoded.mask.sum(-1).max())
        if longest + self._decoding.max_new_tokens > room:
            raise ValueError(f"prompt of {longest} tokens + {self._decoding.max_new_tokens} new ones exceed the model's context of {room}")

    def _answers(self, ids: Sequence[str], output: CausalLMOutputWithPast, mask: torch.Tensor) -> list[list[Answer]]:
        copies, d = 1 + self._decoding.samples, self._decoding
        numbers = np.stack([self._numbers(i) for i in ids]).reshape(-1, d.max_new_tokens)
        cache: Any = output.past_key_values
        cache.batch_repeat_interleave(copies)
        last: Any = output.logits
        logits = last[:, -1].repeat_interleave(copies, 0)
        mask = mask.repeat_interleave(copies, 0)
        rows = [_Row([], []) for _ in range(len(ids) * copies)]
        live = torch.arange(len(rows), device=mask.device)
        for step in range(d.max_new_tokens):
            tokens = self._next(logits.float(), live, torch.as_tensor(numbers[:, step]), copies)
            logprobs = torch.log_softmax(logits.float(), -1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
            going = self._append(rows, live.tolist(), tokens.tolist(), logprobs.tolist())
            if not any(going) or step + 1 == d.max_new_tokens:
                break
            keep = torch.tensor([i for i, on in enumerate(going) if on], device=mask.device)
            if len(keep) < len(live):
                cache.batch_select_indices(keep)
            live, mask = live[keep], torch.cat([mask[keep], torch.ones(len(keep), 1, dtype=mask.dtype, device=mask.device)], -1)
            position = position_ids(mask)[:, -1:]
            logits = self._model(
                input_ids=tokens[keep].unsqueeze(-1), attention_mask=mask, position_ids=position, past_key_values=cache, use_cache=True
            ).logits[:, -1]
        answers = [self._close(row) for row in rows]
        return [answers[i : i + copies] for i in range(0, len(answers), copies)]

    def _numbers(self, question_id: str) -> np.ndarray:
        return uniforms(self._decoding.seed, question_id, 1 + self._decoding.samples, self._decoding.max_new_tokens)

    def _next(self, logits: torch.Tensor, live: torch.Tensor, numbers: torch.Tensor, copies: int) -> torch.Tensor:
        """Tokens of the live rows: copy 0 of each question at the greedy temperature, the others at the sampling one."""
        tokens, numbers = torch.empty_like(live), numbers.to(live.device)[live]
        for rows, temperature in (
            (live % copies == 0, self._decoding.greedy_temperature),
            (live % copies != 0, self._decoding.temperature),
        ):
            if not rows.any():
                continue
            if temperature == 0:
                tokens[rows] = logits[rows].argmax(-1)
            else:
                tokens[rows], near = draw(logits[rows], numbers[rows], temperature)
                self.edge_draws += int(near.sum())
        return tokens

    def _append(self, rows: list[_Row], live: list[int], tokens: list[int], logprobs: list[float]) -> list[bool]:
        """Add one token to each live row; says which of them go on."""
        for index, token, logprob in zip(live, tokens, logprobs, strict=True):
            rows[index].tokens.append(token)
            rows[index].logprobs.append(logprob)
        texts = self._tokenizer.batch_decode([rows[i].tokens for i in live], skip_special_tokens=True)
        return [self._goes_on(rows[i], text) for i, text in zip(live, texts, strict=True)]

    def _goes_on(self, row: _Row, text: str) -> bool:
        if row.tokens[-1] in self._ends:
            row.text, row.counted = text, len(row.tokens)
            return False
        cuts = [at for s in self._decoding.stop if (at := text.find(s)) >= 0]
        if not cuts:
            return True
        row.text, row.counted = text[: min(cuts)], self._tokens_before(row.tokens, min(cuts)) + 1
        return False

    def _tokens_before(self, tokens: list[int], characters: int) -> int:
        """How many leading tokens lie wholly before a character offset of the decoded text."""
        return max(n for n in range(len(tokens)) if len(self._tokenizer.decode(tokens[:n], skip_special_tokens=True)) <= characters)

    def _close(self, row: _Row) -> Answer:
        text = text_of(self._tokenizer, row.tokens) if row.text is None else row.text
        counted = row.counted or len(row.tokens)
        return Answer(text.strip(), float(sum(row.logprobs[:counted])), counted)
