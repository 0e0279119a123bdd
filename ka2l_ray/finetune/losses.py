"""What a fine-tuning step minimises, as sums over answer tokens.

In: logits (B, T, V), labels (B, T) with `IGNORED` outside answers. Out: scalars in nats, to be divided by the step's
global token count.
Refuses to know: batches, ranks, optimisers. Sums, not means, so that the result does not depend on how a step is split
over ranks and micro-batches.
"""

import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax, pad

IGNORED = -100


def answer_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy in nats, summed over answer tokens; 0 with a gradient path where there are none."""
    flat_logits, flat_labels = logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten()
    return cross_entropy(flat_logits, flat_labels, ignore_index=IGNORED, reduction="sum") + 0.0 * logits.sum()


def kl_positions(labels: torch.Tensor, replayed: torch.Tensor) -> torch.Tensor:
    """The positions whose logits KL compares, bool (B, T): those that predict an answer token of a replayed row, except
    the end token; `replayed` (B,) marks the rows."""
    answer = labels[:, 1:] != IGNORED
    followed = answer[:, :-1] & answer[:, 1:] & replayed.unsqueeze(-1)
    return pad(followed, (0, labels.shape[1] - followed.shape[1]))


def kl_to_base(
    logits: torch.Tensor, base_logits: torch.Tensor, labels: torch.Tensor, replayed: torch.Tensor
) -> torch.Tensor:
    """KL(base ‖ tuned) in nats, summed over `kl_positions`, at which `base_logits` (A, V) are.

    Its gradient is that of the cross-entropy with infinitely many samples (T = 1) of the base model at each position
    (self-distillation), so it reduces forgetting without the noise of a few samples. The end token is left out because
    a base model would rather start a new line there than generate the end token that answers are taught with: held to
    the base model there, a model would not learn to stop.
    """
    at = kl_positions(labels, replayed)
    tuned, base = log_softmax(logits[at].float(), -1), log_softmax(base_logits.float(), -1)
    return kl_div(tuned, base, reduction="sum", log_target=True)
