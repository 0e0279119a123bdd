"""How well a decoder recovers a question from its own state.

In: decoded and true questions. Out: exact match, token accuracy, BLEU, token F1. Refuses to know: decoders, tables.
Source: KA2L, stage 2, for the choice of metrics; BLEU by sacrebleu.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sacrebleu.metrics.bleu import BLEU

from ka2l_ray.text.normal import normalize


@dataclass(frozen=True)
class Reconstruction:
    """`token_accuracy` is the share of the true question's words that were decoded in the same place, without teacher
    forcing; `bleu` is from 0 to 100."""

    exact_match: float
    token_accuracy: float
    bleu: float
    token_f1: float


def reconstruction(written: Sequence[str], true: Sequence[str]) -> Reconstruction:
    """Averages over N decoded (`written`) and true questions. Raises `ValueError` where there are none."""
    if not true:
        raise ValueError("no question to compare")
    pairs = [(w.split(), t.split()) for w, t in zip(written, true, strict=True)]
    right = sum(a == b for w, t in pairs for a, b in zip(w, t, strict=False))
    return Reconstruction(
        exact_match=float(np.mean([normalize(w) == normalize(t) for w, t in zip(written, true, strict=True)])),
        token_accuracy=right / sum(len(t) for _, t in pairs),
        bleu=BLEU(tokenize="none").corpus_score(list(written), [list(true)]).score,
        token_f1=float(np.mean([_f1(w, t) for w, t in pairs])),
    )


def _f1(written: Sequence[str], true: Sequence[str]) -> float:
    shared = sum((Counter(written) & Counter(true)).values())
    return 2 * shared / (len(written) + len(true)) if shared else 0.0
