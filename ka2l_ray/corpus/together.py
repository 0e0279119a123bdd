"""Which rows of a corpus must be in one split: those that are alike and those about one entity, chains of both
included.

In: numbers per row. Out: the group of each row, named by its lowest row.
Refuses to know: texts, files, splits.
Two questions about one entity may be alike to questions about another, so neither relation alone is enough: the
groups are the connected components of the two together. Chains stay short on real question sets: on EntityQuestions'
development set (22,068 rows, 21,661 groups) the largest group has 24 rows, on 3,557 rows of PopQA (3,378 groups) 31,
both of them questions of one template whose entities differ in a few letters ("Which company is German submarine
U-137 produced by?"). They grow with the number of questions of one template around short names: 5,000 in the words
"who was screenwriter for …" have a group of 64, 23,000 one of 1,260. `large_group` warns of such groups.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

LARGE = 0.05
"""Share of a corpus' questions in one group above which splits may miss their shares by much."""


def large_group(manifest: Mapping[str, Any]) -> str | None:
    """A warning about a group of the `questions` table that is too large to split well, with the way out; None
    where there is none."""
    share = manifest["largest_group"] / manifest["rows"] if manifest["rows"] else 0.0
    if share <= LARGE:
        return None
    return (
        f"{share:.0%} of the questions stay in one split, because they are alike or about one entity, chains included; "
        "if shares come out uneven, raise corpus.near_duplicates or name another corpus.entity_column"
    )


def split_groups(alike: np.ndarray, entity: np.ndarray) -> np.ndarray:
    """The group that each row is split with (N,), from the group of alike rows (N,), each named by its lowest row,
    and a number per entity (N,), 0 where it is unknown."""
    rows = np.arange(len(alike))
    known = np.flatnonzero(entity)
    _, first, inverse = np.unique(entity[known], return_index=True, return_inverse=True)
    starts, ends = np.concatenate([rows, known]), np.concatenate([alike, known[first[inverse]]])
    edges = csr_matrix((np.ones(len(starts), np.int8), (starts, ends)), shape=(len(rows), len(rows)))
    _, labels = connected_components(edges, directed=False)
    return np.unique(labels, return_index=True)[1][labels]
