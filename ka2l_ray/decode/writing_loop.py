"""How an encoder-decoder writes: token by token, greedily or from numbers of its own for each row.

In: what its encoder reads. Out: token ids. Refuses to know: states, text, where the numbers of a run come from.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from ka2l_ray.models.sampling import Sampling, draw, uniforms


def write_tokens(
    writer: PreTrainedModel,
    inputs: torch.Tensor,
    mask: torch.Tensor | None,
    ends: tuple[int, int],
    most: int,
    ids: Sequence[str],
    seed: int,
    temperature: float,
) -> list[list[int]]:
    """Token ids, at most `most` and without the end token, for each row of embeddings `inputs` (B, T, E) with `mask`
    (B, T); `ends` are the tokens that begin and end a text. A temperature of 0 is argmax; draws depend on (seed, id)
    only."""
    model: Any = writer
    start, end = ends
    encoded = model.get_encoder()(inputs_embeds=inputs, attention_mask=mask)
    numbers = torch.from_numpy(np.stack([uniforms(seed, i, 1, most)[0] for i in ids])).to(inputs.device)
    last, cache, written = torch.full((len(inputs), 1), start, device=inputs.device), None, list[torch.Tensor]()
    ended = torch.zeros(len(inputs), dtype=torch.bool, device=inputs.device)
    for step in range(most):
        passed = model(
            encoder_outputs=encoded,
            attention_mask=mask,
            decoder_input_ids=last,
            past_key_values=cache,
            use_cache=True,
        )
        logits, cache = passed.logits[:, -1], passed.past_key_values
        chosen = logits.argmax(-1) if temperature == 0 else draw(logits, numbers[:, step], Sampling(temperature))[0]
        written.append(chosen)
        ended |= chosen == end
        if ended.all():
            break
        last = chosen.unsqueeze(-1)
    return [row[: row.index(end)] if end in row else row for row in torch.stack(written, 1).tolist()]
