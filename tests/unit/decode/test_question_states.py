"""States of questions: parts of them, and token states as a column."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ka2l_ray.decode.question_states import QuestionStates, token_column, token_states
from ka2l_ray.tables import HALF_MAX

RNG = np.random.default_rng(0)
TOKENS = [RNG.normal(size=(n, 4)).astype(np.float16).astype(np.float32) for n in (2, 0, 3, 1)]
STATES = QuestionStates(RNG.normal(size=(4, 4)).astype(np.float32), TOKENS)


def test_token_states_survive_a_file_and_a_filter(tmp_path):
    table = pa.table({"n": [0, 1, 2, 3], "tokens": token_column(TOKENS, 4)})
    pq.write_table(table, tmp_path / "t.parquet")
    read = pq.read_table(tmp_path / "t.parquet")
    assert all(np.array_equal(a, b) for a, b in zip(token_states(read["tokens"]), TOKENS, strict=True))
    odd = read.filter(pa.array([False, True, False, True]))
    assert [len(t) for t in token_states(odd["tokens"])] == [0, 1]
    assert np.array_equal(token_states(odd["tokens"])[1], TOKENS[3])


def test_no_tokens_at_all_and_values_beyond_half_precision():
    empty = token_states(token_column([np.zeros((0, 4), np.float32)] * 2, 4))
    assert [t.shape for t in empty] == [(0, 4), (0, 4)]
    (clipped,) = token_states(token_column([np.array([[1e9, -1e9, 0, 1]], np.float32)], 4))
    assert clipped.tolist() == [[HALF_MAX, -HALF_MAX, 0, 1]]


def test_parts_and_means():
    some = STATES[[2, 0]]
    assert np.array_equal(some.pooled, STATES.pooled[[2, 0]])
    assert [len(t) for t in some.tokens] == [3, 2]
    assert [len(part) for part in STATES.batches(3)] == [3, 1]
    np.testing.assert_allclose(STATES.mean_token[0], TOKENS[0].mean(0), rtol=1e-6)
    assert not STATES.mean_token[1].any()
    assert QuestionStates.pooled_alone(STATES.pooled).mean_token.shape == (4, 4)
