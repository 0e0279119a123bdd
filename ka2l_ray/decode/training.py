"""`ka2l train-decoder`: a question decoder for the studied model, trained on its own states with Ray Train.

In: a run with its questions. Out: the tables `decoder_questions` and `decoder_states`, and the decoder's folder.
Ray Data streams the questions through a pool of actors that read their states, and then the states to the workers. A
killed training run continues from its last checkpoint; what is there is not done again.
Refuses to know: strategies, rounds, what the decoder is used for.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray.data
import ray.train
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
from ray.train.torch import TorchTrainer, get_device

from ka2l_ray import schema
from ka2l_ray.config import CorpusSection, DecoderTrainingSection
from ka2l_ray.corpus.files import files_of
from ka2l_ray.corpus.formats import Question
from ka2l_ray.corpus.prepare import parsed_rows
from ka2l_ray.dataflow.log import log, log_progress
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.metric_table import OF_TRAININGS
from ka2l_ray.dataflow.metrics import Reporter
from ka2l_ray.dataflow.placement import Placement, gpus_used, of_actor
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.dataflow.shard_size import row_seconds
from ka2l_ray.dataflow.stage import Stage, run_stage
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.dataflow.vault import open_vault, vault
from ka2l_ray.decode.decoders import Card
from ka2l_ray.decode.filters import text_hash
from ka2l_ray.decode.fitting import DecoderJob, fit_rank
from ka2l_ray.decode.metrics import reconstruction
from ka2l_ray.decode.reading import ReadActor, ReadSetup
from ka2l_ray.decode.self_decoder import SelfCard, is_held_out
from ka2l_ray.decode.whom import CommonWords
from ka2l_ray.decode.writing import WriteActor, WriteSetup
from ka2l_ray.errors import ConfigError, StageError, UserError
from ka2l_ray.finetune.job import Refusal
from ka2l_ray.finetune.train import PlacedTorch, RayCheckpoints, has_valid_list, restored_interrupt_handler
from ka2l_ray.models.batching import Limits
from ka2l_ray.models.examine import abilities_of
from ka2l_ray.models.loading import depth_and_width
from ka2l_ray.models.prompts import Tokenize, corpus_prompt
from ka2l_ray.text.normal import normalize

BEGINS_ON = 4000
"""Questions that the projections begin on, at most."""
NAME = "decoder"
"""The training run's name to Ray Train."""
PROBE = "probe"
"""The split whose questions are always trained on."""
KEPT_BYTES = 2**29
"""Bytes of stored states, at most, that stay in Ray's object store from epoch to epoch."""
SHUFFLED = 4096
"""Questions that an epoch's order is drawn among, at a time."""


def train_decoder(run: Run) -> dict[str, Any]:
    """Train the run's decoder (`decode.training`), unless that is done; returns what `fitting.fit_rank` does.

    Raises `ConfigError` for files that contain no questions and layers that the model does not have, `StageError` where
    there are too few questions, and for what would fail the same way again.
    """
    folder = decoder_of(run)
    record = folder / "training.json"
    if record.exists():
        return record.read_json()
    card = card_of(run)
    questions, states = (run.base(f"decoder/{name}") for name in ("questions", "states"))
    if not questions.is_done:
        _collect_questions(run, questions)
    common = CommonWords.of((r["question"], r["group"]) for b in questions.batches() for r in b.to_pylist())
    run_stage(reading(run, card, "decoder_states", common), questions, states)
    result = _trained(run, _job(run, card, states), states)
    result |= {"held_out_metrics": _measured(run, states)}
    record.write_json(result)
    (run.folder / "base/decoder/train").delete()
    (run.folder / "base/decoder/progress.json").delete()
    return result


def decoder_of(run: Run) -> Folder:
    """The folder of the decoder that a run has trained, or will."""
    return run.folder / "base/decoder/trained"


def card_of(run: Run) -> SelfCard:
    """The states that the run's decoder reads. Raises `ConfigError` for layers that the model does not have."""
    training, (depth, width) = run.config.decode.training, depth_and_width(run.config.model)
    layer = max(1, depth // 5) if training.layer == "auto" else training.layer
    token_layer = min(2, depth) if training.token_layer == "auto" else training.token_layer
    token_layer = None if token_layer == "none" else token_layer
    for name, given in (("layer", layer), ("token_layer", token_layer)):
        if given is not None and given > depth:
            raise ConfigError(f"decode.training.{name} = {given}: the model has layers 0 … {depth}")
    return SelfCard(
        model=run.config.model.identity,
        prompt=corpus_prompt(run).template,
        layer=layer,
        position=training.position,
        token_layer=token_layer,
        width=width,
        rank=training.rank,
        pooled_tokens=training.pooled_tokens,
        held_out=training.held_out,
    )


def _collect_questions(run: Run, target: Table) -> None:
    """Write the questions that the decoder is trained and measured on: the probe split, then as many of the files' as
    training can use. Raises `StageError` where there are too few."""
    training = run.config.decode.training
    usable, left_out = _usable(run.table("questions"), training)
    usable.sort(key=lambda r: (r["format"] != PROBE, r["id"]))  # ids are hashes, so theirs is a random order
    rows = sorted(usable[: training.examples + training.held_out_rows], key=lambda r: r["id"])
    for row in rows:
        row["held_out"] = is_held_out(row["question"], row["entity"], training.held_out)
    held = sum(r["held_out"] for r in rows)
    if not held or len(rows) - held < training.batch_rows:
        raise StageError(
            f"{len(rows) - held} questions to train a decoder on and {held} held out; at least "
            f"{training.batch_rows} (decode.training.batch_rows) and 1 are needed. Name files in "
            "decode.training.questions, or raise corpus.split.probe"
        )
    table = pa.Table.from_pylist(rows, schema=schema.TABLES["decoder_questions"].schema)
    target.write((None, table), left_out=left_out, of_format=Counter(r["format"] for r in rows))
    said = "%s questions to train on, %s held out with their entities; %s of files left out, because pool or eval ask "
    said += "about the same"
    counts = (f"{n:,}" for n in (len(rows) - held, held, left_out))
    log.info(said, *counts, extra={"stage": "train-decoder"})


def _usable(source: Table, training: DecoderTrainingSection) -> tuple[list[dict[str, Any]], int]:
    """Distinct questions of the probe split and the files, each with its `format`, that pool and eval do not ask, nor
    anything else about their entities; and how many of the files were left out for that."""
    taken, entities = set[int](), set[str]()
    for split in ("pool", "eval"):
        for row in _rows(source, split):
            taken.add(text_hash(row["question"]))
            entities.add(normalize(row["entity"] or ""))
    entities.discard("")
    asked, rows, left_out = set[int](), list[dict[str, Any]](), 0
    for name, row in (*((PROBE, r) for r in _rows(source, PROBE)), *_of_files(training)):
        key = text_hash(row["question"])
        if key in taken or normalize(row["entity"] or "") in entities:
            left_out += name != PROBE
        elif key not in asked:
            asked.add(key)
            rows.append({"id": f"{key:016x}", "format": name, **row})
    return rows, left_out


def _rows(source: Table, split: str) -> Iterator[dict[str, Any]]:
    for batch in source.batches(["question", "group", "entity"], part=split):
        yield from batch.to_pylist()


def _of_files(training: DecoderTrainingSection) -> Iterator[tuple[str, dict[str, Any]]]:
    """(format, question) of each row of `decode.training.questions` that is one."""
    for name, sources in training.questions.items():
        corpus = CorpusSection(source=sources, format=name)
        for file in files_of(sources, corpus.hub):
            for _, row in parsed_rows(file, corpus):
                if isinstance(row, Question):
                    yield name, {"question": row.text, "group": row.group, "entity": row.entity}


def reading(run: Run, card: Card, table: str, common: CommonWords) -> Stage[ReadSetup]:
    """The stage that reads the states of a decoder's card into a table."""
    config, prompt, pool = run.config, corpus_prompt(run), run.config.decode.pool
    pooled, half = pa.list_(pa.float32(), card.width), pa.list_(pa.float16(), card.width)
    return Stage(
        name="decode",
        run=config.run.name,
        spec=schema.TABLES[table],
        actor=ReadActor,
        setup=ReadSetup(
            model=config.model,
            prompt=prompt,
            layer=card.layer,
            position=card.position,
            token_layer=card.token_layer,
            common=common,
            limits=Limits.of(pool),
            placement=of_actor(config.model, pool, "decode"),
            abilities=abilities_of(config.model),
        ),
        pool=pool,
        tasks=config.ray.tasks,
        states=pa.schema([("state", pooled), ("name_state", pooled), ("tokens", pa.list_(half))]),
        max_error_fraction=config.run.max_error_fraction,
        prepare=Tokenize(config.model, prompt),
        row_seconds=row_seconds(pool),
    )


def _job(run: Run, card: SelfCard, states: Table) -> DecoderJob:
    training = run.config.decode.training
    names, fine, held = ["question", "state", "tokens", "whom_ids"], 0, list[pa.RecordBatch]()
    begin = list[pa.RecordBatch]()
    for batch in states.batches([*names, "held_out", "error"]):
        usable = batch.filter(pc.is_null(batch["error"]))  # pyright: ignore
        apart = usable.filter(usable["held_out"]).select(names)
        own = usable.filter(pc.invert(usable["held_out"])).select(names)  # pyright: ignore
        if sum(b.num_rows for b in held) < training.held_out_rows:
            held.append(apart)
        if fine < BEGINS_ON:
            begin.append(own)
        fine += own.num_rows
    together = pa.Table.from_batches
    return DecoderJob(
        card=card,
        model=run.config.model,
        training=training,
        placement=Placement(
            gpus_used(run.config.model, training.gpus_per_worker), "decode.training.gpus_per_worker", sees_others=True
        ),
        begin=together(begin).slice(0, BEGINS_ON),
        held=together(held).slice(0, training.held_out_rows),
        rows=fine,
        output=decoder_of(run),
        progress=run.folder / "base/decoder/progress.json",
        seed=run.config.run.seed,
    )


def _measured(run: Run, states: Table) -> dict[str, float | None]:
    """How well held-out questions are decoded from their own states."""
    held, target, most = (
        run.base("decoder/held_out"),
        run.base("decoder/check"),
        run.config.decode.training.held_out_rows,
    )
    if not held.is_done:
        batches = (pa.Table.from_batches([b]) for b in states.batches())
        rows = pa.concat_tables([b.filter(b["held_out"]) for b in batches], promote_options="permissive")
        held.write((None, rows.slice(0, most)))
    config, pool = run.config, run.config.decode.pool
    run_stage(
        Stage(
            name="train-decoder",
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
        held,
        target,
    )
    table = target.read(["question", "entity", "decoded_question", "error"])
    rows = table.filter(pc.is_null(table["error"]))  # pyright: ignore
    written, true, entities = (rows[name].to_pylist() for name in ("decoded_question", "question", "entity"))
    return asdict(reconstruction(written, true, entities))


def _trained(run: Run, job: DecoderJob, states: Table) -> dict[str, Any]:
    """Train on Ray Train; the content of the record. Where its list of checkpoints is damaged it starts again."""
    training, folder = job.training, run.folder / "base/decoder/train"
    if not has_valid_list(folder / NAME):
        folder.delete()
    folder.make()
    resources = {"CPU": training.cpus_per_worker} | ({"GPU": 1} if training.gpus_per_worker else {})
    rows = _to_train_on(states)
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"job": job, "token": vault(), "run": run.config.run.name},
        torch_config=PlacedTorch(backend=job.placement.backend),
        datasets={"train": rows},
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
    with log_progress("train-decoder", lambda: _line(job.progress)), restored_interrupt_handler():
        try:
            result: Any = trainer.fit().return_value
        except WorkerGroupError as error:
            for failure in error.worker_failures.values():
                if isinstance(cause := getattr(failure, "_base_exc", failure), UserError):
                    raise StageError(f"train-decoder: {cause}") from error
            raise
    if "refused" in result:
        raise StageError(f"train-decoder: {result['refused']}")
    return result


def _to_train_on(states: Table) -> ray.data.Dataset:
    """The rows that training sees, read again in every epoch or, where they are few, once."""
    ray.data.DataContext.get_current().execution_options.preserve_order = True  # so that a resumed epoch is the same
    filesystem, columns = states.folder.filesystem, ["question", "state", "tokens", "held_out", "error"]
    rows = ray.data.read_parquet(states.files(), filesystem=filesystem, columns=columns)
    rows = rows.map_batches(to_train_on, batch_format="pyarrow", batch_size=None)
    size = sum(found.size or 0 for found in filesystem.get_file_info(states.files()))
    return rows.materialize() if size <= KEPT_BYTES else rows


def to_train_on(rows: pa.Table) -> pa.Table:
    """The rows that training sees: read without an error, and not held out."""
    wanted = pc.and_(pc.is_null(rows["error"]), pc.invert(rows["held_out"]))  # pyright: ignore
    return rows.filter(wanted).select(["question", "state", "tokens"])


def _worker(config: dict[str, Any]) -> dict[str, Any]:
    job: DecoderJob = config["job"]
    open_vault(config["token"])
    if job.placement.on_gpu:
        job.placement.check()
        job.placement.take(get_device())
    context, shard = ray.train.get_context(), ray.train.get_dataset_shard("train")
    own = job.training.batch_rows // context.get_world_size()

    def batches(epoch: int) -> Iterator[pa.Table]:
        given: Any = shard.iter_batches(
            batch_size=own,
            batch_format="pyarrow",
            drop_last=True,
            local_shuffle_buffer_size=SHUFFLED,
            local_shuffle_seed=job.seed + epoch,
        )
        yield from given

    metrics = Reporter(OF_TRAININGS, {"run": config["run"], "stage": "train-decoder", "round": ""})
    try:
        return fit_rank(
            job, batches, context.get_world_rank(), context.get_world_size(), RayCheckpoints(None), metrics.report
        )
    except Refusal as refusal:  # raised by all ranks
        return {"refused": str(refusal)}


def _line(progress: Folder) -> str | None:
    """A progress file as a line for the driver's log; None where there is none."""
    try:
        now = progress.read_json_or_empty()
    except FileNotFoundError:
        return None
    if not now:
        return None
    held = "" if now["held_out"] is None else f", {now['held_out']:.3f} on held-out questions"
    return f"step {now['step']}/{now['steps']}, loss {now['loss']:.3f} nats per token{held}"
