"""Is an answer right? Normalised exact match with any gold answer or alias, as open-domain QA grades it.

In: strings. Out: booleans, None where there is no gold. Refuses to know: models, tables.
Source of the normalisation: SQuAD (Rajpurkar et al., 2016): lower case, no punctuation, no articles, single spaces.
"""

import re
import string
import unicodedata
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation + "‘’“”´`", " "))


def normalize(text: str) -> str:
    """Text without case, punctuation, articles and extra spaces; compatibility forms are unified (NFKC).

    A text of nothing but articles or punctuation keeps them, so that `A` or `%` never equals an empty answer.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    words = folded.translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", words).split() or words.split() or folded.split())


def is_correct(answer: str, gold: Sequence[str]) -> bool | None:
    """Whether an answer equals one of the gold answers after normalisation; None where there is no gold."""
    if not gold:
        return None
    return normalize(answer) in {normalize(g) for g in gold}
