"""The training run of a question decoder on one rank: from a pretrained model to a checked folder.

In: a `DecoderJob`, this rank's batches of `decoder_states`, its place in an initialised torch.distributed, where
checkpoints go. Out: the decoder with the least loss on held-out questions, and how it came about.
The gradients of ranks are averaged after each pass, because what is trained is small. Refuses to know: Ray, tables of a
run, where states come from.
"""

import contextlib
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import load_file, save_file
from torch import distributed
from torch.nn.functional import cross_entropy

from ka2l_ray.config import DecoderTrainingSection, ModelSection
from ka2l_ray.dataflow.placement import Placement
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.decode.question_states import states_of
from ka2l_ray.decode.self_decoder import SelfCard, SelfDecoder
from ka2l_ray.decode.seq2seq import Seq2SeqCard, Seq2SeqDecoder
from ka2l_ray.finetune.checkpoints import Checkpoints
from ka2l_ray.finetune.job import Refusal
from ka2l_ray.models.loading import load_model, load_tokenizer

TrainedCard = SelfCard | Seq2SeqCard
"""Of the decoders that a run can train."""
TrainedDecoder = SelfDecoder | Seq2SeqDecoder
TENSORS, RECORD = "state.safetensors", "state.json"
MAY_CHANGE = {"checkpoint_every_steps", "max_failures", "cpus_per_worker", "nodes"}
"""Fields of `decode.training` that may change between attempts."""
MAX_GRAD_NORM = 1.0
EVALUATED_AT_ONCE = 32
"""Held-out questions of one pass."""


@dataclass(frozen=True, kw_only=True)
class DecoderJob:
    """Everything a worker needs. `begin` (rows of `decoder_states` that the projections begin on) and `held` (those
    that are measured on) are small tables; `rows` is how many there are to train on."""

    card: TrainedCard
    model: ModelSection
    training: DecoderTrainingSection
    placement: Placement
    begin: pa.Table
    held: pa.Table
    rows: int
    output: Folder
    progress: Folder
    seed: int

    @property
    def precision(self) -> str:
        """`bfloat16` or `float32`."""
        own = self.training.precision
        return ("bfloat16" if self.placement.on_gpu else "float32") if own == "auto" else own

    @property
    def loaded_model(self) -> ModelSection:
        """The model as it is loaded: in float32 where passes are in that."""
        return self.model.model_copy(update={"dtype": "float32"}) if self.precision == "float32" else self.model

    @property
    def per_epoch(self) -> int:
        """Steps of one pass over the rows; at least one."""
        return max(1, self.rows // self.training.batch_rows)

    @property
    def steps(self) -> int:
        """Steps of the whole training run, unless it ends early."""
        return max(1, self.training.examples // self.training.batch_rows)


@dataclass
class DecoderHistory:
    """What happened so far: the loss of each step, and of each measurement on held-out questions its step and loss; all
    in nats per token."""

    losses: list[float] = field(default_factory=list)
    held_out: list[tuple[int, float]] = field(default_factory=list)
    resumed_at_steps: list[int] = field(default_factory=list)

    @property
    def best(self) -> int:
        """The number of the measurement with the least loss."""
        return int(np.argmin([loss for _, loss in self.held_out]))

    def is_over(self, patience: int) -> bool:
        """Whether the last `patience` measurements brought no new least."""
        return bool(self.held_out) and len(self.held_out) - 1 - self.best >= patience


def fit_rank(
    job: DecoderJob,
    batches: Callable[[int], Iterator[pa.Table]],
    rank: int,
    world_size: int,
    checkpoints: Checkpoints,
    report: Callable[[dict[str, float]], None] = lambda values: None,
) -> dict[str, Any]:
    """Train; rank 0 writes the decoder to `job.output`. `batches` gives this rank's part of each step of an epoch, in
    the same order whenever it is asked.

    Raises `Refusal` for a loss that is not finite, and for a model that can have no adapters.
    """
    if not job.placement.on_gpu:
        torch.set_num_threads(max(1, int(job.training.cpus_per_worker)))
    torch.manual_seed(job.seed)
    decoder = _begun(job)
    decoder.begin(states_of(job.begin), job.begin["question"].to_pylist(), job.begin["whom_ids"].to_pylist())
    decoder.place(job.placement.device).train()
    trained = {n: p for n, p in decoder.named_parameters() if p.requires_grad}
    if world_size > 1:  # CPUs differ in how they round what the projections begin at
        for tensor in decoder.stored().values():
            distributed.broadcast(tensor, 0)
    optimizer = torch.optim.AdamW(trained.values(), lr=job.training.learning_rate, weight_decay=0.0, betas=(0.9, 0.98))
    history, best = DecoderHistory(), dict[str, torch.Tensor]()
    with checkpoints.latest() as folder:
        if folder is not None:
            history, best = _restored(Path(folder), job, decoder, optimizer)
    passes, started = _Passes(job, decoder, list(trained.values()), optimizer, rank, world_size), time.monotonic()
    for rows in _from_step(batches, len(history.losses), job):
        if len(history.losses) >= job.steps or history.is_over(job.training.patience):
            break
        history.losses.append(passes.step(rows, len(history.losses)))
        step = len(history.losses)
        if step % job.training.evaluate_every_steps == 0 or step == job.steps:
            history.held_out.append((step, _finite(passes.held_out(rank), "on held-out questions at", step, job)))
            if history.best == len(history.held_out) - 1:
                best = {n: t.detach().to("cpu", copy=True) for n, t in decoder.stored().items()}
        if rank == 0:
            report({"training_step": step, "training_steps": job.steps, "training_loss": history.losses[-1]})
            _say(job, history, time.monotonic() - started)
        if step % job.training.checkpoint_every_steps == 0 and step < job.steps:
            folder = checkpoints.new_folder()
            if rank == 0:
                _store(folder, job, decoder, optimizer, history, best)
            checkpoints.submit(folder, step)
    if rank == 0:
        decoder.load_state_dict(best, strict=False)
        with tempfile.TemporaryDirectory(prefix="ka2l-decoder-") as scratch:
            decoder.save(Path(scratch))
            job.output.upload(Path(scratch))
    return {"steps": len(history.losses), "planned_steps": job.steps, "rows": job.rows} | asdict(history)


def _begun(job: DecoderJob) -> TrainedDecoder:
    """The decoder before training: `self` around the studied model, or with a writer of its own."""
    if isinstance(job.card, Seq2SeqCard):
        return Seq2SeqDecoder.begun(job.card, job.model.cache)
    tokenizer = load_tokenizer(job.model)
    return SelfDecoder(job.card, load_model(job.loaded_model, placement=job.placement), tokenizer)


class _Passes:
    """Makes steps and measurements of one rank."""

    def __init__(
        self,
        job: DecoderJob,
        decoder: TrainedDecoder,
        trained: list[Any],
        optimizer: torch.optim.Optimizer,
        rank: int,
        ranks: int,
    ) -> None:
        self._job, self._decoder, self._trained, self._optimizer = job, decoder, trained, optimizer
        self._rank, self._ranks = rank, ranks
        half, device = job.precision == "bfloat16", job.placement.device.type
        self._cast = lambda: torch.autocast(device, torch.bfloat16) if half else contextlib.nullcontext()

    def step(self, rows: pa.Table, done: int) -> float:
        """One step on this rank's rows; the loss over all ranks' in nats per token."""
        job = self._job
        rate = job.training.learning_rate * rate_factor(done, job.steps, job.training.warmup_steps)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(job.seed + 1_000_003 * done + 7919 * self._rank)  # dropout's, the same after a kill
        loss, tokens = self._loss(rows)
        sums = torch.tensor([loss.item(), float(tokens)], dtype=torch.float64)
        self._sum(sums)
        (loss / sums[1].item()).backward()
        if self._ranks > 1:
            for parameter in self._trained:
                if parameter.grad is None:  # which no pass of this rank read
                    parameter.grad = torch.zeros_like(parameter)
                self._sum(parameter.grad)
        torch.nn.utils.clip_grad_norm_(self._trained, MAX_GRAD_NORM)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return _finite(float(sums[0] / sums[1]), "at", done + 1, job)

    @torch.no_grad()
    def held_out(self, rank: int) -> float:
        """The loss on held-out questions in nats per token; each rank reads its share."""
        self._decoder.eval()
        own = self._job.held.take(pa.array(range(rank, self._job.held.num_rows, self._ranks), pa.int64()))
        sums = torch.zeros(2, dtype=torch.float64)
        for start in range(0, own.num_rows, EVALUATED_AT_ONCE):
            loss, tokens = self._loss(own.slice(start, EVALUATED_AT_ONCE))
            sums += torch.tensor([loss.item(), float(tokens)], dtype=torch.float64)
        self._decoder.train()
        self._sum(sums)
        return float(sums[0] / sums[1])

    def _loss(self, rows: pa.Table) -> tuple[torch.Tensor, int]:
        """Cross-entropy in nats, summed over the rows' tokens, and their number."""
        with self._cast():
            logits, tokens = self._decoder(states_of(rows), rows["question"].to_pylist())
        return cross_entropy(logits.float(), tokens, reduction="sum"), len(tokens)

    def _sum(self, values: torch.Tensor) -> None:
        if self._ranks > 1:
            on_device = values.to(self._job.placement.device)
            distributed.all_reduce(on_device)
            values.copy_(on_device)


def _finite(loss: float, where: str, step: int, job: DecoderJob) -> float:
    """A loss in nats per token. Raises `Refusal` where it is not finite."""
    if not math.isfinite(loss):
        raise Refusal(
            f"the loss {where} step {step} is {loss}: lower decode.training.learning_rate "
            f"({job.training.learning_rate:.3g}), or set decode.training.precision: float32"
        )
    return loss


def rate_factor(step: int, steps: int, warmup: int) -> float:
    """Learning rate as a share of the highest: rises over `warmup` steps, stays, falls to zero in the second half."""
    return min(1.0, (step + 1) / max(1, warmup), 2 * (1 - step / steps))


def _from_step(batches: Callable[[int], Iterator[pa.Table]], done: int, job: DecoderJob) -> Iterator[pa.Table]:
    """Batches from step `done` on, epoch after epoch. Raises `Refusal` for an epoch without any."""
    epoch, skipped = divmod(done, job.per_epoch)
    while True:
        given = 0
        for rows in batches(epoch):
            given += 1
            if given > skipped:
                yield rows
            if given == job.per_epoch:  # the same on all ranks, whose shares may differ by a row
                break
        if not given:
            raise Refusal("there are fewer questions to train a decoder on than decode.training.batch_rows")
        epoch, skipped = epoch + 1, 0


def _identity(job: DecoderJob) -> dict[str, Any]:
    """What must be equal for a checkpoint to be continued."""
    own = job.training.model_dump(mode="json", exclude=MAY_CHANGE)
    card = json.loads(json.dumps(asdict(job.card)))  # tuples are lists once they were stored
    return own | {"card": card, "rows": job.rows, "seed": job.seed}


def _store(
    folder: Path,
    job: DecoderJob,
    decoder: TrainedDecoder,
    optimizer: torch.optim.Optimizer,
    history: DecoderHistory,
    best: dict[str, torch.Tensor],
) -> None:
    """Write what a training run continues from: tensors, then a record, without pickle."""
    tensors = {f"now.{n}": t.detach() for n, t in decoder.stored().items()} | {f"best.{n}": t for n, t in best.items()}
    for n, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{n}.{name}": value for name, value in state.items()}
    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, folder / TENSORS)
    (folder / RECORD).write_text(json.dumps({"history": asdict(history), "identity": _identity(job)}))


def _restored(
    folder: Path, job: DecoderJob, decoder: TrainedDecoder, optimizer: torch.optim.Optimizer
) -> tuple[DecoderHistory, dict[str, torch.Tensor]]:
    """What `_store` wrote, with the decoder and the optimiser as they were then."""
    record, tensors = json.loads((folder / RECORD).read_text()), load_file(folder / TENSORS)
    if record["identity"] != _identity(job):
        raise Refusal(
            "decode.training was changed since this training run began: delete the folder base/decoder of the run, or "
            "set it back"
        )
    parts: dict[str, dict[str, torch.Tensor]] = {"now": {}, "best": {}, "optimizer": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = tensor
    decoder.load_state_dict(parts["now"], strict=False)
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in parts["optimizer"].items():
        number, _, rest = name.partition(".")
        moments.setdefault(int(number), {})[rest] = tensor
    optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})
    history = DecoderHistory(**record["history"])
    history.held_out = [(int(step), float(loss)) for step, loss in history.held_out]
    history.resumed_at_steps.append(len(history.losses))
    return history, parts["best"]


def _say(job: DecoderJob, history: DecoderHistory, seconds: float) -> None:
    """Rewrite the progress file that the driver's log reads, after each measurement and every few steps."""
    step = len(history.losses)
    if step % 10 == 0 or (history.held_out and history.held_out[-1][0] == step):
        held = history.held_out[-1][1] if history.held_out else None
        now = {"step": step, "steps": job.steps, "loss": float(np.mean(history.losses[-10:])), "held_out": held}
        job.progress.write_json(now | {"seconds": round(seconds, 1)})
