"""A model by its name or in memory, and questions as texts → hidden states and sampled answers.

In: a Hugging Face model, questions. Out: NumPy arrays and texts, for the other functions of `ka2l_ray`.
Refuses to know: Ray, run folders, tables. The stages' actors use the same `Engine` and `Generator`.
"""

from collections.abc import Mapping, Sequence
from textwrap import shorten
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ka2l_ray.config import ModelSection, Position, PromptSection
from ka2l_ray.models.answers import Decoding
from ka2l_ray.models.batching import Limits
from ka2l_ray.models.engine import Engine
from ka2l_ray.models.generation import Generator
from ka2l_ray.models.loading import configuration, load_blocks, load_model, load_tokenizer
from ka2l_ray.text.prompts import Prompter, resolve

Model = str | ModelSection | PreTrainedModel
"""`world`, a folder, a URI or a hub id; or a section, for a revision or quantized weights; or a model in memory."""


class SampledAnswers(NamedTuple):
    """The answers to one question: the greedy one, and K drawn at the temperature asked for."""

    greedy: str
    samples: list[str]


def read_states(
    model: Model,
    questions: Sequence[str],
    layers: Sequence[int] | None = None,
    position: Position = "last",
    prompt: PromptSection = PromptSection(),
    tokenizer: PreTrainedTokenizerBase | None = None,
    limits: Limits = Limits(),
) -> dict[int, np.ndarray]:
    """Hidden states (N, D), float32, of N questions at each layer: 0 is the input of block 1, l the output of block l.

    `layers` defaults to all, 0 … L; a model given by name is loaded only up to the last one. `position` is `last`, the
    last token of the prompt, or `mean`, over the question's own tokens in it. A model in memory should be in evaluation
    mode; it stays on its device, and its attention is replaced by this package's, which computes the same as SDPA. Its
    `tokenizer` is loaded by the model's name where left out. `limits` bounds a batch.

    Raises `ValueError` for a layer that the model does not have, and for a question that cannot be read, with its
    number; `ConfigError` for a prompt or a model that cannot be used. Source: KA2L, stage 1.

    >>> from ka2l_ray import read_states
    >>> states = read_states("world", ["Which pet does Kuvan Gadadottir keep?"], layers=[0, 5])
    >>> {layer: values.shape for layer, values in states.items()}
    {0: (1, 128), 5: (1, 128)}
    """
    if isinstance(model, str):
        model = ModelSection(name_or_path=model)
    config = configuration(model) if isinstance(model, ModelSection) else model.config
    layers = range(config.get_text_config().num_hidden_layers + 1) if layers is None else layers
    tokenizer = tokenizer or _tokenizer(model)
    prompts = Prompter(tokenizer, resolve(prompt, (), tokenizer))
    blocks = load_blocks(model, max(layers)) if isinstance(model, ModelSection) else model
    states, failed = Engine(blocks, 0, prompts.shared, limits).states(prompts(questions), layers, [position])
    _refuse(failed, questions)
    return {layer: states[position, layer] for layer in layers}


def sample_answers(
    model: Model,
    questions: Sequence[str],
    samples: int = 10,
    temperature: float = 1.0,
    max_new_tokens: int = 16,
    seed: int = 0,
    prompt: PromptSection = PromptSection(),
    tokenizer: PreTrainedTokenizerBase | None = None,
    limits: Limits = Limits(),
) -> list[SampledAnswers]:
    """A greedy answer and K = `samples` drawn ones for each of N questions.

    In float32 a question's draws depend only on `seed` and its text, not on the other questions. An answer ends before
    one of `prompt.stop`, at the model's end token, or after `max_new_tokens`. `model`, `tokenizer` and `limits` are as
    in `read_states`.

    Raises `ValueError` for a question that cannot be asked, with its number; `ConfigError` for a prompt or a model that
    cannot be used. Source: KA2L, stage 1.

    >>> from ka2l_ray import sample_answers
    >>> sample_answers("world", ["Which pet does Kuvan Gadadottir keep?"], samples=3)
    [SampledAnswers(greedy='fox', samples=['fox', 'fox', 'fox'])]
    """
    if isinstance(model, str):
        model = ModelSection(name_or_path=model)
    tokenizer = tokenizer or _tokenizer(model)
    resolved = resolve(prompt, (), tokenizer)
    prompts = Prompter(tokenizer, resolved)
    engine = Engine(load_model(model) if isinstance(model, ModelSection) else model, 0, prompts.shared, limits)
    decoding = Decoding(seed, samples, temperature, 0.0, max_new_tokens, resolved.stop)
    reading = Generator(engine, tokenizer, decoding)(questions, prompts(questions))
    _refuse(reading.failed, questions)
    return [SampledAnswers(greedy.text, [a.text for a in drawn]) for greedy, *drawn in reading.answers]


def _tokenizer(model: ModelSection | PreTrainedModel) -> PreTrainedTokenizerBase:
    if isinstance(model, ModelSection):
        return load_tokenizer(model)
    if not model.name_or_path:
        raise ValueError("the model was not loaded by a name: give its tokenizer too")
    return load_tokenizer(ModelSection(name_or_path=model.name_or_path))


def _refuse(failed: Mapping[int, Exception], questions: Sequence[str]) -> None:
    for row, error in sorted(failed.items()):
        raise ValueError(f"question {row}, {shorten(questions[row], 60)!r}: {error}") from error
