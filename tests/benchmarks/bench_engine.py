"""`make bench`: the engine against straightforward implementations of the published procedure, as ratios from one run.

In: the model and questions of `bench_model`. Out: `results/engine.json` and a table. Sides are interleaved; each
ratio is the baseline's time over ours, the median of `PAIRS` pairs with its range. Both sides run the same weights,
questions and threads (one). Baselines are written as one would write them with Hugging Face: full prompts left-padded
in batches of `BATCH`, `generate` for answers.
"""

import json
import platform
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa
import torch
from bench_model import build, prompt, questions
from transformers import AutoModelForCausalLM

from ka2l_ray.collect.actor import CollectActor, CollectSetup
from ka2l_ray.config import CollectSection, ModelSection
from ka2l_ray.models.activations import Encoded, pad
from ka2l_ray.models.batching import Limits
from ka2l_ray.models.engine import Engine
from ka2l_ray.models.loading import load_blocks, load_tokenizer
from ka2l_ray.models.prompts import Tokenize
from ka2l_ray.text.prompts import Prompter
from ka2l_ray.text.tokens import pad_id

RESULTS = Path(__file__).parent / "results" / "engine.json"
PAIRS, BATCH, SAMPLES, NEW_TOKENS = 5, 32, 10, 16
OURS = 32
"""Rows of a batch on our side: about 400 tokens, whose activations stay in a core's cache. The baselines' batches of
whole prompts are equally fast with 4, 8 or 32 rows."""
SCORED, SAMPLED = 128, 32
"""Questions of a round of scoring, and of collecting with samples."""


class Sides:
    """Both sides of each comparison on the same model and questions."""

    def __init__(self, folder: Path) -> None:
        section = ModelSection(name_or_path=build(folder))
        self.tokenizer = load_tokenizer(section)
        self.prompts = Prompter(self.tokenizer, prompt())
        self.texts = questions(SCORED)
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
        self.layer = self.model.config.num_hidden_layers // 2
        self.scorer = Engine(
            load_blocks(section, self.layer), pad_id(self.tokenizer), self.prompts.shared, Limits(rows=OURS)
        )
        collect = CollectSection(samples=SAMPLES, max_new_tokens=NEW_TOKENS)
        self.tokenize = Tokenize(section, prompt())
        limits, layers = Limits(rows=OURS), [self.layer]
        self.collector = CollectActor(
            CollectSetup(model=section, prompt=prompt(), collect=collect, layers=layers, seed=0, limits=limits)
        )

    def score(self) -> None:
        """Blocks 1 … l of each question's own tokens, tokenization included."""
        self.scorer.states(self.prompts(self.texts), [self.layer])

    def collect(self) -> None:
        """States, the greedy answer and K samples from one pass."""
        self.collector(
            self.tokenize.add(pa.table({"id": [str(i) for i in range(SAMPLED)], "question": self.texts[:SAMPLED]}))
        )

    @torch.inference_mode()
    def prompt_passes(self, count: int = SCORED) -> None:
        """The whole prompt through all layers."""
        for batch in self._batches(count):
            self.model(**batch.inputs(), output_hidden_states=True, use_cache=False, logits_to_keep=1)

    @torch.inference_mode()
    def published(self) -> None:
        """Generation with every hidden state kept; only the prompt's are used."""
        for batch in self._batches(SCORED):
            self._generate(batch, do_sample=False, output_hidden_states=True, return_dict_in_generate=True)

    @torch.inference_mode()
    def pass_and_calls(self) -> None:
        """A prompt pass for the states, then K independent sampling calls."""
        self.prompt_passes(SAMPLED)
        for batch in self._batches(SAMPLED):
            for _ in range(SAMPLES):
                self._generate(batch, do_sample=True, temperature=1.0)

    def _own_tokens(self) -> list[int]:
        return [len(r.ids) - len(self.prompts.shared) for r in self.prompts(self.texts)]

    def tokens(self) -> dict[str, float]:
        """Mean tokens of a prompt, of what all prompts share, and of a question's own part."""
        own = sum(self._own_tokens()) / SCORED
        return {"prompt": len(self.prompts.shared) + own, "shared": len(self.prompts.shared), "own": own}

    def flop_score(self) -> float:
        """What one round of scoring has to multiply, attention's scores left out."""
        return 2.0 * self._block() * self.layer * sum(self._own_tokens())

    def flop_collect(self) -> float:
        """The same for collecting: prompts once, then an answer's tokens but the last; the head for each token."""
        config, answers = self.model.config, SAMPLED * (1 + SAMPLES) * (NEW_TOKENS - 1)
        blocks = self._block() * config.num_hidden_layers * (sum(self._own_tokens()[:SAMPLED]) + answers)
        return 2.0 * (blocks + config.vocab_size * config.hidden_size * (SAMPLED + answers))

    def _block(self) -> int:
        return sum(p.numel() for p in self.model.model.layers[0].parameters())

    def _batches(self, count: int) -> list[Encoded]:
        rows = self.prompts(self.texts[:count])
        return [pad(rows[i : i + BATCH], pad_id(self.tokenizer)) for i in range(0, count, BATCH)]

    def _generate(self, batch: Encoded, **options: Any) -> None:
        self.model.generate(
            input_ids=batch.ids,
            attention_mask=batch.mask,
            max_new_tokens=NEW_TOKENS,
            pad_token_id=pad_id(self.tokenizer),
            **options,
        )


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def matrix_flops() -> float:
    """FLOP/s of this machine's own large matrix product in float32, on the same threads."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    return 2 * 2048**3 / min(seconds(lambda: torch.mm(a, b)) for _ in range(3))


def compare(
    name: str, ours: Callable[[], object], baseline: Callable[[], object], count: int, flop: float
) -> dict[str, Any]:
    """A warm-up of each side, then pairs in turn, each next to a matrix product; `flop` is that of a round of ours."""
    ours()
    baseline()
    rounds = [(seconds(ours), seconds(baseline), matrix_flops()) for _ in range(PAIRS)]
    ratios = [b / a for a, b, _ in rounds]
    shares = [flop / a / peak for a, _, peak in rounds]
    found = {
        "ratio": median(ratios),
        "range": [min(ratios), max(ratios)],
        "questions_per_s": count / median(a for a, _, _ in rounds),
        "baseline_questions_per_s": count / median(b for _, b, _ in rounds),
        "share_of_matrix_product": median(shares),
        "matrix_gflop_per_s": median(peak for _, _, peak in rounds) / 1e9,
    }
    print(
        f"{name:<62} {found['ratio']:5.1f}x ({min(ratios):.1f} … {max(ratios):.1f}), "
        f"{found['questions_per_s']:,.1f} questions/s, "
        f"{found['share_of_matrix_product']:.0%} of the matrix product's FLOP/s",
        flush=True,
    )
    return found


def profile(work: Callable[[], object]) -> dict[str, float]:
    """Shares of a round's wall time by kind of torch operation; `outside torch` is Python, tokenizing and NumPy."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as trace:
        wall = seconds(work) * 1e6
    kinds = {
        "matrix products": ("mm", "addmm", "bmm", "baddbmm"),
        "attention": ("attention", "softmax"),
        "copies": ("copy", "cat", "index"),
    }
    spent: dict[str, float] = defaultdict(float)
    for event in trace.key_averages():
        kind = next(
            (k for k, words in kinds.items() if any(w in event.key for w in words)), "element by element, norms, rest"
        )
        spent[kind] += event.self_cpu_time_total
    spent["outside torch"] = max(0.0, wall - sum(spent.values()))
    return {kind: round(part / wall, 3) for kind, part in sorted(spent.items(), key=lambda x: -x[1])}


def main() -> None:
    torch.set_num_threads(1)
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results |= {
        "command": "make bench",
        "machine": platform.processor() or platform.machine(),
        "threads": 1,
        "pairs": PAIRS,
    }
    with tempfile.TemporaryDirectory() as folder:
        sides = Sides(Path(folder))
        results["model"] = {"parameters": sum(p.numel() for p in sides.model.parameters()), "layer": sides.layer}
        results["tokens"] = sides.tokens()
        print(json.dumps(results["tokens"]))
        for key, name, ours, baseline, count, flop in (
            (
                "score_vs_published",
                "scoring, middle layer vs published procedure",
                sides.score,
                sides.published,
                SCORED,
                sides.flop_score(),
            ),
            (
                "score_vs_prompt_pass",
                "scoring, middle layer vs full prompt pass alone",
                sides.score,
                sides.prompt_passes,
                SCORED,
                sides.flop_score(),
            ),
            (
                "collect_vs_calls",
                "states + greedy + 10 samples vs prompt pass + 10 generate calls",
                sides.collect,
                sides.pass_and_calls,
                SAMPLED,
                sides.flop_collect(),
            ),
        ):
            if len(sys.argv) < 2 or key in sys.argv[1:]:
                results[key] = compare(name, ours, baseline, count, flop)
                RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        results["profile"] = {"score": profile(sides.score), "collect": profile(sides.collect)}
        print(json.dumps(results["profile"], indent=1))
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
