"""Sampling by inverse CDF: numbers that depend on their names only, and draws that follow the softmax."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ka2l_ray.models.sampling import EDGE, draw, uniforms


@given(
    st.integers(0, 2**31),
    st.text(max_size=10),
    st.integers(1, 4),
    st.integers(1, 6),
    st.integers(0, 3),
    st.integers(0, 5),
)
def test_asking_for_more_samples_or_steps_keeps_the_earlier_numbers(
    seed, name, samples, steps, more_samples, more_steps
):
    numbers = uniforms(seed, name, samples, steps)
    larger = uniforms(seed, name, samples + more_samples, steps + more_steps)
    assert (larger[:samples, :steps] == numbers).all()
    assert numbers.shape == (samples, steps)
    assert ((numbers >= 0) & (numbers < 1)).all()


@pytest.mark.parametrize(("seed", "name"), [(1, "a"), (0, "b"), (0, "a ")])
def test_another_seed_or_id_gives_other_numbers(seed, name):
    assert not (uniforms(seed, name, 3, 4) == uniforms(0, "a", 3, 4)).any()


def test_numbers_of_neighbours_are_independent_and_uniform():
    numbers = np.concatenate([uniforms(0, f"q{i}", 5, 8) for i in range(100)])
    assert np.histogram(numbers, 10, (0, 1))[0] / numbers.size == pytest.approx(np.full(10, 0.1), abs=0.02)
    assert np.abs(np.corrcoef(numbers.T) - np.eye(8)).max() < 0.2


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax(temperature):
    logits = torch.tensor([2.0, 0.0, 1.0, -1.0, 0.5, -torch.inf])
    numbers = torch.from_numpy(uniforms(0, "q", 1, 20_000)[0])
    tokens, _ = draw(logits.expand(len(numbers), -1), numbers, temperature)
    shares = torch.bincount(tokens, minlength=6) / len(numbers)
    assert float((shares - torch.softmax(logits / temperature, -1)).abs().sum()) / 2 < 0.02  # total variation
    assert shares[-1] == 0


@pytest.mark.parametrize(("number", "token"), [(0.0, 1), (0.2, 1), (0.26, 2), (0.74, 2), (0.76, 4), (0.999999999, 4)])
def test_the_token_is_the_first_whose_cumulative_probability_exceeds_the_number(number, token):
    """Probabilities 0, 1/4, 1/2, 0, 1/4, 0: impossible tokens are never drawn, at either end."""
    logits = torch.tensor([[0.0, 0.25, 0.5, 0.0, 0.25, 0.0]]).log()
    assert draw(logits, torch.tensor([number], dtype=torch.float64), 1.0)[0].tolist() == [token]


@pytest.mark.parametrize(
    ("offset", "flagged"), [(0.0, True), (EDGE / 2, True), (-EDGE / 2, True), (2 * EDGE, False), (-2 * EDGE, False)]
)
def test_draws_near_a_boundary_are_reported(offset, flagged):
    logits = torch.tensor([[0.25, 0.75]]).log()
    _, near = draw(logits, torch.tensor([0.25 + offset], dtype=torch.float64), 1.0)
    assert near.tolist() == [flagged]


def test_rows_are_drawn_independently():
    logits = torch.tensor([[9.0, -9.0], [-9.0, 9.0], [0.0, 0.0]])
    assert draw(logits, torch.tensor([0.5, 0.5, 0.9]), 1.0)[0].tolist() == [0, 1, 1]
