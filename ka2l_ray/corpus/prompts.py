"""A question becomes a prompt, and the prompt token ids that know which tokens are the question's own.

In: a `PromptSection`, a fast tokenizer, questions. Out: an `Encoded` batch.
Refuses to know: models, answers, Ray.
"""

from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase

from ka2l_ray.config import PromptSection
from ka2l_ray.models.activations import Encoded


def render(prompt: PromptSection, question: str) -> str:
    """The prompt of one question."""
    return prompt.template.replace("{question}", question)


def encode(tokenizer: PreTrainedTokenizerBase, prompt: PromptSection, questions: Sequence[str]) -> Encoded:
    """Left-padded ids, mask and own-token marks (B, T). Raises `ValueError` for a question that yields no token of its own."""
    texts = [render(prompt, q) for q in questions]
    batch = tokenizer(texts, return_tensors="pt", padding=True, return_offsets_mapping=True)
    start = torch.tensor([prompt.template.index("{question}")])
    end = start + torch.tensor([[len(q)] for q in questions])
    left, right = batch["offset_mapping"].unbind(-1)
    mask = batch["attention_mask"]
    own = ((right > start) & (left < end) & (right > left) & mask.bool()).to(mask.dtype)
    if any(not q.strip() for q in questions) or (own.sum(-1) == 0).any():
        raise ValueError("empty question: it has no token of its own in the prompt")
    return Encoded(batch["input_ids"], mask, own)
