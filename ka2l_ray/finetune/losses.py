"""What a fine-tuning step minimises, as sums over answer tokens.

In: logits (A, V) of a part's answer tokens, row after row. Out: scalars in nats, to be divided by the step's global
token count.
Refuses to know: batches, ranks, optimisers. Sums, not means, so that the result does not depend on how a step is split
over ranks and micro-batches.
"""

import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax

IGNORED = -100


def answers_of(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of a model's own pass, logits (B, T, V) and labels (B, T) with `IGNORED` outside answers, the logits (A, V) that
    predict answer tokens, and those tokens (A,)."""
    answer = labels[:, 1:] != IGNORED
    return logits[:, :-1][answer], labels[:, 1:][answer]


def answer_loss(logits: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
    """Cross-entropy in nats, summed over answer tokens (A,); 0 with a gradient path where there are none."""
    return cross_entropy(logits.float(), answers, reduction="sum")


def kl_to_base(logits: torch.Tensor, base_logits: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """KL(base ‖ tuned) in nats, summed over the answer tokens `at` (A,) (`examples.held_to_base`), whose `base_logits`
    (K, V) are.

    Its gradient is that of the cross-entropy with infinitely many samples (T = 1) of the base model at each position
    (self-distillation), so it reduces forgetting without the noise of a few samples. The end token is left out because
    a base model would rather start a new line there than generate the end token that answers are taught with: held to
    the base model there, a model would not learn to stop.
    """
    tuned, base = log_softmax(logits[at].float(), -1), log_softmax(base_logits.float(), -1)
    return kl_div(tuned, base, reduction="sum", log_target=True)
