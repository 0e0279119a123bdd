"""KL to the base model: zero where nothing changed, the gradient of learning the base model's own distribution, no
effect on the end token."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ka2l_ray.finetune.examples import TokenizedRow, held_to_base
from ka2l_ray.finetune.losses import kl_to_base


def case(seed, lengths=(3, 3, 2), replayed=(True, False, True), vocabulary=7):
    """Logits of a tuned model (A, V), those of a base model where KL compares (K, V), and where that is (A,)."""
    generator = torch.Generator().manual_seed(seed)
    rows = [TokenizedRow([0] * (2 + n), 2, r) for n, r in zip(lengths, replayed, strict=True)]
    tuned, base = (torch.randn(sum(lengths), vocabulary, generator=generator, dtype=torch.float64) for _ in range(2))
    at = held_to_base(rows)
    return tuned.requires_grad_(), base[at], at


def test_equal_logits_have_no_kl_and_a_shift_changes_nothing():
    tuned, base, at = case(0)
    same = tuned[at].detach()
    assert float(kl_to_base(tuned, same, at)) == pytest.approx(0, abs=1e-6)
    assert float(kl_to_base(tuned, same + 3.0, at)) == pytest.approx(0, abs=1e-5)
    assert kl_to_base(tuned, base, at).item() > 0


@given(st.integers(0, 50))
def test_the_gradient_is_that_of_cross_entropy_with_the_base_distribution(seed):
    tuned, base, at = case(seed)
    (found,) = torch.autograd.grad(kl_to_base(tuned, base, at), tuned)
    counted = [0, 1, 6]
    cross_entropy = -(torch.softmax(base, -1) * torch.log_softmax(tuned[counted], -1)).sum()
    (expected,) = torch.autograd.grad(cross_entropy, tuned)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_annotated_rows_and_end_tokens_have_no_gradient():
    tuned, base, at = case(1)
    (found,) = torch.autograd.grad(kl_to_base(tuned, base, at), tuned)
    assert (found.abs().sum(-1) > 0).tolist() == [True, True, False, False, False, False, True, False]


def test_an_answer_of_only_the_end_token_has_no_kl():
    assert kl_to_base(*case(3, lengths=(1, 1, 1))).item() == 0.0


def test_a_part_without_replayed_rows_has_no_kl_and_a_zero_gradient():
    tuned, base, at = case(2, replayed=(False, False, False))
    none = kl_to_base(tuned, base, at)
    assert none.item() == 0.0
    assert not torch.autograd.grad(none, tuned)[0].any()
