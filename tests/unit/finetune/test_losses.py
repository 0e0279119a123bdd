"""KL to the base model: zero where nothing changed, the gradient of learning the base model's own distribution, no
effect on the end token."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ka2l_ray.finetune.losses import IGNORED, kl_positions
from ka2l_ray.finetune.losses import kl_to_base as kl_to_base_at


def case(seed, rows=3, width=5, vocabulary=7):
    """Logits of a tuned and a base model (B, T, V), labels (B, T) with a prompt of two tokens and one of padding in the
    last row, which rows are replayed (B,)."""
    generator = torch.Generator().manual_seed(seed)
    tuned, base = (torch.randn(rows, width, vocabulary, generator=generator, dtype=torch.float64) for _ in range(2))
    labels = torch.randint(vocabulary, (rows, width), generator=generator)
    labels[:, :2] = IGNORED
    labels[-1, -1] = IGNORED
    return tuned.requires_grad_(), base, labels, torch.tensor([True, False, True])


def kl_to_base(tuned, base, labels, replayed):
    """With logits (B, T, V) of the base model."""
    return kl_to_base_at(tuned, base[kl_positions(labels, replayed)], labels, replayed)


def test_equal_logits_have_no_kl_and_a_shift_changes_nothing():
    tuned, base, labels, replayed = case(0)
    assert float(kl_to_base(base, base, labels, replayed)) == pytest.approx(0, abs=1e-6)
    assert float(kl_to_base(base + 3.0, base, labels, replayed)) == pytest.approx(0, abs=1e-5)
    assert kl_to_base(tuned, base, labels, replayed).item() > 0


@given(st.integers(0, 50))
def test_the_gradient_is_that_of_cross_entropy_with_the_base_distribution(seed):
    tuned, base, labels, replayed = case(seed)
    (found,) = torch.autograd.grad(kl_to_base(tuned, base, labels, replayed), tuned)
    counted = torch.tensor([[0, 1, 1, 0], [0, 0, 0, 0], [0, 1, 0, 0]]).unsqueeze(-1)
    cross_entropy = -(torch.softmax(base[:, :-1], -1) * torch.log_softmax(tuned[:, :-1], -1) * counted).sum()
    (expected,) = torch.autograd.grad(cross_entropy, tuned)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_annotated_rows_prompts_padding_and_end_tokens_have_no_gradient():
    tuned, base, labels, replayed = case(1)
    (found,) = torch.autograd.grad(kl_to_base(tuned, base, labels, replayed), tuned)
    touched = found.abs().sum(-1) > 0
    assert touched.tolist() == [[False, True, True, False, False], [False] * 5, [False, True, False, False, False]]


def test_an_answer_of_only_the_end_token_has_no_kl():
    tuned, base, labels, replayed = case(3)
    labels[:, :-1] = IGNORED
    assert kl_to_base(tuned, base, labels, replayed).item() == 0.0


def test_a_part_without_replayed_rows_has_no_kl_and_a_zero_gradient():
    tuned, base, labels, _ = case(2)
    none = kl_to_base(tuned, base, labels, torch.zeros(3, dtype=torch.bool))
    assert none.item() == 0.0
    assert not torch.autograd.grad(none, tuned)[0].any()
