"""What a guess without any knowledge gets right: each topic's most common answer.

In: eval questions with scope, topic and gold. Out: a share by scope, to be read beside an accuracy.
Refuses to know: models, tables.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from ka2l_ray.text.grading import normalize


def priors(questions: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """{scope: share of its questions with gold that are right if each is answered by the answer that most of its topic
    have}. The answer is chosen in hindsight, so no guess by topic does better."""
    answers = defaultdict[tuple[str, str | None], Counter[str]](Counter)
    graded = Counter[str]()
    for row in questions:
        if row["answers"]:
            graded[row["scope"]] += 1
            answers[row["scope"], row["group"]].update({normalize(a) for a in row["answers"]})
    right = Counter[str]()
    for (scope, _), counts in answers.items():
        right[scope] += counts.most_common(1)[0][1]
    return {scope: right[scope] / count for scope, count in graded.items()}
