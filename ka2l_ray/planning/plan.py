"""`ka2l run --dry-run`: what a run will do, what it costs, and whether it fits here, before a weight is read.

In: a configuration. Out: a `Plan`; `problems` would end the run, `notes` are what this machine lacks or what is only estimated.
Refuses to know: how stages work, Ray, terminals.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoTokenizer

from ka2l_ray.artifacts import Folder
from ka2l_ray.config import Config, ConfigError, ModelSection
from ka2l_ray.models.loading import check_model, model_path, refused_by_name
from ka2l_ray.planning.corpora import Extent, extent
from ka2l_ray.planning.cost import Line, lines, size, storage_bytes
from ka2l_ray.planning.shapes import Shape, UnknownShape, adapter_parameters, shape_of


@dataclass(frozen=True)
class Plan:
    """The stages with their cost, and what speaks against them."""

    extent: Extent
    shape: Shape
    lines: list[Line]
    problems: list[str]
    notes: list[str]


def make_plan(config: Config) -> Plan:
    """Raises `ConfigError` where corpus or model cannot be used at all."""
    if has_tokenizer := _has_tokenizer(config.model):
        with refused_by_name(config.model):
            check_model(config.model)
    try:
        shape = shape_of(config.model)
    except UnknownShape as error:
        raise ConfigError(str(error)) from error
    found = extent(config, has_tokenizer)
    adapters = adapter_parameters(config.model, config.finetune.lora) if config.finetune.mode == "lora" else 0
    stages = lines(config, found, shape, adapters)
    return Plan(found, shape, stages, [*_problems(config, found, shape)], [*_notes(config, found, stages)])


def _has_tokenizer(model: ModelSection) -> bool:
    try:
        AutoTokenizer.from_pretrained(model_path(model), revision=model.revision or "main", local_files_only=True)
    except (OSError, ValueError):
        return False
    return True


def _problems(config: Config, found: Extent, shape: Shape) -> list[str]:
    problems = []
    if beyond := [n for n in (config.collect.layers if config.collect.layers != "all" else ()) if n > shape.layers]:
        problems.append(f"collect.layers: {config.model.name_or_path} has layers 0 … {shape.layers}, not {beyond}")
    if config.active.budget > found.splits["pool"]:
        problems.append(f"active.budget = {config.active.budget:,} exceeds the pool of {found.splits['pool']:,} questions")
    if found.counted and shape.context and found.longest is not None and found.counted.too_long:
        share = found.counted.too_long / found.counted.measured
        text = (
            f"{found.counted.too_long:,} of {found.counted.measured:,} prompts (up to {found.longest:,} tokens) and an answer of "
            f"{config.collect.max_new_tokens} exceed the model's context of {shape.context:,}"
        )
        if share > config.run.max_error_fraction:
            problems.append(f"{text}: more than run.max_error_fraction ({config.run.max_error_fraction:g}) allows")
    return problems


def _notes(config: Config, found: Extent, stages: list[Line]) -> list[str]:
    notes = []
    if not found.source.startswith("read and"):
        notes.append(f"corpus: {found.source}")
    gpus = max(
        [p.min * p.gpus for p in (config.collect.pool, config.score.pool, config.evaluate.pool)]
        + [float(config.finetune.workers * config.finetune.gpus_per_worker)]
    )
    here = torch.cuda.device_count()
    cpus = max(
        [p.min * p.cpus + 2 for p in (config.collect.pool, config.score.pool, config.evaluate.pool)]
        + [config.finetune.workers * config.finetune.cpus_per_worker]
    )
    if cpus > config.ray.local_cpus and config.ray.address in (None, "local"):
        notes.append(
            f"a local Ray has ray.local_cpus = {config.ray.local_cpus}, stages want {cpus:g}: raise it, or set ray.address to a cluster's"
        )
    if gpus > here:
        notes.append(f"not on this machine: stages want {gpus:g} GPUs at once, it has {here}")
    elif here:
        memory, most = torch.cuda.get_device_properties(0).total_memory, max(stages, key=lambda line: line.memory_bytes)
        if most.memory_bytes > memory:
            notes.append(f"{most.stage} wants about {size(most.memory_bytes)} on one GPU, which has {size(memory)}")
    else:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if (most := max(line.memory_bytes for line in stages)) > memory:
            notes.append(f"not on this machine: {size(most)} are wanted by one process, it has {size(memory)}")
    storage = Folder.of(config.run.storage) if "://" not in config.run.storage else None
    wanted = storage_bytes(stages)
    if storage is not None:
        folder = next(p for p in [Path(storage.path), *Path(storage.path).parents] if p.exists())
        if (free := shutil.disk_usage(folder).free) < wanted:
            notes.append(f"run.storage: the run leaves about {size(wanted)}, {folder} has {size(free)} free")
    return notes
