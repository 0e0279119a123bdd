"""The configuration: what it accepts, what it says when it refuses, and what its hash depends on."""

import re
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from ka2l_ray.config import Config, ConfigError, ModelSection, Pool, config_hash, differing_fields, load_config, parse_config

RUN_FILES = sorted((Path(__file__).parents[2] / "jobs" / "configs").glob("*.yaml"))


@pytest.fixture
def load(tmp_path):
    """Loads a configuration from YAML text and overrides; the file is always named `run.yaml`."""

    def load(text: str = "", *overrides: str) -> Config:
        (tmp_path / "run.yaml").write_text(text)
        return load_config(tmp_path / "run.yaml", overrides)

    return load


def test_an_empty_file_is_the_defaults(load):
    assert load("") == Config() == load("run: {}")


def test_values_of_the_file_and_only_those_replace_defaults(load):
    config = load("collect: {layers: [0, 4], pool: {min: 2, max: 8}}\nlabel: {threshold: 0.7}\nmodel: {name_or_path: gpt2}")
    assert (config.collect.layers, config.collect.pool.max, config.label.threshold, config.model.name_or_path) == ((0, 4), 8, 0.7, "gpt2")
    assert config.score == Config().score
    assert config.collect.samples == Config().collect.samples


@pytest.mark.parametrize(
    ("text", "field", "nearest"),
    [
        ("colect: {}", "colect", "collect"),
        ("finetune: {epoch: 3}", "finetune.epoch", "epochs"),
        ("corpus: {world: {pool_question: 30}}", "corpus.world.pool_question", "pool_questions"),
        ("decode: {pool: {batch_row: 3}}", "decode.pool.batch_row", "batch_rows"),
        ("annotate: {endpoint: {retry: 3}}", "annotate.endpoint.retry", "retries"),
        ("finetune: {replay: {kl_wieght: 1}}", "finetune.replay.kl_wieght", "kl_weight"),
        ("active: {stop: {patient: 2}}", "active.stop.patient", "patience"),
        ("acquire: {quadrant: [known]}", "acquire.quadrant", "quadrants"),
    ],
)
def test_an_unknown_key_is_named_with_file_field_and_nearest_name(load, text, field, nearest):
    with pytest.raises(ConfigError, match=rf"run\.yaml: `{field}` is not a known field; did you mean `{nearest}`\?"):
        load(text)


def test_an_unknown_key_like_nothing_lists_what_is_allowed(load):
    with pytest.raises(ConfigError, match=r"`annotate\.xyzzy` is not a known field; allowed here: source, cost"):
        load("annotate: {xyzzy: 1}")


def test_every_problem_has_its_own_line(load):
    with pytest.raises(ConfigError) as caught:
        load("run: {seed: -1}\nactive: {rounds: 0}\nreprot: {}")
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    for field in ("run.seed", "active.rounds", "reprot"):
        assert sum(f"`{field}`" in line for line in lines) == 1


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("run.seed", "-1", "greater than or equal to 0"),
        ("run.name", "a/b", "pattern"),
        ("run.max_error_fraction", "1.5", "less than or equal to 1"),
        ("collect.samples", "1", "greater than or equal to 2"),
        ("collect.samples", "101", "less than or equal to 100"),
        ("collect.temperature", "0", "greater than 0"),
        ("collect.pool.cpus", "0", "greater than 0"),
        ("label.threshold", "-0.1", "greater than or equal to 0"),
        ("search.test_share", "0.5", "less than 0.5"),
        ("corpus.world.unknown_share", "1.0", "less than or equal to 0.95"),
        ("model.adapter", "3", "valid string"),
        ("acquire.diversity", "4.1", "less than or equal to 4"),
        ("acquire.diversity", "-0.1", "greater than or equal to 0"),
        ("acquire.candidates", "9", "greater than or equal to 10"),
        ("acquire.quadrants", "[]", "at least 1 item"),
        ("acquire.decoded_share", "1.1", "less than or equal to 1"),
        ("acquire.balance", "entity", "'none' or 'group'"),
        ("acquire.sampling_cost", "-1", "greater than or equal to 0"),
        ("annotate.source", "crowd", "'auto', 'world', 'reference', 'endpoint' or 'file'"),
        ("annotate.endpoint.url", "ftp://host/chat", "pattern"),
        ("annotate.endpoint.url", "https://user:pw@host/chat", "pattern"),
        ("annotate.endpoint.key_variable", "MY KEY", "pattern"),
        ("annotate.endpoint.temperature", "2.1", "less than or equal to 2"),
        ("annotate.endpoint.concurrency", "0", "greater than or equal to 1"),
        ("annotate.endpoint.requests_per_s", "0", "greater than 0"),
        ("annotate.endpoint.timeout_s", "0", "greater than 0"),
        ("annotate.endpoint.retries", "-1", "greater than or equal to 0"),
        ("finetune.learning_rate", "0", "greater than 0"),
        ("finetune.zero_stage", "4", "0, 1, 2 or 3"),
        ("finetune.from", "last", "'base'"),
        ("finetune.offload", "disk", "'none', 'optimizer' or 'all'"),
        ("finetune.precision", "float16", "'auto', 'float32' or 'bfloat16'"),
        ("finetune.schedule", "constant", "'linear' or 'cosine'"),
        ("finetune.replay.ratio", "-0.5", "greater than or equal to 0"),
        ("finetune.replay.unknown_share", "1.1", "less than or equal to 1"),
        ("finetune.replay.source", "gold", "'samples' or 'greedy'"),
        ("finetune.replay.samples", "0", "greater than or equal to 1"),
        ("finetune.replay.kl_weight", "-1", "greater than or equal to 0"),
        ("finetune.replay.kl_weight", ".inf", "finite"),
        ("finetune.lora.rank", "0", "greater than or equal to 1"),
        ("active.strategies", "[]", "at least 1 item"),
        ("active.stop.accuracy", "1.01", "less than or equal to 1"),
        ("active.stop.patience", "0", "greater than or equal to 1"),
        ("active.stop.min_gain", "-0.1", "greater than or equal to 0"),
        ("active.stop.p_unknown", "-0.1", "greater than or equal to 0"),
    ],
)
def test_a_value_out_of_bounds_is_named_with_what_is_allowed(load, field, value, allowed):
    with pytest.raises(ConfigError) as caught:
        load("", f"{field}={value}")
    assert any(f"`{field}` = " in line and allowed in line for line in str(caught.value).splitlines()), caught.value


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("run.seed", "ten"),
        ("run.seed", "1.5"),
        ("run.seed", "[1]"),
        ("run.seed", "null"),
        ("run.seed", "true"),
        ("run.seed", "'3'"),
        ("run.name", "3"),
        ("run", "[1]"),
        ("model.trust_remote_code", "'yes'"),
        ("collect.positions", "last"),
        ("collect.positions", "[middle]"),
        ("collect.layers", "[one]"),
        ("finetune.lora.targets", "3"),
        ("acquire.quadrants", "[rare]"),
        ("annotate.endpoint.concurrency", "2.5"),
        ("active.stop.patience", "never"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_and_never_converted(load, field, value):
    with pytest.raises(ConfigError, match=rf"`{field}"):
        load("", f"{field}={value}")


@pytest.mark.parametrize(
    ("overrides", "field", "says"),
    [
        (["collect.pool.min=2", "collect.pool.max=1"], "collect.pool", r"max \(1\) must be at least min \(2\)"),
        (["corpus.split.probe=0.6"], "corpus.split", "must be 1, got 1.1"),
        (["corpus.prompt.template=hello"], "corpus.prompt", "exactly once"),
        (["finetune.batch_rows=48"], "finetune", "multiple of micro_batch_rows"),
        (["finetune.batch_rows=31"], "finetune", r"multiple of workers \(2\)"),
        (["finetune.offload=all"], "finetune", "needs zero_stage: 3, got 2"),
        (["finetune.offload=optimizer", "finetune.zero_stage=0"], "finetune", "needs zero_stage 1, 2 or 3"),
        (["finetune.merge=true"], "finetune", "merge applies to mode: lora"),
        (["annotate.endpoint.template=hello"], "annotate.endpoint", "exactly once"),
        (["active.budget=1"], "active", "at least one annotation per round"),
        (["active.strategies=[random, random]"], "active", "must differ"),
    ],
)
def test_contradictions_between_fields_are_refused(load, overrides, field, says):
    with pytest.raises(ConfigError, match=rf"`{field}`.*{says}"):
        load("", *overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["finetune.offload=all", "finetune.zero_stage=3"],
        *(["finetune.offload=optimizer", f"finetune.zero_stage={stage}"] for stage in (1, 2, 3)),
        *([f"finetune.zero_stage={stage}"] for stage in (0, 1, 2, 3)),
        ["finetune.merge=true", "finetune.mode=lora"],
        ["annotate.endpoint.requests_per_s=null"],
        ["finetune.replay.ratio=0"],
    ],
)
def test_what_goes_together_is_accepted(load, overrides):
    load("", *overrides)


@pytest.mark.parametrize(
    ("override", "read", "value"),
    [
        ("acquire.quadrants=[shaky]", lambda c: c.acquire.quadrants, ("shaky",)),
        ("annotate.endpoint.requests_per_s=0.5", lambda c: c.annotate.endpoint.requests_per_s, 0.5),
        ("annotate.endpoint.refusals=[no idea]", lambda c: c.annotate.endpoint.refusals, ("no idea",)),
        ("annotate.endpoint.url=http://h/v1/chat?a=b", lambda c: c.annotate.endpoint.url, "http://h/v1/chat?a=b"),
        ("finetune.replay.kl_weight=1", lambda c: c.finetune.replay.kl_weight, 1.0),
        ("finetune.lora.targets=[q_proj]", lambda c: c.finetune.lora.targets, ("q_proj",)),
        ("finetune.from=base", lambda c: c.finetune.start, "base"),
        ("active.stop.patience=3", lambda c: c.active.stop.patience, 3),
        ("model.adapter=s3://bucket/tuned", lambda c: c.model.adapter, "s3://bucket/tuned"),
    ],
)
def test_an_override_reaches_nested_fields_and_they_are_stored(load, override, read, value):
    config = load("", override)
    assert read(config) == value
    assert parse_config(yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json"))), "stored") == config


@pytest.mark.parametrize(
    ("model", "identity"),
    [
        ({"name_or_path": "gpt2"}, "gpt2"),
        ({"name_or_path": "gpt2", "revision": "abc"}, "gpt2@abc"),
        ({"name_or_path": "gpt2", "adapter": "/x"}, "gpt2 + /x"),
        ({"name_or_path": "gpt2", "revision": "abc", "adapter": "/x"}, "gpt2@abc + /x"),
    ],
)
def test_a_models_identity_names_all_of_its_weights(model, identity):
    assert ModelSection(**model).identity == identity


@pytest.mark.parametrize("wrong", ["start", "form"])
def test_a_hint_names_fields_as_the_file_has_them(load, wrong):
    with pytest.raises(ConfigError) as caught:
        load(f"finetune: {{{wrong}: base}}")
    assert re.search(r"`from`|\bfrom,", str(caught.value))
    assert not re.search(r"did you mean `start`|allowed here: start", str(caught.value))


def test_a_pool_may_be_of_one_size():
    assert Pool(min=3, max=3).max == 3


def test_overrides_win_over_the_file_and_the_last_one_over_the_others(load):
    config = load("run: {seed: 1, name: a}\ncollect: {pool: {min: 2, max: 2}}", "run.seed=2", "collect.pool.max=4", "run.seed=3")
    assert (config.run.seed, config.run.name, config.collect.pool.min, config.collect.pool.max) == (3, "a", 2, 4)


def test_overrides_are_yaml_and_may_hold_equals_signs(load):
    config = load("", "collect.layers=[1, 2]", "label.threshold=0.5", "report.title=a=b", "ray.address=null")
    assert (config.collect.layers, config.label.threshold, config.report.title, config.ray.address) == ((1, 2), 0.5, "a=b", None)


def test_an_override_reaches_into_a_section_that_the_file_left_empty(load):
    assert load("run:", "run.seed=5").run.seed == 5


@pytest.mark.parametrize("override", ["run.seed", "=3", "", "run.seed=["])
def test_a_malformed_override_is_quoted(load, override):
    with pytest.raises(ConfigError, match=r"--set") as caught:
        load("", override)
    assert override in str(caught.value)


def test_an_override_below_a_value_is_refused(load):
    with pytest.raises(ConfigError, match=r"--set run\.seed\.x=1: `run\.seed` is a value, not a section"):
        load("run: {seed: 1}", "run.seed.x=1")


def test_an_unknown_override_names_the_nearest_field(load):
    with pytest.raises(ConfigError, match=r"`run\.sede`.*did you mean `seed`"):
        load("", "run.sede=1")


@pytest.mark.parametrize(("text", "says"), [("a: [", "is not YAML"), ("\x00", "is not YAML"), ("- run", "must hold sections.*got list")])
def test_a_file_that_is_no_configuration_is_named(load, text, says):
    with pytest.raises(ConfigError, match=rf"run\.yaml: {says}"):
        load(text)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"report: {title: caf\xe9}")
    with pytest.raises(ConfigError, match=r"latin\.yaml: cannot be read"):
        load_config(tmp_path / "latin.yaml")


def test_the_tree_is_frozen_at_every_depth():
    config = Config()
    with pytest.raises(ValidationError, match="frozen"):
        config.run.seed = 1  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        config.collect.pool.min = 2  # type: ignore[misc]


def test_a_stored_configuration_reads_back_equal(load):
    config = load("", "collect.layers=[1, 3]", "label.threshold=0.5", "active.strategies=[oracle]", "finetune.mode=lora")
    assert parse_config(config.model_dump(mode="json"), "stored") == config


@pytest.mark.parametrize(
    "override",
    [
        "ray.local_cpus=8",
        "run.storage=elsewhere",
        "report.title=Other",
        "collect.pool.batch_rows=3",
        "score.pool.max=5",
        "decode.pool.block_rows=7",
        "evaluate.pool.cpus=2",
        "finetune.cpus_per_worker=2",
        "finetune.checkpoint_every_steps=0",
        "finetune.max_failures=9",
        "finetune.tensorboard=true",
    ],
)
def test_what_changes_no_result_changes_neither_hash_nor_fields(load, override):
    assert config_hash(load("", override)) == config_hash(Config())
    assert differing_fields(Config(), load("", override)) == []


@pytest.mark.parametrize(
    ("field", "before", "after"),
    [
        ("run.seed", "0", "1"),
        ("collect.samples", "10", "11"),
        ("label.threshold", "'otsu'", "0.5"),
        ("corpus.world.pool_questions", "600", "500"),
        ("finetune.lora.rank", "16", "8"),
        ("finetune.replay.kl_weight", "0.0", "0.5"),
        ("acquire.diversity", "0.5", "1.0"),
        ("active.stop.patience", "None", "2"),
        ("annotate.endpoint.model", "'annotator'", "'other'"),
        ("model.adapter", "None", "'/tuned'"),
    ],
)
def test_what_changes_results_changes_the_hash_and_is_named(load, field, before, after):
    other = load("", f"{field}={after}")
    assert config_hash(other) != config_hash(Config())
    assert differing_fields(Config(), other) == [f"{field}: {before} → {after}"]


def test_a_union_field_may_change_its_shape(load):
    assert differing_fields(Config(), load("", "collect.layers=[1]")) == ["collect.layers: 'all' → [1]"]


@pytest.mark.parametrize("path", RUN_FILES, ids=lambda p: p.name)
def test_every_shipped_run_file_loads(path):
    assert load_config(path).run.name


def test_keys_in_the_storage_uri_are_refused_and_not_repeated(load):
    with pytest.raises(ConfigError, match=r"`run`.*must hold no keys") as refused:
        load("", "run.storage=s3://AKIA:sesame@bucket/runs")
    assert "sesame" not in str(refused.value)


def test_a_key_in_the_endpoints_address_is_refused_and_not_repeated(load):
    with pytest.raises(ConfigError, match=r"`annotate\.endpoint\.url`") as refused:
        load("", "annotate.endpoint.url=https://user:sesame@host/chat")
    assert "sesame" not in str(refused.value)
