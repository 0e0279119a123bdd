"""`failures`: what an error means, whoever asks."""

from typing import Any

import pyarrow as pa
import pytest
import torch

from ka2l_ray.dataflow.failures import (
    ActorBroken,
    BlockLost,
    Verdict,
    each_row,
    is_broken,
    is_out_of_memory,
    most_deaths,
    most_errors,
    on_error,
    on_lost_block,
)

OUT = pa.schema([("doubled", pa.int64())])


class EngineDeadError(Exception):
    """Named as vLLM's own."""


MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory"),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:1] . DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]
BROKEN = [
    torch.AcceleratorError("CUDA error: device-side assert triggered"),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    EngineDeadError("EngineCore encountered an issue"),
    ActorBroken("told so"),
]
OTHERS = [ValueError("wrong"), KeyError("x"), RuntimeError("shape mismatch"), OSError("gone")]


@pytest.mark.parametrize("error", MEMORY)
def test_out_of_memory_is_retried_with_fewer_rows_and_costs_no_actor(error: Exception) -> None:
    assert (is_out_of_memory(error), is_broken(error)) == (True, False)
    assert (on_error(error, 8), on_error(error, 1)) == (Verdict.RETRY_ROW, Verdict.ROW)


@pytest.mark.parametrize("error", BROKEN)
def test_a_broken_device_or_engine_ends_the_actor_however_many_rows(error: Exception) -> None:
    assert (is_out_of_memory(error), is_broken(error)) == (False, True)
    assert {on_error(error, n) for n in (1, 8)} == {Verdict.REPLACE_ACTOR}


@pytest.mark.parametrize("error", OTHERS)
def test_any_other_error_is_tried_row_by_row(error: Exception) -> None:
    assert (is_out_of_memory(error), is_broken(error)) == (False, False)
    assert (on_error(error, 2), on_error(error, 1)) == (Verdict.RETRY_ROW, Verdict.ROW)


@pytest.mark.parametrize(
    ("errors", "verdict"),
    [
        ([RuntimeError("no kernel"), RuntimeError("no kernel")], Verdict.REPLACE_ACTOR),
        ([RuntimeError("no kernel"), ValueError("wrong")], Verdict.ROW),
        ([ValueError("wrong"), ValueError("wrong")], Verdict.ROW),
        ([MemoryError(), MemoryError()], Verdict.ROW),
        ([], Verdict.ROW),
    ],
)
def test_an_unknown_error_of_a_whole_block_is_the_actors(errors: list[Exception], verdict: Verdict) -> None:
    assert on_lost_block(dict(enumerate(errors))) == verdict


def test_a_stage_may_lose_more_actors_the_more_it_gets_done() -> None:
    assert most_deaths(1, 0) == 16
    assert most_deaths(64, 0) == 256
    assert most_deaths(1, 100) == 216


@pytest.mark.parametrize(
    ("rows", "share", "most"),
    [(50, 0.01, 5), (10, 0.01, 1), (9, 0.01, 0), (1000, 0.01, 10), (400, 0.01, 5), (50, 0.0, 0), (50, 1.0, 50)],
)
def test_one_bad_row_of_fifty_ends_no_run_and_none_is_allowed_where_the_share_is_zero(
    rows: int, share: float, most: int
) -> None:
    assert most_errors(rows, share) == most


def rows(*values: int) -> pa.Table:
    return pa.table({"value": values})


def fails_at(*bad: int, error: type[Exception] = ValueError) -> Any:
    """Doubles; raises where a bad value is among the rows. `calls` are the rows of each call."""
    calls: list[list[int]] = []

    def work(batch: pa.Table) -> dict[str, Any]:
        calls.append(batch["value"].to_pylist())
        if found := [v for v in calls[-1] if v in bad]:
            raise error(f"bad: {found[0]}")
        return {"doubled": [2 * v for v in calls[-1]]}

    return calls, work


def test_rows_that_go_well_go_together() -> None:
    calls, work = fails_at()
    done = each_row(work, rows(1, 2, 3), OUT)
    assert (done["doubled"].to_pylist(), done["error"].to_pylist(), calls) == ([2, 4, 6], [None] * 3, [[1, 2, 3]])


@pytest.mark.parametrize("error", [ValueError, RuntimeError])
def test_a_bad_row_fails_alone(error: type[Exception]) -> None:
    calls, work = fails_at(2, error=error)
    done = each_row(work, rows(1, 2, 3), OUT)
    assert done["doubled"].to_pylist() == [2, None, 6]
    assert done["error"].to_pylist() == [None, f"{error.__name__}: bad: 2", None]
    assert calls == [[1, 2, 3], [1], [2], [3]]


def test_rows_that_the_work_reports_as_failed_are_null() -> None:
    done = each_row(lambda batch: {"doubled": [2, 4], "error": [None, "ValueError: no"]}, rows(1, 2), OUT)
    assert (done["doubled"].to_pylist(), done["error"].to_pylist()) == ([2, None], [None, "ValueError: no"])


def test_values_that_are_not_one_per_row_are_the_actors_fault_and_cost_no_row() -> None:
    with pytest.raises(ActorBroken, match="doubled: 1 values for 2 rows"):
        each_row(lambda batch: {"doubled": [2]}, rows(1, 2), OUT)


def test_a_block_of_wrong_data_fails_row_by_row() -> None:
    assert each_row(fails_at(1, 2)[1], rows(1, 2), OUT)["error"].null_count == 0


def test_an_unknown_error_at_every_row_is_blamed_on_the_process() -> None:
    with pytest.raises(BlockLost, match=r"^RuntimeError: bad: 1$"):
        each_row(fails_at(1, 2, 3, error=RuntimeError)[1], rows(1, 2, 3), OUT)


@pytest.mark.parametrize(("values", "chosen"), [((1,), False), ((1, 2), True)])
def test_a_single_row_and_rows_that_failed_before_say_nothing_of_the_process(
    values: tuple[int, ...], chosen: bool
) -> None:
    done = each_row(fails_at(1, 2, error=RuntimeError)[1], rows(*values), OUT, chosen)
    assert done["error"].to_pylist() == [f"RuntimeError: bad: {v if len(values) > 1 else 1}" for v in values]
    assert done["doubled"].to_pylist() == [None] * len(values)


def test_an_engine_that_reports_a_lost_block_is_not_asked_row_by_row_unless_the_rows_failed_before() -> None:
    """What it numbers need not be the rows: it may have read one text for several of them, or of some none."""
    calls = []

    def work(batch: pa.Table) -> dict[str, Any]:
        values = batch["value"].to_pylist()
        calls.append(values)
        if bad := [v for v in values if v > 1]:
            raise BlockLost({0: RuntimeError(f"no kernel: {bad[0]}")})
        return {"doubled": [2 * v for v in values]}

    with pytest.raises(BlockLost):
        each_row(work, rows(1, 2, 3), OUT)
    done = each_row(work, rows(1, 2, 3), OUT, chosen=True)
    assert done["error"].to_pylist() == [None, "RuntimeError: no kernel: 2", "RuntimeError: no kernel: 3"]
    assert done["doubled"].to_pylist() == [2, None, None]
    assert calls == [[1, 2, 3], [1, 2, 3], [1], [2], [3]]


def test_after_a_cuda_error_no_further_row_is_tried() -> None:
    calls, work = fails_at(2, error=torch.AcceleratorError)
    with pytest.raises(ActorBroken, match="AcceleratorError: bad: 2"):
        each_row(work, rows(1, 2, 3), OUT)
    assert calls == [[1, 2, 3]]
