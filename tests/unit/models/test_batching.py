"""Batches by tokens, and what happens when one does not fit."""

import itertools
import math
import subprocess
import sys
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ka2l_ray.models.batching import Allowance, Limits, Load, is_out_of_memory, plan, run

LENGTHS = st.lists(st.integers(1, 50), max_size=40)


@given(LENGTHS, st.integers(1, 10), st.integers(1, 400), st.integers(1, 11), st.integers(0, 16))
def test_every_row_once_and_no_batch_beyond_the_limits(lengths, rows, tokens, copies, room):
    batches = plan(Load(lengths, copies, room), Limits(rows, tokens))
    assert sorted(i for b in batches for i in b) == list(range(len(lengths)))
    for batch in batches:
        held = len(batch) * copies * (max(lengths[i] for i in batch) + room)
        assert len(batch) == 1 or (len(batch) <= rows and held <= tokens)


@given(LENGTHS.filter(lambda x: len(x) > 3), st.integers(20, 400))
def test_rows_of_like_length_share_a_batch(lengths, tokens):
    """No row of a batch is longer than any row of an earlier one."""
    batches = plan(Load(lengths), Limits(100, tokens))
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
def test_which_errors_say_that_memory_ran_out(error, memory):
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

    return tried, run(Load([1] * rows), Allowance(Limits(rows)), work)


def test_a_batch_beyond_memory_is_halved_once_then_done_row_by_row():
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


def test_another_failure_goes_row_by_row_at_once():
    tried, failed = attempts(1, rows=4, error=KeyError)
    assert tried == [[0, 1, 2, 3], [0], [1], [2], [3]]
    assert failed == {}


def test_a_real_allocation_that_fails_is_halved():
    """Address space limited to a gibibyte more than the process has: a matrix of 2 GiB is refused, one of half the rows is not."""
    code = """
import resource, torch
from ka2l_ray.models.batching import Allowance, Limits, Load, run
rows = 64
have = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (have + 1400 * 2**20, resource.RLIM_INFINITY))
done = []
def work(batch):
    torch.empty(len(batch) * 32 * 2**20, dtype=torch.uint8).fill_(1)
    done.append(len(batch))
print(run(Load([1] * rows), Allowance(Limits(rows)), work), done)
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "{} [32, 32]"


def test_what_follows_a_batch_beyond_memory_is_planned_smaller(caplog):
    """Rows of 10 tokens, two copies with room for 5: 30 a row, of which 240 are allowed and 100 fit."""
    tried, allowance, load = [], Allowance(Limits(rows=100, tokens=240)), Load([10] * 20, copies=2, room=5)

    def work(batch):
        tried.append(len(batch))
        if load.tokens(batch) > 100:
            raise MemoryError

    assert run(load, allowance, work) == {}
    assert tried == [8, 4, *[1] * 4, 4, *[1] * 4, *[2] * 6]
    assert (allowance.limits, allowance.out_of_memory) == (Limits(rows=100, tokens=60), 3)
    assert run(load, allowance, work) == {}
    assert set(tried[-10:]) == {2}
    assert [r.getMessage() for r in caplog.records] == [
        "memory ran out at a batch of 240 tokens: batches of this actor hold at most 120 from now on",
        "memory ran out at a batch of 120 tokens: batches of this actor hold at most 60 from now on",
    ]


def test_another_failure_lowers_no_limit():
    allowance = Allowance(Limits(rows=8, tokens=8))

    def fail(batch: list[int]) -> None:
        raise ZeroDivisionError

    assert len(run(Load([1] * 8), allowance, fail)) == 8
    assert (allowance.limits, allowance.out_of_memory) == (Limits(rows=8, tokens=8), 0)


class Held:
    """Stands for a batch's cache, of which a test asks whether it is still there."""


def test_the_error_of_a_row_keeps_nothing_of_its_batch_alive():
    """Neither the frames that it went through, nor those of the errors behind it."""
    held = []

    def work(batch):
        cache = Held()
        held.append(weakref.ref(cache))
        try:
            raise KeyError("first")
        except KeyError:
            if batch[0] == 0:
                raise ValueError("poisonous")  # noqa: B904
            raise ValueError("poisonous") from KeyError("cause")

    failed = run(Load([1, 1]), Allowance(Limits()), work)
    assert {i: repr(e) for i, e in failed.items()} == dict.fromkeys((0, 1), "ValueError('poisonous')")
    assert [ref() for ref in held] == [None] * 3


def test_a_row_longer_than_the_limit_is_a_batch_of_its_own():
    assert plan(Load([50, 3, 3]), Limits(10, 8)) == [[0], [1, 2]]
    assert math.prod([len(b) for b in plan(Load([4] * 6), Limits(10, 8))]) == 8
