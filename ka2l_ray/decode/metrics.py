"""How well a decoder recovers a question from its own state.

In: decoded and true questions. Out: exact match, token accuracy, BLEU, token F1. Refuses to know: decoders, tables.
Source: KA2L, stage 2, for the choice of metrics; BLEU by sacrebleu.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from sacrebleu.metrics.bleu import BLEU

from ka2l_ray.text.normal import normalize


@dataclass(frozen=True)
class Reconstruction:
    """`token_accuracy` is the share of the true question's words that were decoded in the same place, without teacher
    forcing; `bleu` is from 0 to 100; `token_f1` of words is the F measure of ROUGE-1 (Lin, 2004), without stemming."""

    exact_match: float
    token_accuracy: float
    bleu: float
    token_f1: float
    entity_kept: float | None
    """Share of the questions whose entity is in the decoded one too; None where no entity is given."""
    relation_right: float | None
    """Share of the questions that are asked in the same words, whatever the entity; None likewise."""


def reconstruction(
    written: Sequence[str], true: Sequence[str], entities: Sequence[str | None] | None = None
) -> Reconstruction:
    """Averages over N decoded (`written`) and true questions, and the `entities` of these. Raises `ValueError` where
    there are none."""
    if not true:
        raise ValueError("no question to compare")
    pairs = [(w.split(), t.split()) for w, t in zip(written, true, strict=True)]
    right = sum(a == b for w, t in pairs for a, b in zip(w, t, strict=False))
    return Reconstruction(
        exact_match=float(np.mean([normalize(w) == normalize(t) for w, t in zip(written, true, strict=True)])),
        token_accuracy=right / sum(len(t) for _, t in pairs),
        bleu=BLEU(tokenize="none").corpus_score(list(written), [list(true)]).score,
        token_f1=float(np.mean([_f1(w, t) for w, t in pairs])),
        entity_kept=_mean([e in normalize(w) for w, _, e in _with_entity(written, true, entities)]),
        relation_right=_mean([_asks_the_same(w, t, e) for w, t, e in _with_entity(written, true, entities)]),
    )


def distinct_2(texts: Sequence[str]) -> float:
    """Distinct pairs of neighbouring words among all, of N texts: 1 where no pair comes twice (Li et al., 2016)."""
    pairs = [pair for text in texts for pair in pairwise(normalize(text).split())]
    return len({*pairs}) / len(pairs) if pairs else 0.0


def _mean(values: Sequence[bool]) -> float | None:
    return float(np.mean(values)) if values else None


def _with_entity(
    written: Sequence[str], true: Sequence[str], entities: Sequence[str | None] | None
) -> list[tuple[str, str, str]]:
    """(decoded, true, entity) of the questions that contain their entity, the entity in its one form."""
    rows = zip(written, true, entities or [None] * len(true), strict=True)
    return [(w, t, e) for w, t, given in rows if (e := normalize(given or "")) and e in normalize(t)]


def _asks_the_same(written: str, true: str, entity: str) -> bool:
    """Whether a decoded question begins and ends as the true one does around its entity."""
    before, _, after = normalize(true).rpartition(entity)
    return (text := normalize(written)).startswith(before) and text.endswith(after)


def _f1(written: Sequence[str], true: Sequence[str]) -> float:
    shared = sum((Counter(written) & Counter(true)).values())
    return 2 * shared / (len(written) + len(true)) if shared else 0.0
