"""How many rows a shard has.

In: an actor pool, the size of a row and the time that it takes. Out: a number of rows.
A shard is what an actor loses when it is killed, one block of Ray Data, and one file. So its default is the number of
rows that an 8B model does on one GPU in `LOST_S`, at most `MOST_ROWS`. In any case it stays below Ray's target block
size, and is so small that even a small table gives every actor work.
Refuses to know: tables, Ray.

The times are deliberately slow. `STEP_S`: a decoding step reads 16 GB of weights, which takes an A100 10 ms and an H100
5 ms, and launches some 300 kernels. `TOKEN_S`: 16 GFLOP per prompt token, at a third of an A100's 312 TFLOP/s.
"""

import pyarrow as pa

from ka2l_ray.config import Pool

BLOCK_BYTES = 128 * 2**20
"""Ray Data's target block size."""
TEXT_BYTES = 1024
"""Size of a row's question, answers, samples and numbers."""
STATE_BYTES = 2
"""Per value of a state: float16, where the values fit."""
LISTED = 8
"""States in a list of them, on average: tokens of a name."""
MOST_ROWS = 4096
LOST_S = 150.0
"""The work that a kill may cost an actor, at most: half of the five minutes that are acceptable."""
STEP_S, TOKEN_S, OWN_TOKENS = 0.05, 1.6e-4, 64
SHARDS_PER_ACTOR = 4
"""At least this many for each actor that a pool may have, so that none is idle while others work on a small table."""


def row_bytes(columns: pa.Schema) -> int:
    """About how many bytes a row with these columns takes: its states (of a list of them, `LISTED`), and some text."""
    kinds = [f.type for f in columns]
    single = sum(t.list_size for t in kinds if pa.types.is_fixed_size_list(t))
    lists = [t.value_type for t in kinds if pa.types.is_list(t)]
    listed = LISTED * sum(t.list_size for t in lists if pa.types.is_fixed_size_list(t))
    return TEXT_BYTES + STATE_BYTES * (single + listed)


def row_seconds(pool: Pool, answers: int = 0, new_tokens: int = 0) -> float:
    """Seconds per row of an 8B model on one GPU: its prompt pass, and its share of a batch of answers of
    `new_tokens`."""
    copies = max(1, answers)
    batch = max(1, min(pool.batch_rows, pool.batch_tokens // (copies * (OWN_TOKENS + new_tokens))))
    return OWN_TOKENS * TOKEN_S + (new_tokens * STEP_S / batch if answers else 0.0)


def shard_rows(pool: Pool, rows_in: int, row_bytes: int, row_seconds: float) -> int:
    """Rows per shard of a table of `rows_in` rows: `pool.shard_rows` if given, else the default; fewer where blocks
    would exceed Ray's size, or a small table would leave actors idle."""
    default = min(MOST_ROWS, int(LOST_S / row_seconds)) if row_seconds else MOST_ROWS
    each = -(-rows_in // (SHARDS_PER_ACTOR * pool.max))
    return max(1, min(pool.shard_rows or default, BLOCK_BYTES // row_bytes, each))
