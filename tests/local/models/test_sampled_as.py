"""What `collect.temperature: auto` becomes, by what a model's generation_config.json states."""

import json

import pytest

from ka2l_ray.config import CollectSection, ConfigError, ModelSection
from ka2l_ray.models.sampled_as import sampled_as

UNSTATED = {"temperature": 0.7, "top_k": None, "top_p": 0.9, "min_p": None}
NOTHING = {"temperature": 1.0, "top_k": None, "top_p": None, "min_p": None}


@pytest.fixture(scope="module")
def folder(llama, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    llama.save_pretrained(folder)
    return folder


def settled(folder, stated, **given):
    """(the four fields that a model's statement and a user's fields become, the line about it)."""
    file = folder / "generation_config.json"
    file.unlink(missing_ok=True)
    if stated is not None:
        file.write_text(json.dumps(stated))
    collect, says = sampled_as(ModelSection(name_or_path=str(folder)), CollectSection(**given))
    return {name: getattr(collect, name) for name in NOTHING}, says


@pytest.mark.parametrize(
    ("stated", "becomes"),
    [
        (None, UNSTATED),
        ({"eos_token_id": 2}, UNSTATED),
        ({"temperature": 0.6, "top_p": 0.9, "do_sample": True}, NOTHING | {"temperature": 0.6, "top_p": 0.9}),
        ({"top_k": 20, "top_p": 0.8}, NOTHING | {"top_k": 20, "top_p": 0.8}),
        ({"temperature": 1.0}, NOTHING),
        ({"temperature": 0.8, "top_k": 0, "top_p": 1.0, "min_p": 0.0}, NOTHING | {"temperature": 0.8}),
        ({"temperature": 0.8, "top_k": -1, "min_p": 0.05}, NOTHING | {"temperature": 0.8, "min_p": 0.05}),
    ],
)
def test_auto_is_what_the_model_states_and_otherwise_mild(folder, stated, becomes):
    found, says = settled(folder, stated)
    assert found == becomes
    assert says is not None
    assert ("states no sampling" in says) == (becomes == UNSTATED)
    for name in NOTHING:
        assert (name in says.replace("collect.temperature", "")) == (becomes[name] is not None)


def test_what_the_user_gives_is_kept(folder):
    stated = {"temperature": 0.6, "top_p": 0.9, "top_k": 20}
    assert settled(folder, stated, top_p=0.5, min_p=0.1)[0] == {
        "temperature": 0.6,
        "top_k": 20,
        "top_p": 0.5,
        "min_p": 0.1,
    }
    assert settled(folder, stated, temperature=1.0) == (NOTHING, None)
    assert settled(folder, stated, temperature=1.0, top_k=5) == (NOTHING | {"top_k": 5}, None)


def test_the_world_stays_at_temperature_1():
    collect, says = sampled_as(ModelSection(), CollectSection())
    assert (collect.temperature, collect.top_k, collect.top_p, collect.min_p) == (1.0, None, None, None)
    assert says == "collect.temperature = 'auto': samples at temperature = 1, as its generation_config.json states"


def test_once_settled_nothing_changes(folder):
    collect, _ = sampled_as(ModelSection(name_or_path=str(folder)), CollectSection())
    assert sampled_as(ModelSection(name_or_path=str(folder)), collect) == (collect, None)


def test_a_model_that_states_temperature_0_needs_a_number(folder):
    with pytest.raises(ConfigError, match="says 0, at which nothing can be sampled; give a number above 0"):
        settled(folder, {"temperature": 0.0})
