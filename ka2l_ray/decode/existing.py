"""Which decoded questions exist already, word by word or almost.

In: texts, questions in batches or in a file. Out: a flag for each text. Texts are compared after normalisation and by
similarity: a slightly reworded eval question is a leak too, and a slightly reworded question of the corpus is nothing
new. Refuses to know: models, Ray.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from ka2l_ray.dataflow.parquet import open_parquet
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.text.likeness import alike_to_any
from ka2l_ray.text.normal import normalize


def alike(questions: Sequence[str], others: Iterable[Sequence[str]], threshold: float) -> np.ndarray:
    """Which of N questions (bool, (N,)) have a similarity of at least `threshold` to one of others
    (`corpus.near_duplicates`); at 1, which are equal to one. `others` yields texts in batches, and is read once."""
    batches = ([normalize(text) for text in batch] for batch in others)
    keys = [normalize(question) for question in questions]
    if threshold < 1:
        return alike_to_any(keys, batches, threshold)
    equal = set(keys).intersection(key for batch in batches for key in batch)
    return np.array([key in equal for key in keys], bool)


def alike_in(folder: Folder, file: str, texts: Sequence[str], threshold: float) -> np.ndarray:
    """Which of N texts (bool, (N,)) are alike to a question in a file of `questions` on a folder's filesystem."""
    with open_parquet(Folder(folder.filesystem, file, folder.query)) as opened:
        rows = (b.to_pylist() for b in opened.iter_batches(columns=["question", "scope"]))
        return alike(texts, ([r["question"] for r in batch if r["scope"] != "same"] for batch in rows), threshold)
