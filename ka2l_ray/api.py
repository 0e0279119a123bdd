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
from ka2l_ray.models.abilities import Abilities
from ka2l_ray.models.answers import Decoding
from ka2l_ray.models.batching import Limits
from ka2l_ray.models.engine import Engine
from ka2l_ray.models.examine import abilities_of, abilities_of_configuration
from ka2l_ray.models.generation import Generator
from ka2l_ray.models.layers import load_up_to
from ka2l_ray.models.loading import configuration, load_model, load_tokenizer
from ka2l_ray.text.answers import ends_in_thought
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
    source, _, prompts = _opened(model, tokenizer, prompt)
    config = configuration(source) if isinstance(source, ModelSection) else source.config
    layers = range(config.get_text_config().num_hidden_layers + 1) if layers is None else layers
    able = _abilities(source)
    blocks = load_up_to(max(layers), source, able) if isinstance(source, ModelSection) else source
    states, failed = Engine(blocks, 0, prompts.shared, limits, able).states(prompts(questions), layers, [position])
    _refuse(failed, questions)
    return {layer: states[position, layer] for layer in layers}


def sample_answers(
    model: Model,
    questions: Sequence[str],
    samples: int = 10,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    min_p: float = 0.0,
    max_new_tokens: int = 16,
    seed: int = 0,
    prompt: PromptSection = PromptSection(),
    tokenizer: PreTrainedTokenizerBase | None = None,
    limits: Limits = Limits(),
) -> list[SampledAnswers]:
    """A greedy answer and K = `samples` drawn ones for each of N questions, from all tokens unless `top_k`, `top_p` or
    `min_p` restrict them (as `collect.top_k` and the others of docs/configuration.md do).

    In float32 a question's draws depend only on `seed` and its text, not on the other questions. An answer ends before
    one of `prompt.stop`, at the model's end token or that of a chat's turn, or after `max_new_tokens`; thoughts before
    it are left out. `model`, `tokenizer` and `limits` are as in `read_states`.

    Raises `ValueError` for a question that cannot be asked, with its number; `ConfigError` for a prompt or a model that
    cannot be used. Source: KA2L, stage 1.

    >>> from ka2l_ray import sample_answers
    >>> sample_answers("world", ["Which pet does Kuvan Gadadottir keep?"], samples=3)
    [SampledAnswers(greedy='fox', samples=['fox', 'fox', 'fox'])]
    """
    source, tokenizer, prompts = _opened(model, tokenizer, prompt)
    able = _abilities(source)
    loaded = load_model(source) if isinstance(source, ModelSection) else source
    engine = Engine(loaded, 0, prompts.shared, limits, able)
    asked, thinks = prompts.section, ends_in_thought(prompts.section.template)
    decoding = Decoding(
        seed, samples, temperature, 0.0, max_new_tokens, asked.stop, thinks, top_k=top_k, top_p=top_p, min_p=min_p
    )
    reading = Generator(engine, tokenizer, decoding)(questions, prompts(questions))
    _refuse(reading.failed, questions)
    return [SampledAnswers(greedy.text, [a.text for a in drawn]) for greedy, *drawn in reading.answers]


def _opened(
    model: Model, tokenizer: PreTrainedTokenizerBase | None, prompt: PromptSection
) -> tuple[ModelSection | PreTrainedModel, PreTrainedTokenizerBase, Prompter]:
    """The section to load or the model in memory, its tokenizer, and what makes its prompts."""
    source = ModelSection(name_or_path=model) if isinstance(model, str) else model
    if tokenizer is None:
        name = source if isinstance(source, ModelSection) else source.name_or_path
        if not name:
            raise ValueError("the model was not loaded by a name: give its tokenizer too")
        tokenizer = load_tokenizer(ModelSection(name_or_path=name) if isinstance(name, str) else name)
    return source, tokenizer, Prompter(tokenizer, resolve(prompt, (), tokenizer))


def _abilities(source: ModelSection | PreTrainedModel) -> Abilities:
    """What the engine may do with a model. One in memory may bring its own code: it is running already."""
    if isinstance(source, ModelSection):
        return abilities_of(source)
    return abilities_of_configuration(source.config, trust_remote_code=True)


def _refuse(failed: Mapping[int, Exception], questions: Sequence[str]) -> None:
    for row, error in sorted(failed.items()):
        raise ValueError(f"question {row}, {shorten(questions[row], 60)!r}: {error}") from error
