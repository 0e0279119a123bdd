"""One prompt pass gives hidden states and starts every answer of a question.

In: prompts and ids. Out: states, and per answer its text, log-probability and number of tokens. The prompt's KV cache
is repeated once per answer, where the model allows it; an answer leaves the batch as soon as it ends at its stop string
or end token.
Refuses to know: tables, Ray, what answers mean.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ka2l_ray.models.activations import Encoded, capture
from ka2l_ray.models.answers import Answer, Decoding, GenerationResult, StopCriteria
from ka2l_ray.models.continuing import Continuation, PromptsReadAgain, RepeatedCache, TextsReadAgain
from ka2l_ray.models.engine import Engine
from ka2l_ray.models.sampling import Sampling, draw, uniforms
from ka2l_ray.text.prompts import Prompt


@dataclass(frozen=True)
class _ActiveRows:
    """The R answers of a batch that have not ended: their row numbers on the device and, so that no step has to ask it,
    on the host; how, and which of the R are drawn so; the attention mask (R, T); the last logits (R, V)."""

    host_rows: np.ndarray
    rows: torch.Tensor
    by_sampling: list[tuple[Sampling, torch.Tensor]]
    mask: torch.Tensor
    logits: torch.Tensor

    @classmethod
    def of(
        cls, host_rows: np.ndarray, samplings: Sequence[Sampling], mask: torch.Tensor, logits: torch.Tensor
    ) -> "_ActiveRows":
        """`samplings` are those of all rows, also of those that have ended."""
        drawn_so: dict[Sampling, list[int]] = {}
        for n, row in enumerate(host_rows):
            drawn_so.setdefault(samplings[row], []).append(n)
        on_device = [(how, torch.tensor(rows, device=mask.device)) for how, rows in drawn_so.items()]
        return cls(host_rows, torch.from_numpy(host_rows).to(mask.device), on_device, mask, logits)


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
        self._stop = StopCriteria(tokenizer, eos_token_id, decoding.stop, decoding.thinks)
        vocabulary = engine.prompt_limits.vocabulary
        self._may_end = torch.tensor(self._stop.possible_last_tokens(vocabulary), device=model.device)

    def __call__(
        self, ids: Sequence[str], prompts: Sequence[Prompt], layers: Sequence[int] = (), positions: Sequence[str] = ()
    ) -> GenerationResult:
        """Read each prompt once and answer it. `ids` name the questions in the draw. Raises what
        `Engine.for_each_batch` raises."""
        answers: list[list[Answer]] = [[] for _ in prompts]

        def work(rows: list[int], encoded: Encoded) -> Mapping[tuple[str, int], torch.Tensor]:
            captured, generated = self._run_batch([ids[i] for i in rows], encoded, layers, positions)
            for row, of_row in zip(rows, generated, strict=True):
                answers[row] = of_row
            return captured

        copies, steps = 1 + self._decoding.samples, self._decoding.max_new_tokens
        states, failed = self.engine.for_each_batch(prompts, work, layers, positions, copies, steps)
        return GenerationResult(states, answers, failed)

    @torch.inference_mode()
    def _run_batch(
        self, ids: Sequence[str], encoded: Encoded, layers: Sequence[int], positions: Sequence[str]
    ) -> tuple[dict[tuple[str, int], torch.Tensor], list[list[Answer]]]:
        """The prompt pass over one batch: its states by position and layer, and its answers."""
        engine, waves = self.engine, self._waves()
        inputs = engine.prefix.first_inputs(encoded, self._decoding.max_new_tokens)
        attached = engine.prefix.attached(encoded, encoded.positions)
        with attached, capture(engine.model, engine.depth, encoded, layers, positions) as states:
            output: Any = engine.forward(**inputs, logits_to_keep=1)
        answers: list[list[Answer]] = [[] for _ in ids]
        prefilled = _Prefilled(inputs["attention_mask"], output.logits[:, -1], encoded.positions[:, -1:] + 1)
        for wave in waves:
            rows = [i for i, row in enumerate(answers) if not (row and self._decoding.enough(row[1:]))]
            if not rows:
                break
            following = self._following(output, inputs, rows, len(wave), reuse=wave is waves[-1])
            repeated = prefilled.repeat(rows, len(wave))
            generated = self._generate([ids[i] for i in rows], repeated, following, encoded, wave)
            for n, i in enumerate(rows):
                answers[i] += generated[n * len(wave) : (n + 1) * len(wave)]
        return states, answers

    def _following(
        self, output: Any, inputs: Mapping[str, Any], rows: Sequence[int], copies: int, reuse: bool
    ) -> Continuation:
        """How the answers of some rows go on after the prompt pass; `reuse`: it is not needed again."""
        forward, index = self.engine.forward, torch.tensor(rows, device=inputs["input_ids"].device)
        match self.engine.abilities.answers:
            case "repeated":
                return RepeatedCache(forward, output, index, copies, reuse)
            case "per copy":
                return PromptsReadAgain(forward, inputs, index, copies)
            case "no cache":
                return TextsReadAgain(forward, inputs, index, copies)

    def _generate(
        self, ids: Sequence[str], prefilled: _Prefilled, following: Continuation, encoded: Encoded, wave: range
    ) -> list[Answer]:
        """Answers number `wave` of each question, those of a question together. A step waits for the device once."""
        rows, steps, (greedy, sample) = len(ids) * len(wave), self._decoding.max_new_tokens, self._decoding.draws
        samplings = [sample if n else greedy for n in wave] * len(ids)
        active = _ActiveRows.of(np.arange(rows), samplings, prefilled.mask, prefilled.logits)
        numbers = self._uniforms(ids, wave)
        edges = torch.zeros((), dtype=torch.long, device=prefilled.mask.device)
        generated, logprobs = np.zeros((rows, steps), np.int64), np.zeros((rows, steps))
        answers: list[Answer | None] = [None] * rows
        for step in range(steps):
            tokens, near_edge = self._next_tokens(active, numbers[active.rows, step])
            edges += near_edge.sum()
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
                following.select(index)
                active = _ActiveRows.of(host_rows[kept], samplings, active.mask[index], active.logits)
                tokens = tokens[index]
            mask = torch.cat([active.mask, active.mask.new_ones(len(kept), 1)], -1)
            positions = prefilled.position[active.rows] + step
            with self.engine.prefix.attached(encoded, positions, step + 1):
                seen = mask if self.engine.abilities.step_mask else mask[:, -1:]
                logits = following.step(tokens, seen, positions)
            active = replace(active, mask=mask, logits=logits)
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
        """The next token (R,) of each answer, drawn in its own way, and which draws (R,) were near an edge."""
        tokens, near_edge = torch.empty_like(active.rows), torch.zeros_like(active.rows, dtype=torch.bool)
        for sampling, rows in active.by_sampling:
            if sampling.temperature == 0:
                tokens[rows] = active.logits[rows].argmax(-1)
            else:
                tokens[rows], near_edge[rows] = draw(active.logits[rows].float(), numbers[rows], sampling)
        return tokens, near_edge
