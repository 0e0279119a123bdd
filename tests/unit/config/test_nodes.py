"""`nodes`: which nodes a pool, a training run, trials, tasks and the driver may use."""

import pytest

from ka2l_ray.config import Config, ConfigError, config_hash, parse_config

PLACES = (
    "collect.pool",
    "score.pool",
    "decode.pool",
    "decode.reread.pool",
    "evaluate.pool",
    "finetune",
    "search",
    "ray.driver",
)


def nested(path: str, value: object) -> dict[str, object]:
    first, _, rest = path.partition(".")
    return {first: nested(rest, value) if rest else value}


@pytest.mark.parametrize("place", [*(f"{place}.nodes" for place in PLACES), "ray.tasks"])
def test_every_kind_of_process_can_be_placed_and_that_changes_no_result(place: str) -> None:
    given = {"resources": {"big_disk": 0.5}, "labels": {"ray.io/market-type": "!spot", "zone": "in(a, b-1)"}}
    made = parse_config(nested(place, given), "test")
    section = made
    for name in place.split("."):
        section = getattr(section, name)
    assert section.model_dump() == given
    assert config_hash(made) == config_hash(Config())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"resources": {"GPU": 1}}, "must not name GPU"),
        ({"resources": {"disk": 0}}, "an amount above 0, not 'disk': 0"),
        ({"labels": {"a b": "c"}}, "not 'a b': 'c'"),
        ({"labels": {"zone": "in()"}}, "not 'zone': 'in()'"),
        ({"labels": {"zone": ""}}, "not 'zone': ''"),
    ],
)
def test_what_no_node_could_have_is_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=r"collect\.pool\.nodes") as refused:
        parse_config(nested("collect.pool.nodes", given), "test")
    assert message in str(refused.value)
