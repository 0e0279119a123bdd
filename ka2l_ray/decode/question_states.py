"""What a decoder sees of a question: a pooled state and, where it reads them, states of single tokens.

In: arrays, or a table. Out: `QuestionStates`, or columns. Refuses to know: models, decoders, Ray.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa

from ka2l_ray.tables import HALF_MAX, matrix


@dataclass(frozen=True)
class QuestionStates:
    """Of B questions the pooled states (B, D), float32, which say what is asked; and of each the states (n, D) of the
    tokens that say of whom, n = 0 for a decoder that reads none."""

    pooled: np.ndarray
    tokens: list[np.ndarray]

    def __len__(self) -> int:
        return len(self.pooled)

    def __getitem__(self, rows: Sequence[int]) -> "QuestionStates":
        return QuestionStates(self.pooled[list(rows)], [self.tokens[n] for n in rows])

    @property
    def mean_token(self) -> np.ndarray:
        """The mean (B, D) of each question's token states; zeros where it has none."""
        means = [t.mean(0) if len(t) else np.zeros(self.pooled.shape[1]) for t in self.tokens]
        return np.array(means, np.float32).reshape(len(self), -1)

    @classmethod
    def pooled_alone(cls, states: np.ndarray) -> "QuestionStates":
        """Pooled states (B, D), no tokens."""
        return cls(states, [np.zeros((0, states.shape[1]), np.float32)] * len(states))

    def batches(self, size: int) -> Iterator["QuestionStates"]:
        """Consecutive parts of `size` rows."""
        yield from (self[range(n, min(n + size, len(self)))] for n in range(0, len(self), size))


def token_column(tokens: Sequence[np.ndarray], width: int) -> pa.ListArray:
    """States (n, D) of each row as a list of fixed-size lists of float16; values beyond its range are its largest."""
    flat = np.concatenate([*tokens, np.zeros((0, width), np.float32)])
    flat = np.clip(flat, -HALF_MAX, HALF_MAX).astype(np.float16)
    ends = np.cumsum([0, *(len(t) for t in tokens)]).astype(np.int32)
    return pa.ListArray.from_arrays(ends, pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), width))


def token_states(column: pa.ChunkedArray | pa.Array) -> list[np.ndarray]:
    """The inverse of `token_column`, float32."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    lengths = [0 if n is None else n for n in pa.compute.list_value_length(array).to_pylist()]  # pyright: ignore
    values = array.flatten()
    flat = matrix(values) if len(values) else np.zeros((0, values.type.list_size), np.float32)
    ends = np.cumsum([0, *lengths])
    return [flat[a:b] for a, b in pairwise(ends)]


def states_of(rows: pa.Table) -> QuestionStates:
    """The states in rows of `decoder_states` or `probe_states`."""
    return QuestionStates(matrix(rows["state"]), token_states(rows["tokens"]))
