"""The plan's arithmetic, against models at hand and against numbers worked out by hand."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from model_hub import ModelHub
from transformers import AutoConfig, AutoModelForCausalLM, FalconConfig, FalconForCausalLM

from ka2l_ray.config import Config, ConfigError, LoraSection, ModelSection, load_config
from ka2l_ray.corpus.prepare import shots
from ka2l_ray.models.loading import WORLD_MODEL, load_blocks, load_model
from ka2l_ray.planning.capacity import NodeKind
from ka2l_ray.planning.corpora import extent
from ka2l_ray.planning.cost import Line, lines, size, training_bytes
from ka2l_ray.planning.plan import make_plan
from ka2l_ray.planning.published import data_set_rows, published, published_model
from ka2l_ray.planning.shapes import adapter_parameters, shape_of

ROOT = Path(__file__).parents[3]
CONFIGS = sorted((ROOT / "jobs/configs").glob("*.yaml"))
SMALL = [c for c in CONFIGS if c.stem in ("world", "smoke") or c.stem.startswith("smollm2-")]
"""Those for a laptop."""
REAL = [c for c in CONFIGS if c not in SMALL]
LLAMA = ModelSection(name_or_path="meta-llama/Llama-3.1-8B")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here may reach a hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def test_a_model_at_hand_is_counted_exactly() -> None:
    shape, loaded = shape_of(ModelSection()), load_model(ModelSection())
    held = {id(p): p for p in loaded.parameters()}.values()
    assert shape.parameters == sum(p.numel() for p in held)
    assert shape.weight_bytes == sum(p.nbytes for p in held)
    first: Any = load_blocks(ModelSection(), 3)
    norm = sum(p.nbytes for p in first.norm.parameters())
    assert shape.first_blocks_bytes(3) == sum(p.nbytes for p in first.parameters()) - norm
    cache = loaded(input_ids=torch.ones(1, 5, dtype=torch.long), use_cache=True).past_key_values
    assert shape.cache_bytes == sum(x.nbytes for layer in cache.layers for x in (layer.keys, layer.values)) / 5


@pytest.mark.parametrize(
    ("name", "parameters", "cache_bytes"),
    [
        ("meta-llama/Llama-3.1-8B", 8_030_261_248, 2 * 32 * 8 * 128 * 2),
        ("Qwen/Qwen2.5-7B", 7_615_616_512, 2 * 28 * 4 * 128 * 2),
    ],
)
def test_published_shapes_give_the_published_numbers(name: str, parameters: int, cache_bytes: int) -> None:
    shape = shape_of(ModelSection(name_or_path=name))
    assert shape.parameters == parameters
    assert shape.cache_bytes == cache_bytes
    assert shape.weight_bytes == 2 * parameters
    assert "not at hand" in shape.source
    assert published_model(name)


def test_every_published_number_names_its_source() -> None:
    for entry in [*published()["models"], *published()["data_sets"]]:
        assert "https://huggingface.co/" in entry["source"]
    assert data_set_rows("mandarjoshi/trivia_qa", "rc.nocontext", "train") == 138_384
    assert data_set_rows("mandarjoshi/trivia_qa", None, "train") is None
    assert data_set_rows("akariasai/PopQA", None, "train") is None


def test_quantized_weights_take_a_quarter_or_a_half_outside_of_embedding_and_head() -> None:
    plain, eight, four = (shape_of(LLAMA.model_copy(update={"quantization": q})) for q in ("none", "8bit", "4bit"))
    ends = plain.weight_bytes - 2 * plain.block_parameters
    assert (eight.weight_bytes, four.weight_bytes) == (
        plain.block_parameters + ends,
        plain.block_parameters // 2 + ends,
    )


def test_adapters_are_counted_as_peft_makes_them() -> None:
    per_block = 64 * ((4096 + 4096) + 2 * (4096 + 1024) + (4096 + 4096) + 2 * (4096 + 14336) + (14336 + 4096))
    assert adapter_parameters(LLAMA, LoraSection(rank=64)) == 32 * per_block == 167_772_160


def test_an_unknown_model_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"model\.name_or_path = 'nobody/nothing'"):
        shape_of(ModelSection(name_or_path="nobody/nothing"))


def by_stage(config: Config) -> dict[str, Line]:
    return {line.stage: line for line in make_plan(config).lines}


def overridden(*overrides: str) -> Config:
    return load_config(ROOT / "jobs/configs/triviaqa-llama3.1-8b.yaml", overrides)


def test_triviaqa_with_llama_worked_out_by_hand() -> None:
    """138,384 rows; a question of 20 tokens, 5 around it, 6 of a solved example's answer; 12 of an instruction."""
    config = overridden()
    plan, stage = make_plan(config), by_stage(config)
    assert plan.extent.splits == {"probe": 27_677, "pool": 96_869, "eval": 13_838}  # 138,384 × 0.2, 0.7, 0.1
    assert (plan.extent.shared, plan.extent.own) == (167, 25)  # 12 + 5 × (20 + 5 + 6); 20 + 5
    assert (plan.extent.tuned_shared, plan.extent.tuned_own) == (0, 25)  # finetune.prompt is bare

    collect = stage["collect"]
    assert collect.read_tokens == 691_925  # 27,677 × 25
    assert collect.written_tokens == 9_742_304  # 27,677 × 11 answers × 32 tokens
    assert collect.storage_bytes == 27_677 * (7 * 4096 * 2 + 11 * 64) == 1_606_594_496
    weights, cache, logits, states = (
        16_060_522_496,
        (65_536 + 167) * 131_072,
        704 * 128_256 * 4,
        (64 + 512) * 7 * 4096 * 4,
    )
    assert collect.memory_bytes == weights + cache + logits + states == 25_099_575_296

    score = stage["score"]
    assert (score.rows, score.read_tokens) == (96_869, 2_421_725)  # × 25
    block = 218_112_000  # 8,030,261,248 − 2 × 525,336,576 (embedding, head) − 4,096 (norm), by 32
    assert score.memory_bytes == 2 * (525_336_576 + 31 * block) + 512 * 25 * 18 * 4096 * 2 + 167 * 131_072

    replay = stage["replay"]
    assert replay.rows == 60_000  # 20,000 to replay and 20,000 to spare of each predicted class
    assert (replay.read_tokens, replay.written_tokens) == (1_500_000, 9_600_000)  # × 25; × 5 answers × 32
    assert (
        replay.memory_bytes == weights + 65_536 * 131_072 + 320 * 128_256 * 4
    )  # finetune.prompt is bare: nothing is shared

    assert (
        stage["annotate"].rows == stage["annotate"].price == 80_000
    )  # 20,000 for ka2l and for each of 3 draws of random

    finetune = stage["finetune"]  # 4 curves × 4 epochs × (5,000 + 10,000 + 15,000 + 20,000 bought, 4 × 20,000 replayed)
    assert finetune.rows == 4 * 4 * (50_000 + 80_000) == 2_080_000
    assert finetune.read_tokens == 2_080_000 * (25 + 8) * 2 == 137_280_000  # twice for the KL term
    assert "16,288 steps" in finetune.does  # 4 × 4 × (196 + 235 + 274 + 313) steps of 128 rows
    assert finetune.memory_bytes == weights + 2 * 167_772_160 == 16_396_066_816  # loaded whole, with the adapter
    assert finetune.storage_bytes == 16 * (4 * 167_772_160 + weights) + 12 * 167_772_160 == 269_719_044_096
    parts = training_bytes(config, plan.shape, 167_772_160, 33)
    assert parts["weights"] == weights // 8
    assert parts["gradients"] == 2 * 167_772_160 // 8
    assert parts["optimizer"] == 12 * 167_772_160 // 8

    evaluate = stage["evaluate"]
    assert (
        evaluate.rows == 17 * 13_838 * 2 + 16 * 20_000 == 790_492
    )  # base and 16 trainings, two prompts; what each replayed
    assert (evaluate.read_tokens, evaluate.written_tokens) == (790_492 * 25, 790_492 * 32)
    assert any("8 GPUs" in note for note in plan.notes)
    assert any("collect wants about 25.1 GB of memory on each GPU" in note for note in plan.notes)


def test_the_other_real_configurations_worked_out_by_hand() -> None:
    nq, med = (
        by_stage(load_config(ROOT / f"jobs/configs/{n}.yaml")) for n in ("nq_open-qwen2.5-7b", "medmcqa-llama3.1-8b")
    )
    assert (nq["collect"].rows, nq["score"].rows) == (17_585, 61_547)  # 87,925 × 0.2, 0.7
    assert nq["collect"].read_tokens == 17_585 * (12 + 5)
    assert nq["evaluate"].rows == 17 * 8_792 * 2 + 16 * 20_000
    assert nq["finetune"].read_tokens == 2_080_000 * (17 + 8) * 2
    assert (med["collect"].rows, med["score"].rows) == (27_423, 137_116)  # 182,822 × 0.15, 0.75
    assert med["collect"].read_tokens == 27_423 * (60 + 5)
    assert med["evaluate"].rows == 17 * 18_282 * 2 + 16 * 20_000
    assert med["finetune"].read_tokens == 2_080_000 * (65 + 8) * 2


def test_each_switch_adds_its_cost() -> None:
    plain = by_stage(overridden())
    assert "pilot" not in plain
    assert not {"decode", "train-decoder"} & by_stage(overridden("decode.enabled=false")).keys()
    given = by_stage(overridden("decode.decoder=world"))
    assert "train-decoder" not in given
    assert given["decode"].memory_bytes < plain["decode"].memory_bytes, "blocks up to the probe's, not the whole model"
    training = plain["train-decoder"]
    assert (training.rows, training.count, training.gpus) == (100_000, 8, 1)
    assert training.memory_bytes > 16_060_522_496, "every worker has the whole model"
    pilot = by_stage(overridden("collect.adaptive.threshold=pilot"))["pilot"]
    assert (pilot.rows, pilot.written_tokens) == (500, 500 * 11 * 32)
    twice = by_stage(overridden("collect.engine=vllm"))
    assert twice["collect"].read_tokens == 2 * plain["collect"].read_tokens
    assert twice["collect"].memory_bytes - plain["collect"].memory_bytes == 2 * (525_336_576 + 31 * 218_112_000)
    assert twice["replay"].memory_bytes == plain["replay"].memory_bytes
    again = by_stage(overridden("active.reprobe=true"))
    assert again["reprobe"].rows == 3 * 4 * 27_677  # after every round but the last, of every curve
    assert again["reprobe score"].rows == 3 * 4 * 96_869
    decoded = by_stage(
        overridden("decode.enabled=true", "decode.variants=3", "active.strategies=[ka2l, decoded, random]")
    )["decode"]
    assert decoded.rows == 1024 + 2 * 20_000 * 3
    fields = "decode.enabled=true decode.variants=3 active.strategies=[ka2l,decoded,random] decode.candidates=1"
    best_of_one = by_stage(overridden(*fields.split()))["decode"]
    assert decoded.written_tokens is not None
    assert best_of_one.written_tokens is not None
    per_text = best_of_one.written_tokens / (1024 + 120_000)
    assert decoded.written_tokens == pytest.approx(per_text * (1024 + 4 * 120_000))
    apart = by_stage(overridden(*fields.split(), "decode.candidates=4", "decode.reread={pool: {max: 8}}"))
    assert apart["decode"].written_tokens == decoded.written_tokens
    assert (apart["decode"].read_tokens or 0) + (apart["reread"].read_tokens or 0) == decoded.read_tokens
    assert (apart["reread"].memory_bytes or 0) < (decoded.memory_bytes or 0), "the model's first blocks alone"
    assert "8 ×" in apart["reread"].actors
    ways = overridden("decode.enabled=true", "decode.augment=[steer, noise]", "active.strategies=[ka2l, random]")
    assert by_stage(ways)["decode"].rows == 1024 + 20_000 * 2 * 2
    sampled = by_stage(
        overridden("active.strategies=[entropy, random]", "acquire.sampling_cost=0.5", "annotate.cost=2")
    )
    assert sampled["sample_pool"].written_tokens == 96_869 * 11 * 32
    assert sampled["annotate"].price == 4 * 20_000 * 2 + 96_869 * 0.5
    compared = by_stage(overridden("active.strategies=[coreset, random]"))["score"]
    assert compared.storage_bytes - plain["score"].storage_bytes == 96_869 * 4096 * 4
    tuned = by_stage(overridden("finetune.prompt.style=fewshot"))
    assert tuned["finetune"].read_tokens == 2_080_000 * (167 + 25 + 8) * 2
    unmerged = by_stage(overridden("finetune.merge=false"))["finetune"]
    assert plain["finetune"].storage_bytes - unmerged.storage_bytes == 16 * 16_060_522_496


def test_telling_what_the_model_knows_is_planned_for_every_fact_that_it_may_know() -> None:
    known = by_stage(overridden())["known"]
    assert known.rows == 13_838  # eval asks other facts, each in one wording
    assert (known.read_tokens, known.written_tokens) == (13_838 * 2 * 25, 13_838 * 12 * 32)
    again = by_stage(overridden("corpus.rewordings={source: column}"))
    assert again["known"].rows == again["score"].rows  # the pool
    shots = by_stage(overridden("corpus.rewordings={source: column}", "finetune.prompt={style: fewshot, shots: 4}"))
    assert shots["evaluate"].rows - again["evaluate"].rows == again["score"].rows  # the noise floor


def test_a_model_spread_over_several_gpus_takes_a_part_of_each() -> None:
    line = by_stage(overridden("collect.pool.gpus=4", "collect.pool.min=2", "collect.pool.max=2"))["collect"]
    assert line.gpu_bytes == round(line.memory_bytes / 4)
    half = by_stage(overridden("collect.pool.gpus=0.5"))["collect"]
    assert half.gpu_bytes == 2 * half.memory_bytes


def test_with_device_cpu_models_take_the_hosts_memory_even_if_gpus_are_allotted() -> None:
    config = overridden("model.device=cpu", "collect.pool.gpus=4")
    assert [line.gpu_bytes for line in make_plan(config).lines] == [0] * len(make_plan(config).lines)
    notes = make_plan(config, [NodeKind("big", {"CPU": 8, "GPU": 1}, {}, there=8)]).notes
    assert any(note.startswith("collect.pool: 8 of 1 CPU, 4 GPU each; 0 fit on") for note in notes), notes
    assert not [note for note in notes if "on each GPU" in note]


def test_memory_notes_compare_with_this_machines_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ka2l_ray.planning.plan.visible_memory", lambda: [24 * 10**9] * 8)
    notes = make_plan(overridden()).notes
    assert "collect wants about 25.1 GB of memory on each GPU, which has 24 GB here" in notes
    assert not [note for note in notes if "it has 8" in note]


def test_an_endpoint_is_paid_by_token() -> None:
    prices = (
        "annotate.endpoint.cost_per_million_prompt_tokens=1",
        "annotate.endpoint.cost_per_million_completion_tokens=10",
    )
    line = by_stage(overridden("annotate.source=endpoint", "annotate.cost=0", "annotate.endpoint.system=''", *prices))[
        "annotate"
    ]
    assert (line.read_tokens, line.written_tokens) == (80_000 * (25 + len("{question}") // 4), 80_000 * 64)
    assert line.price == pytest.approx((line.read_tokens + 10 * line.written_tokens) / 1e6)


def test_rewordings_from_an_endpoint_are_planned_and_every_pool_fact_is_evaluated_again() -> None:
    prices = ("annotate.endpoint.cost_per_million_completion_tokens=10", "corpus.rewordings.cost=0.5")
    made = by_stage(overridden("corpus.rewordings={source: endpoint, max_tokens: 100}", *prices))
    plain, line = by_stage(overridden()), made["reword"]
    assert "reword" not in plain
    assert line.price == pytest.approx(line.rows * 0.5 + 10 * line.rows * 100 / 1e6)
    pool = plain["score"].rows
    assert line.rows == pool + round(pool / 0.7 * 0.1)
    assert made["evaluate"].rows > plain["evaluate"].rows


def test_a_plan_for_a_cluster_is_compared_with_its_nodes() -> None:
    config = load_config(ROOT / "jobs/configs/triviaqa-llama3.1-8b.yaml")
    small = make_plan(config, [NodeKind("gpu", {"CPU": 16, "GPU": 4}, {}, there=1, to_come=3)]).notes
    assert any("4 fit on the nodes there are, and the autoscaler would add 1 of gpu" in note for note in small), small
    large = make_plan(config, [NodeKind("gpu", {"CPU": 64, "GPU": 8}, {}, there=1)]).notes
    assert not [note for note in large if "fit on the nodes" in note or "for ever" in note or "this machine" in note]


FALCONS = {
    "one head for all": {"multi_query": True, "new_decoder_architecture": False},
    "groups": {"multi_query": True, "new_decoder_architecture": True, "num_kv_heads": 2},
    "as many as there are": {"multi_query": False, "new_decoder_architecture": False},
}


@pytest.mark.parametrize("fields", FALCONS.values(), ids=FALCONS)
def test_falcons_cache_size_follows_its_kind_of_attention(tmp_path: Path, fields: dict[str, Any]) -> None:
    made = FalconForCausalLM(
        FalconConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, **fields)
    )
    made.save_pretrained(tmp_path)
    cache = made(input_ids=torch.ones(1, 5, dtype=torch.long), use_cache=True).past_key_values
    held = sum(x.nbytes for layer in cache.layers for x in (layer.keys, layer.values)) / 5
    assert shape_of(ModelSection(name_or_path=str(tmp_path))).cache_bytes == held


@pytest.mark.parametrize("family", ["mamba", "falcon_mamba", "rwkv"])
def test_a_model_without_attention_heads_caches_no_keys_and_values(tmp_path: Path, family: str) -> None:
    fields = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "bos_token_id": 0, "eos_token_id": 0}
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **fields)).eval()
    made.save_pretrained(tmp_path)
    shape = shape_of(ModelSection(name_or_path=str(tmp_path)))
    assert shape.cache_bytes == 0
    assert shape.parameters == sum(p.numel() for p in made.parameters())


def test_a_data_set_of_unknown_size_is_a_note_and_files_next_to_it_count(tmp_path: Path) -> None:
    (tmp_path / "more.jsonl").write_text('{"question": "Why?", "answer": "so"}\n' * 1000)
    unknown = make_plan(overridden("corpus.source=nobody/nothing"))
    assert set(unknown.extent.splits.values()) == {0}
    assert unknown.problems == []
    assert any("corpus.source = 'nobody/nothing': the number of rows" in note for note in unknown.notes)
    both = make_plan(overridden(f"corpus.source=[mandarjoshi/trivia_qa, {tmp_path}/more.jsonl]")).extent
    assert both.splits == {"probe": 27_877, "pool": 97_569, "eval": 13_938}  # 139,384 × 0.2, 0.7, 0.1


def test_a_folder_without_a_tokenizer_fails_as_a_run_does(tmp_path: Path) -> None:
    shutil.copytree(WORLD_MODEL, tmp_path / "model", ignore=shutil.ignore_patterns("tokenizer*"))
    config = Config.model_validate({"model": {"name_or_path": str(tmp_path / "model")}})
    with pytest.raises(ConfigError, match=r"model\.name_or_path"):
        make_plan(config)


@pytest.mark.parametrize("file", CONFIGS, ids=lambda f: f.stem)
def test_every_configuration_loads(file: Path) -> None:
    config = load_config(file)
    assert config.run.name == file.stem
    if file in REAL:
        assert (config.finetune.zero_stage, config.finetune.mode) == (3, "lora")
        assert (config.collect.samples, config.collect.temperature, config.collect.greedy_temperature) == (10, 1.0, 0.1)
        assert shots(config) == 5
        assert config.collect.pool.gpus == 1


def test_the_world_is_read_and_counted() -> None:
    config = load_config(ROOT / "jobs/configs/smoke.yaml")
    found = extent(config, True)
    assert found.source == "read and counted"
    assert found.splits == {"probe": 300, "pool": 60, "eval": 125}
    stages = {line.stage: line for line in lines(config, found, shape_of(config.model), 0)}
    assert stages["collect"].rows == 300
    assert stages["finetune"].rows == 2 * 4 * (16 + 20)
    assert stages["decode"].rows == 150 + 1 * 16 * 2


BEYOND = "active.budget = 70 exceeds the pool of 60 questions; buy fewer, or give corpus.split.pool more"


def test_a_budget_beyond_the_pool_and_a_layer_beyond_the_model_are_problems() -> None:
    over = {
        "corpus": {"world": {"pool_questions": 60, "probe_questions": 300}},
        "active": {"budget": 70},
        "collect": {"layers": [9]},
    }
    problems = make_plan(Config.model_validate(over)).problems
    assert problems == ["collect.layers: world has layers 0 … 6, not [9]", BEYOND]


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1_234, "1.23 kB"), (16_060_000_000, "16.1 GB"), (2.5e12, "2.5 TB")]
)
def test_sizes_have_three_figures(count: float, text: str) -> None:
    assert size(count) == text


def test_a_gated_model_whose_shape_is_published_has_a_plan_and_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llama = LLAMA.model_copy(update={"cache": str(tmp_path)})
    with ModelHub(LLAMA.name_or_path, WORLD_MODEL, "hf_right").running() as hub:
        hub.is_asked(monkeypatch, token="")
        plan = make_plan(Config(model=llama))
        assert plan.shape.parameters > 8e9
        assert [problem.partition(":")[0] for problem in plan.problems] == [
            f"model.name_or_path = '{LLAMA.name_or_path}'"
        ]
        assert "is gated, and there is no token: accept its conditions" in plan.problems[0]
        hub.is_down = True
        assert make_plan(Config(model=llama)).problems == []
