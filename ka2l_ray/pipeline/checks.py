"""Checks before any work: sections that contradict each other, models, decoders, cluster addresses.

In: a `Config`. Out: nothing, or a `ConfigError`. Refuses to know: runs, stages.
"""

import os
import socket
from collections.abc import Mapping

import ray

from ka2l_ray.active.strategies import Need, that_need
from ka2l_ray.config import Config, ConfigError
from ka2l_ray.dataflow.cluster import connect
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.decode.model import read_card
from ka2l_ray.decode.states import decoder_folder
from ka2l_ray.models.layers import wanted_layers
from ka2l_ray.models.loading import check_model, commit, refused_by_name

ANSWERS_WITHIN_S = 10.0


def check(config: Config) -> None:
    """Raise `ConfigError` for what is sure to fail later: layers, budgets, strategies, decoders, addresses."""
    with refused_by_name(config.model):
        check_model(config.model)
        wanted_layers(config)
    check_sections(config)
    check_decoder_fits(config)
    check_address(config)


def check_decoder_fits(config: Config) -> None:
    """Raise `ConfigError` for a decoder of another model, or of another prompt if that is known before questions are
    read."""
    if not config.decode.enabled:
        return
    name = config.decode.decoder
    try:
        card = read_card(decoder_folder(name))
    except (OSError, TypeError, ValueError) as error:
        raise ConfigError(
            f"decode.decoder = {name!r}: contains no decoder: {error}. Or set decode.enabled: false"
        ) from error
    if card.model != (given := config.model.name_or_path) and not card.model.startswith((f"{given}@", f"{given} + ")):
        raise ConfigError(
            f"decode.decoder = {name!r} reads states of model {card.model!r}, not of {config.model.name_or_path!r}; "
            "give one that was trained on this model, or set decode.enabled: false"
        )
    if config.corpus.prompt.style == "bare" and card.prompt != config.corpus.prompt.template:
        raise ConfigError(
            f"decode.decoder = {name!r} reads states under prompt {card.prompt!r}, not "
            f"{config.corpus.prompt.template!r}; use that prompt, or set decode.enabled: false"
        )


def cluster_resources(config: Config) -> Mapping[str, float] | None:
    """Resources of the cluster at `ray.address` or RAY_ADDRESS, by Ray's names; None if a run would start its own.

    Raises `ConfigError` if no cluster answers there.
    """
    if _cluster(config) is None:
        return None
    check_address(config)
    connect(config)
    return ray.cluster_resources()


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
    if config.model.revision is not None or (revision := commit(config.model)) is None:
        return config
    return config.model_copy(update={"model": config.model.model_copy(update={"revision": revision})})


def check_sections(config: Config) -> None:
    """Raise `ConfigError` for sections that contradict each other; the model is not opened."""
    world = config.corpus.source == "world"
    strategies = config.active.strategies
    if not world and (knowing := that_need(Need.TRUTH, strategies)):
        names = ", ".join(f"`{name}`" for name in knowing)
        raise ConfigError(f"active.strategies: {names} needs corpus.source = world, where the truth is known")
    if world and config.active.budget > config.corpus.world.pool_questions:
        raise ConfigError(
            f"active.budget = {config.active.budget} exceeds corpus.world.pool_questions = "
            f"{config.corpus.world.pool_questions}"
        )
    if not world and config.annotate.source == "world":
        raise ConfigError("annotate.source: `world` needs corpus.source = world; use `reference`")
    if config.model.adapter is not None and not Folder.of(config.model.adapter).exists():
        raise ConfigError(
            f"model.adapter = {config.model.adapter!r}: no such folder; a hub's adapter must be downloaded first"
        )
    comparing = ", ".join(sorted(that_need(Need.STATES, strategies)))
    if comparing and config.active.budget > config.acquire.candidates:
        raise ConfigError(
            f"active.budget = {config.active.budget} exceeds acquire.candidates = {config.acquire.candidates}, "
            f"which is all that {comparing} may choose from; raise acquire.candidates"
        )
    if comparing and config.acquire.balance == "group":
        raise ConfigError(f"acquire.balance = group does not go with {comparing}, which spread their choice by states")
