"""Tables: their specs, the names of state columns, and how schemas are joined."""

from pathlib import Path

import pyarrow as pa
import pytest

from ka2l_ray import schema
from ka2l_ray.active.round import RoundState
from ka2l_ray.pipeline.table import STEP_NAMES
from ka2l_ray.schema import TABLES, TableSpec

PACKAGE = Path(__file__).parents[2] / "ka2l_ray"
SPECS = pytest.mark.parametrize("spec", TABLES.values(), ids=TABLES)


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
    with_error = pa.schema([schema.ERROR, *schema.ACQUIRED])
    joined = schema.join(with_error, schema.EVALUATION, schema.ACQUIRED)
    assert joined.names == ["id", "reason", "rank", "scope", "fact_id", "answers", "answer", "correct", "error"]
    assert joined.field("answers").type == pa.list_(pa.string())


def test_join_without_error_has_none():
    joined = schema.join(pa.schema([schema.ID, schema.ERROR]), schema.ACQUIRED, error=False)
    assert joined.names == ["id", "reason", "rank"]


@pytest.mark.parametrize(
    "table",
    ["QUESTIONS", "SAMPLES", "CLUSTERS", "KNOWLEDGE", "SCORES", "ACQUIRED", "DECODED", "ANNOTATIONS", "EVALUATION"],
)
def test_every_table_starts_with_an_id_that_is_never_null(table):
    first = getattr(schema, table).field(0)
    assert (first.name, first.nullable) == ("id", False)


@SPECS
def test_a_table_reads_and_carries_columns_that_its_source_has(spec: TableSpec):
    there = [n for column in spec.source.columns for n in column.name.split(", ")] if spec.source else []
    assert {*spec.reads, *spec.carried} <= {*there}
    assert len({c.name for c in spec.columns}) == len(spec.columns)


@SPECS
def test_a_spec_says_who_makes_the_table_and_what_it_means(spec: TableSpec):
    assert (PACKAGE / spec.code).is_file()
    assert spec.name == "errors" or spec.step in {*STEP_NAMES, *RoundState}
    texts = [spec.about, *spec.facts.values(), *(column.meaning for column in spec.added)]
    assert all(text and not text.endswith(".") for text in texts)


def test_folders_differ():
    assert len({spec.folder for spec in TABLES.values()}) == len(TABLES)


def test_states_stand_where_their_column_does_and_only_where_they_are_given():
    states = schema.states(["last"], [0, 3], 4, half=False)
    added = TABLES["activations"].added_fields(states)
    assert added.names[:3] == ["last_000", "last_003", "greedy"]
    assert TABLES["activations"].added_fields().names == added.names[2:]
    state = pa.schema([("state", pa.list_(pa.float32(), 4))])
    assert TABLES["scores"].added_fields(state).names == ["p_unknown", "state"]


def test_the_order_of_columns_in_files_is_id_then_carried_then_added():
    assert schema.CLUSTERS.names[:6] == ["id", "group", "entity", "split_group", "truth", "cluster_ids"]
    assert schema.KNOWLEDGE.names[1] == "cluster_ids"
    assert schema.KNOWLEDGE.names[-6:] == ["group", "entity", "split_group", "truth", "unknown", "quadrant"]
    assert schema.SCORES.names == ["id", "truth", "group", "p_unknown"]


def test_one_column_of_a_table_at_most_stands_for_what_the_configuration_decides():
    """Each such column would stand for all of these fields."""
    decided = {name: [c.name for c in spec.added if c.type is None] for name, spec in TABLES.items()}
    assert all(len(names) <= 1 for names in decided.values()), decided
    assert decided["probe_states"]
