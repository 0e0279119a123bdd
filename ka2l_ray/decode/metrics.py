"""How well a decoder finds a question again from its own state.

In: written and true questions. Out: exact match, token accuracy, BLEU, token F1. Refuses to know: decoders, tables.
Source: KA2L, stage 2, for the choice of metrics; BLEU by sacrebleu.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sacrebleu.metrics.bleu import BLEU

from ka2l_ray.text.grading import normalize


@dataclass(frozen=True)
class Reconstruction:
    """`token_accuracy`: share of the true question's words written at their own place, free-running; BLEU from 0 to 100."""

    exact_match: float
    token_accuracy: float
    bleu: float
    token_f1: float


def reconstruction(written: Sequence[str], true: Sequence[str]) -> Reconstruction:
    """Averages over questions. Raises `ValueError` where there is none."""
    if not true:
        raise ValueError("no question to compare")
    pairs = [(w.split(), t.split()) for w, t in zip(written, true, strict=True)]
    places = [sum(a == b for a, b in zip(w, t, strict=False)) for w, t in pairs]
    return Reconstruction(
        exact_match=float(np.mean([normalize(w) == normalize(t) for w, t in zip(written, true, strict=True)])),
        token_accuracy=sum(places) / sum(len(t) for _, t in pairs),
        bleu=BLEU(tokenize="none").corpus_score(list(written), [list(true)]).score,
        token_f1=float(np.mean([_f1(w, t) for w, t in pairs])),
    )


def _f1(written: Sequence[str], true: Sequence[str]) -> float:
    shared = sum((Counter(written) & Counter(true)).values())
    return 2 * shared / (len(written) + len(true)) if shared else 0.0
