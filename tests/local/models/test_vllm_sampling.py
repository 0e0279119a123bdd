"""What vLLM is told of sampling; its answers are tested where it is installed (`make test-vllm`)."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from ka2l_ray.config import ModelSection
from ka2l_ray.models.answers import Decoding, StopCriteria
from ka2l_ray.models.loading import load_tokenizer
from ka2l_ray.models.vllm import VllmGenerator


def told(greedy: bool, **changes: Any) -> dict[str, Any]:
    """The parameters of a question's greedy answer or its samples."""
    generator: Any = object.__new__(VllmGenerator)
    generator._vllm = SimpleNamespace(SamplingParams=dict)
    generator._decoding = replace(Decoding(0, 3, 0.7, 0.1, 4, ("\n",)), **changes)
    generator._stop = StopCriteria(load_tokenizer(ModelSection()), 1, generator._decoding.stop)
    return generator._sampling_params("q", greedy)


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({}, (0, 1.0, 0.0)),
        ({"top_k": 20, "top_p": 0.8}, (20, 0.8, 0.0)),
        ({"min_p": 0.05}, (0, 1.0, 0.05)),
    ],
)
def test_samples_are_restricted_and_greedy_answers_are_not(changes, kept):
    samples, greedy = told(False, **changes), told(True, **changes)
    assert (samples["n"], samples["temperature"]) == (3, 0.7)
    assert (samples["top_k"], samples["top_p"], samples["min_p"]) == kept
    assert (greedy["n"], greedy["temperature"]) == (1, 0.1)
    assert (greedy["top_k"], greedy["top_p"], greedy["min_p"]) == (0, 1.0, 0.0)
    assert samples["seed"] != greedy["seed"]
