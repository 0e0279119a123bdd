"""Tables: the names of state columns, and how schemas are joined."""

import pyarrow as pa
import pytest

from ka2l_ray import schema


@pytest.mark.parametrize(
    ("position", "layer", "name"), [("last", 0, "last_000"), ("mean", 7, "mean_007"), ("last", 126, "last_126")]
)
def test_a_state_column_names_position_and_layer(position, layer, name):
    assert schema.state_column(position, layer) == name


def test_states_hold_one_fixed_size_column_per_position_and_layer():
    half = schema.states(["last", "mean"], iter([0, 3]), 16, half=True)
    assert half.names == ["last_000", "last_003", "mean_000", "mean_003"]
    assert set(half.types) == {pa.list_(pa.float16(), 16)}
    assert set(schema.states(["last"], [0], 8, half=False).types) == {pa.list_(pa.float32(), 8)}


def test_join_keeps_each_column_once_and_error_last():
    with_error = pa.schema([schema.ERROR, *schema.SCORES])
    joined = schema.join(with_error, schema.SAMPLES, schema.SCORES)
    assert joined.names == [
        "id",
        "p_unknown",
        "greedy",
        "greedy_logprob",
        "samples",
        "sample_logprobs",
        "sample_tokens",
        "error",
    ]
    assert joined.field("sample_tokens").type == pa.list_(pa.int32())


def test_join_without_error_has_none():
    assert schema.join(pa.schema([schema.ID, schema.ERROR]), schema.SCORES, error=False).names == ["id", "p_unknown"]


@pytest.mark.parametrize(
    "table",
    ["QUESTIONS", "SAMPLES", "CLUSTERS", "KNOWLEDGE", "SCORES", "ACQUIRED", "DECODED", "ANNOTATIONS", "EVALUATION"],
)
def test_every_table_starts_with_an_id_that_is_never_null(table):
    first = getattr(schema, table).field(0)
    assert (first.name, first.nullable) == ("id", False)
