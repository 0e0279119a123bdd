"""Sections: bounds, types, contradictions, and the messages that refuse them."""

import re

import pytest
import yaml

from ka2l_ray.config import ConfigError, ModelSection, Pool, parse_config


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
        (["score.pool.gpus=1.5"], "score.pool", r"gpus \(1\.5\) must be a whole number if it is above 1"),
        (["corpus.split.probe=0.6"], "corpus.split", "must be 1, got 1.1"),
        (["corpus.prompt.template=hello"], "corpus.prompt.template", "exactly once"),
        (["finetune.batch_rows=48"], "finetune", "multiple of micro_batch_rows"),
        (["finetune.batch_rows=31"], "finetune", r"multiple of workers \(2\)"),
        (["finetune.offload=all"], "finetune", "needs zero_stage: 3, got 2"),
        (["finetune.offload=optimizer", "finetune.zero_stage=0"], "finetune", "needs zero_stage 1, 2 or 3"),
        (["finetune.merge=true"], "finetune", "merge needs mode: lora"),
        (["collect.engine=vllm", "collect.adaptive.threshold=0.7"], "collect", "needs engine: own"),
        (["collect.engine=vllm", "collect.vllm.tensor_parallel=2"], "collect", "set pool.gpus: 2"),
        (["annotate.endpoint.template=hello"], "annotate.endpoint.template", "exactly once"),
        (["decode.augment=[steer, noise, steer]"], "decode", "must name each way once"),
        (["decode.corrections=2", "decode.reread={pool: {max: 2}}"], "decode", r"corrections \(2\) must be 0 with"),
        (["active.budget=1"], "active", "at least one annotation per round"),
        (["active.strategies=[random, random]"], "active", "must differ"),
    ],
)
def test_contradictions_between_fields_are_refused(load, overrides, field, says):
    with pytest.raises(ConfigError, match=rf"`{field}`.*{says}"):
        load("", *overrides)


def test_a_round_that_would_need_two_adapters_is_refused(load):
    with pytest.raises(
        ConfigError, match=r"run\.yaml: active\.reprobe: true with finetune\.mode: lora needs model\.adapter: null"
    ):
        load("", "model.adapter=/a", "finetune.mode=lora", "active.reprobe=true")


@pytest.mark.parametrize("other", ["model.adapter=/a", "active.reprobe=true"])
def test_vllm_reads_whole_models_only(load, other):
    with pytest.raises(
        ConfigError, match=r"collect\.engine: vllm .* needs model\.adapter: null \(merge .* and active\.reprobe: false"
    ):
        load("", "collect.engine=vllm", other)


@pytest.mark.parametrize("other", ["mode=full", "zero_stage=3", "merge=true"])
def test_quantized_weights_are_trained_only_through_adapters(load, other):
    qlora = ("model.quantization=4bit", "finetune.mode=lora", "finetune.zero_stage=2")
    assert load("", *qlora).model.quantization == "4bit"
    with pytest.raises(
        ConfigError, match=r"model\.quantization = 4bit: .* needs finetune\.mode: lora, finetune\.zero_stage: 0, 1 or 2"
    ):
        load("", *qlora, f"finetune.{other}")


def test_generated_questions_need_a_decoder(load):
    with pytest.raises(ConfigError, match=r"`decoded` buys generated questions, so it needs decode\.enabled: true"):
        load("", "active.strategies=[decoded, random]", "decode.enabled=false")


@pytest.mark.parametrize(("stops_by", "labels_by"), [("0.7", "0.8"), ("pilot", "0.8")])
def test_sampling_and_labels_have_one_threshold(load, stops_by, labels_by):
    with pytest.raises(
        ConfigError,
        match=rf"collect\.adaptive\.threshold = '?{stops_by}'? fixes γ .* must be the same or `otsu`, not 0\.8",
    ):
        load("", f"collect.adaptive.threshold={stops_by}", f"label.threshold={labels_by}")


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.adapter=/a", "finetune.mode=lora"],
        ["model.adapter=/a", "finetune.mode=full", "active.reprobe=true"],
        ["collect.adaptive.threshold=0.7", "label.threshold=0.7"],
        ["collect.adaptive.threshold=pilot"],
        ["collect.engine=vllm", "collect.vllm.tensor_parallel=2", "collect.pool.gpus=2"],
        ["label.threshold=0.7"],
        ["finetune.mode=lora", "active.reprobe=true"],
        ["finetune.offload=all", "finetune.zero_stage=3"],
        *(["finetune.offload=optimizer", f"finetune.zero_stage={stage}"] for stage in (1, 2, 3)),
        *([f"finetune.zero_stage={stage}"] for stage in (0, 1, 2, 3)),
        ["finetune.merge=true", "finetune.mode=lora"],
        ["annotate.endpoint.requests_per_s=null"],
        ["finetune.replay.ratio=0"],
    ],
)
def test_valid_combinations_are_accepted(load, overrides):
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
def test_an_override_of_a_nested_field_is_read_and_stored(load, override, read, value):
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
def test_a_models_identity_names_all_its_weights(model, identity):
    assert ModelSection(**model).identity == identity


@pytest.mark.parametrize("wrong", ["start", "form"])
def test_a_hint_names_fields_as_the_file_has_them(load, wrong):
    with pytest.raises(ConfigError) as caught:
        load(f"finetune: {{{wrong}: base}}")
    assert re.search(r"`from`|\bfrom,", str(caught.value))
    assert not re.search(r"did you mean `start`|allowed here: start", str(caught.value))


def test_a_pool_may_have_a_fixed_size():
    assert Pool(min=3, max=3).max == 3
