"""The tree: files, overrides, unknown keys, and what its hash depends on."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from ka2l_ray.config import Config, ConfigError, config_hash, differing_fields, load_config, parse_config

RUN_FILES = sorted((Path(__file__).parents[3] / "jobs" / "configs").glob("*.yaml"))


def test_an_empty_file_is_the_defaults(load):
    assert load("") == Config() == load("run: {}")


def test_only_values_in_the_file_replace_defaults(load):
    config = load(
        "collect: {layers: [0, 4], pool: {min: 2, max: 8}}\nlabel: {threshold: 0.7}\nmodel: {name_or_path: gpt2}"
    )
    assert (config.collect.layers, config.collect.pool.max, config.label.threshold, config.model.name_or_path) == (
        (0, 4),
        8,
        0.7,
        "gpt2",
    )
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


def test_an_unknown_key_without_a_near_name_lists_the_allowed_ones(load):
    with pytest.raises(ConfigError, match=r"`annotate\.xyzzy` is not a known field; allowed here: source, cost"):
        load("annotate: {xyzzy: 1}")


def test_every_problem_has_its_own_line(load):
    with pytest.raises(ConfigError) as caught:
        load("run: {seed: -1}\nactive: {rounds: 0}\nreprot: {}")
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    for field in ("run.seed", "active.rounds", "reprot"):
        assert sum(f"`{field}`" in line for line in lines) == 1


def test_overrides_win_over_the_file_and_later_ones_over_earlier_ones(load):
    config = load(
        "run: {seed: 1, name: a}\ncollect: {pool: {min: 2, max: 2}}", "run.seed=2", "collect.pool.max=4", "run.seed=3"
    )
    assert (config.run.seed, config.run.name, config.collect.pool.min, config.collect.pool.max) == (3, "a", 2, 4)


def test_overrides_are_yaml_and_may_contain_equals_signs(load):
    config = load("", "collect.layers=[1, 2]", "label.threshold=0.5", "report.title=a=b", "ray.address=null")
    assert (config.collect.layers, config.label.threshold, config.report.title, config.ray.address) == (
        (1, 2),
        0.5,
        "a=b",
        None,
    )


def test_an_override_reaches_into_a_section_that_is_empty_in_the_file(load):
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


@pytest.mark.parametrize(
    ("text", "says"), [("a: [", "is not YAML"), ("\x00", "is not YAML"), ("- run", "must contain sections.*got list")]
)
def test_a_file_that_is_not_a_configuration_is_named(load, text, says):
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
    config = load(
        "", "collect.layers=[1, 3]", "label.threshold=0.5", "active.strategies=[oracle]", "finetune.mode=lora"
    )
    assert parse_config(config.model_dump(mode="json"), "stored") == config


@pytest.mark.parametrize(
    "override",
    [
        "ray.local_cpus=8",
        "run.storage=elsewhere",
        "report.title=Other",
        "collect.pool.batch_rows=3",
        "score.pool.max=5",
        "decode.pool.shard_rows=7",
        "decode.reread={}",
        "decode.reread={pool: {max: 3}}",
        "evaluate.pool.cpus=2",
        "finetune.cpus_per_worker=2",
        "finetune.checkpoint_every_steps=0",
        "finetune.max_failures=9",
        "finetune.evaluate_every_epochs=3",
        "finetune.evaluate_rows=7",
        "finetune.tensorboard=true",
        "annotate.endpoint.url=https://moved/v1/chat/completions",
        "model.device=cpu",
    ],
)
def test_what_changes_no_result_changes_neither_hash_nor_fields(load, override):
    assert config_hash(load("", override)) == config_hash(Config())
    assert differing_fields(Config(), load("", override)) == []


def test_merged_weights_next_to_the_adapter_change_no_result(load):
    adapter = load("", "finetune.mode=lora")
    assert differing_fields(adapter, load("", "finetune.mode=lora", "finetune.merge=true")) == []


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
    with pytest.raises(ConfigError, match=r"`run\.storage` = …: must contain no keys") as refused:
        load("", "run.storage=s3://AKIA:sesame@bucket/runs")
    assert "sesame" not in str(refused.value)
    assert load("", "run.storage=gs://anonymous@bucket/runs").run.storage == "gs://anonymous@bucket/runs"


def test_keys_in_the_folder_of_replies_are_refused_and_not_repeated(load):
    with pytest.raises(ConfigError, match=r"`annotate\.endpoint\.replies` = …: must contain no keys") as refused:
        load("", "annotate.endpoint.replies=s3://me:sesame@bucket/replies")
    assert "sesame" not in str(refused.value)


def test_a_key_in_the_endpoints_address_is_refused_and_not_repeated(load):
    with pytest.raises(ConfigError, match=r"`annotate\.endpoint\.url`") as refused:
        load("", "annotate.endpoint.url=https://user:sesame@host/chat")
    assert "sesame" not in str(refused.value)
