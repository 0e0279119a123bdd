"""The DeepSpeed configuration: its arithmetic, and what differs between CPU and GPU."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ka2l_ray.config import FinetuneSection
from ka2l_ray.finetune.deepspeed import accumulation_steps, deepspeed_config, learning_rate_factor, micro_batch_rows


def config(on_gpu=False, bf16=False, **fields):
    return deepspeed_config(FinetuneSection(**fields), on_gpu, bf16)


@given(st.integers(1, 6), st.integers(1, 16), st.integers(1, 5))
def test_a_step_is_micro_batches_times_accumulation_steps_times_workers(workers, micro, parts):
    found = config(workers=workers, micro_batch_rows=micro, batch_rows=workers * micro * parts)
    assert found["train_batch_size"] == workers * micro * parts
    assert found["train_micro_batch_size_per_gpu"] == micro
    assert found["gradient_accumulation_steps"] == parts


@pytest.mark.parametrize(
    ("workers", "micro", "rows", "expected"),
    [(2, 32, 64, (32, 1)), (2, 32, 48, (24, 1)), (1, 32, 8, (8, 1)), (4, 8, 64, (8, 2)), (3, 32, 3, (1, 1))],
)
def test_a_step_smaller_than_a_micro_batch_is_one_part(workers, micro, rows, expected):
    section = FinetuneSection(workers=workers, micro_batch_rows=micro, batch_rows=rows)
    assert (micro_batch_rows(section), accumulation_steps(section)) == expected
    assert deepspeed_config(section, False, False)["train_batch_size"] == rows


def test_torchs_adam_is_used_everywhere_and_is_fused_only_on_a_gpu():
    """DeepSpeed's own would have to be compiled on every node."""
    found = [
        config(on_gpu=c, zero_stage=2, offload=o)["optimizer"]["params"]
        for c, o in ((False, "none"), (True, "none"), (True, "optimizer"))
    ]
    assert [p["torch_adam"] for p in found] == [True, True, True]
    assert ["fused" in p for p in found] == [False, True, False]


@pytest.mark.parametrize(
    ("offload", "stage", "places"),
    [("none", 3, set()), ("optimizer", 2, {"offload_optimizer"}), ("all", 3, {"offload_optimizer", "offload_param"})],
)
def test_offload_goes_to_the_host(offload, stage, places):
    zero = config(on_gpu=True, zero_stage=stage, offload=offload)["zero_optimization"]
    assert zero == {"stage": stage} | {p: {"device": "cpu", "pin_memory": True} for p in places}


@pytest.mark.parametrize("bf16", [True, False])
def test_bf16_follows_the_model(bf16):
    assert config(bf16=bf16)["bf16"] == {"enabled": bf16}


def test_the_sections_values_arrive():
    found = config(learning_rate=1e-3, weight_decay=0.1, max_grad_norm=0.5, zero_stage=1)
    assert found["optimizer"]["params"]["lr"] == 1e-3
    assert found["optimizer"]["params"]["weight_decay"] == 0.1
    assert (found["gradient_clipping"], found["zero_optimization"]) == (0.5, {"stage": 1})


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize(
    ("share", "steps", "warmup"), [(0.1, 100, 10), (0.0, 100, 1), (0.1, 3, 1), (1.0, 40, 40), (0.5, 1, 1)]
)
def test_the_learning_rate_rises_to_one_and_decays_without_a_wasted_step(schedule, share, steps, warmup):
    rates = [learning_rate_factor(step, steps, share, schedule) for step in range(steps)]
    assert rates[warmup - 1] == 1.0
    assert all(0 < r <= 1 for r in rates)
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert learning_rate_factor(steps, steps, share, schedule) == 0.0


def test_the_cosine_is_half_way_down_in_the_middle_and_flat_at_both_ends():
    fall = [learning_rate_factor(step, 110, 10 / 110, "cosine") for step in range(10, 111)]
    assert fall[50] == pytest.approx(0.5)
    assert fall[25] == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
    assert fall[0] - fall[1] < 0.001 > fall[-2] - fall[-1]
