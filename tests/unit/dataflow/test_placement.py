"""Placement: a process computes on what it was allotted, on a machine that shows it eight GPUs too.

There is no GPU here. Where a test says that some are visible, torch is made to say so, and using one of them fails.
"""

import ast
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from ka2l_ray.collect.actor import CollectActor, CollectSetup
from ka2l_ray.config import (
    CollectSection,
    ConfigError,
    DecodeSection,
    FinetuneSection,
    ModelSection,
    Pool,
    PromptSection,
    VllmSection,
)
from ka2l_ray.dataflow.failures import ActorBroken
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.placement import CPU, Placement, of_actor, of_worker
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.decode.actor import DecodeActor
from ka2l_ray.decode.rereading import DecodeSetup
from ka2l_ray.finetune.checkpoints import checkpoint_identity
from ka2l_ray.finetune.deepspeed import deepspeed_config
from ka2l_ray.finetune.evaluate import EvaluateActor, EvaluateSetup
from ka2l_ray.finetune.job import Job
from ka2l_ray.finetune.model import frozen_base, trainable_model
from ka2l_ray.models.answers import Decoding
from ka2l_ray.models.loading import _load_options, load_blocks, load_model, load_tokenizer
from ka2l_ray.models.probe import LinearProbe, ProbeCard
from ka2l_ray.models.prompts import Tokenize
from ka2l_ray.models.vllm import VllmGenerator
from ka2l_ray.probe.score import ScoreActor, ScoreSetup
from ka2l_ray.text.prompts import Prompt

PACKAGE = Path(__file__).parents[3] / "ka2l_ray"
WORLD, ON_CPU = ModelSection(), ModelSection(device="cpu")
PROMPT, LAYER, WIDTH = PromptSection(), 3, 128
ASKED = pa.table(
    {
        "id": ["a", "b"],
        "question": ["Which city is Mirelle Ostrander from?", "Who is she?"],
        "answers": [["Port"], ["Nobody"]],
        "source_id": ["a", "b"],
        "variant": [0, 0],
        "augment": ["noise", "temperature"],
        "entity": [None, None],
        "group": ["city", None],
        "turn": [0, 0],
        "asked": [[], [{"question": "Who was she?", "group": None}]],
    }
)
BATCH = Tokenize(WORLD, PROMPT).add(ASKED)


def visible(monkeypatch: pytest.MonkeyPatch, gpus: int) -> None:
    """This process sees so many GPUs, as a process of Ray sees all of its machine's where none was allotted to it."""
    import bitsandbytes  # noqa: F401  # PEFT imports it, which it survives only before this torch says that it has CUDA

    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.version, "cuda", "13.0")


@pytest.mark.parametrize(
    ("gpus", "device", "whole", "quantized"),
    [
        (0, "cpu", None, "cpu"),
        (0.5, "cuda", None, "cuda"),
        (1, "cuda", None, "cuda"),
        (2, "cuda", "auto", "auto"),
        (8, "cuda", "auto", "auto"),
    ],
)
def test_an_actor_is_placed_by_its_pool(monkeypatch, gpus, device, whole, quantized):
    visible(monkeypatch, 8)
    place = of_actor(WORLD, Pool(gpus=gpus), "score")
    assert (place.on_gpu, place.device.type) == (device == "cuda", device)
    assert place.device_map(quantized=False) == whole
    assert place.device_map(quantized=True) == (quantized if quantized == "auto" else {"": torch.device(quantized)})
    kept = of_actor(ON_CPU, Pool(gpus=gpus), "score")
    assert (kept.device.type, kept.device_map(False), kept.device_map(True)) == ("cpu", None, {"": torch.device("cpu")})


@pytest.mark.parametrize(
    ("model", "gpus", "device", "backend"),
    [(WORLD, 0, "cpu", "gloo"), (WORLD, 1, "cuda", "nccl"), (ON_CPU, 0, "cpu", "gloo"), (ON_CPU, 1, "cpu", "gloo")],
)
def test_a_training_worker_is_placed_by_gpus_per_worker(monkeypatch, model, gpus, device, backend):
    """On one device, though it sees the GPUs of all workers of its node."""
    visible(monkeypatch, 8)
    place = of_worker(model, FinetuneSection(gpus_per_worker=gpus))
    place.check()
    assert (place.device.type, place.backend) == (device, backend)
    assert (place.device_map(False), place.device_map(True)) == (None, {"": torch.device(device)})
    found = deepspeed_config(FinetuneSection(zero_stage=2, offload="optimizer"), place.on_gpu, False)
    assert found["zero_optimization"]["offload_optimizer"]["pin_memory"] == (device == "cuda")


def test_a_worker_takes_the_gpu_that_ray_lent_it_for_torch_and_for_deepspeed(monkeypatch):
    """Its place among the node's workers, which `LOCAL_RANK` is else, may be another number."""
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setenv("LOCAL_RANK", "0")
    of_worker(WORLD, FinetuneSection(gpus_per_worker=1)).take(torch.device("cuda:5"))
    assert chosen == [torch.device("cuda:5")]
    assert os.environ["LOCAL_RANK"] == "5"


@pytest.mark.parametrize("gpus", [0.5, 1, 2])
def test_gpus_that_this_build_of_torch_cannot_use_are_one_clear_error(gpus):
    """This torch is a build for CPUs."""
    allotted = of_actor(WORLD, Pool(gpus=gpus), "collect")
    says = rf"collect\.pool\.gpus = {gpus:g}: torch .* was built without CUDA; install .* set model\.device: cpu"
    for load in (
        lambda: load_model(ModelSection(name_or_path="nowhere"), placement=allotted),
        lambda: load_blocks(ModelSection(name_or_path="nowhere"), 3, allotted),
    ):
        with pytest.raises(ConfigError, match=says):
            load()
    load_blocks(ON_CPU, 1, of_actor(ON_CPU, Pool(gpus=gpus), "collect"))


@pytest.mark.parametrize(("gpus", "seen", "says"), [(1, 0, "sees 0 of 1 GPUs"), (4, 2, "sees 2 of 4 GPUs")])
def test_gpus_that_are_not_there_are_the_same_error(monkeypatch, gpus, seen, says):
    visible(monkeypatch, seen)
    with pytest.raises(ConfigError, match=rf"score\.pool\.gpus = {gpus}: torch .* {says}; .* set model\.device: cpu"):
        of_actor(WORLD, Pool(gpus=gpus), "score").check()
    visible(monkeypatch, 0)
    with pytest.raises(ConfigError, match=r"finetune\.gpus_per_worker = 1: torch .* sees 0 of 1"):
        of_worker(WORLD, FinetuneSection(gpus_per_worker=1)).check()


def test_an_actor_that_sees_more_than_it_was_lent_does_not_guess_which_are_its_own(monkeypatch):
    visible(monkeypatch, 8)
    with pytest.raises(
        ConfigError, match=r"score\.pool\.gpus = 0\.5: the process sees 8 GPUs.* unset RAY_EXPERIMENTAL_NOSET"
    ):
        of_actor(WORLD, Pool(gpus=0.5), "score").check()
    visible(monkeypatch, 2)
    of_actor(WORLD, Pool(gpus=2), "score").check()


def collecting(folder: Path) -> Any:
    collect = CollectSection(samples=2, max_new_tokens=3)
    placement = of_actor(WORLD, collect.pool, "collect")
    return CollectActor(
        CollectSetup(model=WORLD, prompt=PROMPT, collect=collect, layers=[LAYER], seed=0, placement=placement)
    )


def scoring(folder: Path) -> Any:
    placement = of_actor(WORLD, Pool(), "score")
    return ScoreActor(ScoreSetup(model=WORLD, prompt=PROMPT, probe=probe(folder), placement=placement))


def decoding(folder: Path) -> Any:
    section = DecodeSection()
    placement = of_actor(WORLD, section.pool, "decode")
    fields: Any = {"model": WORLD, "prompt": PROMPT, "decode": section, "decoder": "world", "probe": probe(folder)}
    return DecodeActor(DecodeSetup(**fields, seed=0, placement=placement))


def evaluating(folder: Path) -> Any:
    """Of an adapter, which PEFT reads onto a GPU by itself where it sees one."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    adapted = get_peft_model(load_model(WORLD), LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    adapted.save_pretrained(str(folder / "adapter"))
    tuned = Folder.of(str(folder / "adapter"))
    collect, placement = CollectSection(max_new_tokens=3), of_actor(WORLD, Pool(), "evaluate")
    return EvaluateActor(
        EvaluateSetup(model=WORLD, prompt=PROMPT, collect=collect, seed=0, tuned=tuned, placement=placement)
    )


def probe(folder: Path) -> Folder:
    card = ProbeCard(WORLD.identity, PROMPT.template, LAYER, "last", WIDTH, 0.5, 1.0)
    LinearProbe(np.linspace(-0.1, 0.1, WIDTH), 0.1, card).save(Folder.of(str(folder / "probe")))
    return Folder.of(str(folder / "probe"))


@pytest.mark.parametrize("make", [collecting, scoring, decoding, evaluating], ids=lambda m: m.__name__)
def test_an_actor_without_a_gpu_stays_on_the_cpu_where_eight_are_visible(monkeypatch, tmp_path, make):
    blind = make(tmp_path)(BATCH)
    visible(monkeypatch, 8)
    seeing = make(tmp_path)(BATCH)
    assert "error" not in seeing
    assert {k: pa.array(v).to_pylist() for k, v in seeing.items()} == {
        k: pa.array(v).to_pylist() for k, v in blind.items()
    }


def training(folder: Path, model: ModelSection, **fields: Any) -> Job:
    nowhere = Table(Folder.of(str(folder / "none")))
    return Job(model, PROMPT, FinetuneSection(**fields), nowhere, Folder.of(str(folder / "model")), 0)


@pytest.mark.parametrize(("model", "gpus"), [(WORLD, 0), (ON_CPU, 1)], ids=["none allotted", "kept to the CPU"])
def test_a_training_worker_without_a_gpu_keeps_all_its_models_on_the_cpu(monkeypatch, tmp_path, model, gpus):
    visible(monkeypatch, 8)
    given = training(tmp_path, model, gpus_per_worker=gpus, replay={"kl_weight": 1.0})
    for loaded in (trainable_model(given), frozen_base(given)):
        assert loaded is not None
        assert {p.device.type for p in loaded.parameters()} == {"cpu"}
    assert checkpoint_identity(given, 1, 2)["device"] == "cpu"


def test_a_training_with_gpus_that_torch_cannot_use_is_refused_before_its_model_is_read(tmp_path):
    with pytest.raises(ConfigError, match=r"finetune\.gpus_per_worker = 1: torch .* was built without CUDA"):
        trainable_model(training(tmp_path, ModelSection(name_or_path="nowhere"), gpus_per_worker=1))


def test_only_a_model_over_several_gpus_is_spread_and_quantized_weights_are_read_where_they_stay(monkeypatch):
    visible(monkeypatch, 8)
    four_bits = ModelSection(quantization="4bit")
    maps = [
        _load_options(WORLD, CPU).get("device_map"),
        _load_options(WORLD, Placement(1)).get("device_map"),
        _load_options(WORLD, Placement(2)).get("device_map"),
        _load_options(four_bits, CPU).get("device_map"),
        _load_options(four_bits, Placement(1, sees_others=True)).get("device_map"),
    ]
    assert maps == [None, None, "auto", {"": torch.device("cpu")}, {"": torch.device("cuda")}]


@pytest.fixture
def vllm(monkeypatch) -> SimpleNamespace:
    """What the adapter asks of vLLM before any question: its build, and an engine that keeps its arguments."""
    found, module, platforms = (
        SimpleNamespace(cpu_build=True, arguments={}),
        ModuleType("vllm"),
        ModuleType("vllm.platforms"),
    )

    def engine(**arguments: Any) -> SimpleNamespace:
        found.arguments = arguments
        return SimpleNamespace(get_default_sampling_params=lambda: SimpleNamespace(stop_token_ids=[]))

    module.LLM, platforms.current_platform = engine, SimpleNamespace(is_cpu=lambda: found.cpu_build)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setitem(sys.modules, "vllm.platforms", platforms)
    for name in ("VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_CPU_KVCACHE_SPACE", "VLLM_CPU_OMP_THREADS_BIND"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    return found


def generator(placement: Placement) -> VllmGenerator:
    return VllmGenerator(WORLD, VllmSection(), load_tokenizer(WORLD), Decoding(0, 2, 1.0, 0.0, 3, ()), None, placement)


def test_vllms_settings_for_a_cpu_follow_the_allotment(monkeypatch, vllm):
    visible(monkeypatch, 8)
    generator(CPU)
    assert vllm.arguments["enable_chunked_prefill"] is False
    assert os.environ["VLLM_CPU_KVCACHE_SPACE"] == "1"


def test_vllms_settings_for_a_gpu_follow_the_allotment(monkeypatch, vllm):
    visible(monkeypatch, 1)
    vllm.cpu_build = False
    generator(of_actor(WORLD, Pool(gpus=1), "collect"))
    assert vllm.arguments["enable_chunked_prefill"] is None
    assert "VLLM_CPU_KVCACHE_SPACE" not in os.environ


@pytest.mark.parametrize(("gpus", "says"), [(0, "the CPU by .* built for GPUs"), (1, "GPUs by .* built for CPUs")])
def test_vllm_of_another_build_is_refused_before_it_takes_a_gpu(monkeypatch, vllm, gpus, says):
    visible(monkeypatch, gpus or 8)
    vllm.cpu_build = gpus == 1
    with pytest.raises(
        ConfigError, match=f"collect.engine: vllm: the actor was placed on {says}; .* set collect.engine: own"
    ):
        generator(of_actor(WORLD, Pool(gpus=gpus), "collect"))
    assert not vllm.arguments, "the engine was never made"


def test_an_engine_of_vllm_that_fails_ends_its_actor(monkeypatch, vllm):
    """Whatever the error: prompts were checked before, and a failed engine never gives up its unfinished requests."""
    asks = generator(CPU)

    def generate(*_: Any, **__: Any) -> None:
        raise RuntimeError("EngineCore encountered an issue")

    monkeypatch.setattr(asks._llm, "generate", generate, raising=False)
    monkeypatch.setattr(asks._vllm, "SamplingParams", lambda **given: SimpleNamespace(**given), raising=False)
    with pytest.raises(ActorBroken, match="RuntimeError: EngineCore encountered an issue"):
        asks(["a"], [Prompt((1, 2, 3), 1, 2)])


MAY_ASK = {"dataflow/placement.py", "cli/doctor.py"}
"""What torch sees decides nothing elsewhere; these two check an allotment against it, and report it."""
HARMLESS = {"torch.cuda.empty_cache", "torch.cuda.get_rng_state", "torch.cuda.set_rng_state"}
"""Of torch.cuda, what another file may use: it acts on a GPU in use, or is called for a tensor that lies on one."""


def uses_of_gpus(text: str) -> set[str]:
    """What a file uses of torch.cuda and the like, and of `.cuda()`, which moves to any GPU that is visible."""
    named = {ast.unparse(node) for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Attribute)}
    imported = {node.module or "" for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)}
    calls = {ast.unparse(node.func) for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)}
    return {n for n in named | imported if n.startswith(("torch.cuda.", "torch.accelerator"))} | {
        c for c in calls if c.endswith(".cuda")
    }


def test_nothing_but_the_placement_asks_which_gpus_are_visible():
    found = {str(f.relative_to(PACKAGE)): uses_of_gpus(f.read_text()) - HARMLESS for f in PACKAGE.rglob("*.py")}
    assert {file: sorted(names) for file, names in found.items() if names and file not in MAY_ASK} == {}
    assert "torch.cuda.is_available" in found["dataflow/placement.py"], "otherwise this looks at nothing"
    assert uses_of_gpus("flag = flag.cuda() if torch.cuda.is_available() else flag") == {
        "flag.cuda",
        "torch.cuda.is_available",
    }
