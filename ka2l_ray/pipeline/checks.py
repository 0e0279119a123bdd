"""Checks before any work: sections that contradict each other, models, decoders, cluster addresses.

In: a `Config`. Out: nothing, or a `ConfigError`. Refuses to know: runs, stages.
"""

import os
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import ray
from ray.autoscaler.v2.sdk import get_cluster_status

from ka2l_ray.active.strategies import Need, that_need
from ka2l_ray.config import Config, ConfigError, ModelSection
from ka2l_ray.corpus.again import eval_scope
from ka2l_ray.dataflow.cluster import connect
from ka2l_ray.dataflow.paths import CORPUS
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.decode.bertscore import check_encoder
from ka2l_ray.decode.decoders import card_at
from ka2l_ray.decode.grounding import read_names
from ka2l_ray.decode.seq2seq import check_writer
from ka2l_ray.decode.states import decoder_folder
from ka2l_ray.decode.training import layers_of
from ka2l_ray.decode.training_questions import check_files
from ka2l_ray.models.hub import is_on_hub
from ka2l_ray.models.layers import wanted_layers
from ka2l_ray.models.loading import as_config_errors, at_commit
from ka2l_ray.planning.capacity import NodeKind, kinds_in
from ka2l_ray.planning.subject import check_subject

ANSWERS_WITHIN_S = 10.0


def check(config: Config) -> None:
    """Raise `ConfigError` for what is sure to fail later: models, tokens, fine-tuning, layers, budgets, strategies,
    decoders, addresses."""
    check_sections(config)
    check_subject(config)
    with as_config_errors(config.model):
        wanted_layers(config)
        if config.decode.enabled and config.decode.decoder is None:
            layers_of(config)
    check_decoder_fits(config)
    if (writer := _writer(config)) and is_on_hub(writer):
        check_writer(writer.name_or_path, writer.cache)
    check_address(config)


def check_decoder_fits(config: Config) -> None:
    """Raise `ConfigError` for a decoder of another model, or of another prompt if that is known before questions are
    read."""
    if not config.decode.enabled:
        return
    check_encoder(config.decode.bertscore, config.model.cache)
    if config.decode.grounding not in (None, CORPUS) and not any(map(str.strip, read_names(config.decode.grounding))):
        raise ConfigError(f"decode.grounding = {config.decode.grounding!r}: contains no name")
    name, given, prompt = config.decode.decoder, config.model.name_or_path, config.corpus.prompt
    if name is None:
        check_files(config)
        if (writer := _writer(config)) and not is_on_hub(writer):
            check_writer(writer.name_or_path, writer.cache)
        return
    try:
        card = card_at(decoder_folder(name))
    except (OSError, TypeError, ValueError) as error:
        raise ConfigError(
            f"decode.decoder = {name!r}: contains no decoder: {error}. Or set decode.enabled: false"
        ) from error
    if card.model != given and not card.model.startswith((f"{given}@", f"{given} + ")):
        raise ConfigError(
            f"decode.decoder = {name!r} reads states of model {card.model!r}, not of {given!r}; "
            "give one that was trained on this model, or set decode.enabled: false"
        )
    if prompt.style == "bare" and card.prompt != prompt.template:
        raise ConfigError(
            f"decode.decoder = {name!r} reads states under prompt {card.prompt!r}, not {prompt.template!r}; use that "
            "prompt, or set decode.enabled: false"
        )


def _writer(config: Config) -> ModelSection | None:
    """The encoder-decoder that the run will train as its decoder."""
    decode = config.decode
    if not decode.enabled or decode.decoder is not None or decode.training.writer is None:
        return None
    return ModelSection(name_or_path=decode.training.writer, cache=config.model.cache)


def cluster_nodes(config: Config, file: Path | None = None) -> list[NodeKind] | None:
    """Kinds of nodes of the cluster that `file` describes, or else of the one at `ray.address` or RAY_ADDRESS; None
    where a run would start its own, and for `ray://`, through which they cannot be seen.

    Raises `ConfigError` if no cluster answers there.
    """
    if file is not None:
        return kinds_in(file)
    if (address := _cluster(config)) is None or address.startswith("ray://"):
        return None
    check_address(config)
    connect(config)
    return node_kinds()


def node_kinds() -> list[NodeKind]:
    """The kinds of nodes that are alive in the cluster that this process has joined. What its autoscaler may add is not
    known: Ray keeps that to itself."""
    status = get_cluster_status(ray.get_runtime_context().gcs_address)
    alive = [*status.active_nodes, *status.idle_nodes]
    there, looks = Counter(n.ray_node_type_name for n in alive), {n.ray_node_type_name: n for n in alive}
    return [
        NodeKind(name, found.total_resources(), found.labels or {}, there[name], to_come=None)
        for name, found in sorted(looks.items())
    ]


def _cluster(config: Config) -> str | None:
    """Address of the cluster to join; None if a run starts its own."""
    address = config.ray.address or os.environ.get("RAY_ADDRESS") or "local"
    return None if address == "local" else address


def check_address(config: Config) -> None:
    """Raise `ConfigError` if nothing listens at a `HOST:PORT`: Ray would retry for minutes."""
    if (address := _cluster(config)) is None or "://" in address or ":" not in address:
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWERS_WITHIN_S).close()
    except (OSError, ValueError) as error:
        raise ConfigError(f"ray.address = {address!r}: no Ray cluster answers there: {error}") from error


def pinned(config: Config) -> Config:
    """The configuration with the commit that a hub id stands for today, so that a run resumes with the same weights."""
    if config.model.revision is not None:
        return config
    return config.model_copy(update={"model": at_commit(config.model)})


def check_sections(config: Config) -> None:
    """Raise `ConfigError` for sections that contradict each other; the model is not opened."""
    for error in _contradictions(config):
        raise error


def _contradictions(config: Config) -> Iterator[ConfigError]:
    world, active, acquire = config.corpus.source == "world", config.active, config.acquire
    knowing = ", ".join(f"`{name}`" for name in that_need(Need.TRUTH, active.strategies))
    comparing = ", ".join(sorted(that_need(Need.STATES, active.strategies)))
    adapter, pool_questions = config.model.adapter, config.corpus.world.pool_questions
    if knowing and not world:
        yield ConfigError(f"active.strategies: {knowing} needs corpus.source = world, where the truth is known")
    asking = ", ".join(f"`{name}`" for name in that_need(Need.GREEDY, active.strategies))
    if asking and eval_scope(config) == "other":
        yield ConfigError(
            f"active.strategies: {asking} needs an eval that asks the pool's facts; set corpus.rewordings.source, or "
            "evaluate.same_words: true"
        )
    if world and active.budget > pool_questions:
        yield ConfigError(f"active.budget = {active.budget} exceeds corpus.world.pool_questions = {pool_questions}")
    if not world and config.annotate.source == "world":
        yield ConfigError("annotate.source: `world` needs corpus.source = world; use `reference`")
    if not world and config.annotate.source in ("auto", "reference") and "decoded" in active.strategies:
        yield ConfigError(
            "active.strategies: `decoded` buys questions that the corpus does not contain, so reference answers cannot "
            "answer them; set annotate.source: endpoint or file"
        )
    if adapter is not None and not Folder.of(adapter).exists():
        yield ConfigError(f"model.adapter = {adapter!r}: no such folder; a hub's adapter must be downloaded first")
    if comparing and active.budget > acquire.candidates:
        yield ConfigError(
            f"active.budget = {active.budget} exceeds acquire.candidates = {acquire.candidates}, "
            f"which is all that {comparing} may choose from; raise acquire.candidates"
        )
    if comparing and acquire.balance == "group":
        yield ConfigError(f"acquire.balance = group does not go with {comparing}, which spread their choice by states")
