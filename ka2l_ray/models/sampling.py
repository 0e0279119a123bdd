"""Sampling by inverse CDF from one uniform number per (seed, id, sample, step), of all tokens or the most probable.

In: logits, and the names of the numbers. Out: tokens that do not depend on the batch, the order or the pool size,
except where rounding may decide, within `EDGE` of a boundary of the CDF or of the tokens that are kept, which `draw`
reports.
Refuses to know: models, text.
"""

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import torch

EDGE = 1e-5
HEAD = 256
"""Tokens whose mass is summed first on a CPU; mostly they hold `top_p`, and sorting whole vocabularies is slow."""


@dataclass(frozen=True)
class Sampling:
    """Which tokens a draw may give, and how likely. At a temperature of 0 it is the most probable one.

    Of the probabilities at this temperature, in this order: tokens below `min_p` times the highest are dropped (Minh et
    al., 2024), then all but the `top_k` most probable, then all but the fewest that hold `top_p` of the rest's mass
    (Holtzman et al., 2020). Tokens as probable as the last one kept are kept too.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0

    @property
    def keeps_all(self) -> bool:
        """Whether every token may be drawn."""
        return self.top_k is None and self.top_p == 1 and self.min_p == 0


def uniforms(seed: int, question_id: str, samples: int, steps: int) -> np.ndarray:
    """Uniform numbers (samples, steps) in [0, 1); each depends on (seed, id, sample, step) only, not on the shape asked
    for."""
    names = [f"{seed}\x1f{question_id}\x1f{sample}".encode() for sample in range(samples)]
    keys = [int.from_bytes(hashlib.blake2b(name, digest_size=16).digest(), "big") for name in names]
    return np.stack([np.random.Generator(np.random.Philox(key=key)).random(steps) for key in keys])


def draw(logits: torch.Tensor, numbers: torch.Tensor, sampling: Sampling) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens (B,) for logits (B, V) and uniform numbers (B,): the first token that may be drawn whose cumulative
    probability exceeds the number.

    Also which rows (B,) drew within `EDGE` of a boundary, where rounding may decide the token. Sums first over chunks
    of the vocabulary, then within the chunk that contains the number, so that (B, V) is read only once.
    """
    rows, vocabulary = logits.shape
    width = math.isqrt(vocabulary - 1) + 1
    p = torch.softmax(logits / sampling.temperature, -1)
    p, near_cut = (p, False) if sampling.keeps_all else _most_probable(p, sampling)
    p = torch.nn.functional.pad(p, (0, width * -(-vocabulary // width) - vocabulary)).view(rows, -1, width)
    ends = p.sum(-1, dtype=torch.float64).cumsum(-1)
    wanted = numbers.to(ends).unsqueeze(-1) * ends[:, -1:]
    chunk = (ends <= wanted).sum(-1).clamp(max=ends.shape[-1] - 1)
    row = torch.arange(rows, device=logits.device)
    start = torch.where(chunk > 0, ends[row, chunk - 1], 0.0).unsqueeze(-1)
    cdf = torch.cat([start, start + p[row, chunk].double().cumsum(-1)], -1)
    below_end = torch.minimum(wanted, cdf[:, -1:].nextafter(torch.zeros_like(start)))  # the two sums round differently
    return chunk * width + (cdf[:, 1:] <= below_end).sum(-1), ((cdf - wanted).abs().amin(-1) < EDGE) | near_cut


def _most_probable(p: torch.Tensor, sampling: Sampling) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities (B, V), 0 where a token is dropped and otherwise scaled to sum to 1; and which rows (B,) keep
    tokens that rounding might have dropped, or the reverse."""
    highest = p.amax(-1, keepdim=True)
    lowest = sampling.min_p * highest  # (B, 1): tokens below are dropped
    near = torch.zeros_like(lowest, dtype=torch.bool)
    if sampling.min_p:
        near = (((p - lowest).abs() < EDGE * lowest) & (p < highest)).any(-1, keepdim=True)
    if sampling.top_k is not None and sampling.top_k < p.shape[-1]:
        last, next_one = p.topk(sampling.top_k + 1).values[:, -2:].split(1, -1)
        near |= (last > lowest) & (last - next_one < EDGE * highest)
        lowest = torch.maximum(lowest, last)
    if sampling.top_p < 1:
        kept = torch.where(p >= lowest, p, 0.0)
        last, near_mass = _last_of_mass(kept, sampling.top_p)
        near, lowest = near | near_mass, torch.maximum(lowest, last)
    kept = torch.where(p >= lowest, p, 0.0)
    return kept / kept.sum(-1, keepdim=True), near[:, 0]


def _last_of_mass(p: torch.Tensor, share: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The probability (B, 1) of the last of the fewest tokens that hold `share` of the mass of p (B, V), and the rows
    (B, 1) where rounding may decide which one that is."""
    wanted = share * p.sum(-1, keepdim=True, dtype=torch.float64)
    head = min(HEAD, p.shape[-1]) if p.device.type == "cpu" else p.shape[-1]  # asking a GPU means waiting for it
    while True:
        sorted_p = p.topk(head).values
        mass = sorted_p.cumsum(-1, dtype=torch.float64)
        if head == p.shape[-1] or bool((mass[:, -1:] >= wanted).all()):
            break
        head = min(8 * head, p.shape[-1])
    count = (mass < wanted).sum(-1, keepdim=True).clamp(max=head - 1)
    return sorted_p.gather(-1, count), ((mass - wanted).abs() < EDGE).any(-1, keepdim=True)
