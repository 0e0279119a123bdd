"""One optimiser step, and one evaluation, of a DeepSpeed engine.

In: a global batch, the same on every rank. Out: losses in nats per token, the same on every rank.
Refuses to know: Ray, epochs, checkpoints.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ka2l_ray.finetune.deepspeed import accumulation, micro_rows
from ka2l_ray.finetune.examples import Tokens, collate, micro_batches, replayed_rows
from ka2l_ray.finetune.job import Job
from ka2l_ray.finetune.losses import IGNORED, answer_loss, kl_to_base


@dataclass(frozen=True)
class Stepper:
    """An engine and its place among the ranks; `base` is the frozen copy for a KL term on full weights, `pad` a token id."""

    job: Job
    engine: Any
    base: Any | None
    pad: int
    rank: int
    world_size: int

    def step(self, batch: Sequence[Tokens]) -> tuple[float, float | None]:
        """Cross-entropy per answer token, and KL(base ‖ tuned) per answer token of replayed rows, end tokens aside (None where there is
        none, or KL is not asked for).

        What is minimised is (sum of cross-entropies + `kl_weight` × sum of KLs) / answer tokens of the global batch, so neither the
        split over ranks and micro-batches nor a batch with few replayed rows changes a token's weight.
        """
        tune = self.job.finetune
        weight, parts = tune.replay.kl_weight, accumulation(tune)
        answer_tokens, held_tokens = sum(r.answer for r in batch), sum(r.before_end for r in batch if r.replayed)
        held = bool(weight and held_tokens)
        sums = torch.zeros(2, device=self.engine.device)
        for rows in micro_batches(batch, self.rank, self.world_size, micro_rows(tune), parts):
            inputs, labels = self._inputs(rows)
            replayed = replayed_rows(rows).to(labels.device)
            compared = (
                replayed if replayed.any() else torch.arange(len(replayed), device=labels.device) == 0
            )  # every rank makes the pass
            base_logits = self._base_logits({k: v[compared] for k, v in inputs.items()}) if held else None
            logits = self.engine(**inputs).logits
            loss = answer_loss(logits, labels)
            objective = loss / answer_tokens
            sums[0] += loss.detach()
            if base_logits is not None:
                kl = kl_to_base(logits[compared], base_logits, labels[compared], replayed[compared])
                objective = objective + weight * kl / answer_tokens
                sums[1] += kl.detach()
            # DeepSpeed averages over ranks and accumulation steps; this undoes both, so that the sum is global.
            self.engine.backward(objective * (self.world_size * parts))
            self.engine.step()
        torch.distributed.all_reduce(sums)
        return float(sums[0]) / answer_tokens, float(sums[1]) / held_tokens if held else None

    @torch.no_grad()
    def evaluate(self, rows: Sequence[Tokens]) -> dict[str, float]:
        """Teacher-forced on gold answers: loss per token, share of tokens that are the likeliest, share of answers where all are."""
        per_pass = self.job.finetune.micro_batch_rows
        parts = -(
            -len(rows) // (per_pass * self.world_size)
        )  # the same on every rank: ZeRO-3 gathers weights in each pass
        sums = torch.zeros(3, dtype=torch.float64, device=self.engine.device)
        self.engine.eval()
        for own in micro_batches(rows, self.rank, self.world_size, per_pass, parts):
            inputs, labels = self._inputs(own)
            logits = self.engine(**inputs).logits
            answer = labels[:, 1:] != IGNORED
            right = (logits[:, :-1].argmax(-1) == labels[:, 1:]) & answer
            whole = (right == answer).all(-1) & answer.any(-1)
            sums += torch.stack([answer_loss(logits, labels), right.sum(), whole.sum()]).to(sums)
        self.engine.train()
        torch.distributed.all_reduce(sums)
        loss, right, whole = sums.tolist()
        tokens = sum(r.answer for r in rows)
        return {"loss": loss / tokens, "token_accuracy": right / tokens, "exact_match": whole / len(rows)}

    def _inputs(self, rows: Sequence[Tokens]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        inputs = {k: v.to(self.engine.device) for k, v in collate(rows, self.pad).items()}
        return inputs, inputs.pop("labels")

    @torch.no_grad()
    def _base_logits(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Of the frozen copy, or of the model without its adapters: ZeRO-3's hooks gather its weights in either pass."""
        if self.base is not None:
            return self.base(**inputs).logits
        module = self.engine.module
        module.eval()
        with module.disable_adapter():
            logits = module(**inputs).logits
        module.train()
        return logits
