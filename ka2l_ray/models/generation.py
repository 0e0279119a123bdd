"""One prompt pass gives hidden states and starts every answer of a question.

In: prompts and ids. Out: states, and per answer its text, log-probability and number of tokens. The prompt's KV cache
is repeated once per answer; an answer leaves the batch as soon as it ends at its stop string or end token.
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
from ka2l_ray.models.answers import Answer, Decoding, GenerationResult, StopCriteria
from ka2l_ray.models.engine import Engine, pooling, store_states
from ka2l_ray.models.prefix import select_rows
from ka2l_ray.models.sampling import draw, uniforms
from ka2l_ray.text.prompts import Prompt


@dataclass(frozen=True)
class _ActiveRows:
    """The R answers of a batch that have not ended: their row numbers on the device and, so that no step has to ask it,
    on the host; which of the R are drawn at the greedy temperature and which at the other; the attention mask (R, T);
    the last logits (R, V)."""

    host_rows: np.ndarray
    rows: torch.Tensor
    greedy: torch.Tensor
    sampled: torch.Tensor
    mask: torch.Tensor
    logits: torch.Tensor

    @classmethod
    def of(
        cls, host_rows: np.ndarray, is_greedy: np.ndarray, mask: torch.Tensor, logits: torch.Tensor
    ) -> "_ActiveRows":
        """`is_greedy` covers all rows, also those that have ended."""
        indices = (host_rows, np.flatnonzero(is_greedy[host_rows]), np.flatnonzero(~is_greedy[host_rows]))
        rows, greedy, sampled = (torch.from_numpy(i).to(mask.device) for i in indices)
        return cls(host_rows, rows, greedy, sampled, mask, logits)


@dataclass(frozen=True)
class _Prefilled:
    """A batch after its prompt pass: attention mask (B, T), last logits (B, V), and the position (B, 1) of each
    answer's first token."""

    mask: torch.Tensor
    logits: torch.Tensor
    position: torch.Tensor

    def repeat(self, rows: list[int], copies: int) -> "_Prefilled":
        """Some of the rows, each `copies` times."""
        index = torch.tensor(rows, device=self.mask.device, dtype=torch.long).repeat_interleave(copies)
        return _Prefilled(self.mask[index], self.logits[index], self.position[index])


class Generator:
    """A whole model that answers prompts. Its engine's tally counts the draws that rounding could have changed.

    In float32 no other draw depends on the batch. In bfloat16 and float16 a matrix product may round differently in a
    batch of another shape, by more than `sampling.EDGE`: answers are still exact samples of the model, but in another
    batch they may be different ones.
    """

    def __init__(self, engine: Engine, tokenizer: PreTrainedTokenizerBase, decoding: Decoding) -> None:
        self.engine, self.tally, self._decoding = engine, engine.tally, decoding
        model: Any = engine.model
        eos_token_id = model.generation_config.eos_token_id if model.generation_config else None
        self._stop = StopCriteria(tokenizer, eos_token_id, decoding.stop)
        may_end = self._stop.possible_last_tokens(engine.prompt_limits.vocabulary)
        self._may_end = torch.tensor(may_end, device=model.device)

    def __call__(
        self, ids: Sequence[str], prompts: Sequence[Prompt], layers: Sequence[int] = (), positions: Sequence[str] = ()
    ) -> GenerationResult:
        """Read each prompt once and answer it. `ids` name the questions in the draw. Raises what
        `Engine.for_each_batch` raises."""
        result = GenerationResult(self.engine.zero_states(len(prompts), layers, positions), [[] for _ in prompts])

        def work(rows: list[int], encoded: Encoded) -> None:
            captured, answers = self._run_batch([ids[i] for i in rows], encoded, layers, positions)
            store_states(result.states, rows, captured, positions)
            for row, generated in zip(rows, answers, strict=True):
                result.answers[row] = generated

        copies = 1 + self._decoding.samples
        result.failed = self.engine.for_each_batch(prompts, work, copies, self._decoding.max_new_tokens)
        return result

    @torch.inference_mode()
    def _run_batch(
        self, ids: Sequence[str], encoded: Encoded, layers: Sequence[int], positions: Sequence[str]
    ) -> tuple[dict[int, torch.Tensor], list[list[Answer]]]:
        """The prompt pass over one batch, then its answers."""
        engine, waves = self.engine, self._waves()
        capture = Capture(engine.model, engine.depth, layers)
        inputs = engine.prefix.first_inputs(encoded, self._decoding.max_new_tokens)
        with engine.prefix.attached(encoded, encoded.positions), capture(pooling(encoded, positions)):
            output: Any = engine.model(**inputs, logits_to_keep=1)
        answers: list[list[Answer]] = [[] for _ in ids]
        prefilled = _Prefilled(inputs["attention_mask"], output.logits[:, -1], encoded.positions[:, -1:] + 1)
        for wave in waves:
            rows = [i for i, row in enumerate(answers) if not (row and self._decoding.enough(row[1:]))]
            if not rows:
                break
            cache: Any = output.past_key_values if wave is waves[-1] else copy.deepcopy(output.past_key_values)
            if len(rows) < len(ids):
                select_rows(cache, torch.tensor(rows, device=prefilled.mask.device))
            generated = self._generate([ids[i] for i in rows], prefilled.repeat(rows, len(wave)), cache, encoded, wave)
            for n, i in enumerate(rows):
                answers[i] += generated[n * len(wave) : (n + 1) * len(wave)]
        return capture.states, answers

    def _generate(
        self, ids: Sequence[str], prefilled: _Prefilled, cache: Any, encoded: Encoded, wave: range
    ) -> list[Answer]:
        """Answers number `wave` of each question, those of a question together. A step waits for the device once."""
        cache.batch_repeat_interleave(len(wave))
        rows, steps = len(ids) * len(wave), self._decoding.max_new_tokens
        is_greedy = np.array([n == 0 for n in wave] * len(ids))
        active = _ActiveRows.of(np.arange(rows), is_greedy, prefilled.mask, prefilled.logits)
        numbers = self._uniforms(ids, wave)
        edges = torch.zeros((), dtype=torch.long, device=prefilled.mask.device)
        generated, logprobs = np.zeros((rows, steps), np.int64), np.zeros((rows, steps))
        answers: list[Answer | None] = [None] * rows
        for step in range(steps):
            tokens, near_edge = self._next_tokens(active, numbers[active.rows, step])
            edges += near_edge
            host_rows, at_limit = active.host_rows, step + 1 == steps
            generated[host_rows, step], logprobs[host_rows, step], may_end = self._to_host(active, tokens)
            self.tally.generated_tokens += len(host_rows)
            for row in host_rows if at_limit else host_rows[may_end]:
                so_far = generated[row, : step + 1].tolist()
                answers[row] = self._stop.finish(so_far, logprobs[row].tolist(), at_limit)
            kept = np.array([i for i, row in enumerate(host_rows) if answers[row] is None], np.int64)
            if not len(kept):
                break
            if len(kept) < len(host_rows):
                index = torch.from_numpy(kept).to(tokens.device)
                select_rows(cache, index)
                active = _ActiveRows.of(host_rows[kept], is_greedy, active.mask[index], active.logits)
                tokens = tokens[index]
            mask = torch.cat([active.mask, active.mask.new_ones(len(kept), 1)], -1)
            positions = prefilled.position[active.rows] + step
            with self.engine.prefix.attached(encoded, positions, step + 1):
                output: Any = self.engine.model(
                    input_ids=tokens[:, None],
                    attention_mask=mask,
                    position_ids=positions,
                    past_key_values=cache,
                    use_cache=True,
                )
            active = replace(active, mask=mask, logits=output.logits[:, -1])
        self.tally.edge_draws += int(edges)
        return [a for a in answers if a is not None]

    def _to_host(self, active: _ActiveRows, tokens: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The new tokens (R,), their log-probabilities in nats at T = 1, and whether an answer may end with them."""
        logits = active.logits.float()
        logprobs = logits.gather(-1, tokens[:, None])[:, 0] - logits.logsumexp(-1)
        stacked = torch.stack([tokens.double(), logprobs.double(), self._may_end[tokens].double()])
        host_tokens, nats, may_end = stacked.cpu().numpy()
        return host_tokens.astype(np.int64), nats, may_end > 0

    def _waves(self) -> list[range]:
        """Numbers of the answers generated together, in order; 0 is the greedy answer."""
        first, *later = self._decoding.waves or (self._decoding.samples,)
        ends = itertools.accumulate([1 + first, *later], initial=0)  # the greedy answer comes with the first samples
        return [range(start, end) for start, end in itertools.pairwise(ends)]

    def _uniforms(self, ids: Sequence[str], wave: range) -> torch.Tensor:
        """Uniform numbers (rows, steps), question by question, answer by answer."""
        d = self._decoding
        numbers = np.concatenate([uniforms(d.seed, i, wave.stop, d.max_new_tokens)[wave.start :] for i in ids])
        return torch.from_numpy(numbers).to(self.engine.model.device)

    def _next_tokens(self, active: _ActiveRows, numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The next token (R,) of each answer at its own temperature, and how many draws were near an edge, still on the
        device."""
        tokens = torch.empty_like(active.rows)
        near_edge = torch.zeros((), dtype=torch.long, device=active.rows.device)
        temperatures = (active.greedy, self._decoding.greedy_temperature), (active.sampled, self._decoding.temperature)
        for rows, temperature in temperatures:
            if len(rows) and temperature == 0:
                tokens[rows] = active.logits[rows].argmax(-1)
            elif len(rows):
                tokens[rows], near = draw(active.logits[rows].float(), numbers[rows], temperature)
                near_edge = near_edge + near.sum()
        return tokens, near_edge
