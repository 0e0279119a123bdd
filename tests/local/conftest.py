"""Tiny models, made once per session."""

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)  # tiny models: more threads only wait for each other
settings.register_profile("many tests", max_examples=12, deadline=None)
settings.load_profile("many tests")


@pytest.fixture(scope="session", params=["llama", "gpt2", "qwen2"])
def model(request, tokenizer):
    """A tiny random causal LM of each family."""
    from tiny_models import tiny_model

    return tiny_model(request.param, tokenizer)


@pytest.fixture(scope="session")
def llama(tokenizer):
    """A tiny random causal LM, where the family does not matter."""
    from tiny_models import tiny_model

    return tiny_model("llama", tokenizer)


@pytest.fixture(scope="session")
def scripted(tokenizer):
    """Makes a model that generates a fixed text."""
    from tiny_models import ScriptedModel

    return lambda text, logit=60.0: ScriptedModel(tokenizer, text, logit)
