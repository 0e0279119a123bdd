"""`shard_size`: what a kill loses, what a block holds, and that every actor has work."""

import pyarrow as pa
import pytest

from ka2l_ray import schema
from ka2l_ray.config import CollectSection, Pool
from ka2l_ray.dataflow.shard_size import BLOCK_BYTES, LOST_S, row_bytes, row_seconds, shard_rows

STATES = schema.states(CollectSection().positions, range(33), 4096, half=False)
EIGHT_B = schema.TABLES["activations"].added_fields(STATES)


def test_all_layers_of_an_8b_model_fill_a_block_with_about_490_rows() -> None:
    rows = shard_rows(Pool(), 10**7, row_bytes(EIGHT_B), row_seconds(Pool(), 11, 16))
    assert 480 <= rows <= 496
    assert rows * 33 * 4096 * 2 < BLOCK_BYTES


def test_scoring_has_the_largest_shards() -> None:
    rows = shard_rows(Pool(), 10**7, row_bytes(pa.schema([schema.SCORES.field("p_unknown")])), row_seconds(Pool()))
    assert rows == 4096
    assert -(-(10**7) // rows) < 5000


@pytest.mark.parametrize("new_tokens", [16, 64, 256, 1024])
@pytest.mark.parametrize("tokens", [16_384, 65_536])
def test_a_default_shard_takes_an_8b_model_no_longer_than_it_may_lose(new_tokens: int, tokens: int) -> None:
    pool = Pool(batch_tokens=tokens)
    seconds = row_seconds(pool, 11, new_tokens)
    rows = shard_rows(pool, 10**7, 1024, seconds)
    assert rows * seconds <= LOST_S or rows == 1
    assert rows == 4096 or (rows + 1) * seconds > LOST_S


def test_long_answers_make_small_shards() -> None:
    sizes = [shard_rows(Pool(), 10**7, 1024, row_seconds(Pool(), 11, n)) for n in (16, 64, 256, 1024)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 50


def test_a_number_in_the_file_stands_unless_blocks_would_grow_too_large() -> None:
    assert shard_rows(Pool(shard_rows=10), 10**6, 1024, 0.0) == 10
    assert shard_rows(Pool(shard_rows=10**6), 10**9, 2**20, 0.0) == 128


@pytest.mark.parametrize(
    ("rows", "actors", "size"),
    [(100_000, 8, 256), (8192, 8, 256), (2200, 8, 69), (40, 8, 2), (3, 8, 1), (1, 1, 1), (40, 1, 10)],
)
def test_a_small_table_has_shards_for_every_actor(rows: int, actors: int, size: int) -> None:
    pool = Pool(max=actors, shard_rows=256)
    assert shard_rows(pool, rows, 1024, 0.0) == size
    assert -(-rows // size) >= min(rows, 2 * actors)
