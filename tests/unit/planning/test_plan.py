"""The plan's arithmetic, against models that are there and against numbers worked out by hand."""

from pathlib import Path
from typing import Any

import pytest
import torch

from ka2l_ray.config import Config, LoraSection, ModelSection, load_config
from ka2l_ray.corpus.prepare import shots
from ka2l_ray.models.loading import load_blocks, load_model
from ka2l_ray.planning.corpora import extent
from ka2l_ray.planning.cost import lines, size, storage_bytes, training_bytes
from ka2l_ray.planning.plan import make_plan
from ka2l_ray.planning.shapes import PUBLISHED, UnknownShape, adapter_parameters, shape_of

ROOT = Path(__file__).parents[3]
CONFIGS = sorted((ROOT / "jobs/configs").glob("*.yaml"))
REAL = [c for c in CONFIGS if c.stem not in ("world", "smoke")]
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
    [("meta-llama/Llama-3.1-8B", 8_030_261_248, 2 * 32 * 8 * 128 * 2), ("Qwen/Qwen2.5-7B", 7_615_616_512, 2 * 28 * 4 * 128 * 2)],
)
def test_published_shapes_give_the_published_numbers(name: str, parameters: int, cache_bytes: int) -> None:
    shape = shape_of(ModelSection(name_or_path=name))
    assert shape.parameters == parameters
    assert shape.cache_bytes == cache_bytes
    assert shape.weight_bytes == 2 * parameters
    assert "not at hand" in shape.source
    assert name in PUBLISHED


def test_quantized_weights_take_a_quarter_or_a_half_outside_of_embedding_and_head() -> None:
    plain, eight, four = (shape_of(LLAMA.model_copy(update={"quantization": q})) for q in ("none", "8bit", "4bit"))
    ends = plain.weight_bytes - 2 * plain.block_parameters
    assert (eight.weight_bytes, four.weight_bytes) == (plain.block_parameters + ends, plain.block_parameters // 2 + ends)


def test_adapters_are_counted_as_peft_makes_them() -> None:
    per_block = 64 * ((4096 + 4096) + 2 * (4096 + 1024) + (4096 + 4096) + 2 * (4096 + 14336) + (14336 + 4096))
    assert adapter_parameters(LLAMA, LoraSection(rank=64)) == 32 * per_block == 167_772_160


def test_a_model_of_which_nothing_is_known_is_refused_by_name() -> None:
    with pytest.raises(UnknownShape, match=r"model\.name_or_path = 'nobody/nothing'"):
        shape_of(ModelSection(name_or_path="nobody/nothing"))


def test_triviaqa_with_llama_worked_out_by_hand() -> None:
    config = load_config(ROOT / "jobs/configs/triviaqa-llama3.1-8b.yaml")
    plan = make_plan(config)
    by_stage = {line.stage: line for line in plan.lines}
    assert plan.extent.splits == {"probe": 27_677, "pool": 96_869, "eval": 13_838}
    assert (plan.extent.shared, plan.extent.own) == (12 + 5 * (20 + 5 + 6), 20 + 5)
    collect = by_stage["collect"]
    assert collect.read_tokens == 27_677 * 25
    assert collect.written_tokens == 27_677 * 11 * 32
    assert collect.storage_bytes == 27_677 * (7 * 4096 * 2 + 11 * 64)
    rows = 65_536 // (25 + 32)
    states = (64 + 512) * 7 * 4096 * 4
    assert collect.memory_bytes == 2 * 8_030_261_248 + (65_536 + 167) * 131_072 + min(64 * 11, rows) * 128_256 * 4 + states
    assert by_stage["score"].read_tokens == 96_869 * 25
    assert by_stage["score"].rows == 96_869
    trainings = (1 + 3) * 4
    assert by_stage["evaluate"].rows == 13_838 * 2 * (1 + trainings)
    bought, replayed = (5_000, 10_000, 15_000, 20_000), 20_000
    assert by_stage["finetune"].rows == sum(4 * (b + replayed) for b in bought) * trainings // 4
    parts = training_bytes(config, plan.shape, 167_772_160, 33)
    assert parts["weights"] == 2 * 8_030_261_248 // 8
    assert parts["gradients"] == 2 * 167_772_160 // 8
    assert parts["optimizer"] == 12 * 167_772_160 // 8
    assert storage_bytes(plan.lines) == sum(line.storage_bytes for line in plan.lines)
    assert any("8 GPUs" in note for note in plan.notes)


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
    assert found.splits == {"probe": 300, "pool": 60, "eval": 80}
    stages = {line.stage: line for line in lines(config, found, shape_of(config.model), 0)}
    assert stages["collect"].rows == 300
    assert stages["finetune"].rows == 2 * 4 * (16 + 20)


def test_a_budget_beyond_the_pool_and_a_layer_beyond_the_model_are_problems() -> None:
    over = {"corpus": {"world": {"pool_questions": 60, "probe_questions": 300}}, "active": {"budget": 70}, "collect": {"layers": [9]}}
    problems = make_plan(Config.model_validate(over)).problems
    assert problems == ["collect.layers: world has layers 0 … 6, not [9]", "active.budget = 70 exceeds the pool of 60 questions"]


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1_234, "1.23 kB"), (16_060_000_000, "16.1 GB"), (2.5e12, "2.5 TB")]
)
def test_sizes_are_told_in_three_figures(count: float, text: str) -> None:
    assert size(count) == text
