"""How many rows a shard has.

In: an actor pool, what a row weighs and how long it takes. Out: a number of rows.
A shard is what an actor loses when it is killed, one block of Ray Data, and one file. So its default is as many rows as an 8B model does
on one GPU in `LOST_S`, at most `MOST_ROWS`; in any case it stays below Ray's target block size, and a small table gives every actor work.
Refuses to know: tables, Ray.

The times are deliberately slow ones. `STEP_S`: a step of decoding reads 16 GB of weights, which an A100 does in 10 ms and an H100 in 5, and
launches some 300 kernels. `TOKEN_S`: 16 GFLOP for a prompt token, at a third of an A100's 312 TFLOP/s.
"""

import pyarrow as pa

from ka2l_ray.config import Pool

BLOCK_BYTES = 128 * 2**20
"""Ray Data's target block size."""
TEXT_BYTES = 1024
"""A row's question, answers, samples and numbers."""
STATE_BYTES = 2
"""States are stored as float16 where they fit."""
MOST_ROWS = 4096
LOST_S = 150.0
"""What a kill costs an actor at most, with a factor of two left to five minutes."""
STEP_S, TOKEN_S, OWN_TOKENS = 0.05, 1.6e-4, 64
SHARDS_PER_ACTOR = 4
"""At least so many for each actor that a pool may have, so that none stands idle while others work through a small table."""


def row_bytes(columns: pa.Schema) -> int:
    """What a row with these columns weighs, about: its states, and some text."""
    widths = [f.type.list_size for f in columns if pa.types.is_fixed_size_list(f.type)]
    return TEXT_BYTES + STATE_BYTES * sum(widths)


def row_seconds(pool: Pool, answers: int = 0, new_tokens: int = 0) -> float:
    """Seconds of a row on an 8B model on one GPU: its prompt pass, and its share of a batch of answers of `new_tokens`."""
    copies = max(1, answers)
    batch = max(1, min(pool.batch_rows, pool.batch_tokens // (copies * (OWN_TOKENS + new_tokens))))
    return OWN_TOKENS * TOKEN_S + (new_tokens * STEP_S / batch if answers else 0.0)


def shard_rows(pool: Pool, rows_in: int, row_bytes: int, row_seconds: float) -> int:
    """Rows of a shard of a table of `rows_in`: `pool.shard_rows` where it is given, else the default; fewer where blocks would grow beyond
    Ray's size, or a small table would leave actors idle."""
    default = min(MOST_ROWS, int(LOST_S / row_seconds)) if row_seconds else MOST_ROWS
    each = -(-rows_in // (SHARDS_PER_ACTOR * pool.max))
    return max(1, min(pool.shard_rows or default, BLOCK_BYTES // row_bytes, each))
