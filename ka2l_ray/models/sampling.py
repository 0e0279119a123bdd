"""Sampling by inverse CDF from one uniform number per (seed, id, sample, step).

In: probabilities and the numbers' names. Out: tokens that no batch composition, order or pool size can change,
except where a number lies within `EDGE` of a boundary of the CDF, which `draw` reports.
Refuses to know: models, text.
"""

import hashlib

import numpy as np
import torch

EDGE = 1e-5


def uniforms(seed: int, question_id: str, samples: int, steps: int) -> np.ndarray:
    """Uniform numbers (samples, steps) in [0, 1); a number depends only on (seed, id, sample, step), not on the shape asked for."""
    rows = []
    for sample in range(samples):
        digest = hashlib.blake2b(f"{seed}\x1f{question_id}\x1f{sample}".encode(), digest_size=16).digest()
        rows.append(np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "big"))).random(steps))
    return np.stack(rows)


def draw(logits: torch.Tensor, numbers: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens (B,) for logits (B, V) and uniform numbers (B,): the first token whose cumulative probability exceeds the number.

    Also which rows (B,) drew within `EDGE` of a boundary, where rounding may decide the token.
    """
    cdf = torch.softmax(logits.double() / temperature, -1).cumsum(-1)
    cdf = cdf / cdf[:, -1:]
    numbers = numbers.to(cdf).unsqueeze(-1)
    tokens = (cdf <= numbers).sum(-1).clamp(max=logits.shape[-1] - 1)
    return tokens, (cdf - numbers).abs().amin(-1) < EDGE
