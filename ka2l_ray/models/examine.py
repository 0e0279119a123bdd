"""What a model allows the engine to do, found out on a tiny form of it before any real weights are read.

In: a configuration. Out: its `Abilities`. Each way of saving work is tried, the one that saves most first, and kept if
states and greedy answers are those of the model's own passes over each prompt alone, without cache, padding or sharing.
Where a model's code builds no tiny form, its own first blocks are read.
Refuses to know: which families exist.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from logging import ERROR, getLogger
from typing import Any
from unittest.mock import patch

import numpy as np
import psutil
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging

from ka2l_ray.config import ModelSection
from ka2l_ray.dataflow.log import log
from ka2l_ray.errors import ConfigError, library_message
from ka2l_ray.models.abilities import Abilities
from ka2l_ray.models.activations import capture, pad
from ka2l_ray.models.answers import Decoding
from ka2l_ray.models.engine import Engine
from ka2l_ray.models.generation import Generator
from ka2l_ray.models.loading import configuration, load_blocks, load_cut
from ka2l_ray.models.tiny_form import (
    OWN_TOKENS,
    VOCABULARY,
    NoTinyFormError,
    blocks_with_every_kind,
    cut_depth,
    tiny_form,
)
from ka2l_ray.text.prompts import Prompt

SHARED, OWN_LENGTHS, NEW_TOKENS, SAMPLES = 20, (3, 15, 3, 8), 6, 2
"""Tokens that the prompts share, more than a window of the tiny form; tokens of each question; of each answer; answers
drawn besides the greedy one."""
TOLERANCE, STEADY_BLOCKS = 1e-4, 8
"""Largest difference of a state, as a share of the largest number in its layer, and of an answer's log-probability in
nats per token, after up to so many blocks; after more it grows with them, as rounding does. What is wrong differs by
0.1 and more, what is right by 1e-6 after 2 blocks and 1e-4 after 30 (Gemma 4)."""
POSITIONS = ("last", "mean")


@dataclass(frozen=True)
class Reference:
    """What the model itself says of each prompt alone: states (N, D) per (position, layer), greedy answers as token ids
    with their log-probabilities in nats, and the token that ends them."""

    prompts: list[Prompt]
    states: dict[tuple[str, int], np.ndarray]
    answers: list[list[int]]
    logprobs: list[float]
    end_token: int


def abilities_of(model: ModelSection) -> Abilities:
    """What the engine may do with a model; found out and, where it is not everything, logged once per process.

    Raises `ConfigError` for a model whose states or answers the engine cannot read, and where the first blocks of one
    without a tiny form do not fit in memory.
    """
    try:
        abilities = abilities_of_configuration(configuration(model), model.trust_remote_code)
    except NoTinyFormError as error:
        abilities = _of_first_blocks(model.model_dump_json(), str(error))
    _log_costs(model.name_or_path, abilities)
    return abilities


@lru_cache(maxsize=8)
def _log_costs(name: str, abilities: Abilities) -> None:
    for line in abilities.costs():
        log.info("%s: %s", name, line)


def abilities_of_configuration(config: PreTrainedConfig, trust_remote_code: bool = False) -> Abilities:
    """As `abilities_of`, for a configuration; equal ones are examined once per process."""
    return _examined(Configured(config), trust_remote_code)


class Configured:
    """A configuration that equals another with the same content."""

    def __init__(self, config: PreTrainedConfig) -> None:
        self.config = config
        self._content = (type(config), json.dumps(config.to_dict(), sort_keys=True, default=repr))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Configured) and self._content == other._content

    def __hash__(self) -> int:
        return hash(self._content)


@lru_cache(maxsize=8)
def _examined(configured: Configured, trust_remote_code: bool) -> Abilities:
    with quiet(), torch.random.fork_rng(devices=()):
        try:
            model = tiny_form(configured.config, trust_remote_code)
        except ConfigError:
            raise
        except Exception as error:  # whatever a family's own code raises
            raise ConfigError(
                f"model type {configured.config.model_type!r}: cannot be built: "
                f"{type(error).__name__}: {library_message(error)}"
            ) from error
        return _tried(model, trust_remote_code)


def _tried(model: PreTrainedModel, trust_remote_code: bool) -> Abilities:
    try:
        reference = read_alone(model)
    except ConfigError:
        raise
    except Exception as error:  # whatever a family's own code raises
        raise ConfigError(
            f"model type {model.config.model_type!r}: cannot be run: {type(error).__name__}: {library_message(error)}"
        ) from error
    return examine(model, reference, trust_remote_code)


@lru_cache(maxsize=8)
def _of_first_blocks(section: str, why: str) -> Abilities:
    """What the engine may do with a model, found out on its own first blocks, one of every kind, in float32. `section`
    is a `ModelSection` as JSON, which can be looked up."""
    model = ModelSection.model_validate_json(section)
    config = configuration(model)
    depth = blocks_with_every_kind(config, model.trust_remote_code)
    cut_depth(config.get_text_config(), depth)
    with torch.device("meta"):
        shape = AutoModelForCausalLM.from_config(config, trust_remote_code=model.trust_remote_code)
    needed, free = 4 * sum(p.numel() for p in shape.parameters()), psutil.virtual_memory().available
    if needed > free:
        raise ConfigError(
            f"{why}; and its first {depth} blocks take {needed / 1e9:,.1f} GB in float32, of which this machine has "
            f"{free / 1e9:,.1f} GB free"
        )
    log.info("%s; its first %d blocks are read instead (%.1f GB)", why, depth, needed / 1e9)
    with quiet(), torch.random.fork_rng(devices=()):
        return _tried(load_cut(model, config), model.trust_remote_code)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the libraries' remarks on random weights, nor DeepSpeed's, which saving a model imports, on the GPU that
    this process does not use."""
    before, quantizer = logging.get_verbosity(), getLogger("bitsandbytes")
    level = quantizer.level
    quantizer.setLevel(ERROR)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with patch.dict(os.environ, {"DS_ACCELERATOR": "cpu"}):
            yield
    finally:
        logging.set_verbosity(before)
        quantizer.setLevel(level)
        logging.enable_progress_bar()


def prompts_to_read(vocabulary: int) -> list[Prompt]:
    """Prompts of different length that begin alike, as questions behind solved examples do."""
    drawn = torch.Generator().manual_seed(0)
    most = min(vocabulary, OWN_TOKENS)
    shared = torch.randint(3, most, (SHARED,), generator=drawn).tolist()
    own = [torch.randint(3, most, (n,), generator=drawn).tolist() for n in OWN_LENGTHS]
    return [Prompt((*shared, *ids), SHARED, SHARED + len(ids)) for ids in own]


@torch.no_grad()
def read_alone(model: PreTrainedModel) -> Reference:
    """States and greedy answers by the model's own means, prompt by prompt.

    Raises `ConfigError` for a model without a residual stream (B, T, D).
    """
    text = model.config.get_text_config()
    prompts, engine = prompts_to_read(text.vocab_size), Engine(model, 0, abilities=Abilities(prefix="none"))
    layers, states = range(engine.depth + 1), list[dict[tuple[str, int], np.ndarray]]()
    for prompt in prompts:
        encoded = pad([prompt], 0)
        with capture(model, engine.depth, encoded, layers, POSITIONS) as captured:
            engine.forward(**encoded.inputs(), use_cache=False)
        expected = (1, text.hidden_size)
        if wrong := [tuple(v.shape) for v in captured.values() if v.shape != expected]:
            raise ConfigError(
                f"model type {model.config.model_type!r}: the states between its blocks have shape {wrong[0]}, not "
                f"{expected}, so there is no residual stream that a probe could read"
            )
        states.append({k: v[0].numpy() for k, v in captured.items()})
    written = [_generated(model, prompt) for prompt in prompts]
    end = _end_token([tokens for tokens, _ in written])
    answers = [tokens[: tokens.index(end) + 1] if end in tokens else tokens for tokens, _ in written]
    logprobs = [sum(nats[: len(tokens)]) for (_, nats), tokens in zip(written, answers, strict=True)]
    return Reference(prompts, {k: np.stack([s[k] for s in states]) for k in states[0]}, answers, logprobs, end)


def _generated(model: Any, prompt: Prompt) -> tuple[list[int], list[float]]:
    """Greedy tokens of Hugging Face's `generate`, and their log-probabilities."""
    model.generation_config.eos_token_id = None
    ids = torch.tensor([prompt.ids])
    settings: dict[str, Any] = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "use_cache": False}
    found = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
        **settings,
    )
    tokens = found.sequences[0, ids.shape[1] :].tolist()
    nats = [float(logits[0].float().log_softmax(-1)[i]) for logits, i in zip(found.logits, tokens, strict=True)]
    return tokens, nats


def _end_token(answers: Sequence[list[int]]) -> int:
    """A token that ends some of the answers before others, so that rows leave a batch one by one."""
    ends = {i: [a.index(i) if i in a else NEW_TOKENS for a in answers] for a in answers for i in a[1:]}
    return max(ends, key=lambda i: (len(set(ends[i])), sum(ends[i])))


def examine(model: PreTrainedModel, reference: Reference, trust_remote_code: bool = False) -> Abilities:
    """The abilities that save most among those that are right.

    Raises `ConfigError` where none is, with what the last one tried gave.
    """
    implementation: Any = model.config._attn_implementation
    problem = ""
    for padding, prefix in product((True, False), ("attended", "copied", "none")):
        abilities = Abilities(prefix=prefix, padding=padding)
        model.set_attn_implementation(implementation)
        if not (problem := _states_problem(model, reference, abilities)):
            break
    else:
        raise ConfigError(f"model type {model.config.model_type!r}: its states cannot be read in batches: {problem}")
    for tried in _answering(abilities):
        model.set_attn_implementation(implementation)
        if not (problem := _answers_problem(model, reference, tried)):
            break
    else:
        raise ConfigError(f"model type {model.config.model_type!r}: its answers are not those of `generate`: {problem}")
    return replace(tried, first_blocks=not _blocks_problem(model, reference, tried, trust_remote_code))


def _answering(abilities: Abilities) -> Iterator[Abilities]:
    """The ways to answer, the one that saves most first."""
    yield abilities
    yield replace(abilities, prefix="none")
    yield replace(abilities, prefix="none", step_mask=False)
    for padding in sorted({abilities.padding, False}, reverse=True):
        yield replace(abilities, prefix="none", padding=padding, answers="per copy")
        yield replace(abilities, prefix="none", padding=padding, answers="no cache")


def _engine(model: PreTrainedModel, reference: Reference, abilities: Abilities) -> Engine:
    return Engine(model, 0, reference.prompts[0].ids[:SHARED], abilities=abilities)


def _states_problem(
    model: PreTrainedModel, reference: Reference, abilities: Abilities, layers: Sequence[int] = ()
) -> str:
    """What is wrong with the engine's states at some layers, by default at all; empty where nothing is."""
    layers = layers or sorted({n for _, n in reference.states})
    try:
        engine = _engine(model, reference, abilities)
        if engine.prefix.sharing != abilities.prefix:
            return f"shares its prefix in another way: {engine.prefix.sharing}"
        states, failed = engine.states(reference.prompts, layers, POSITIONS)
    except Exception as error:  # whatever a family's own code raises
        return f"{type(error).__name__}: {library_message(error)}"
    for error in failed.values():
        return f"{type(error).__name__}: {library_message(error)}"
    for column, values in states.items():
        expected = reference.states[column]
        allowed = _tolerance(column[1]) * np.abs(expected).max()
        if not (gap := np.abs(values - expected).max()) <= allowed:
            return f"states differ by {gap:.2g} at layer {column[1]}, allowed {allowed:.2g}"
    return ""


def _tolerance(blocks_before: int) -> float:
    return TOLERANCE * max(1.0, blocks_before / STEADY_BLOCKS)


def _answers_problem(model: Any, reference: Reference, abilities: Abilities) -> str:
    """What is wrong with answers, of which some are drawn at a temperature of 0, in two waves."""
    model.generation_config.eos_token_id = reference.end_token
    decoding = Decoding(0, SAMPLES, 0.0, 0.0, NEW_TOKENS, (), waves=(1, 1))
    try:
        tokenizer = numbers_tokenizer(model.config.get_text_config().vocab_size)
        generator = Generator(_engine(model, reference, abilities), tokenizer, decoding)
        reading = generator([str(n) for n in OWN_LENGTHS], reference.prompts)
    except Exception as error:  # whatever a family's own code raises
        return f"{type(error).__name__}: {library_message(error)}"
    for error in reading.failed.values():
        return f"{type(error).__name__}: {library_message(error)}"
    tolerance = _tolerance(model.config.get_text_config().num_hidden_layers)
    for answers, tokens, nats in zip(reading.answers, reference.answers, reference.logprobs, strict=True):
        expected = " ".join(map(str, tokens))
        for answer in answers:
            if answer.text != expected or abs(answer.logprob - nats) > tolerance * len(tokens):
                return f"tokens {answer.text} ({answer.logprob:.4f} nats), expected {expected} ({nats:.4f} nats)"
    return ""


def numbers_tokenizer(vocabulary: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """A tokenizer in which each token is its own id, in words."""
    inner = Tokenizer(models.WordLevel({str(n): n for n in range(vocabulary)}))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, clean_up_tokenization_spaces=False)


def _blocks_problem(model: PreTrainedModel, reference: Reference, abilities: Abilities, trust_remote_code: bool) -> str:
    """What is wrong with the first blocks, loaded alone as for scoring."""
    depth = model.config.get_text_config().num_hidden_layers
    with tempfile.TemporaryDirectory(prefix="ka2l-tiny-") as folder:
        model.save_pretrained(folder)
        section = ModelSection(name_or_path=folder, dtype="float32", trust_remote_code=trust_remote_code)
        for layer in sorted({1, depth // 2, depth - 1} - {0}):
            try:
                part = load_blocks(section, layer)
            except Exception as error:  # whatever a family's own code raises
                return f"{type(error).__name__}: {library_message(error)}"
            if problem := _states_problem(part, reference, abilities, [layer]):
                return problem
    return ""
