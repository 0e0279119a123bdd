"""Whether an answer is right: normalised exact match with any gold answer or alias, as in open-domain QA.

In: strings. Out: booleans; None where there is no gold answer. Refuses to know: models, tables.
Source of the normalisation: SQuAD (Rajpurkar et al., 2016): lower case, no punctuation, no articles, single spaces.
"""

import re
import string
import unicodedata
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation + "‘’“”´`", " "))


def normalize(text: str) -> str:
    """Text without case, punctuation, articles and extra spaces, in Unicode form NFKC.

    A text of only articles or punctuation keeps them, so that `A` or `%` never equals an empty answer.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    words = folded.translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", words).split() or words.split() or folded.split())


def is_correct(answer: str, gold: Sequence[str]) -> bool | None:
    """Whether an answer equals one of the gold answers after normalisation; None where there are no gold answers."""
    return normalize(answer) in {normalize(g) for g in gold} if gold else None
