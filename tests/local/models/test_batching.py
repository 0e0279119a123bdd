"""Batches limited by tokens, and what happens when one does not fit."""

import itertools
import math
import subprocess
import sys
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ka2l_ray.dataflow.failures import is_out_of_memory
from ka2l_ray.models.batching import AdaptiveLimits, Limits, Load, run_batches


def load_of(lengths: list[int], copies: int = 1, new_tokens: int = 0) -> Load:
    """Rows of these lengths, numbered from 0."""
    return Load(dict(enumerate(lengths)), copies, new_tokens)


def batches_of(load: Load, limits: Limits) -> list[list[int]]:
    """The batches that are run where none fails."""
    batches: list[list[int]] = []
    assert run_batches(load, AdaptiveLimits(limits), batches.append) == {}
    return batches


LENGTHS = st.lists(st.integers(1, 50), max_size=40)


@given(LENGTHS, st.integers(1, 10), st.integers(1, 400), st.integers(1, 11), st.integers(0, 16))
def test_every_row_once_and_no_batch_beyond_the_limits(lengths, rows, tokens, copies, room):
    batches = batches_of(load_of(lengths, copies, room), Limits(rows, tokens))
    assert sorted(i for b in batches for i in b) == list(range(len(lengths)))
    for batch in batches:
        held = len(batch) * copies * (max(lengths[i] for i in batch) + room)
        assert len(batch) == 1 or (len(batch) <= rows and held <= tokens)


@given(LENGTHS.filter(lambda x: len(x) > 3), st.integers(20, 400))
def test_rows_of_similar_length_share_a_batch(lengths, tokens):
    """No row of a batch is longer than any row of an earlier one."""
    batches = batches_of(load_of(lengths), Limits(100, tokens))
    spans = [(min(lengths[i] for i in b), max(lengths[i] for i in b)) for b in batches]
    assert all(later[1] <= earlier[0] for earlier, later in itertools.pairwise(spans))


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:1] . DefaultCPUAllocator: can't allocate memory: you tried"),
            True,
        ),
        (RuntimeError("shape mismatch"), False),
    ],
)
def test_which_errors_mean_out_of_memory(error, memory):
    assert is_out_of_memory(error) is memory


def attempts(
    fits: int, rows: int = 8, error: type[Exception] = MemoryError
) -> tuple[list[list[int]], dict[int, Exception]]:
    """Batches tried, and what failed, when a batch of more than `fits` rows raises."""
    tried = []

    def work(batch):
        tried.append(batch)
        if len(batch) > fits:
            raise error

    return tried, run_batches(load_of([1] * rows), AdaptiveLimits(Limits(rows)), work)


def test_a_batch_that_runs_out_of_memory_is_halved_once_then_done_row_by_row():
    assert attempts(8)[0] == [list(range(8))]
    assert attempts(4)[0] == [list(range(8)), [0, 1, 2, 3], [4, 5, 6, 7]]
    assert attempts(3)[0] == [
        list(range(8)),
        [0, 1, 2, 3],
        *([i] for i in range(4)),
        [4, 5, 6, 7],
        *([i] for i in range(4, 8)),
    ]
    tried, failed = attempts(0, rows=2)
    assert tried == [[0, 1], [0], [1]]
    assert {i: type(e) for i, e in failed.items()} == {0: MemoryError, 1: MemoryError}


def test_after_another_failure_a_batch_is_done_row_by_row_at_once():
    tried, failed = attempts(1, rows=4, error=KeyError)
    assert tried == [[0, 1, 2, 3], [0], [1], [2], [3]]
    assert failed == {}


def test_a_real_allocation_that_fails_is_halved():
    """Address space limited to a gibibyte more than the process has: a matrix of 2 GiB is refused, one of half the rows
    is not."""
    code = """
import resource, torch
from ka2l_ray.models.batching import AdaptiveLimits, Limits, Load, run_batches
rows = 64
have = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (have + 1400 * 2**20, resource.RLIM_INFINITY))
done = []
def work(batch):
    torch.empty(len(batch) * 32 * 2**20, dtype=torch.uint8).fill_(1)
    done.append(len(batch))
print(run_batches(Load(dict.fromkeys(range(rows), 1)), AdaptiveLimits(Limits(rows)), work), done)
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "{} [32, 32]"


def test_batches_after_one_that_ran_out_of_memory_are_smaller(caplog):
    """Rows of 10 tokens, two copies with 5 new ones: 30 per row; 240 are allowed and 100 fit."""
    tried, limits, load = [], AdaptiveLimits(Limits(rows=100, tokens=240)), load_of([10] * 20, 2, 5)

    def work(batch):
        tried.append(len(batch))
        if load.tokens(batch) > 100:
            raise MemoryError

    assert run_batches(load, limits, work) == {}
    assert tried == [8, 4, *[1] * 4, 4, *[1] * 4, *[2] * 6]
    assert (limits.limits, limits.out_of_memory) == (Limits(rows=100, tokens=60), 3)
    assert run_batches(load, limits, work) == {}
    assert set(tried[-10:]) == {2}
    assert [r.getMessage() for r in caplog.records] == [
        "out of memory in a batch of 240 tokens: from now on, batches of this actor contain at most 120 tokens",
        "out of memory in a batch of 120 tokens: from now on, batches of this actor contain at most 60 tokens",
    ]


def test_another_failure_lowers_no_limit():
    limits = AdaptiveLimits(Limits(rows=8, tokens=8))

    def fail(batch: list[int]) -> None:
        raise ZeroDivisionError

    assert len(run_batches(load_of([1] * 8), limits, fail)) == 8
    assert (limits.limits, limits.out_of_memory) == (Limits(rows=8, tokens=8), 0)


class Cache:
    """Stands for a batch's KV cache; the test asks whether it is still alive."""


def test_the_error_of_a_row_keeps_nothing_of_its_batch_alive():
    """Neither in its own traceback, nor in those of the errors that caused it."""
    held = []

    def work(batch):
        cache = Cache()
        held.append(weakref.ref(cache))
        try:
            raise KeyError("first")
        except KeyError:
            if batch[0] == 0:
                raise ValueError("bad row")  # noqa: B904
            raise ValueError("bad row") from KeyError("cause")

    failed = run_batches(load_of([1, 1]), AdaptiveLimits(Limits()), work)
    assert {i: repr(e) for i, e in failed.items()} == dict.fromkeys((0, 1), "ValueError('bad row')")
    assert [ref() for ref in held] == [None] * 3


def test_a_row_longer_than_the_limit_is_a_batch_of_its_own():
    assert batches_of(load_of([50, 3, 3]), Limits(10, 8)) == [[0], [1, 2]]
    assert math.prod([len(b) for b in batches_of(load_of([4] * 6), Limits(10, 8))]) == 8
