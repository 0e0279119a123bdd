"""The linear probe and its folder."""

import numpy as np
import pytest

from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.models.probe import LinearProbe, ProbeCard, score_states

CARD = ProbeCard("gpt2", "Q: {question}", 3, "last", 4, 0.61, 0.03)


@pytest.fixture
def probe():
    return LinearProbe(np.array([1.0, -2.0, 0.0, 0.5]), 0.25, CARD)


def test_probabilities_are_the_logistic_of_a_linear_map(probe):
    states = np.array([[0, 0, 9, 0], [1, 0, 0, 0], [0, 1, 0, 0]], dtype=np.float32)
    assert score_states(states, probe) == pytest.approx([1 / (1 + np.exp(-z)) for z in (0.25, 1.25, -1.75)])


def test_extreme_states_stay_probabilities(probe):
    states = np.array([[1e6, 0, 0, 0], [0, 1e6, 0, 0]], dtype=np.float32)
    with np.errstate(all="raise"):
        assert score_states(states, probe) == pytest.approx([1.0, 0.0])


def test_states_of_another_width_are_refused(probe):
    with pytest.raises(ValueError, match="width 4, got 5"):
        score_states(np.zeros((2, 5)), probe)


def test_a_saved_probe_loads_equal(probe, tmp_path):
    probe.save(tmp_path / "probe")
    again = LinearProbe.load(Folder.of(str(tmp_path / "probe")))
    states = np.random.default_rng(0).normal(size=(5, 4))
    assert again.card == CARD
    assert (score_states(states, again) == score_states(states, probe)).all()


def test_a_column_of_a_larger_matrix_survives_saving(tmp_path):
    """Weights that are not contiguous in memory are the usual way to save something else."""
    weight = np.arange(12.0).reshape(4, 3)[:, 1]
    LinearProbe(weight, 0.0, CARD).save(Folder.of(str(tmp_path)))
    assert LinearProbe.load(Folder.of(str(tmp_path))).weight.tolist() == [1.0, 4.0, 7.0, 10.0]


def test_the_folder_contains_no_pickle(probe, tmp_path):
    probe.save(Folder.of(str(tmp_path)))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["probe.json", "probe.safetensors"]
