"""Wanted states by the way in which they are made."""

from dataclasses import replace

import numpy as np
import pytest

from ka2l_ray.config import DecodeSection
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.decode.augment import Augmenter, requests_for
from ka2l_ray.decode.grounding import Names
from ka2l_ray.decode.question_states import QuestionStates
from ka2l_ray.decode.steering import Steering

RNG = np.random.default_rng(0)
CENTROIDS = RNG.normal(size=(3, 6)).astype(np.float32)
STEERING = Steering(("a", "b", "c"), CENTROIDS, ((1, 2), (0,), ()), by_group=True)
UNKNOWN = RNG.normal(size=(5, 6)).astype(np.float32)
SOURCES = [{"id": f"q{n}", "question": f"Who is {n}?", "group": g} for n, g in enumerate(["a", "b", "c", None, "new"])]


def wanted(augment, variants=1, steering: Steering | None = STEERING, unknown=UNKNOWN, **fields):
    """(sources' states, wanted states, targets, requests)."""
    section = DecodeSection(augment=augment, variants=variants, **fields)
    requests = requests_for(SOURCES, section)
    own = {s["id"]: RNG.normal(size=6).astype(np.float32) for s in SOURCES}
    states = np.stack([own[r["source_id"]] for r in requests])
    return states, *moved_by(Augmenter(section, 0, steering, unknown), states, requests), requests


def moved_by(augmenter: Augmenter, states, requests):
    """Wanted pooled states and targets."""
    found, targets = augmenter.wanted(QuestionStates.pooled_alone(states), requests)
    return found.pooled, targets


def test_every_source_gets_each_way_as_often_as_asked():
    requests = requests_for(SOURCES, DecodeSection(augment=("steer", "noise"), variants=3))
    assert len({r["id"] for r in requests}) == len(requests) == len(SOURCES) * 2 * 3
    assert {(r["source_id"], r["augment"], r["variant"]) for r in requests} == {
        (s["id"], a, v) for s in SOURCES for a in ("steer", "noise") for v in range(3)
    }
    assert all(r["question"] == f"Who is {r['source_id'][1:]}?" for r in requests)


def test_a_state_is_steered_from_its_own_group_or_from_the_nearest():
    states, found, targets, requests = wanted(("steer",), variants=2)
    for n, request in enumerate(requests):
        group = request["group"]
        own = STEERING.names.index(group) if group in STEERING.names else int(STEERING.group_of(states[n : n + 1])[0])
        target = STEERING.target(own, request["source_id"], request["variant"])
        assert targets[n] == (None if target is None else STEERING.names[target])
        moved = states[n] if target is None else states[n] - CENTROIDS[own] + CENTROIDS[target]
        np.testing.assert_allclose(found[n], moved, rtol=1e-5, atol=1e-6)


def test_a_topic_that_is_called_like_a_cluster_is_none():
    clusters = Steering(("a", "b", "c"), CENTROIDS, STEERING.targets)
    states, found, _, requests = wanted(("steer",), steering=clusters)
    for n, request in enumerate(requests):
        own = int(clusters.group_of(states[n : n + 1])[0])
        target = clusters.target(own, request["source_id"], 0)
        moved = states[n] if target is None else states[n] - CENTROIDS[own] + CENTROIDS[target]
        np.testing.assert_allclose(found[n], moved, rtol=1e-5, atol=1e-6)


def test_interpolation_goes_half_of_the_way_to_the_nearest_unknown_ones():
    states, found, targets, requests = wanted(("interpolate",), variants=2)
    for n, request in enumerate(requests):
        order = np.argsort(((states[n] - UNKNOWN) ** 2).sum(1))
        np.testing.assert_allclose(found[n], (states[n] + UNKNOWN[order[request["variant"]]]) / 2, rtol=1e-5, atol=1e-6)
    assert targets == [None] * len(requests)


def test_noise_has_its_size_and_depends_on_the_id_alone():
    section = DecodeSection(augment=("noise",), noise=0.5)
    requests = requests_for([{"id": f"q{n}", "question": "", "group": None} for n in range(500)], section)
    states = np.zeros((len(requests), 6), np.float32)
    found, _ = moved_by(Augmenter(section, 0, None, UNKNOWN), states, requests)
    assert found.std() == pytest.approx(0.5, rel=0.05)
    again, _ = moved_by(Augmenter(section, 0, None, UNKNOWN), states[:3], requests[:3][::-1])
    assert np.array_equal(again, found[:3][::-1])
    other, _ = moved_by(Augmenter(section, 1, None, UNKNOWN), states, requests)
    assert not np.allclose(other, found)


@pytest.mark.parametrize("augment", ["temperature", "steer", "interpolate"])
def test_states_stay_where_nothing_moves_them(augment):
    states, found, targets, _ = wanted((augment,), steering=None, unknown=np.empty((0, 6), np.float32))
    assert np.array_equal(found, states)
    assert targets == [None] * len(states)


def test_steering_moves_the_states_of_tokens_by_those_of_the_groups():
    of_tokens = RNG.normal(size=(3, 6)).astype(np.float32)
    augmenter = Augmenter(DecodeSection(), 0, replace(STEERING, token_centroids=of_tokens), UNKNOWN)
    requests = requests_for(SOURCES[:3], DecodeSection(variants=1))
    tokens = [RNG.normal(size=(n, 6)).astype(np.float32) for n in (2, 0, 3)]
    found, targets = augmenter.wanted(QuestionStates(np.zeros((3, 6), np.float32), tokens), requests)
    for n, (group, target) in enumerate(zip("abc", targets, strict=True)):
        own, to = (STEERING.names.index(name) for name in (group, target or group))
        np.testing.assert_allclose(found.tokens[n], tokens[n] - of_tokens[own] + of_tokens[to], rtol=1e-5, atol=1e-6)
    assert targets[2] is None, "there is nowhere to steer it to"


@pytest.mark.parametrize("names", [Names.of(["Ada Byron"]), None])
@pytest.mark.parametrize("steering", [STEERING, None])
def test_what_was_fitted_is_stored(tmp_path, steering, names):
    section, folder = DecodeSection(augment=("steer", "interpolate")), Folder.of(str(tmp_path / "a"))
    with pytest.raises(FileNotFoundError):
        Augmenter.load(folder, section, 0)
    Augmenter(section, 0, STEERING, UNKNOWN).save(folder)
    first = Augmenter(section, 0, steering, UNKNOWN, names)
    first.save(folder)
    requests = requests_for(SOURCES, section)
    states = RNG.normal(size=(len(requests), 6)).astype(np.float32)
    mine = moved_by(first, states, requests)
    again = moved_by(Augmenter.load(folder, section, 0), states, requests)
    assert np.array_equal(mine[0], again[0])
    assert mine[1] == again[1]
    assert Augmenter.load(folder, section, 0).names == names
