"""`ka2l run --dry-run`: what a run will do, what it costs, and whether it fits here, before a weight is read.

In: a configuration, and the nodes of a cluster to join. Out: a `Plan`. `problems` would end the run; `notes` say
what this machine or cluster lacks, or what is only estimated.
Refuses to know: how stages work, Ray, terminals.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoTokenizer

from ka2l_ray.config import Config, ConfigError, ModelSection
from ka2l_ray.corpus.table import check_budget
from ka2l_ray.dataflow.paths import is_gguf
from ka2l_ray.dataflow.placement import visible_memory
from ka2l_ray.dataflow.processes import computing, used
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.models.abilities import Abilities
from ka2l_ray.models.gguf_files import folders
from ka2l_ray.models.hub import check_on_hub, hub_cache, is_on_hub
from ka2l_ray.models.loading import as_config_errors, model_path
from ka2l_ray.planning.capacity import NodeKind, capacity_notes
from ka2l_ray.planning.corpora import Extent, extent
from ka2l_ray.planning.cost import Line, lines, size
from ka2l_ray.planning.published import published_model
from ka2l_ray.planning.shapes import Shape, abilities_of_shape, adapter_parameters, shape_of
from ka2l_ray.planning.subject import check_subject


@dataclass(frozen=True)
class Plan:
    """The stages with their cost, what would end the run, and what else is to be known."""

    extent: Extent
    shape: Shape
    lines: list[Line]
    abilities: Abilities
    """What the engine may do with the model."""
    problems: list[str]
    notes: list[str]


def make_plan(config: Config, cluster: Sequence[NodeKind] | None = None) -> Plan:
    """The plan of a run on this machine, or on a cluster with these nodes.

    Raises `ConfigError` if corpus or model cannot be used at all, `Refusal` for LoRA targets that the model lacks.
    """
    with as_config_errors(config.model):
        has_tokenizer = _has_tokenizer(config.model)
    if has_tokenizer:
        check_subject(config)
    refused = [] if has_tokenizer else _refused_by_hub(config.model)
    shape, found = shape_of(config.model), extent(config, has_tokenizer)
    abilities = abilities_of_shape(config.model)
    adapters = adapter_parameters(config.model, config.finetune.lora) if config.finetune.mode == "lora" else 0
    stages = lines(config, found, shape, adapters)
    problems = [*refused, *_problems(config, found, shape)]
    return Plan(found, shape, stages, abilities, problems, _notes(config, found, shape, stages, cluster))


def _has_tokenizer(model: ModelSection) -> bool:
    """Whether the tokenizer is at hand. Only a hub id may lack it: a folder without one is refused, as a run refuses
    it."""
    path = model_path(model, weights=False)
    if Path(path).is_dir():
        return True
    try:
        AutoTokenizer.from_pretrained(
            path,
            local_files_only=True,
            revision=model.revision or "main",
            trust_remote_code=model.trust_remote_code,
            cache_dir=hub_cache(model),
        )
    except OSError:  # not in the hub's cache
        return False
    return True


def _refused_by_hub(model: ModelSection) -> list[str]:
    """What would end a run with a model whose files are not at hand; raised where there is no published shape to go on
    with. Nothing where no hub is in reach."""
    try:
        if is_on_hub(model):
            check_on_hub(model)
    except ConfigError as error:
        if published_model(model.name_or_path) is None:
            raise
        return [str(error)]
    return []


def _problems(config: Config, found: Extent, shape: Shape) -> list[str]:
    problems, layers = [], () if config.collect.layers == "all" else config.collect.layers
    if beyond := [n for n in layers if n > shape.layers]:
        problems.append(f"collect.layers: {config.model.name_or_path} has layers 0 … {shape.layers}, not {beyond}")
    if not found.notes:
        try:
            check_budget(config, found.splits["pool"])
        except ConfigError as error:
            problems.append(str(error))
    corpus, allowed = found.counted, config.run.max_error_fraction
    if corpus and corpus.too_long and shape.context and corpus.too_long / corpus.measured > allowed:
        problems.append(
            f"{corpus.too_long:,} of {corpus.measured:,} prompts (up to {found.longest:,} tokens) and an answer of "
            f"{config.collect.max_new_tokens} exceed the model's context of {shape.context:,}: "
            f"more than run.max_error_fraction ({allowed:g}) allows"
        )
    return problems


def _notes(
    config: Config, found: Extent, shape: Shape, stages: list[Line], cluster: Sequence[NodeKind] | None
) -> list[str]:
    notes = [*found.notes, *([] if found.source.startswith("read and") else [f"corpus: {found.source}"])]
    if is_gguf(config.model.name_or_path):
        made = f"{size(shape.parameters * shape.bytes_per_value)} in {folders(config.model)}"
        notes.append(f"model: its GGUF file is turned into a folder of {made}, once on every node that loads it")
    largest = used(computing(config), config)
    gpus, cpus = max(p.gpus_at_once for p in largest), max(p.cpus_at_once for p in largest)
    if cluster is not None:
        notes += capacity_notes(config, cluster)
    elif cpus > config.ray.local_cpus:
        notes.append(
            f"a local Ray has ray.local_cpus = {config.ray.local_cpus}, stages want {cpus:g}: "
            "raise it, or set ray.address to a cluster's"
        )
    return [*notes, *_memory_notes(stages, gpus, cluster is not None), *_storage_notes(config, stages)]


def _memory_notes(stages: list[Line], gpus: float, elsewhere: bool) -> list[str]:
    """What one GPU needs, and what this machine needs for stages without one. `elsewhere`: the run goes to a
    cluster."""
    notes, here = [], visible_memory()
    if gpus > len(here) and not elsewhere:
        notes.append(f"not on this machine: stages want {gpus:g} GPUs at once, it has {len(here)}")
    on_gpu = max(stages, key=lambda line: line.gpu_bytes)
    wants = f"{on_gpu.stage} wants about {size(on_gpu.gpu_bytes)} of memory on each GPU"
    if on_gpu.gpu_bytes and (elsewhere or not here):
        notes.append(f"{wants}, the most of all stages; those that will run it cannot be seen from here")
    elif on_gpu.gpu_bytes and on_gpu.gpu_bytes > here[0]:
        notes.append(f"{wants}, which has {size(here[0])} here")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    on_cpu = max(stages, key=lambda line: 0 if line.gpus else line.count * line.memory_bytes)
    if not elsewhere and not on_cpu.gpus and (most := on_cpu.count * on_cpu.memory_bytes) > memory:
        notes.append(
            f"not on this machine: {on_cpu.stage} wants about {size(most)} in {on_cpu.count} process(es), "
            f"it has {size(memory)}"
        )
    return notes


def _storage_notes(config: Config, stages: list[Line]) -> list[str]:
    if "://" in config.run.storage:
        return []
    storage, wanted = Path(Folder.of(config.run.storage).path), sum(line.storage_bytes for line in stages)
    folder = next(p for p in [storage, *storage.parents] if p.exists())
    if (free := shutil.disk_usage(folder).free) >= wanted:
        return []
    return [f"run.storage: the run leaves about {size(wanted)}, {folder} has {size(free)} free"]
