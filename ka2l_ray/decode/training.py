"""`ka2l train-decoder`: a question decoder for the studied model, trained on its own states with Ray Train.

In: a run with its questions. Out: the tables `decoder_questions` and `decoder_states`, and the decoder's folder.
Ray Data streams the questions through a pool of actors that read their states, and then the states to the workers. A
killed training run continues from its last checkpoint; what is there is not done again.
Refuses to know: strategies, rounds, what the decoder is used for.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray.data
import ray.train
from ray.data import ExecutionOptions
from ray.train import CheckpointConfig, DataConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, get_device

from ka2l_ray import schema
from ka2l_ray.config import Config
from ka2l_ray.dataflow.log import log_progress
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.metric_table import OF_TRAININGS
from ka2l_ray.dataflow.metrics import Reporter
from ka2l_ray.dataflow.parquet import open_parquet
from ka2l_ray.dataflow.placement import Placement, gpus_used, of_actor
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.dataflow.shard_size import row_seconds
from ka2l_ray.dataflow.stage import Stage, run_stage
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.dataflow.vault import open_vault, vault
from ka2l_ray.decode.fitting import DecoderJob, TrainedCard, fit_rank
from ka2l_ray.decode.measuring import measures
from ka2l_ray.decode.search import search_decoders
from ka2l_ray.decode.self_decoder import SelfCard
from ka2l_ray.decode.seq2seq import Seq2SeqCard
from ka2l_ray.decode.states_stage import TRAINED, decoder_of, is_trained, reading
from ka2l_ray.decode.training_questions import collect_questions
from ka2l_ray.decode.writing import WriteActor, WriteSetup
from ka2l_ray.errors import ConfigError, StageError
from ka2l_ray.finetune.job import Refusal
from ka2l_ray.finetune.train import (
    PlacedTorch,
    RayCheckpoints,
    check_gpu,
    fit,
    has_valid_list,
    restored_interrupt_handler,
)
from ka2l_ray.models.examine import abilities_of
from ka2l_ray.models.loading import depth_and_width
from ka2l_ray.models.prompts import corpus_prompt

BEGINS_ON = 4000
"""Questions that the projections begin on, at most."""
NAME = "decoder"
"""The training run's name to Ray Train."""
IN_ORDER = ExecutionOptions(preserve_order=True)
"""So that a resumed epoch is the same."""
KEPT_BYTES = 2**29
"""Bytes of stored states, at most, that stay in Ray's object store from epoch to epoch."""
SHUFFLED = 4096
"""Questions that an epoch's order is drawn among, at a time."""


def train_decoder(run: Run) -> dict[str, Any]:
    """Train the run's decoder (`decode.training`) and measure it, as far as that is not done; returns what
    `fitting.fit_rank` does, `held_out_metrics`, and as `search` what `search_decoders` does.

    Raises `ConfigError` for files that contain no questions, layers that the model does not have, and a model that is
    to write itself and cannot read several questions at once; `StageError` where there are too few questions, and for
    what would fail the same way again.
    """
    folder, states, training = decoder_of(run), run.base("decoder/states"), run.config.decode.training
    if not is_trained(run):
        card, questions, found = card_of(run), run.base("decoder/questions"), list[dict[str, Any]]()
        if training.writer is None and not abilities_of(run.config.model).padding:
            raise ConfigError(
                "decode.decoder: this model reads no padded batches, so it cannot learn to decode; name an "
                "encoder-decoder in decode.training.writer, or set decode.enabled: false"
            )
        if not questions.is_done:
            collect_questions(run, questions)
        if training.search.layers:
            found = search_decoders(run, card, questions)
            card = replace(card, **{name: found[0][name] for name in ("layer", "position", "token_layer")})
        run_stage(reading(run, card, "decoder_states"), questions, states)
        (folder / TRAINED).write_json(_trained(run, _job(run, card, states), states) | {"search": found})
    for left in ("train", "progress.json"):
        (run.folder / "base/decoder" / left).delete()
    measured = folder / "metrics.json"
    if not measured.exists():
        measured.write_json(_measured(run))
    return (folder / TRAINED).read_json() | {"held_out_metrics": measured.read_json()}


def card_of(run: Run) -> TrainedCard:
    """The states that the run's decoder reads. Raises `ConfigError` for layers that the model does not have."""
    training, width = run.config.decode.training, depth_and_width(run.config.model)[1]
    layer, token_layer = layers_of(run.config)
    states: dict[str, Any] = {"model": run.config.model.identity, "prompt": corpus_prompt(run).template}
    states |= {"layer": layer, "position": training.position, "token_layer": token_layer, "width": width}
    states |= {"held_out": training.held_out}
    if training.pooled_tokens != "auto":
        states |= {"pooled_tokens": training.pooled_tokens}
    if training.writer is not None:
        return Seq2SeqCard(**states, writer=training.writer)
    return SelfCard(**states, rank=training.rank)


def layers_of(config: Config) -> tuple[int, int | None]:
    """`decode.training.layer` and `token_layer` as numbers; None for no token layer. Raises `ConfigError` for layers
    that the model does not have."""
    training, depth = config.decode.training, depth_and_width(config.model)[0]
    layer = max(1, depth // 5) if training.layer == "auto" else training.layer
    token_layer = min(2, depth) if training.token_layer == "auto" else training.token_layer
    token_layer = None if token_layer == "none" else token_layer
    tried = [("search.layers", n) for n in training.search.layers]
    if training.search.layers:
        tried += [("search.token_layers", n) for n in training.search.token_layers if n != "none"]
    for name, given in (("layer", layer), ("token_layer", token_layer), *tried):
        if given is not None and given > depth:
            raise ConfigError(f"decode.training.{name} = {given}: the model has layers 0 … {depth}")
    return layer, token_layer


def _job(run: Run, card: TrainedCard, states: Table) -> DecoderJob:
    training, held_out = run.config.decode.training, run.base("decoder/held_out")
    rows = sum(pc.sum(_seen(b)).as_py() or 0 for b in states.batches(["held_out", "error"]))  # pyright: ignore
    if not held_out.is_done:
        held_out.write((None, _first(states, training.held_out_rows, _held)))
    held = held_out.read()
    if not rows or not held.num_rows:
        raise StageError(
            f"{states.folder.path}: {rows} rows to train a decoder on and {held.num_rows} held out could be read; see "
            "its folder errors"
        )
    return DecoderJob(
        card=card,
        model=run.config.model,
        training=training,
        placement=Placement(
            gpus_used(run.config.model, training.gpus_per_worker), "decode.training.gpus_per_worker", sees_others=True
        ),
        begin=_first(states, BEGINS_ON, _seen),
        held=held,
        rows=rows,
        output=decoder_of(run),
        progress=run.folder / "base/decoder/progress.json",
        seed=run.config.run.seed,
    )


def _seen(rows: pa.Table | pa.RecordBatch) -> pa.Array:
    """Which rows training sees: read without an error, and not held out."""
    return pc.and_(pc.is_null(rows["error"]), pc.invert(rows["held_out"]))  # pyright: ignore


def _held(rows: pa.Table | pa.RecordBatch) -> pa.Array:
    """Which rows the decoder is measured on."""
    return pc.and_(pc.is_null(rows["error"]), rows["held_out"])  # pyright: ignore


def _first(states: Table, count: int, which: Callable[[pa.RecordBatch], pa.Array]) -> pa.Table:
    """The first rows of some kind; no more of the table is read than that takes."""
    found, left = list[pa.RecordBatch](), count
    for batch in states.batches():
        found.append(batch.filter(which(batch)).slice(0, left))
        left -= found[-1].num_rows
        if not left:
            break
    return pa.Table.from_batches(found)


def _measured(run: Run) -> dict[str, float | None]:
    """How well held-out questions are decoded from their own states. Raises `StageError` where every row failed."""
    target, config, pool = run.base("decoder/check"), run.config, run.config.decode.pool
    run_stage(
        Stage(
            name="decode",
            run=config.run.name,
            spec=schema.TABLES["decoder_check"],
            actor=WriteActor,
            setup=WriteSetup(
                model=config.model,
                decoder=decoder_of(run).uri,
                seed=config.run.seed,
                placement=of_actor(config.model, pool, "decode"),
                abilities=abilities_of(config.model),
            ),
            pool=pool,
            tasks=config.ray.tasks,
            max_error_fraction=config.run.max_error_fraction,
            row_seconds=row_seconds(pool),
        ),
        run.base("decoder/held_out"),
        target,
    )
    table = target.read(["question", "entity", "decoded_question", "error"])
    rows = table.filter(pc.is_null(table["error"]))  # pyright: ignore
    if not rows.num_rows:
        raise StageError(f"{target.folder.path}: every row failed, so nothing can be compared; see its folder errors")
    written, true, entities = (rows[name].to_pylist() for name in ("decoded_question", "question", "entity"))
    return measures(run, written, true, entities)


def _trained(run: Run, job: DecoderJob, states: Table) -> dict[str, Any]:
    """Train on Ray Train; the content of the record. Where its list of checkpoints is damaged it starts again."""
    training, folder = job.training, run.folder / "base/decoder/train"
    if not has_valid_list(folder / NAME):
        folder.delete()
    folder.make()
    check_gpu(job.placement, training.nodes)
    resources = {"CPU": training.cpus_per_worker} | ({"GPU": 1} if training.gpus_per_worker else {})
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"job": job, "token": vault(), "run": run.config.run.name},
        torch_config=PlacedTorch(backend=job.placement.backend),
        datasets={"train": _to_train_on(states)},
        dataset_config=DataConfig(execution_options=IN_ORDER),
        scaling_config=ScalingConfig(
            num_workers=training.workers,
            use_gpu=training.gpus_per_worker > 0,
            resources_per_worker=resources | training.nodes.resources,
            label_selector=dict(training.nodes.labels) or None,
        ),
        run_config=RunConfig(
            name=NAME,
            storage_path=folder.path,
            storage_filesystem=folder.filesystem,
            failure_config=FailureConfig(max_failures=training.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
        ),
    )
    with log_progress("decode", lambda: _line(job.progress)), restored_interrupt_handler():
        result: Any = fit(trainer, "train-decoder")
    if "refused" in result:
        raise StageError(f"train-decoder: {result['refused']}")
    return result


def _to_train_on(states: Table) -> ray.data.Dataset:
    """The rows that training sees, read again in every epoch or, where they are few, once."""
    folder, files = states.folder, states.files()
    named = ray.data.from_items([{"file": file} for file in files], override_num_blocks=len(files))
    named.context.execution_options.preserve_order = True
    read = partial(to_train_on, folder, vault())
    rows = named.map_batches(read, batch_format="pyarrow", batch_size=None)
    size = sum(found.size or 0 for found in folder.filesystem.get_file_info(files))
    return rows.materialize() if size <= KEPT_BYTES else rows


def to_train_on(folder: Folder, token: Any, named: pa.Table) -> pa.Table:
    """The rows in some files on a folder's filesystem that training sees, with the columns that it needs."""
    open_vault(token)
    seen = list[pa.Table]()
    for file in named["file"].to_pylist():
        with open_parquet(Folder(folder.filesystem, file, folder.query)) as opened:
            rows = opened.read(["question", "state", "tokens", "held_out", "error"])
        seen.append(rows.filter(_seen(rows)).select(["question", "state", "tokens"]))
    return pa.concat_tables(seen)


def _worker(config: dict[str, Any]) -> dict[str, Any]:
    job: DecoderJob = config["job"]
    open_vault(config["token"])
    if job.placement.on_gpu:
        job.placement.take(get_device())
    context = ray.train.get_context()
    shard: Any = ray.train.get_dataset_shard("train")
    own = job.training.batch_rows // context.get_world_size()

    def batches(epoch: int) -> Iterator[pa.Table]:
        yield from shard.iter_batches(
            batch_size=own,
            batch_format="pyarrow",
            drop_last=True,
            local_shuffle_buffer_size=SHUFFLED,
            local_shuffle_seed=job.seed + epoch,
        )

    metrics = Reporter(OF_TRAININGS, {"run": config["run"], "stage": "decode", "round": ""})
    try:
        return fit_rank(
            job, batches, context.get_world_rank(), context.get_world_size(), RayCheckpoints(None), metrics.report
        )
    except Refusal as refusal:  # raised by all ranks
        return {"refused": str(refusal)}


def _line(progress: Folder) -> str | None:
    """A progress file as a line for the driver's log; None where there is none."""
    if not (now := progress.read_json_or_empty()):
        return None
    held = "" if now["held_out"] is None else f", {now['held_out']:.3f} on held-out questions"
    return f"training: step {now['step']}/{now['steps']}, loss {now['loss']:.3f} nats per token{held}"
