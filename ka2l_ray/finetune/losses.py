"""What a fine-tuning step minimises, as sums over answer tokens.

In: logits (B, T, V), labels (B, T) with `IGNORED` outside answers. Out: scalars in nats, to be divided by a step's global tokens.
Refuses to know: batches, ranks, optimisers. Sums, not means, so that any split of a step over ranks and micro-batches adds up to the same.
"""

import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax

IGNORED = -100


def answer_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy summed over answer tokens, nats; 0 with a gradient path where there are none."""
    flat = cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum"
    )
    return flat + 0.0 * logits.sum()


def kl_to_base(
    logits: torch.Tensor, base_logits: torch.Tensor, labels: torch.Tensor, replayed: torch.Tensor
) -> torch.Tensor:
    """KL(base ‖ tuned) summed over the answer tokens of replayed rows but their last, the end token, nats; `replayed` (B,) marks them.

    Its gradient is that of the cross-entropy with infinitely many T = 1 samples of the base model at each of these positions
    (self-distillation), so it damps forgetting without the noise of a few samples. Where an answer ends a base model would rather begin a
    new line than say the end token, which answers are taught with: held to it there, a model would not learn to end.
    """
    answer = labels[:, 1:] != IGNORED
    counted = answer[:, :-1] & answer[:, 1:] & replayed.unsqueeze(-1)  # an answer token that another one follows
    tuned, base = (log_softmax(x[:, :-2][counted].float(), -1) for x in (logits, base_logits))
    return kl_div(tuned, base, reduction="sum", log_target=True)
