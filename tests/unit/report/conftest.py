"""A whole run's summary and heat map, made by hand, as the stages write them."""

import math
from typing import Any

import pytest


def _round(strategy: str, seed: int, number: int, end: float) -> dict[str, Any]:
    gain = (end - 0.48) * math.sqrt(number / 3)
    return {
        "strategy": strategy,
        "seed": seed,
        "round": number,
        "annotations": 75 * number,
        "cost": 75.0 * number,
        "accuracy": 0.48 + gain,
        "domain_accuracy": None if strategy == "oracle" else 0.41 + gain * (0.22 if strategy == "ka2l" else 0.02),
        "known_accuracy": 1.0 - 0.012 * number - (0.004 * seed if number else 0),
        "replayed_accuracy": 1.0 - 0.004 * number,
    }


def _rounds() -> list[dict[str, Any]]:
    ends = {("ka2l", 0): 0.744, ("random", 0): 0.622, ("random", 1): 0.604, ("random", 2): 0.647, ("oracle", 0): 0.762}
    return [_round(strategy, seed, number, end) for (strategy, seed), end in ends.items() for number in range(4)]


def _search() -> dict[str, Any]:
    layers = []
    for layer in range(9):
        auroc = 0.61 + 0.33 * math.sin(min(layer, 6) / 6 * math.pi / 2) - 0.01 * max(0, layer - 6)
        interval = [auroc - 0.021, min(1.0, auroc + 0.019)]
        entry = {"layer": layer, "position": "last", "auroc": auroc, "auroc_ci": interval}
        layers.append(entry | {"auroc_vs_truth": min(0.995, auroc + 0.04)})
    chosen = {name: layers[6][name] for name in ("layer", "position", "auroc", "auroc_ci", "auroc_vs_truth")}
    return chosen | {"probe": "linear", "objective": "correctness", "threshold_nats": 0.8018, "layers": layers}


@pytest.fixture
def results() -> dict[str, Any]:
    """A whole run's summary that a test may change."""
    return _results()


@pytest.fixture(scope="module")
def unchanged_results() -> dict[str, Any]:
    return _results()


def _results() -> dict[str, Any]:
    """A whole run's summary, as `results.json` holds it (sorted by name, some numbers null)."""
    return {
        "command": "ka2l run jobs/configs/demo.yaml",
        "config_hash": "0123456789ab",
        "model": "world",
        "versions": {"ka2l_ray": "0.1.0", "ray": "2.62.0", "vllm": None},
        "seed": 0,
        "label": {
            "questions": 2200,
            "unknown_fraction": 0.4832,
            "threshold_nats": 0.8018,
            "entropy_auroc_vs_incorrect": 0.931,
            "entropy_auroc_vs_truth": 0.987,
            "baselines": {"likelihood": 0.884, "predictive_entropy": None},
            "quadrants": {"known": 981, "misconception": 156, "shaky": 73, "unknown": 990},
        },
        "search": _search(),
        "decode": {
            "generated": 300,
            "kept": 181,
            "exact_match": 0.412,
            "token_accuracy": 0.871,
            "bleu": 71.3,
            "token_f1": 0.86,
            "still_unknown_fraction": 0.79,
            "truly_unknown_fraction": None,
            "answerable": 0.93,
            "statuses": {"duplicate": 61, "eval": 7, "kept": 181, "known": 40, "malformed": 11},
        },
        "rounds": _rounds(),
        "saving": [
            {"strategy": "ka2l", "seed": 0, "saving": 0.412, "of_oracle": 0.871},
            {"strategy": "oracle", "seed": 0, "saving": 0.473, "of_oracle": None},
        ],
        "rows": {
            "collect": {"in": 2200, "out": 2200, "errors": 0},
            "decode": {"in": 150, "out": 300, "errors": None},
            "label": {"in": 2200, "out": 2198, "errors": 2},
        },
        "time_s": {"collect": 61.2, "decode": 12.9, "evaluate": 33.1, "finetune": 410.4, "label": 0.8, "score": 4.0, "search": 9.3},
    }


@pytest.fixture(scope="module")
def heat() -> list[dict[str, Any]]:
    """Layers × thresholds × C, with a gap where a threshold was not tried."""
    return [
        {
            "layer": layer,
            "position": "last",
            "threshold_nats": 0.325 + 0.16 * t,
            "inverse_regularization": c,
            "auroc": 0.6 + 0.04 * layer - 0.01 * abs(t - 5) - c / 99,
        }
        for layer in range(9)
        for t in range(11)
        for c in (0.03, 0.3)
        if (layer, t) != (2, 10)
    ]
