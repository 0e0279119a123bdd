"""The studied model as its own question decoder: hidden states go in as embeddings, a question comes out.

In: of each question a pooled state (D,), which says what is asked, and states (n, D) of the tokens that say of whom.
Out: the question's token ids. Adapters (LoRA) teach the model to write it from `pooled_tokens` pseudo-tokens of the
pooled state and one pseudo-token for each token state, between a few words of text. Both projections begin as ridge
regressions onto the model's own input embeddings, so that what goes in means something to the model from the first step
on. Stored are adapters and projections alone, in half precision, next to a card that names the states they read.
Refuses to know: where states come from, Ray, tables. Sources: KA2L, stage 2, for the aim; a model that reads its own
states: SelfIE (arXiv 2403.10949), LatentQA (arXiv 2412.08686), Rep2Text (arXiv 2511.06571).
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from ka2l_ray.config import LoraSection
from ka2l_ray.decode.model import CARD
from ka2l_ray.decode.question_states import QuestionStates
from ka2l_ray.decode.standards import WEIGHTS, Standards, StatesCard, stored_weights
from ka2l_ray.errors import ConfigError
from ka2l_ray.finetune.model import with_new_adapters
from ka2l_ray.hashing import uniform
from ka2l_ray.models.heads import logits_at, predicting
from ka2l_ray.models.sampling import Sampling, draw, uniforms
from ka2l_ray.text.normal import normalize
from ka2l_ray.text.tokens import end_id, ids_of, text_of

RIDGE = 1e-2
"""Penalty of the first projections per row, on standardised states."""


@dataclass(frozen=True, kw_only=True)
class SelfCard(StatesCard):
    """With the decoder's own size: the adapters' `rank`, `pooled_tokens`, the `words` around what it reads, and the
    most tokens of a question."""

    kind: str = "self"
    rank: int = 16
    pooled_tokens: int = 2
    words: tuple[str, str, str] = (" About", ",", ":")
    max_tokens: int = 48


def is_held_out(question: str, entity: str | None, share: float) -> bool:
    """Whether a decoder with this share of entities held out was never trained on a question: decided by the entity's
    name (the question's text where there is none) alone, so that it can be told of any question later."""
    return uniform("decoder-held-out", normalize(entity or question)) < share


def read_self_card(folder: Path) -> SelfCard:
    """The card of a decoder. Raises `OSError`, `ValueError` or `TypeError` where the folder contains none."""
    card = json.loads((folder / CARD).read_text())
    before, between, after = card.pop("words", SelfCard.words)
    return SelfCard(**card, words=(before, between, after))


class Projection(Standards):
    """States (…, D), standardised, to `count` embeddings each (…, count, E)."""

    def __init__(self, width: int, count: int, embedding: int) -> None:
        super().__init__(width)
        self.linear, self.count = nn.Linear(width, count * embedding), count

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.linear(self.standardised(states)).unflatten(-1, (self.count, -1))

    @torch.no_grad()
    def begin(self, states: torch.Tensor, targets: torch.Tensor) -> None:
        """Standardise by states (N, D), and begin at the ridge regression onto targets (N, count * E)."""
        self.measure(states)
        x = self.standardised(states)
        middle = targets.mean(0)
        gram = x.T @ x + RIDGE * len(x) * torch.eye(x.shape[1])
        self.linear.weight.copy_(torch.linalg.solve(gram, x.T @ (targets - middle)).T)
        self.linear.bias.copy_(middle)


class SelfDecoder(nn.Module):
    """`model` gets new adapters, and is the studied model again within `as_studied`. Raises `Refusal` for a model that
    can have none."""

    def __init__(self, card: SelfCard, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self.card, self.base, self._tokenizer = card, model, tokenizer
        self.adapted: Any = with_new_adapters(model, LoraSection(rank=card.rank, alpha=2 * card.rank))
        embeddings: Any = model.get_input_embeddings()
        self._embeddings, embedding_width = embeddings, embeddings.weight.shape[1]
        self.of_pooled = Projection(card.width, card.pooled_tokens, embedding_width)
        self.of_tokens = Projection(card.width, 1, embedding_width)
        ids = [ids_of(tokenizer, text, special_tokens=n == 0) for n, text in enumerate(card.words)]
        self._words = [torch.tensor(words, dtype=torch.long) for words in ids]
        self._end = end_id(tokenizer)

    def place(self, device: torch.device) -> "SelfDecoder":
        """Move what reads states to a device; the model, and its adapters with it, stay where they are, which may be
        several devices."""
        self.of_pooled.to(device)
        self.of_tokens.to(device)
        return self

    def as_studied(self) -> Any:
        """Within this context the model is the studied one, without adapters."""
        return self.adapted.disable_adapter()

    def standardised(self, states: QuestionStates) -> QuestionStates:
        """Raw states less their mean, in standard deviations, of the training states."""
        return QuestionStates(self.of_pooled.less(states.pooled), [self.of_tokens.less(t) for t in states.tokens])

    def raw(self, standardised: QuestionStates) -> QuestionStates:
        """The inverse of `standardised`."""
        tokens = [self.of_tokens.more(t) for t in standardised.tokens]
        return QuestionStates(self.of_pooled.more(standardised.pooled), tokens)

    def labels(self, question: str) -> list[int]:
        """Token ids of a space, which makes the words the same tokens as in a prompt, the question, the end token."""
        return [*ids_of(self._tokenizer, f" {question}", special_tokens=False), self._end]

    @torch.no_grad()
    def begin(self, states: QuestionStates, questions: Sequence[str], whom: Sequence[Sequence[int]]) -> None:
        """Fit both projections in closed form. `whom` are per question the ids of its tokens in `states.tokens`.

        A token's state goes to its own embedding; the pooled state's pseudo-tokens to the mean embeddings of as many
        consecutive parts of what the question says besides.
        """
        embedding = self._embeddings.weight.detach().float().cpu()
        if ids := [i for row in whom for i in row]:
            self.of_tokens.begin(torch.from_numpy(np.concatenate(states.tokens)), embedding[torch.tensor(ids)])
        targets = []
        for question, own in zip(questions, whom, strict=True):
            rest = [i for i in self.labels(question)[:-1] if i not in {*own}] or self.labels(question)[:-1]
            parts = embedding[torch.tensor(rest)].tensor_split(self.card.pooled_tokens)
            targets.append(torch.cat([p.mean(0) if len(p) else embedding.mean(0) for p in parts]))
        self.of_pooled.begin(torch.from_numpy(states.pooled), torch.stack(targets))

    def read(self, states: QuestionStates) -> list[torch.Tensor]:
        """Embeddings (T, E) of all that comes before each question."""
        device = self.of_pooled.mean.device
        before, between, after = (self._embeddings(w.to(device)) for w in self._words)
        pooled = self.of_pooled(torch.from_numpy(np.ascontiguousarray(states.pooled)).to(device))
        lengths = [len(t) for t in states.tokens]
        flat = np.concatenate([*states.tokens, np.zeros((0, self.card.width), np.float32)])
        tokens = self.of_tokens(torch.from_numpy(flat).to(device)).squeeze(-2).split(lengths)
        return [torch.cat([before, t, between, p, after]).to(before) for p, t in zip(pooled, tokens, strict=True)]

    def forward(self, states: QuestionStates, questions: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (A, V) that predict the tokens of questions, one after the other, and those tokens (A,)."""
        read = self.read(states)
        written = [torch.tensor(self.labels(q), device=read[0].device) for q in questions]
        rows = [torch.cat([r, self._embeddings(w[:-1]).to(r)]) for r, w in zip(read, written, strict=True)]
        inputs = pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(r) for r in rows], device=inputs.device)
        columns = torch.arange(inputs.shape[1], device=inputs.device)
        first = torch.tensor([len(r) - 1 for r in read], device=inputs.device)
        mask = columns < lengths.unsqueeze(-1)
        at = (mask & (columns >= first.unsqueeze(-1))).flatten().nonzero().squeeze(-1)
        with predicting(self.base, at):
            logits = self.adapted(inputs_embeds=inputs, attention_mask=mask.long(), use_cache=False).logits
        return logits_at(logits, at), torch.cat(written)

    @torch.inference_mode()
    def write(self, states: QuestionStates, ids: Sequence[str], seed: int, temperature: float) -> list[str]:
        """A question for each row. A temperature of 0 is argmax; draws depend on (seed, id) only."""
        read, most = self.read(states), self.card.max_tokens
        width, device = max(map(len, read)), read[0].device
        inputs = torch.stack([nn.functional.pad(r, (0, 0, width - len(r), 0)) for r in read])
        mask = torch.arange(width, device=device) >= width - torch.tensor([[len(r)] for r in read], device=device)
        mask, cache, tokens = mask.long(), DynamicCache(), torch.empty(len(read), 0, dtype=torch.long, device=device)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        numbers = torch.from_numpy(np.stack([uniforms(seed, i, 1, most)[0] for i in ids])).to(device)
        ended = torch.zeros(len(read), dtype=torch.bool, device=device)
        for step in range(most):
            last = torch.arange(1, len(read) + 1, device=device) * inputs.shape[1] - 1
            with predicting(self.base, last):
                passed = self.adapted(
                    inputs_embeds=inputs,
                    attention_mask=mask,
                    position_ids=positions,
                    past_key_values=cache,
                    use_cache=True,
                )
            logits = logits_at(passed.logits, last)
            chosen = logits.argmax(-1) if temperature == 0 else draw(logits, numbers[:, step], Sampling(temperature))[0]
            tokens = torch.cat([tokens, chosen.unsqueeze(-1)], -1)
            ended |= chosen == self._end
            if ended.all():
                break
            inputs, positions = self._embeddings(chosen.unsqueeze(-1)), positions[:, -1:] + 1
            mask = torch.cat([mask, mask.new_ones(len(read), 1)], -1)
        return [
            text_of(self._tokenizer, row[: row.index(self._end)] if self._end in row else row)
            for row in tokens.tolist()
        ]

    def stored(self) -> dict[str, torch.Tensor]:
        """What a decoder is, besides the studied model: adapters, projections, by name."""
        # the adapters are in `base` too, which is the same model
        own = ("of_pooled.", "of_tokens.")
        adapters = ("adapted.",)
        return {
            name: tensor
            for name, tensor in self.state_dict().items()
            if name.startswith(own) or (name.startswith(adapters) and "lora_" in name)
        }

    def save(self, folder: Path) -> None:
        """Write `decoder.safetensors`, weights in half precision, and the card `decoder.json`, last."""
        folder.mkdir(parents=True, exist_ok=True)
        # means and scales of states may be beyond half precision
        kinds = {k: torch.float32 if k.endswith((".mean", ".scale")) else torch.float16 for k in self.stored()}
        tensors = {k: v.detach().to("cpu", kinds[k]).contiguous() for k, v in self.stored().items()}
        save_file(tensors, folder / WEIGHTS)
        (folder / CARD).write_text(json.dumps(asdict(self.card), indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> "SelfDecoder":
        """The decoder that `save` wrote, around its model, in evaluation mode.

        Raises `ConfigError` where the weights are no safetensors, or do not match the card.
        """
        decoder = cls(read_self_card(folder), model, tokenizer)
        tensors = stored_weights(folder)
        wanted = {k: v.shape for k, v in decoder.stored().items()}
        if wanted != {k: v.shape for k, v in tensors.items()}:
            raise ConfigError(f"{folder}: {WEIGHTS} does not match {CARD}, or is of a model of another shape")
        decoder.load_state_dict(tensors, strict=False)
        return decoder.eval()
