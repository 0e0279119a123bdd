"""Accuracies count what can be graded."""

from ka2l_ray.active.outcome import _share


def row(correct, scope: str | None = "pool", error=None):
    return {"correct": correct, "scope": scope, "error": error}


def test_failed_rows_are_wrong_and_rows_without_gold_are_left_out():
    rows = [row(True), row(False), row(None, error="ValueError: too long"), row(None), row(True, "domain"), row(True, None)]
    assert _share(rows, "pool") == 2 / 4
    assert _share(rows, "domain") == 1


def test_without_gold_there_is_no_accuracy():
    assert _share([row(None), row(None)], "pool") is None
    assert _share([], "pool") is None
