"""Fitting one layer's probe for every threshold, and choosing among them on validation rows.

In: states (N, D), entropies, targets, entities. Out: `LayerFit`: the best probe, its test figures, and its row of the heat map.
Refuses to know: Ray, files. Train, validation and test never share an entity.
"""

import hashlib
from collections import Counter
from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from ka2l_ray.config import SearchSection
from ka2l_ray.entropy.thresholds import candidates
from ka2l_ray.errors import ConfigError
from ka2l_ray.stats import auroc, auroc_interval


@dataclass(frozen=True)
class ProbeRows:
    """The probe split, row by row, as arrays (N,). `wrong` is 1 for a wrong greedy answer, 0 for a right one, -1 without gold; None where
    no row has gold. `unseen` is 1, 0 or -1 (left out). Rows of one `entity` never stand in two parts.

    Where sampling stopped before all samples were drawn (`whole` is False), `entropy_nats` is a bound on γ's own side of it.
    """

    entropy_nats: np.ndarray
    wrong: np.ndarray | None
    unseen: np.ndarray | None
    entity: np.ndarray
    whole: bool = True


@dataclass(frozen=True)
class Cell:
    """One (threshold, C) of the heat map with its AUROC on validation rows."""

    threshold_nats: float
    inverse_regularization: float
    auroc: float


@dataclass(frozen=True)
class Objective:
    """What a layer is chosen by: `correctness` or `entropy`; its target is 1 or 0, and -1 for rows that no AUROC counts, (N,).

    `graded` rows have gold. `note` says why `auto` fell back to entropy, None where it did not.
    """

    name: str
    target: np.ndarray
    graded: int
    note: str | None = None

    def auroc(self, rows: np.ndarray, score: np.ndarray) -> float | None:
        """AUROC of a score (M,) over the chosen rows (N,), a mask of M true values."""
        counted = self.target[rows] >= 0
        return auroc(self.target[rows][counted] == 1, score[counted])

    def interval(
        self, rows: np.ndarray, score: np.ndarray, entity: np.ndarray, resamples: int, seed: int
    ) -> tuple[float, float] | None:
        """Its 95 % interval by resampled entities (N,)."""
        counted = self.target[rows] >= 0
        return auroc_interval(self.target[rows][counted] == 1, score[counted], entity[rows][counted], resamples, seed)


@dataclass(frozen=True)
class LayerFit:
    """`weight` (D,) and `bias` act on raw states. `auroc…` are test figures of the chosen cell; `validation_auroc` chose it."""

    weight: np.ndarray
    bias: float
    chosen: Cell
    validation_auroc: float
    auroc: float | None
    auroc_ci: tuple[float, float] | None
    auroc_vs_truth: float | None
    heat: tuple[Cell, ...]
    objective: Objective


def divide(entity: np.ndarray, validation: float, test: float, seed: int) -> np.ndarray:
    """Part of each row (N,): 0 train, 1 validation, 2 test; an entity's part depends on nothing but its name and the seed."""

    def unit(name: str) -> float:
        return (
            int.from_bytes(hashlib.blake2b(f"{seed}\x1fdivide\x1f{name}".encode(), digest_size=8).digest(), "big")
            / 2**64
        )

    shares = np.array([unit(str(e)) for e in entity])
    return np.where(shares < test, 2, np.where(shares < test + validation, 1, 0))


def objective_of(rows: ProbeRows, validation: np.ndarray, threshold_nats: float, search: SearchSection) -> Objective:
    """What to choose by: wrong greedy answers, where `validation`, a mask (N,), holds `search.min_graded` right and as many wrong ones.

    Where they do not, `auto` falls back to SE >= γ and says so. Raises `ValueError` with the counts for `correctness`.
    """
    by_entropy = (rows.entropy_nats >= threshold_nats).astype(np.int8)
    wrong = np.full(len(by_entropy), -1) if rows.wrong is None else np.asarray(rows.wrong, np.int8)
    graded = int((wrong >= 0).sum())
    if search.objective == "entropy":
        return Objective("entropy", by_entropy, graded)
    right_and_wrong = [int((wrong[validation] == kind).sum()) for kind in (0, 1)]
    if min(right_and_wrong) >= search.min_graded:
        return Objective("correctness", wrong, graded)
    counts = (
        f"search.min_graded = {search.min_graded}, but the validation questions hold {right_and_wrong[0]:,} right and "
        f"{right_and_wrong[1]:,} wrong answers; {graded:,} of {len(wrong):,} probe questions are graded"
    )
    if search.objective == "correctness":
        raise ConfigError(
            f"search.objective = correctness needs gold answers: {counts}. Use auto or entropy, or give more gold"
        )
    return Objective("entropy", by_entropy, graded, f"chosen by entropy, not by correctness: {counts}")


def fit_layer(states: np.ndarray, rows: ProbeRows, threshold_nats: float, search: SearchSection, seed: int) -> LayerFit:
    """Fit a probe for each threshold and C, choose by validation AUROC, report on test rows.

    With objective `correctness` every threshold competes on the same target, wrong greedy answers of the graded rows; with `entropy` only
    the given γ is tried, because AUROCs against different targets do not compare; likewise where sampling stopped by γ. Probes are fitted
    to all training rows, graded or not. Raises `ConfigError` where a part holds one class only, and as `objective_of` does.
    """
    part = divide(rows.entity, search.validation_share, search.test_share, seed)
    train, validation, test = (part == i for i in range(3))
    objective = objective_of(rows, validation, threshold_nats, search)
    compete = objective.name == "correctness" and rows.whole
    tried = candidates(Counter(rows.entropy_nats.tolist()), search.min_class_share) if compete else []
    scaler = StandardScaler().fit(states[train])
    scaled = scaler.transform(states)
    heat, models = [], {}
    for gamma in sorted({*tried, threshold_nats}):
        labels = rows.entropy_nats >= gamma
        for c in search.inverse_regularization:
            if len(np.unique(labels[train])) < 2:
                continue
            model = LogisticRegression(C=c, max_iter=500).fit(scaled[train], labels[train])
            score = objective.auroc(validation, model.decision_function(scaled[validation]))
            if score is not None:
                heat.append(Cell(gamma, c, score))
                models[heat[-1]] = model
    if not heat:
        raise ConfigError(
            "the probe split holds one class only in train or validation; ask more questions or set label.threshold"
        )
    best = max(heat, key=lambda cell: cell.auroc)
    weight, bias = _unscaled(models[best], scaler)
    score = states[test] @ weight + bias
    interval = objective.interval(test, score, rows.entity, search.bootstrap, seed)
    truth = _against_truth(rows, test, score)
    return LayerFit(
        weight, bias, best, best.auroc, objective.auroc(test, score), interval, truth, tuple(heat), objective
    )


def _unscaled(model: LogisticRegression, scaler: StandardScaler) -> tuple[np.ndarray, float]:
    weight = model.coef_[0] / scaler.scale_
    intercept: np.ndarray = np.asarray(model.intercept_)
    return weight, float(intercept[0] - weight @ scaler.mean_)


def _against_truth(rows: ProbeRows, test: np.ndarray, score: np.ndarray) -> float | None:
    if rows.unseen is None:
        return None
    compared = rows.unseen[test] >= 0
    return auroc(rows.unseen[test][compared], score[compared])
