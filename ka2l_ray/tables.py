"""Arrow columns from and to NumPy arrays, and the `error` column.

In: states (B, D), failed rows. Out: columns. Refuses to know: models, files, Ray.
"""

from collections.abc import Container, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

HALF_MAX = float(np.finfo(np.float16).max)


def error_column(failed: Mapping[int, Exception], rows: int) -> dict[str, list[str | None]]:
    """The column `error` of an actor's rows, by the rows that failed; empty where none did."""
    if not failed:
        return {}
    return {"error": [f"{type(e).__name__}: {e}" if (e := failed.get(i)) else None for i in range(rows)]}


def not_finite(states: Mapping[Any, np.ndarray]) -> dict[int, Exception]:
    """An error for each row whose state contains NaN or infinity at any of the layers; `states` are (B, D) by layer."""
    rows = {int(i) for values in states.values() for i in np.flatnonzero(~np.isfinite(values).all(1))}
    return {i: ValueError("hidden state contains NaN or infinity") for i in sorted(rows)}


def fixed_size(states: np.ndarray, failed: Container[int] = (), half: bool = True) -> pa.FixedSizeListArray:
    """States (B, D) as a fixed-size list column with nulls in the failed rows: with `half` float16 where every value
    fits, else float32."""
    lost = np.array([i in failed for i in range(len(states))], bool)
    values = np.where(lost[:, None], 0.0, states).astype(np.float32)
    if half and np.abs(values).max(initial=0.0) <= HALF_MAX:
        values = values.astype(np.float16)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), states.shape[1], mask=pa.array(lost))


def matrix(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """A fixed-size list column without nulls back to a float32 array (B, D)."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return array.flatten().to_numpy(zero_copy_only=False).reshape(-1, array.type.list_size).astype(np.float32)


def matrix_or_nan(column: pa.ChunkedArray) -> np.ndarray:
    """The same of a column with nulls, whose rows are NaN."""
    told = column.is_valid().to_numpy()
    found = np.full((len(told), column.type.list_size), np.nan, np.float32)
    found[told] = matrix(column.drop_null())
    return found


def unseen_targets(truth: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """Targets (N,) of AUROCs against the truth: 1 for unseen facts, 0 for known ones, -1 for rows that are left out."""
    return np.array([{"unseen": 1, "known": 0}.get(t, -1) for t in truth.to_pylist()])
