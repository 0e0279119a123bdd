"""Training of a question decoder on an endless stream of (state, question) pairs.

In: a language model, a tokenizer, a stream of question batches. Out: a `StateDecoder`.
Refuses to know: Ray, files, where questions come from. Source: KA2L, stage 2.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ka2l_ray.config import PromptSection
from ka2l_ray.decode.model import DecoderCard, StateDecoder
from ka2l_ray.models.activations import prompt_states
from ka2l_ray.models.prompts import encode
from ka2l_ray.text.tokens import end_id, ids_of, pad_id

CALIBRATION_BATCHES = 8


@dataclass(frozen=True)
class DecoderRecipe:
    """Which states the decoder reads, and how it is trained."""

    seed: int = 0
    layer: int = 3
    position: str = "mean"
    steps: int = 1500
    batch_rows: int = 128
    learning_rate: float = 2e-3
    warmup_steps: int = 100
    state_noise: float = 0.05
    """Gaussian noise on the standardised training states, in standard deviations."""


def train_decoder(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: PromptSection,
    model_name: str,
    questions: Iterator[list[str]],
    recipe: DecoderRecipe,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> StateDecoder:
    """Train on `recipe.steps` batches of `questions`, on the model's device. The learning rate rises over
    `warmup_steps`, stays, and falls to zero in the last quarter.

    `model_name` is what a run's `model.name_or_path` will be: `world`, a hub id, a URI, or the folder's absolute path;
    the card records it with prompt, layer and position. `on_step` gets the step and its loss in nats per token.
    """
    torch.manual_seed(recipe.seed)
    card = DecoderCard(
        model=model_name,
        prompt=prompt.template,
        layer=recipe.layer,
        position=recipe.position,
        width=model.config.hidden_size,
        vocabulary=len(tokenizer),
        pad_token=pad_id(tokenizer),
        end_token=end_id(tokenizer),
    )
    decoder = StateDecoder(card).to(model.device).train()

    def states(batch: list[str]) -> torch.Tensor:
        encoded, depth = encode(tokenizer, prompt, batch).to(model.device), model.config.num_hidden_layers
        return prompt_states(model, depth, encoded, recipe.position, [recipe.layer])[recipe.layer].clone()

    sample = torch.cat([states(next(questions)) for _ in range(CALIBRATION_BATCHES)])
    decoder.mean.copy_(sample.mean(0))
    decoder.scale.copy_(sample.std(0))
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=recipe.learning_rate, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / recipe.warmup_steps, 4 * (1 - step / recipe.steps))
    )
    for step in range(recipe.steps):
        batch = next(questions)
        target = states(batch)
        noisy = target + recipe.state_noise * decoder.scale * torch.randn_like(target)
        loss, _ = decoder(noisy, question_labels(tokenizer, batch).to(model.device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        on_step(step, loss.item())
    return decoder.eval()


def question_labels(tokenizer: PreTrainedTokenizerBase, questions: list[str]) -> torch.Tensor:
    """Labels (B, T): a space, the question, the end token; -100 as padding. The space makes the words the same tokens
    as in a prompt."""
    rows = [torch.tensor([*ids_of(tokenizer, f" {q}"), end_id(tokenizer)]) for q in questions]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)
