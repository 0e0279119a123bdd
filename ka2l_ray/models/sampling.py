"""Sampling by inverse CDF from one uniform number per (seed, id, sample, step).

In: logits, and the names of the numbers. Out: tokens that do not depend on the batch, the order or the pool size,
except where a number is within `EDGE` of a boundary of the CDF, which `draw` reports.
Refuses to know: models, text.
"""

import hashlib
import math

import numpy as np
import torch

EDGE = 1e-5


def uniforms(seed: int, question_id: str, samples: int, steps: int) -> np.ndarray:
    """Uniform numbers (samples, steps) in [0, 1); each depends on (seed, id, sample, step) only, not on the shape asked
    for."""
    rows = []
    for sample in range(samples):
        digest = hashlib.blake2b(f"{seed}\x1f{question_id}\x1f{sample}".encode(), digest_size=16).digest()
        rows.append(np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "big"))).random(steps))
    return np.stack(rows)


def draw(logits: torch.Tensor, numbers: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens (B,) for logits (B, V) and uniform numbers (B,): the first token whose cumulative probability exceeds the
    number.

    Also which rows (B,) drew within `EDGE` of a boundary, where rounding may decide the token. Sums first over chunks
    of the vocabulary, then within the chunk that contains the number, so that (B, V) is read only once.
    """
    rows, vocabulary = logits.shape
    width = math.isqrt(vocabulary - 1) + 1
    p = torch.softmax(logits / temperature, -1)
    p = torch.nn.functional.pad(p, (0, width * -(-vocabulary // width) - vocabulary)).view(rows, -1, width)
    ends = p.sum(-1, dtype=torch.float64).cumsum(-1)
    wanted = numbers.to(ends).unsqueeze(-1) * ends[:, -1:]
    chunk = (ends <= wanted).sum(-1).clamp(max=ends.shape[-1] - 1)
    row = torch.arange(rows, device=logits.device)
    start = torch.where(chunk > 0, ends[row, chunk - 1], 0.0).unsqueeze(-1)
    cdf = torch.cat([start, start + p[row, chunk].double().cumsum(-1)], -1)
    below_end = torch.minimum(wanted, cdf[:, -1:].nextafter(torch.zeros_like(start)))  # the two sums round differently
    return chunk * width + (cdf[:, 1:] <= below_end).sum(-1), (cdf - wanted).abs().amin(-1) < EDGE
