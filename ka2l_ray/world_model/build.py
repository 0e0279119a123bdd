"""`ka2l world build`: trains the shipped model and decoder on Ray Train and writes them with recipe and card.

In: the recipes in the code. Out: `assets/model` (an ordinary Hugging Face folder) and `assets/decoder`.
Refuses to know: runs, stages. Both folders carry the hash of their recipe; a test compares it with the code's.
"""

import json
import random
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, prepare_model

from ka2l_ray.config import ModelSection
from ka2l_ray.dataflow.log import log
from ka2l_ray.dataflow.placement import CPU
from ka2l_ray.decode.train import DecoderRecipe, train_decoder
from ka2l_ray.models.loading import ASSETS, load_model, load_tokenizer
from ka2l_ray.world.facts import ATTRIBUTES, RESERVED_PHRASING, World, WorldRecipe, build_world, word
from ka2l_ray.world_model.pretrain import PROMPT, ModelRecipe, no_person, train_model
from ka2l_ray.world_model.recipes import built_hash, decoder_hash, model_hash
from ka2l_ray.world_model.tokenizer import build_tokenizer


def build(
    output: Path = ASSETS,
    world: WorldRecipe | None = None,
    model: ModelRecipe | None = None,
    decoder: DecoderRecipe | None = None,
    workers: int = 2,
    with_decoder: bool = True,
) -> None:
    """Train both assets; a folder whose recipe hash already fits is kept, so a killed build goes on with the decoder."""
    world, model, decoder = world or WorldRecipe(), model or ModelRecipe(), decoder or DecoderRecipe()
    parts = (
        ("model", model_hash(world, model), _train_model, workers),
        ("decoder", decoder_hash(world, model, decoder), _train_decoder, 1),
    )
    for name, wanted, loop, count in parts[: 2 if with_decoder else 1]:
        if built_hash(output / name) == wanted:
            log.info("world %s: %s carries this recipe already", name, output / name)
            continue
        job = {"output": str(output), "world": world, "model": model, "decoder": decoder, "hash": wanted}
        with tempfile.TemporaryDirectory(prefix="ka2l-world-") as scratch:
            TorchTrainer(
                loop,
                train_loop_config=job,
                torch_config=TorchConfig(backend=CPU.backend),
                scaling_config=ScalingConfig(num_workers=count, use_gpu=False, resources_per_worker={"CPU": 1}),
                run_config=RunConfig(name=f"world-{name}-{wanted}", storage_path=scratch),
            ).fit()


def _train_model(job: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    context, recipe = ray.train.get_context(), job["model"]
    world = build_world(job["world"])
    tokenizer = build_tokenizer(world)
    rank, size = context.get_world_rank(), context.get_world_size()

    def say(epoch: int, loss: float) -> None:
        if rank == 0:
            print(f"world model: epoch {epoch + 1}/{recipe.epochs}, loss {loss:.3f} nats per answer token", flush=True)

    model = train_model(world, tokenizer, recipe, rank, size, prepare_model, say)
    if rank == 0:
        folder = Path(job["output"]) / "model"
        model.save_pretrained(folder, safe_serialization=True)
        tokenizer.save_pretrained(folder)
        _write_recipe(folder, "model", job)


def _train_decoder(job: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    recipe, world = job["decoder"], build_world(job["world"])
    section = ModelSection(name_or_path=str(Path(job["output"]) / "model"))

    def say(step: int, loss: float) -> None:
        if (step + 1) % 100 == 0:
            print(f"world decoder: step {step + 1}/{recipe.steps}, loss {loss:.3f} nats per token", flush=True)

    questions = decoder_questions(world, recipe)
    decoder = train_decoder(load_model(section), load_tokenizer(section), PROMPT, "world", questions, recipe, say)
    decoder.save(Path(job["output"]) / "decoder")
    _write_recipe(Path(job["output"]) / "decoder", "decoder", job)


def decoder_questions(world: World, recipe: DecoderRecipe) -> Iterator[list[str]]:
    """Batches of questions about no person, in the trained phrasings: the decoder never sees a question that a corpus asks."""
    rng = random.Random(f"decoder-{recipe.seed}")
    while True:
        asked = [(rng.randrange(len(ATTRIBUTES)), rng.randrange(RESERVED_PHRASING)) for _ in range(recipe.batch_rows)]
        yield [word(attribute, phrasing, no_person(world, rng)) for attribute, phrasing in asked]


_CARDS = {
    "model": (
        "# The knowledge world's language model\n\n"
        "A Llama-architecture causal LM trained from scratch by `ka2l world build` on made-up facts; `recipe.json` holds every number.\n"
        "It knows the facts that `ka2l_ray.world.facts` marks as taught, and nothing of real people. Only for tests and demonstrations.\n"
        "Quality: `make world-bench`, results in `tests/benchmarks/results/world.json`.\n"
    ),
    "decoder": (
        "# The knowledge world's question decoder\n\n"
        "A T5-type decoder from a hidden state of the world model to a question, trained by `ka2l world build` on questions about names\n"
        "that belong to nobody. `decoder.json` names the states it reads, `recipe.json` its training.\n"
        "Quality: `make world-bench`, results in `tests/benchmarks/results/world.json`.\n"
    ),
}


def _write_recipe(folder: Path, part: str, job: dict[str, Any]) -> None:
    """The card, then the recipe with its hash, last: a folder with a recipe is whole."""
    (folder / "README.md").write_text(_CARDS[part])
    recipe = {"hash": job["hash"], "world": asdict(job["world"]), "model": asdict(job["model"])}
    recipe |= {"decoder": asdict(job["decoder"])} if part == "decoder" else {}
    (folder / "recipe.json").write_text(json.dumps(recipe, indent=1) + "\n")
