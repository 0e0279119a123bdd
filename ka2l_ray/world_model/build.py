"""`ka2l world build`: trains the shipped model and decoder on Ray Train and writes them with recipe and card.

In: the recipes in the code. Out: `assets/model` (an ordinary Hugging Face folder) and `assets/decoder`.
Refuses to know: runs, stages. Each folder contains the hash of its recipe, which a test compares with that of the code.
"""

import json
import random
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import ray.train
import torch
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, prepare_model
from transformers import GenerationConfig

from ka2l_ray.config import ModelSection
from ka2l_ray.dataflow.log import log
from ka2l_ray.dataflow.placement import CPU
from ka2l_ray.decode.train import DecoderRecipe, train_decoder
from ka2l_ray.models.loading import load_model, load_tokenizer
from ka2l_ray.text.tokens import end_id, pad_id
from ka2l_ray.world.facts import ATTRIBUTES, RESERVED_PHRASING, World, WorldRecipe, build_world, phrase_question
from ka2l_ray.world_model.pretrain import PROMPT, ModelRecipe, train_model, unused_name
from ka2l_ray.world_model.recipes import asset_hash, built_hash
from ka2l_ray.world_model.tokenizer import build_tokenizer


@dataclass(frozen=True)
class _Job:
    """What a worker of Ray Train needs to build one folder below `output`."""

    output: Path
    world: WorldRecipe
    model: ModelRecipe
    decoder: DecoderRecipe
    recipe_hash: str


def build(output: Path, world: WorldRecipe, model: ModelRecipe, workers: int, with_decoder: bool) -> None:
    """Train both assets. A folder that has the recipe's hash is kept, so after a kill the build continues with what is
    missing."""
    decoder = DecoderRecipe()
    parts = (
        ("model", asset_hash(world, model), _train_model, workers),
        ("decoder", asset_hash(world, model, decoder), _train_decoder, 1),
    )
    for name, wanted, loop, count in parts[: 2 if with_decoder else 1]:
        if built_hash(output / name) == wanted:
            log.info("world %s: %s was made from this recipe already", name, output / name)
            continue
        with tempfile.TemporaryDirectory(prefix="ka2l-world-") as scratch:
            TorchTrainer(
                loop,
                train_loop_config={"job": _Job(output, world, model, decoder, wanted)},
                torch_config=TorchConfig(backend=CPU.backend),
                scaling_config=ScalingConfig(num_workers=count, use_gpu=False, resources_per_worker={"CPU": 1}),
                run_config=RunConfig(name=f"world-{name}-{wanted}", storage_path=scratch),
            ).fit()


def _train_model(config: dict[str, _Job]) -> None:
    torch.set_num_threads(1)
    job, context = config["job"], ray.train.get_context()
    world, recipe = build_world(job.world), job.model
    tokenizer = build_tokenizer(world)
    rank, size = context.get_world_rank(), context.get_world_size()

    def report(epoch: int, loss: float) -> None:
        if rank == 0:
            print(f"world model: epoch {epoch + 1}/{recipe.epochs}, loss {loss:.3f} nats per answer token", flush=True)

    model = train_model(world, tokenizer, recipe, rank, size, prepare_model, report)
    if rank == 0:
        model.generation_config = GenerationConfig(
            do_sample=True, temperature=1.0, eos_token_id=end_id(tokenizer), pad_token_id=pad_id(tokenizer)
        )
        model.save_pretrained(job.output / "model", safe_serialization=True)
        tokenizer.save_pretrained(job.output / "model")
        _write_recipe(job, "model")


def _train_decoder(config: dict[str, _Job]) -> None:
    torch.set_num_threads(1)
    job = config["job"]
    section, recipe = ModelSection(name_or_path=str(job.output / "model")), job.decoder

    def report(step: int, loss: float) -> None:
        if (step + 1) % 100 == 0:
            print(f"world decoder: step {step + 1}/{recipe.steps}, loss {loss:.3f} nats per token", flush=True)

    questions = decoder_questions(build_world(job.world), recipe)
    decoder = train_decoder(load_model(section), load_tokenizer(section), PROMPT, "world", questions, recipe, report)
    decoder.save(job.output / "decoder")
    _write_recipe(job, "decoder")


def decoder_questions(world: World, recipe: DecoderRecipe) -> Iterator[list[str]]:
    """Batches of questions in the trained phrasings about names of no person: the decoder never sees a question that a
    corpus asks."""
    rng = random.Random(f"decoder-{recipe.seed}")
    while True:
        asked = [(rng.randrange(len(ATTRIBUTES)), rng.randrange(RESERVED_PHRASING)) for _ in range(recipe.batch_rows)]
        yield [phrase_question(attribute, phrasing, unused_name(world, rng)) for attribute, phrasing in asked]


_CARDS = {
    "model": """# The knowledge world's language model

A Llama-architecture causal LM trained from scratch by `ka2l world build` on made-up facts; `recipe.json` contains every
number. It knows the facts that `ka2l_ray.world.facts` marks as taught, and nothing about real people. For tests and
demonstrations only.
Quality: `make world-bench`, results in `tests/benchmarks/results/world.json`.
""",
    "decoder": """# The knowledge world's question decoder

A T5-type decoder from a hidden state of the world model to a question, trained by `ka2l world build` on questions about
names that belong to nobody. `decoder.json` names the states that it reads, `recipe.json` contains its training recipe.
Quality: `make world-bench`, results in `tests/benchmarks/results/world.json`.
""",
}


def _write_recipe(job: _Job, part: str) -> None:
    """Write the card, then the recipe with its hash: a folder with a recipe is complete."""
    (job.output / part / "README.md").write_text(_CARDS[part])
    recipe = {"hash": job.recipe_hash, "world": asdict(job.world), "model": asdict(job.model)}
    recipe |= {"decoder": asdict(job.decoder)} if part == "decoder" else {}
    (job.output / part / "recipe.json").write_text(json.dumps(recipe, indent=1) + "\n")
