"""Questions among which many are alike: made from templates, and real ones of EntityQuestions."""

import json
from pathlib import Path

import numpy as np

from ka2l_ray.text.normal import normalize


def words(n: int) -> str:
    """A question unlike those of other numbers."""
    rng = np.random.default_rng(n)
    return f"Which {' '.join(''.join(rng.choice(list('abcdefghijklmnop'), 6)) for _ in range(4))}?"


def templated() -> list[str]:
    """Questions in a few templates, like question sets of relations, some with a word changed, and among words of
    their own."""
    rng = np.random.default_rng(3)
    names = ["".join(rng.choice(list("abcdefghijklmnoprstuvw"), int(rng.integers(4, 12)))) for _ in range(60)]
    templates = (
        "in which city and in which country was {} the composer born",
        "who is the author of the book that is called {} of the {}",
    )
    made = [t.format(*(names[int(i)] for i in rng.integers(0, len(names), 2))) for t in templates for _ in range(150)]
    return [
        *made,
        *(f"{text} in {1900 + n % 7}" for n, text in enumerate(made[::5])),
        *(words(n).lower() for n in range(60)),
    ]


def real(count: int) -> list[str]:
    """Questions of EntityQuestions, of one template each relation; none where the data folder is absent."""
    file = Path(__file__).parents[2] / "shared/data/entityquestions_dev.jsonl"
    lines = file.read_text().splitlines()[: 60 * count : 60] if file.exists() else []
    return [normalize(json.loads(line)["question"]) for line in lines]
