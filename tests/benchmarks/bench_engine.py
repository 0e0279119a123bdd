"""`make bench`: the engine against straightforward baselines, as ratios from one run, sides interleaved.

In: the shipped world model and its questions. Out: `results/engine.json` and a table. Each ratio is baseline time over ours,
the median of `PAIRS` pairs with its range. Baselines are written as one would write them with Hugging Face's `generate`.
Says nothing of large models: the world model is so small that Python is a good part of both sides.
"""

import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa
import torch

from ka2l_ray.collect.actor import CollectActor
from ka2l_ray.config import CollectSection, ModelSection
from ka2l_ray.corpus.prompts import encode
from ka2l_ray.models.activations import prompt_states
from ka2l_ray.models.loading import load_blocks, load_model, load_tokenizer
from ka2l_ray.models.tokens import pad_id
from ka2l_ray.world.facts import build_world, word
from ka2l_ray.world.pretrain import PROMPT

RESULTS = Path(__file__).parent / "results" / "engine.json"
PAIRS, QUESTIONS, BATCH, LAYER, SAMPLES, NEW_TOKENS = 5, 512, 128, 3, 10, 16


def batches() -> list[list[str]]:
    texts = [word(f.attribute, 0, f.person.name) for f in build_world().facts[:QUESTIONS]]
    return [texts[i : i + BATCH] for i in range(0, len(texts), BATCH)]


class Sides:
    """Both sides of each comparison on the same model and questions."""

    def __init__(self) -> None:
        self.tokenizer, self.model = load_tokenizer(ModelSection()), load_model(ModelSection())
        self.first_blocks = load_blocks(ModelSection(), LAYER)
        self.collector = CollectActor(ModelSection(), PROMPT, CollectSection(samples=SAMPLES), [LAYER], seed=0)
        self.batches = batches()

    def score(self) -> None:
        """Blocks 1 … l of the prompt."""
        for batch in self.batches:
            prompt_states(self.first_blocks, LAYER, encode(self.tokenizer, PROMPT, batch), "last", [LAYER])

    @torch.inference_mode()
    def score_published(self) -> None:
        """Full prompt, then generation with every hidden state kept; only the prompt's are used."""
        for batch in self.batches:
            self._generate(batch, do_sample=False, output_hidden_states=True, return_dict_in_generate=True)

    def collect(self) -> None:
        """States, the greedy answer and K samples from one pass."""
        for n, batch in enumerate(self.batches):
            self.collector(pa.table({"id": [f"{n}-{i}" for i in range(len(batch))], "question": batch}))

    @torch.inference_mode()
    def collect_by_calls(self) -> None:
        """A prompt pass for the states, a greedy call, then K independent sampling calls."""
        for batch in self.batches:
            prompt_states(self.model, self.model.config.num_hidden_layers, encode(self.tokenizer, PROMPT, batch), "last", [LAYER])
            self._generate(batch, do_sample=False)
            for _ in range(SAMPLES):
                self._generate(batch, do_sample=True, temperature=1.0)

    def _generate(self, batch: list[str], **options: Any) -> None:
        encoded = encode(self.tokenizer, PROMPT, batch)
        generate: Any = self.model.generate
        generate(
            input_ids=encoded.ids, attention_mask=encoded.mask, max_new_tokens=NEW_TOKENS, pad_token_id=pad_id(self.tokenizer), **options
        )


def seconds(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def compare(name: str, ours: Callable[[], None], baseline: Callable[[], None]) -> dict[str, Any]:
    """One warm-up of each side, then pairs in turn."""
    ours()
    baseline()
    pairs = [(seconds(ours), seconds(baseline)) for _ in range(PAIRS)]
    ratios = [b / a for a, b in pairs]
    found = {
        "ratio": median(ratios),
        "range": [min(ratios), max(ratios)],
        "questions_per_s": QUESTIONS / median(a for a, _ in pairs),
        "baseline_questions_per_s": QUESTIONS / median(b for _, b in pairs),
    }
    print(f"{name:<60} {found['ratio']:.1f}x ({min(ratios):.1f} … {max(ratios):.1f}), {found['questions_per_s']:,.0f} questions/s")
    return found


def main() -> None:
    torch.set_num_threads(1)
    sides = Sides()
    results: dict[str, Any] = {"command": "make bench", "machine": platform.processor() or platform.machine(), "threads": 1, "pairs": PAIRS}
    results["score_vs_published"] = compare("scoring at the middle layer vs the published procedure", sides.score, sides.score_published)
    results["collect_vs_calls"] = compare("states + 10 samples vs prompt pass + 11 generate calls", sides.collect, sides.collect_by_calls)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
