"""`ka2l run --dry-run`: what a run will do, what it costs, and whether it fits here, before a weight is read.

In: a configuration, and the resources of a cluster to join. Out: a `Plan`. `problems` would end the run; `notes` say
what this machine or cluster lacks, or what is only estimated.
Refuses to know: how stages work, Ray, terminals.
"""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoTokenizer

from ka2l_ray.config import Config, ConfigError, ModelSection
from ka2l_ray.corpus.prepare import check_budget
from ka2l_ray.dataflow.placement import visible_memory
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.models.loading import check_model, model_path, refused_by_name
from ka2l_ray.planning.corpora import Extent, extent
from ka2l_ray.planning.cost import Line, lines, size, storage_bytes
from ka2l_ray.planning.shapes import Shape, adapter_parameters, shape_of


@dataclass(frozen=True)
class Plan:
    """The stages with their cost, what would end the run, and what else is to be known."""

    extent: Extent
    shape: Shape
    lines: list[Line]
    problems: list[str]
    notes: list[str]


def make_plan(config: Config, cluster: Mapping[str, float] | None = None) -> Plan:
    """The plan of a run on this machine, or on a cluster with these resources by Ray's names (`CPU`, `GPU`).

    Raises `ConfigError` if corpus or model cannot be used at all.
    """
    with refused_by_name(config.model):
        if has_tokenizer := _has_tokenizer(config.model):
            check_model(config.model)
    shape, found = shape_of(config.model), extent(config, has_tokenizer)
    adapters = adapter_parameters(config.model, config.finetune.lora) if config.finetune.mode == "lora" else 0
    stages = lines(config, found, shape, adapters)
    notes = [*found.notes, *_notes(config, found, stages, cluster)]
    return Plan(found, shape, stages, _problems(config, found, shape), notes)


def _has_tokenizer(model: ModelSection) -> bool:
    """Whether the tokenizer is at hand. Only a hub id may lack it: a folder without one is refused, as a run refuses
    it."""
    path = model_path(model, weights=False)
    if Path(path).is_dir():
        return True
    options = {"revision": model.revision or "main", "trust_remote_code": model.trust_remote_code}
    try:
        AutoTokenizer.from_pretrained(path, local_files_only=True, **options)
    except OSError:  # not in the hub's cache
        return False
    return True


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


def _notes(config: Config, found: Extent, stages: list[Line], cluster: Mapping[str, float] | None) -> list[str]:
    notes = [] if found.source.startswith("read and") else [f"corpus: {found.source}"]
    gpus, cpus = _wanted(config)
    if cluster is not None:
        notes += [
            f"the cluster has {has:g} {name}s now, stages want {wanted:g} at once: they wait unless it grows"
            for name, wanted in (("CPU", cpus), ("GPU", gpus))
            if wanted > (has := cluster.get(name, 0.0))
        ]
    elif cpus > config.ray.local_cpus:
        notes.append(
            f"a local Ray has ray.local_cpus = {config.ray.local_cpus}, stages want {cpus:g}: "
            "raise it, or set ray.address to a cluster's"
        )
    return [*notes, *_memory_notes(stages, gpus, cluster is not None), *_storage_notes(config, stages)]


def _wanted(config: Config) -> tuple[float, float]:
    """(GPUs, CPUs) that the largest stage takes at once, at least; Ray Data reads and writes with two CPUs more than
    its actors have."""
    pools = [config.collect.pool, config.score.pool, config.evaluate.pool]
    pools += [config.decode.pool] if config.decode.enabled else []
    tune = config.finetune
    gpus = max(*(p.min * p.gpus for p in pools), float(tune.workers * tune.gpus_per_worker))
    return gpus, max(*(p.min * p.cpus + 2 for p in pools), tune.workers * tune.cpus_per_worker)


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
    storage, wanted = Path(Folder.of(config.run.storage).path), storage_bytes(stages)
    folder = next(p for p in [storage, *storage.parents] if p.exists())
    free = shutil.disk_usage(folder).free
    short = f"run.storage: the run leaves about {size(wanted)}, {folder} has {size(free)} free"
    return [short] if free < wanted else []
