"""Fitting one layer's probe: every threshold and every C, chosen and calibrated on validation rows, reported on test
rows.

In: states (N, D) and what is known of each row. Out: `ProbeFit`: the probe, its test figures, its row of the heat map.
Refuses to know: Ray, files. Training, validation and test rows never share an entity.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from ka2l_ray.config import SearchSection
from ka2l_ray.entropy.thresholds import candidates, otsu
from ka2l_ray.errors import ConfigError
from ka2l_ray.hashing import uniform
from ka2l_ray.models.probe import LinearProbe, ProbeCard, StateSource, score_states
from ka2l_ray.stats import auroc, auroc_interval

NO_SOURCE = StateSource(model="", prompt="", layer=-1, position="")
"""The source of states that nobody named; no run accepts a probe of it."""
CALIBRATION_BINS = 10
"""Parts, with as many rows each, in which probabilities are compared with what they say."""


@dataclass(frozen=True)
class ProbeRows:
    """What is known of each row of states, as arrays (N,).

    `entropy_nats`: semantic entropies, or labels 1 (unknown) and 0 (known).
    `wrong`: 1 for a wrong greedy answer, 0 for a right one, -1 without a gold answer; None where no row has one.
    `unseen`: the truth, 1 or 0, or -1 for a row that no figure counts; None where nobody knows it.
    `entity`: rows of one entity are never divided between training, validation and test; None makes each row its own.
    `abstains`: True for rows that are unknown whatever their entropy; None where there are none.
    `topic`: what a question is about, such as its relation, as a name; None where nobody knows.
    `fully_sampled`: False where sampling stopped early; `entropy_nats` is then a bound on the same side of γ.
    """

    entropy_nats: np.ndarray
    wrong: np.ndarray | None = None
    unseen: np.ndarray | None = None
    entity: np.ndarray | None = None
    fully_sampled: bool = True
    abstains: np.ndarray | None = None
    topic: np.ndarray | None = None

    def unknown(self, threshold_nats: float) -> np.ndarray:
        """The rows (N,) whose entropy is at least a threshold, or that abstain."""
        unknown = np.asarray(self.entropy_nats, np.float64) >= threshold_nats
        return unknown if self.abstains is None else unknown | self.abstains


@dataclass(frozen=True)
class Cell:
    """One (threshold, C) of the heat map with its AUROC on validation rows."""

    threshold_nats: float
    inverse_regularization: float
    auroc: float


@dataclass(frozen=True)
class Objective:
    """The target that a probe is chosen by, (N,): 1 or 0, and -1 for rows that no AUROC counts.

    `name` is `correctness` or `entropy`, `graded` the number of rows with gold. `note` says why `auto` fell back to
    entropy; it is None otherwise.
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
class ProbeFit:
    """The fitted probe. `validation_auroc` chose its cell; the other AUROCs are those of the test rows.

    `auroc`, with its 95 % interval, is against the objective's target, `auroc_vs_truth` against `unseen`; they are None
    where only one class occurs. `auroc_topic_alone` is that of a classifier which sees no state but the topic, and says
    how much of it is unknown in the training rows: what a probe adds is beyond it. `calibration_error` is the mean
    distance of P(unknown) from the share of the test rows whose entropy is at least γ or that abstain, over
    `CALIBRATION_BINS` parts of them by P (expected calibration error), None without any. `heat` has every cell that was
    tried.
    """

    probe: LinearProbe
    chosen: Cell
    validation_auroc: float
    auroc: float | None
    auroc_ci: tuple[float, float] | None
    auroc_vs_truth: float | None
    calibration_error: float | None
    heat: tuple[Cell, ...]
    objective: Objective
    auroc_topic_alone: float | None = None


def fit_probe(
    states: np.ndarray,
    rows: ProbeRows,
    threshold_nats: float | None = None,
    search: SearchSection = SearchSection(),
    seed: int = 0,
    source: StateSource = NO_SOURCE,
) -> ProbeFit:
    """Fit a logistic probe on states (N, D) for each threshold and C, choose by validation AUROC, report on test rows.

    A row is unknown where its entropy is at least the threshold γ, `threshold_nats` (None: Otsu's threshold over the
    rows that do not abstain), or where it abstains. With the
    objective `correctness` every threshold competes on the same target, wrong greedy answers of the graded rows. With
    `entropy`, and where sampling stopped by γ, only γ is tried: AUROCs against different targets do not compare.
    Probes are fitted to all training rows, graded or not. The chosen one is calibrated (`calibrated`): whatever
    threshold it was trained on, its numbers are probabilities of an entropy of at least γ. `source` goes on its card.

    Raises `ValueError` where states and rows differ in number; `ConfigError` where only one class occurs, or where
    `search.objective` asks for gold answers that are not there. Source: KA2L, stage 1.

    >>> import numpy as np
    >>> from ka2l_ray import ProbeRows, fit_probe
    >>> states = np.random.default_rng(0).normal(size=(400, 8))
    >>> fit = fit_probe(states, ProbeRows(states[:, 0] > 0, entity=np.repeat(np.arange(100), 4)))
    >>> fit.auroc > 0.95, fit.auroc_ci[0] < fit.auroc, fit.probe.weight.shape
    (True, True, (8,))
    """
    if len(states) != len(rows.entropy_nats):
        raise ValueError(f"{len(states):,} states, but {len(rows.entropy_nats):,} entropies: a row needs one of each")
    entropy = np.asarray(rows.entropy_nats, np.float64)
    entity = np.arange(len(states)) if rows.entity is None else rows.entity
    histogram = Counter((entropy if rows.abstains is None else entropy[~rows.abstains]).tolist())
    gamma = otsu(histogram) if threshold_nats is None else threshold_nats
    part = divide(entity, search.validation_share, search.test_share, seed)
    train, validation, test = (part == i for i in range(3))
    objective = objective_of(rows, validation, gamma, search)
    compete = objective.name == "correctness" and rows.fully_sampled
    thresholds = {*candidates(histogram, search.min_class_share), gamma} if compete else {gamma}
    scaler = StandardScaler().fit(states[train])
    scaled = scaler.transform(states)
    tried: list[tuple[Cell, LogisticRegression]] = []
    for threshold in sorted(thresholds):
        labels = rows.unknown(threshold)
        if len(np.unique(labels[train])) < 2:
            continue
        for c in search.inverse_regularization:
            model = LogisticRegression(C=c, max_iter=500).fit(scaled[train], labels[train])
            score = objective.auroc(validation, model.decision_function(scaled[validation]))
            if score is not None:
                tried.append((Cell(threshold, c, score), model))
    if not tried:
        raise ConfigError(
            "the rows for training or for validation have one class only; ask more questions or set label.threshold"
        )
    best, model = max(tried, key=lambda t: t[0].auroc)
    unknown = rows.unknown(gamma)
    slope, offset = calibrated(model.decision_function(scaled[validation]), unknown[validation])
    weight = slope * model.coef_[0] / scaler.scale_
    bias = float(slope * np.asarray(model.intercept_)[0] + offset - weight @ scaler.mean_)
    card = ProbeCard(
        **vars(source),
        width=states.shape[1],
        threshold_nats=best.threshold_nats,
        inverse_regularization=best.inverse_regularization,
    )
    probe = LinearProbe(weight, bias, card)
    score = states[test] @ weight + bias
    return ProbeFit(
        probe=probe,
        chosen=best,
        validation_auroc=best.auroc,
        auroc=objective.auroc(test, score),
        auroc_ci=objective.interval(test, score, entity, search.bootstrap, seed),
        auroc_vs_truth=None
        if rows.unseen is None
        else Objective("truth", np.asarray(rows.unseen), 0).auroc(test, score),
        calibration_error=calibration_error(unknown[test], score_states(states[test], probe)),
        heat=tuple(cell for cell, _ in tried),
        objective=objective,
        auroc_topic_alone=None
        if rows.topic is None
        else objective.auroc(test, unknown_of_topic(rows.topic, rows.unknown(best.threshold_nats), train)[test]),
    )


def calibrated(score: np.ndarray, unknown: np.ndarray) -> tuple[float, float]:
    """Slope and offset that make scores (N,) the log-odds of `unknown` (N,), bool. The slope is positive, so rankings
    stay: where scores say nothing, or the opposite, of these rows, (1, 0) leaves them as they are.

    Source: Platt (1999), with his smoothed targets, which keep the slope finite where scores separate the rows.
    """
    if len(np.unique(unknown)) < 2:
        return 1.0, 0.0
    count = len(unknown)
    smoothed = np.where(unknown, (unknown.sum() + 1) / (unknown.sum() + 2), 1 / (count - unknown.sum() + 2))
    fit = LogisticRegression(C=np.inf, max_iter=500).fit(
        np.tile(score, 2)[:, None], np.repeat([1, 0], count), np.concatenate([smoothed, 1 - smoothed])
    )
    slope, offset = float(fit.coef_[0, 0]), float(np.asarray(fit.intercept_)[0])
    return (slope, offset) if slope > 0 else (1.0, 0.0)


def calibration_error(unknown: np.ndarray, p_unknown: np.ndarray) -> float | None:
    """Expected calibration error of probabilities (N,) of `unknown` (N,), in bins with as many rows each; None without
    rows."""
    if not len(unknown):
        return None
    share, said = calibration_curve(unknown, p_unknown, n_bins=CALIBRATION_BINS, strategy="quantile")
    return float(np.abs(share - said).mean())


def unknown_of_topic(topic: np.ndarray, unknown: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Share of each row's topic (N,) that is unknown in the training rows, a mask (N,): with one row as common as all
    of them more, so that topics with few rows, or none, lean on the whole."""
    whole = float(unknown[train].mean())
    total, count = Counter[str](), Counter[str]()
    for name, value in zip(topic[train], unknown[train], strict=True):
        total[name] += bool(value)
        count[name] += 1
    share = {name: (total[name] + whole) / (count[name] + 1) for name in count}
    return np.array([share.get(name, whole) for name in topic])


def divide(entity: np.ndarray, validation: float, test: float, seed: int) -> np.ndarray:
    """Part of each row (N,): 0 training, 1 validation, 2 test; it depends on the entity's name and the seed alone."""
    shares = np.array([uniform(f"{seed}\x1fdivide", str(e)) for e in entity])
    return np.where(shares < test, 2, np.where(shares < test + validation, 1, 0))


def objective_of(rows: ProbeRows, validation: np.ndarray, threshold_nats: float, search: SearchSection) -> Objective:
    """What to choose by: wrong greedy answers, where the rows of `validation`, a mask (N,), suffice.

    They need `search.min_graded` right and as many wrong ones; else `auto` falls back to SE >= γ and says so.
    Raises `ConfigError` with the counts for `correctness`.
    """
    by_entropy = rows.unknown(threshold_nats).astype(np.int8)
    wrong = np.full(len(by_entropy), -1) if rows.wrong is None else np.asarray(rows.wrong, np.int8)
    graded = int((wrong >= 0).sum())
    if search.objective == "entropy":
        return Objective("entropy", by_entropy, graded)
    right_and_wrong = [int((wrong[validation] == kind).sum()) for kind in (0, 1)]
    if min(right_and_wrong) >= search.min_graded:
        return Objective("correctness", wrong, graded)
    counts = (
        f"search.min_graded = {search.min_graded}, but the validation questions contain {right_and_wrong[0]:,} right "
        f"and {right_and_wrong[1]:,} wrong answers; {graded:,} of {len(wrong):,} probe questions are graded"
    )
    if search.objective == "correctness":
        raise ConfigError(
            f"search.objective = correctness needs gold answers: {counts}. Use auto or entropy, or give more gold"
        )
    return Objective("entropy", by_entropy, graded, f"chosen by entropy, not by correctness: {counts}")
