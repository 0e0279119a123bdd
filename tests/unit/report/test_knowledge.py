"""The map of states and the shares by topic: drawn from what is there, with intervals that a hand can check."""

import math

import numpy as np
import pytest

from ka2l_ray.report.knowledge_map import known_map
from ka2l_ray.report.tables import ProbeStates
from ka2l_ray.report.topics import Topic, topic_shares, topics


def wilson(unknown: int, questions: int) -> tuple[float, float]:
    """Wilson (1927), written out."""
    z, share = 1.959964, unknown / questions
    middle = (share + z**2 / (2 * questions)) / (1 + z**2 / questions)
    half = z / (1 + z**2 / questions) * math.sqrt(share * (1 - share) / questions + z**2 / (4 * questions**2))
    return middle - half, middle + half


@pytest.mark.parametrize(("unknown", "questions"), [(3, 10), (0, 7), (12, 12), (480, 1000)])
def test_the_interval_is_wilsons(unknown: int, questions: int) -> None:
    assert Topic("t", questions, unknown).interval == pytest.approx(wilson(unknown, questions), abs=1e-6)


def test_three_of_ten_by_hand() -> None:
    assert Topic("t", 10, 3).interval == pytest.approx((0.1078, 0.6032), abs=1e-4)


def test_the_largest_topics_come_by_share_then_the_rest_together() -> None:
    counts = {"a": (50, 10), "b": (40, 30), "tiny": (2, 2), "small": (3, 0), None: (8, 4)}
    found = topics(counts, most=2)
    assert [(t.name, t.questions, t.unknown) for t in found] == [
        ("b", 40, 30),
        ("a", 50, 10),
        ("2 other topics", 5, 2),
        ("no topic", 8, 4),
    ]
    assert [t.name for t in topics({"a": (5, 1), "b": (4, 1)})] == ["b", "a"]


def test_a_corpus_without_topics_has_none_and_no_figure() -> None:
    assert topics({}) == topics({None: (12, 3)}) == []
    assert topic_shares([]) is None


def test_the_figure_names_every_topic_in_one_printable_line() -> None:
    figure = topic_shares(topics({"a\n<b>\x07": (50, 10), "x" * 99: (9, 9)}))
    assert figure
    assert ">a &lt;b&gt;  (50)</text>" in figure.svg()
    assert f">{'x' * 29}… (9)</text>" in figure.svg()
    assert ">all: 32.2 %</text>" in figure.svg()


def states(points: np.ndarray, kinds: list[str]) -> ProbeStates:
    return ProbeStates(points.astype(np.float32), kinds, "truth", "last_003", 1234)


def test_the_map_states_the_share_of_variance_of_each_axis() -> None:
    """A cross of three directions with variances 16 : 4 : 0.25."""
    arms = np.diag([4.0, 2.0, 0.5])
    figure = known_map(states(np.concatenate([arms, -arms]), ["known", "unseen"] * 3))
    assert figure
    svg = figure.svg()
    total = 16 + 4 + 0.25
    assert f"first component ({100 * 16 / total:.1f} % of variance)" in svg
    assert f"second component ({100 * 4 / total:.1f} % of variance)" in svg
    assert ">6 of 1,234 questions by truth; states last_003</text>" in svg
    assert ">known (3)</text>" in svg
    assert ">unseen (3)</text>" in svg


def test_a_kind_that_nobody_foresaw_is_drawn_too() -> None:
    figure = known_map(states(np.eye(4), ["known", "odd", "odd", "known"]))
    assert figure
    assert ">odd (2)</text>" in figure.svg()


def test_states_that_span_no_plane_are_no_map() -> None:
    assert known_map(None) is None
    assert known_map(states(np.eye(2), ["known", "unseen"])) is None
    assert known_map(states(np.ones((9, 4)), ["known"] * 9)) is None
