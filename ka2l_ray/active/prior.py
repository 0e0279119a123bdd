"""What a guess without any knowledge gets right: each topic's most common answer.

In: eval questions with scope, topic and gold, how the run grades. Out: a share by scope, to be read beside an accuracy.
Refuses to know: models, tables.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ka2l_ray.text.grading import Grading, grade, normalize, option_letters


def priors(questions: Iterable[Mapping[str, Any]], grading: Grading) -> dict[str, float]:
    """{scope: share of its questions with gold that are right if each is answered by the answer that most of its topic
    have}, graded as a model's answers are. The answer is chosen in hindsight."""
    topics = defaultdict[tuple[str, str | None], list[Sequence[str]]](list)
    for row in questions:
        if row["answers"]:
            topics[row["scope"], row["group"]].append(row["answers"])
    right, graded = Counter[str](), Counter[str]()
    for (scope, _), golds in topics.items():
        guess = _most_common(golds)
        right[scope] += sum(grade(guess, gold, grading) is True for gold in golds)
        graded[scope] += len(golds)
    return {scope: right[scope] / count for scope, count in graded.items()}


def _most_common(golds: Sequence[Sequence[str]]) -> str:
    """The answer that most questions have among their gold answers, or as the letter of an option; the first of
    equals, in its first spelling."""
    counts, spelled = Counter[str](), dict[str, str]()
    for gold in golds:
        forms = {normalize(a): a for a in reversed((*gold, *sorted(option_letters(gold))))}
        counts.update(reversed(forms))
        spelled = forms | spelled
    return spelled[counts.most_common(1)[0][0]]
