"""The labelling actors, called on a table as Ray would call them."""

import math

import pyarrow as pa
import pytest

from ka2l_ray import schema
from ka2l_ray.config import LabelSection
from ka2l_ray.label.actor import ClusterActor, ClusterSetup, KnowledgeActor, KnowledgeSetup, quadrant
from ka2l_ray.text.grading import Grading


@pytest.fixture
def clustered():
    batch = pa.table(
        {
            "id": ["right", "torn", "no gold"],
            "answers": pa.array([["Rome", "Roma"], ["Oslo"], []], pa.list_(pa.string())),
            "greedy": ["rome", "Bern", "Rome"],
            "greedy_logprob": pa.array([-0.5, -2.0, -1.0], pa.float32()),
            "samples": [["Rome", "rome.", "ROMA", "Rome"], ["Oslo", "Bern", "oslo", "Kyiv"], ["a", "b", "c", "d"]],
            "sample_logprobs": pa.array([[-1.0, -1.0, -3.0, -1.0], [-2.0] * 4, [-4.0] * 4], pa.list_(pa.float32())),
        }
    )
    return ClusterActor(ClusterSetup())(batch)


def test_columns_fit_the_schema(clustered):
    for name, values in clustered.items():
        kind = schema.CLUSTERS.field(name).type
        column = values if isinstance(values, (pa.Array, pa.ChunkedArray)) else pa.array(values, kind)
        assert (column.type, len(column)) == (kind, 3)


def test_answers_are_clustered_row_by_row(clustered):
    assert clustered["cluster_ids"] == [[0, 0, 1, 0], [0, 1, 0, 2], [0, 1, 2, 3]]
    assert clustered["entropy_nats"] == pytest.approx(
        [2 * math.log(2) - 0.75 * math.log(3), 1.5 * math.log(2), math.log(4)]
    )


def test_greedy_and_samples_are_graded_where_there_is_gold(clustered):
    assert clustered["correct"] == [True, False, None]
    assert clustered["sample_accuracy"] == [1.0, 0.5, None]


def test_answers_are_graded_as_the_run_asks():
    batch = pa.table(
        {
            "answers": [["Oslo"]],
            "greedy": ["It is Oslo."],
            "greedy_logprob": [-1.0],
            "samples": [["Oslo", "I think it is Oslo", "Oslo or Bergen", "Bergen"]],
            "sample_logprobs": [[-1.0] * 4],
        }
    )
    exact = ClusterActor(ClusterSetup())(batch)
    contains = ClusterActor(ClusterSetup(grading=Grading("contains")))(batch)
    assert [exact["correct"], exact["sample_accuracy"]] == [[False], [0.25]]
    assert [contains["correct"], contains["sample_accuracy"]] == [[True], [0.5]]
    assert exact["cluster_ids"] == contains["cluster_ids"] == [[0, 1, 2, 3]]


def test_baselines_are_higher_for_less_likely_answers(clustered):
    assert clustered["likelihood"] == [0.5, 2.0, 1.0]
    assert clustered["predictive_entropy"] == [1.5, 2.0, 4.0]


def test_a_question_that_stopped_early_has_bounds_in_place_of_an_entropy():
    """Two of four answers drawn, alike or not: the others may still join them or stand apart."""
    batch = pa.table(
        {
            "answers": [["Rome"]] * 3,
            "greedy": ["Rome"] * 3,
            "greedy_logprob": [-0.5] * 3,
            "samples": [["Rome", "rome"], ["Rome", "Oslo"], ["Rome", "Oslo", "Rome", "Rome"]],
            "sample_logprobs": [[-1.0] * 2, [-1.0] * 2, [-1.0] * 4],
        }
    )
    columns = ClusterActor(ClusterSetup(wanted=4))(batch)
    whole = 2 * math.log(2) - 0.75 * math.log(3)
    assert columns["entropy_nats"] == [None, None, pytest.approx(whole)]
    assert columns["entropy_lo"] == pytest.approx([0.0, whole, whole])
    assert columns["entropy_hi"] == pytest.approx([1.5 * math.log(2), math.log(4), whole])
    assert (columns["sample_accuracy"], columns["predictive_entropy"]) == ([None, None, 0.75], [None, None, 1.0])
    assert columns["correct"] == [True] * 3


def test_unknown_means_at_or_above_the_threshold_and_crosses_with_the_grade():
    batch = pa.table(
        {
            "entropy_lo": [0.3, 0.5, 0.7, 0.0, 0.5, 0.0, 0.0],
            "correct": [True, True, False, False, None, False, None],
            "abstains": [False] * 5 + [True] * 2,
        }
    )
    columns = KnowledgeActor(KnowledgeSetup(threshold_nats=0.5))(batch)
    assert columns["unknown"] == [0, 1, 1, 0, 1, 1, 1]
    assert columns["quadrant"] == ["known", "shaky", "unknown", "misconception", None, "abstains", None]


@pytest.mark.parametrize(
    ("samples", "gold", "abstains"),
    [
        ([""] * 4, ["Rome"], True),
        (["I don't know.", "", "I do not know who that is", "Rome"], ["Rome"], True),
        (["", "", "Rome", "Rome"], [], False),
        (["Unknown"] * 4, ["Rome"], True),
        (["Unknown"] * 4, ["unknown"], False),
        (["I Can't Help Myself"] * 4, ["Rome"], False),
        (["", ""], ["Rome"], False),  # two more may come
        (["", "", ""], ["Rome"], True),
    ],
)
def test_a_model_abstains_where_most_of_its_k_samples_are_no_answer(samples, gold, abstains):
    batch = pa.table(
        {
            "answers": pa.array([gold], pa.list_(pa.string())),
            "greedy": samples[:1],
            "greedy_logprob": [-1.0],
            "samples": [samples],
            "sample_logprobs": [[-1.0] * len(samples)],
        }
    )
    assert ClusterActor(ClusterSetup(wanted=4, refusals=LabelSection().refusals))(batch)["abstains"] == [abstains]


@pytest.mark.parametrize(
    ("unknown", "correct", "name"),
    [(False, True, "known"), (False, False, "misconception"), (True, True, "shaky"), (True, False, "unknown")],
)
def test_quadrants(unknown, correct, name):
    assert quadrant(unknown, correct) == name
    assert name in schema.QUADRANTS
