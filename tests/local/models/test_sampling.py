"""Sampling by inverse CDF: numbers that depend on their names only, and draws that follow the softmax."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ka2l_ray.models.sampling import EDGE, Sampling, draw, uniforms


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
    tokens, _ = draw(logits.expand(len(numbers), -1), numbers, Sampling(temperature))
    shares = torch.bincount(tokens, minlength=6) / len(numbers)
    assert float((shares - torch.softmax(logits / temperature, -1)).abs().sum()) / 2 < 0.02  # total variation
    assert shares[-1] == 0


@pytest.mark.parametrize(("number", "token"), [(0.0, 1), (0.2, 1), (0.26, 2), (0.74, 2), (0.76, 4), (0.999999999, 4)])
def test_the_token_is_the_first_whose_cumulative_probability_exceeds_the_number(number, token):
    """Probabilities 0, 1/4, 1/2, 0, 1/4, 0: impossible tokens are never drawn, at either end."""
    logits = torch.tensor([[0.0, 0.25, 0.5, 0.0, 0.25, 0.0]]).log()
    assert draw(logits, torch.tensor([number], dtype=torch.float64), Sampling())[0].tolist() == [token]


@pytest.mark.parametrize(
    ("offset", "flagged"), [(0.0, True), (EDGE / 2, True), (-EDGE / 2, True), (2 * EDGE, False), (-2 * EDGE, False)]
)
def test_draws_near_a_boundary_are_reported(offset, flagged):
    logits = torch.tensor([[0.25, 0.75]]).log()
    _, near = draw(logits, torch.tensor([0.25 + offset], dtype=torch.float64), Sampling())
    assert near.tolist() == [flagged]


def test_rows_are_drawn_independently():
    logits = torch.tensor([[9.0, -9.0], [-9.0, 9.0], [0.0, 0.0]])
    assert draw(logits, torch.tensor([0.5, 0.5, 0.9]), Sampling())[0].tolist() == [0, 1, 1]


SAMPLINGS = [
    Sampling(0.7, top_p=0.9),
    Sampling(top_p=0.5),
    Sampling(top_k=1),
    Sampling(1.5, top_k=7),
    Sampling(top_k=1000),
    Sampling(min_p=0.2),
    Sampling(2.0, min_p=1.0),
    Sampling(0.9, top_k=40, top_p=0.8, min_p=0.01),
    Sampling(1.3, top_k=5, top_p=0.99, min_p=0.3),
    Sampling(top_p=1e-9),
]


def kept_by_definition(logits: np.ndarray, how: Sampling) -> np.ndarray:
    """Probabilities of one row, token by token: min-p, then top-k, then top-p, tokens as likely as the last kept."""
    p = np.exp((logits - logits.max()) / how.temperature)
    p /= p.sum()
    kept = {t for t in range(len(p)) if p[t] >= how.min_p * p.max()}
    if how.top_k is not None and how.top_k < len(kept):
        kth = sorted((p[t] for t in kept), reverse=True)[how.top_k - 1]
        kept = {t for t in kept if p[t] >= kth}
    if how.top_p < 1:
        whole, mass, last = sum(p[t] for t in kept), 0.0, 0.0
        for last in sorted((p[t] for t in kept), reverse=True):
            mass += last
            if mass >= how.top_p * whole:
                break
        kept = {t for t in kept if p[t] >= last}
    dropped = np.array([p[t] if t in kept else 0.0 for t in range(len(p))])
    return dropped / dropped.sum()


@pytest.mark.parametrize("how", SAMPLINGS, ids=str)
@pytest.mark.parametrize("vocabulary", [3, 50, 3000])
def test_draws_are_those_of_the_definition_row_by_row(how, vocabulary):
    """3000 flat probabilities need more than the first tokens summed on a CPU."""
    rows, generator = 60, np.random.default_rng(vocabulary)
    logits = generator.normal(scale=np.linspace(0.02, 4, rows)[:, None], size=(rows, vocabulary)).astype(np.float32)
    numbers = uniforms(0, str(how), rows, 1)[:, 0]
    tokens, near = draw(torch.from_numpy(logits), torch.from_numpy(numbers), how)
    for row in range(rows):
        p = kept_by_definition(logits[row].astype(np.float64), how)
        wanted = int(np.searchsorted(p.cumsum() / p.sum(), numbers[row], side="right"))
        assert near[row] or tokens[row] == wanted, (row, p[wanted], p[tokens[row]])
    assert vocabulary > 50 or near.float().mean() < 0.1  # of 3000 alike, many lie close together


@pytest.mark.parametrize("how", SAMPLINGS[:5] + SAMPLINGS[7:9], ids=str)
def test_frequencies_are_the_kept_probabilities_and_nothing_else_is_drawn(how):
    logits = np.array([2.0, 0.0, 1.0, -1.0, 0.5, 1.9, -np.inf, -3.0], np.float32)
    numbers = torch.from_numpy(uniforms(1, "q", 1, 20_000)[0])
    tokens, _ = draw(torch.from_numpy(logits).expand(len(numbers), -1), numbers, how)
    shares, p = np.bincount(tokens.numpy(), minlength=8) / len(numbers), kept_by_definition(logits, how)
    assert np.abs(shares - p).sum() / 2 < 0.02
    assert (shares[p == 0] == 0).all()


def test_a_sampling_that_drops_nothing_draws_as_if_there_were_none():
    logits, numbers = torch.randn(50, 700), torch.from_numpy(uniforms(0, "q", 50, 1)[:, 0])
    for how in (Sampling(0.8, top_k=700), Sampling(0.8, top_k=10_000), Sampling(0.8, min_p=1e-30)):
        assert not how.keeps_all
        assert draw(logits, numbers, how)[0].tolist() == draw(logits, numbers, Sampling(0.8))[0].tolist()


@pytest.mark.parametrize(
    ("how", "probabilities", "flagged"),
    [
        (Sampling(top_p=0.75), [0.5, 0.25, 0.25 - 1e-3, 1e-3], True),
        (Sampling(top_p=0.8), [0.5, 0.25, 0.25 - 1e-3, 1e-3], False),
        (Sampling(top_k=2), [0.5, 0.25 + 1e-6, 0.25 - 1e-6, 0.0], True),
        (Sampling(top_k=1), [0.5, 0.25 + 1e-6, 0.25 - 1e-6, 0.0], False),
        (Sampling(min_p=0.5), [0.5, 0.25 + 1e-7, 0.15, 0.1], True),
        (Sampling(min_p=0.4), [0.5, 0.25 + 1e-7, 0.15, 0.1], False),
        (Sampling(top_k=3, min_p=0.5), [0.6, 0.2, 0.1, 0.1], False),
    ],
)
def test_rows_whose_kept_tokens_rounding_may_change_are_reported(how, probabilities, flagged):
    """The number itself, 0.3, is near no boundary."""
    _, near = draw(torch.tensor([probabilities]).log(), torch.tensor([0.3], dtype=torch.float64), how)
    assert near.tolist() == [flagged]
