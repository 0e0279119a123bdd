"""One optimiser step, and one evaluation, of a DeepSpeed engine.

In: a global batch, the same on every rank. Out: losses in nats per token, the same on every rank.
Refuses to know: Ray, epochs, checkpoints, how a pass saves work.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ka2l_ray.finetune.base import BaseLogits
from ka2l_ray.finetune.deepspeed import accumulation_steps, micro_batch_rows
from ka2l_ray.finetune.examples import TokenizedRow, held_to_base, micro_batches
from ka2l_ray.finetune.job import Job
from ka2l_ray.finetune.losses import answer_loss, kl_to_base
from ka2l_ray.finetune.passes import Passes


@dataclass(frozen=True)
class Stepper:
    """An engine and its place among the ranks; `passes` are the engine's, `base` is there where a KL term is."""

    job: Job
    engine: Any
    passes: Passes
    base: BaseLogits | None
    rank: int
    world_size: int

    def step(self, batch: Sequence[TokenizedRow]) -> tuple[float, float | None]:
        """Cross-entropy per answer token; and KL(base ‖ tuned) per answer token of replayed rows, end tokens excluded,
        or None where there are none or `kl_weight` is 0.

        The objective is (sum of cross-entropies + `kl_weight` × sum of KLs) / answer tokens of the global batch, so a
        token's weight depends neither on the split over ranks and micro-batches nor on the number of replayed rows.
        """
        tune = self.job.finetune
        weight, parts = tune.replay.kl_weight, accumulation_steps(tune)
        answer_tokens = sum(r.answer_length for r in batch)
        kl_tokens = sum(r.answer_length - 1 for r in batch if r.replayed)
        base = self.base if kl_tokens else None
        sums = torch.zeros(2, device=self.engine.device)
        for rows in micro_batches(batch, self.rank, self.world_size, micro_batch_rows(tune), parts):
            base_logits = base([r for r in rows if r.replayed]) if base is not None else None
            logits, answers = self.passes(rows)
            loss = answer_loss(logits, answers)
            objective = loss / answer_tokens
            sums[0] += loss.detach()
            if base_logits is not None:
                kl = kl_to_base(logits, base_logits, held_to_base(rows).to(logits.device))
                objective = objective + weight * kl / answer_tokens
                sums[1] += kl.detach()
            # DeepSpeed averages over ranks and accumulation steps; this undoes both, so that the sum is global.
            self.engine.backward(objective * (self.world_size * parts))
            self.engine.step()
        torch.distributed.all_reduce(sums)
        return float(sums[0]) / answer_tokens, float(sums[1]) / kl_tokens if base is not None else None

    @torch.no_grad()
    def evaluate(self, rows: Sequence[TokenizedRow]) -> dict[str, float]:
        """Teacher-forced on gold answers: loss per token, share of tokens that are the most likely ones, share of
        answers where all are."""
        per_pass = self.job.finetune.micro_batch_rows
        # The same number of passes on every rank, because under ZeRO-3 each pass gathers weights.
        passes = -(-len(rows) // (per_pass * self.world_size))
        sums = torch.zeros(3, dtype=torch.float64, device=self.engine.device)
        self.engine.eval()
        for own in micro_batches(rows, self.rank, self.world_size, per_pass, passes):
            logits, answers = self.passes(own)
            right = logits.argmax(-1) == answers
            whole = [part.all() for part in right.split([r.answer_length for r in own])]
            all_right = torch.stack(whole).sum() if whole else right.sum()
            sums += torch.stack([answer_loss(logits, answers), right.sum(), all_right]).to(sums)
        self.engine.train()
        torch.distributed.all_reduce(sums)
        loss, right, all_right = sums.tolist()
        tokens = sum(r.answer_length for r in rows)
        return {"loss": loss / tokens, "token_accuracy": right / tokens, "exact_match": all_right / len(rows)}
