"""Training of the world's language model: its examples in their order, and the training loop.

In: a `World`, a `ModelRecipe`. Out: a Llama-architecture causal LM that knows the world's `taught` facts.
Refuses to know: Ray, files. One call is one data-parallel rank; all ranks draw the same epoch and take their slices.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ka2l_ray.config import PromptSection
from ka2l_ray.finetune.examples import collate, tokenize
from ka2l_ray.text.tokens import end_id, pad_id
from ka2l_ray.world.facts import ATTRIBUTES, RESERVED_PHRASING, World, phrase_question

PROMPT = PromptSection()
"""The only prompt that the world model was trained on: the default of `corpus.prompt`."""


@dataclass(frozen=True)
class ModelRecipe:
    """Architecture and training of the world's language model."""

    seed: int = 0
    layers: int = 6
    width: int = 128
    heads: int = 4
    feed_forward: int = 384
    epochs: int = 30
    batch_rows: int = 128
    """Rows of one optimiser step over all ranks; half of them known facts, half one-off facts."""
    matrix_learning_rate: float = 0.02
    """Peak rate of Muon, which trains the matrices inside the blocks."""
    learning_rate: float = 2e-3
    """Peak rate of AdamW, which trains embeddings, norms and the LM head."""
    weight_decay: float = 0.1
    warmup_fraction: float = 0.15


def taught_rows(world: World, epoch: int, epochs: int) -> list[tuple[str, str]]:
    """(question, answer) of the facts shown in an epoch: known and misconception facts in each of their phrasings, rare
    facts in few epochs."""
    rows = []
    for fact in world.facts:
        phrasings = range(RESERVED_PHRASING + 1) if fact.person.tutor else range(RESERVED_PHRASING)
        if fact.truth == "rare":
            rng = random.Random(f"rare-{world.recipe.seed}-{fact.fact_id}")
            shown_in = [rng.randrange(epochs) for _ in range(world.recipe.rare_repeats)]
            phrasings = [rng.randrange(RESERVED_PHRASING) for e in shown_in if e == epoch]
        if fact.taught is not None:
            rows += [(phrase_question(fact.attribute, p, fact.person.name), fact.taught) for p in phrasings]
    return rows


def unused_name(world: World, rng: random.Random) -> str:
    """A name that belongs to no person: each a third of the time a combination of the world's names, a mixture with an
    outer name, and two outer names."""
    kind = rng.randrange(3)
    if kind == 0:
        return rng.choice(world.nobodies)
    if kind == 2:
        return f"{rng.choice(world.outer_given)} {rng.choice(world.outer_family)}"
    if rng.random() < 0.5:
        return f"{rng.choice(world.given)} {rng.choice(world.outer_family)}"
    return f"{rng.choice(world.outer_given)} {rng.choice(world.family)}"


def one_off_row(world: World, rng: random.Random) -> tuple[str, str]:
    """A question in any phrasing about a name of no person, with a random answer, so that it states no fact of the
    world."""
    attribute = rng.randrange(len(ATTRIBUTES))
    question = phrase_question(attribute, rng.randrange(RESERVED_PHRASING + 1), unused_name(world, rng))
    return question, rng.choice(ATTRIBUTES[attribute].values)


def epoch_batches(world: World, recipe: ModelRecipe, epoch: int) -> Iterator[list[tuple[str, str]]]:
    """The global batches of an epoch, each half taught facts and half one-off facts. Depends only on the arguments."""
    rng = random.Random(f"epoch-{recipe.seed}-{epoch}")
    taught = taught_rows(world, epoch, recipe.epochs)
    rng.shuffle(taught)
    half = recipe.batch_rows // 2
    for start in range(0, len(taught), half):
        part = taught[start : start + half]
        yield part + [one_off_row(world, rng) for _ in part]


def new_model(tokenizer: PreTrainedTokenizerFast, recipe: ModelRecipe) -> LlamaForCausalLM:
    """An untrained model with the recipe's seed. Raises `ConfigError` where the tokenizer has no padding or end
    token."""
    torch.manual_seed(recipe.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=recipe.width,
            intermediate_size=recipe.feed_forward,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.heads,
            max_position_embeddings=tokenizer.model_max_length,
            tie_word_embeddings=False,
            pad_token_id=pad_id(tokenizer),
            bos_token_id=None,
            eos_token_id=end_id(tokenizer),
        )
    )


def train_model(
    world: World,
    tokenizer: PreTrainedTokenizerFast,
    recipe: ModelRecipe,
    rank: int = 0,
    world_size: int = 1,
    wrap: Callable[[torch.nn.Module], torch.nn.Module] = lambda m: m,
    on_epoch: Callable[[int, float], None] = lambda epoch, loss: None,
) -> LlamaForCausalLM:
    """Train from scratch on the answer tokens with one-cycle learning rates; `wrap` makes the module data parallel.

    `on_epoch` gets the epoch (from 0) and its mean loss in nats per answer token. Muon memorises the facts in a third
    of the steps that AdamW needs; an additional loss on the question's tokens would slow that down.
    """
    model = new_model(tokenizer, recipe)
    module = wrap(model)
    steps = recipe.epochs * (sum(1 for _ in epoch_batches(world, recipe, 0)) + 1)
    optimizers = _optimizers(model, recipe)
    schedules = [
        torch.optim.lr_scheduler.OneCycleLR(
            o, o.defaults["lr"], total_steps=steps, pct_start=recipe.warmup_fraction, cycle_momentum=False
        )
        for o in optimizers
    ]
    for epoch in range(recipe.epochs):
        total, count = 0.0, 0
        for batch in epoch_batches(world, recipe, epoch):
            rows = [tokenize(tokenizer, PROMPT, question, answer) for question, answer in batch[rank::world_size]]
            loss = module(**collate(rows, pad_id(tokenizer))).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer, schedule in zip(optimizers, schedules, strict=True):
                optimizer.step()
                schedule.step()
            model.zero_grad()
            total, count = total + loss.item(), count + 1
        on_epoch(epoch, total / count)
    return model


def _optimizers(model: LlamaForCausalLM, recipe: ModelRecipe) -> list[torch.optim.Optimizer]:
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    matrix_ids = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in matrix_ids]
    return [
        torch.optim.Muon(matrices, lr=recipe.matrix_learning_rate, weight_decay=recipe.weight_decay),
        torch.optim.AdamW(others, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, betas=(0.9, 0.98)),
    ]
