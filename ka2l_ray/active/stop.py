"""When a strategy stops buying before its last round.

In: the accuracies of its rounds so far, what is left of the pool. Out: a `Stop`, or None to go on. Refuses to know:
runs, files, Ray.
"""

from collections.abc import Sequence
from enum import StrEnum

from ka2l_ray.config import StopSection

ROUNDING = 1e-9


class Stop(StrEnum):
    """Why a strategy stopped."""

    ACCURACY = "accuracy target reached"
    NO_GAIN = "no gain"
    NOTHING_UNKNOWN = "nothing unknown left"


def decide(stop: StopSection, accuracies: Sequence[float | None], unknown_left: bool) -> Stop | None:
    """Why to stop before the next round, None to go on. `accuracies` starts with the base model's; without gold they
    are None and never stop a strategy."""
    known = [a for a in accuracies if a is not None]
    if stop.accuracy is not None and known and known[-1] >= stop.accuracy:
        return Stop.ACCURACY
    if stop.patience is not None and rounds_without_gain(known, stop.min_gain) >= stop.patience:
        return Stop.NO_GAIN
    return None if unknown_left else Stop.NOTHING_UNKNOWN


def rounds_without_gain(accuracies: Sequence[float], min_gain: float) -> int:
    """Rounds since the last one that beat the best before it by at least `min_gain` (up to rounding)."""
    best, since = float("-inf"), 0
    for accuracy in accuracies:
        gained = accuracy > best and accuracy - best >= min_gain - ROUNDING
        best, since = max(best, accuracy), 0 if gained else since + 1
    return since
