"""What every tier shares: the world, its tokenizer, tiny random models, and a fixed choice of hypothesis examples."""

import pytest
from hypothesis import settings

settings.register_profile("small", max_examples=25, deadline=None, derandomize=True, database=None)
settings.load_profile("small")


@pytest.fixture(scope="session")
def world():
    """The world of the default recipe, the one whose model is shipped."""
    from ka2l_ray.world.facts import build_world

    return build_world()


@pytest.fixture(scope="session")
def tokenizer(world):
    from ka2l_ray.world.tokenizer import build_tokenizer

    return build_tokenizer(world)


@pytest.fixture(scope="session", params=["llama", "gpt2", "qwen2"])
def model(request, tokenizer):
    """A tiny random causal LM of each family."""
    from fakes import tiny_model

    return tiny_model(request.param, tokenizer)


@pytest.fixture(scope="session")
def llama(tokenizer):
    """A tiny random causal LM, where the family does not matter."""
    from fakes import tiny_model

    return tiny_model("llama", tokenizer)


@pytest.fixture(scope="session")
def scripted(tokenizer):
    """Makes a model that says a fixed text."""
    from fakes import ScriptedModel

    return lambda text, sure=60.0: ScriptedModel(tokenizer, text, sure)
