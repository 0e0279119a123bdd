"""`make bench-gpu`: throughput of the engine on an 8B-shape Llama in bfloat16 on one GPU, as a share of its peak.

Unmeasured so far: no GPU was at hand.

In: a random-weight Llama in the shape of Llama-3.1-8B (`--tiny`: a few thousand weights, to see on a CPU that this
runs) and random questions of `--tokens` own tokens behind `--shared` tokens that all prompts share. Out:
`results/engine_gpu.json` where there is a GPU. Measured: scoring at four depths of the model (a quarter, a half,
three quarters, all), states + greedy + 10 samples, and Hugging Face's plain `generate` of one greedy answer over
whole prompts. FLOPs are counted from shapes: 2 per weight and token that a side has to read or write, attention's
scores left out (half a per cent here): for ours the questions' own tokens, for plain `generate` the whole prompts.
The share is of the card's dense bfloat16 peak as its maker states it (`PEAKS`), of the fastest large product of two
matrices where the card is not listed, and on a CPU; both peaks are printed.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from bench_finetune_gpu import SHAPE, TINY
from transformers import LlamaConfig, LlamaForCausalLM

from ka2l_ray.config import ModelSection
from ka2l_ray.models.activations import pad
from ka2l_ray.models.answers import Decoding
from ka2l_ray.models.batching import Limits
from ka2l_ray.models.engine import Engine
from ka2l_ray.models.generation import Generator
from ka2l_ray.models.loading import load_tokenizer
from ka2l_ray.text.prompts import Prompt

RESULTS = Path(__file__).parent / "results" / "engine_gpu.json"
SAMPLES, NEW_TOKENS = 10, 16
PEAKS = {"NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H200": 989e12, "NVIDIA A100": 312e12, "NVIDIA L40S": 362e12}
"""FLOP/s in dense bfloat16 by torch's names of cards, from NVIDIA's data sheets: H100 and H200 for SXM, every A100, the
L40S. The PCIe and NVL cards of H100 and H200 are slower, and are measured instead."""
VARIANTS = "NVIDIA A100"
"""Its cards differ in their names by memory and socket alone."""


def device() -> torch.device:
    """The GPU of this machine if it has one: no Ray lends one here."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def stated_peak(card: str) -> float | None:
    """FLOP/s in dense bfloat16 of a card by its maker; None for a card that is not listed."""
    return PEAKS.get(VARIANTS if card.startswith(VARIANTS) else card)


def measured_peak(size: int, rounds: int = 20) -> float:
    """FLOP/s of the fastest product of two square bfloat16 matrices."""
    left, right = (torch.randn(size, size, device=device(), dtype=torch.bfloat16) for _ in range(2))
    return 2.0 * size**3 / min(seconds(lambda: left @ right, rounds))


def peak(tiny: bool) -> dict[str, Any]:
    """The card, both peaks in FLOP/s, and the one that shares are of."""
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "this machine's CPU"
    stated, measured = stated_peak(card), measured_peak(512 if tiny else 8192)
    told = f"{stated / 1e12:,.0f} by its maker" if stated else "not listed"
    print(f"{card}: peak in dense bfloat16 {told}, {measured / 1e12:,.3g} measured (TFLOP/s)", flush=True)
    return {"machine": card, "peak_stated": stated, "peak_measured": measured, "peak": stated or measured}


def random_model(tiny: bool) -> Any:
    """Random weights, made where they stay; no end token, so that every answer has all its tokens."""
    shape = (TINY | {"num_hidden_layers": 4} if tiny else SHAPE) | {
        "max_position_embeddings": 4096,
        "eos_token_id": None,
        "bos_token_id": None,
    }
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device():
            return LlamaForCausalLM(LlamaConfig.from_dict(shape)).eval()
    finally:
        torch.set_default_dtype(torch.float32)


def random_prompts(count: int, shared: int, own: int) -> list[Prompt]:
    """`shared` tokens alike, then `own` of each question's, none of them special."""
    numbers = torch.randint(10, 700, (count, own), generator=torch.Generator().manual_seed(0)).tolist()
    return [Prompt((*range(10, 10 + shared), *row), shared, shared + own) for row in numbers]


def seconds(work: Callable[[], object], rounds: int) -> list[float]:
    """Of each round, after one that warms up; the GPU has finished when the clock stops."""
    found = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        found.append(time.perf_counter() - started)
    return found[1:]


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    card = peak(arguments.tiny)
    model = random_model(arguments.tiny)
    depth, count = model.config.num_hidden_layers, arguments.questions
    block = sum(p.numel() for p in model.model.layers[0].parameters())
    head = model.config.vocab_size * model.config.hidden_size
    prompts = random_prompts(count, arguments.shared, arguments.tokens)
    whole, own = arguments.shared + arguments.tokens, arguments.tokens
    engine = Engine(model, 0, prompts[0].ids[: arguments.shared], Limits(arguments.batch_rows, arguments.batch_tokens))
    decoding = Decoding(0, SAMPLES, 1.0, 0.0, NEW_TOKENS, ())
    generator = Generator(engine, load_tokenizer(ModelSection()), decoding)
    names = [f"q{n}" for n in range(count)]
    written = count * (NEW_TOKENS - 1)

    def report(name: str, work: Callable[[], object], tokens: int, flop: float) -> dict[str, Any]:
        taken = seconds(work, arguments.rounds)
        rate = 1 / median(taken)
        found = {
            "prompt_tokens_per_s": tokens * rate,
            "questions_per_s": count * rate,
            "flop_per_s": flop * rate,
            "share_of_peak": flop * rate / card["peak"],
            "range_s": [min(taken), max(taken)],
        }
        speed = f"{tokens * rate:>12,.0f} prompt tokens/s {count * rate:>10,.1f} questions/s"
        print(
            f"{name:<34} {speed}, {flop * rate / 1e12:>8.3g} TFLOP/s: {found['share_of_peak']:.2%} of the peak",
            flush=True,
        )
        return found

    results: dict[str, Any] = card | {
        "weights": sum(p.numel() for p in model.parameters()),
        "prompt_tokens": whole,
        "own_tokens": own,
    }
    for layer in (depth // 4, depth // 2, 3 * depth // 4, depth):
        flop = 2.0 * block * layer * count * own
        results[f"score_{layer}"] = report(
            f"scoring, layer {layer} of {depth}", lambda n=layer: engine.states(prompts, [n]), count * own, flop
        )
    ours = written * (1 + SAMPLES)
    flop = 2.0 * (block * depth * (count * own + ours) + head * (count + ours))
    collect = report(
        "states + greedy + 10 samples", lambda: generator(names, prompts, [depth // 2], ["last"]), count * own, flop
    )
    results["collect"] = collect | {"new_tokens_per_s": collect["questions_per_s"] * (1 + SAMPLES) * NEW_TOKENS}

    @torch.inference_mode()
    def theirs() -> None:
        for at in range(0, count, arguments.batch_rows):
            batch = pad(prompts[at : at + arguments.batch_rows], 0).to(model.device)
            model.generate(
                input_ids=batch.ids,
                attention_mask=batch.mask,
                max_new_tokens=NEW_TOKENS,
                do_sample=False,
                pad_token_id=0,
            )

    model.set_attn_implementation("sdpa")  # Hugging Face's own, in place of what an engine makes the model's
    flop = 2.0 * (block * depth * (count * whole + written) + head * (count + written))
    results["generate"] = report("plain generate, one greedy answer", theirs, count * whole, flop)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="a shape for a CPU; no result file is written")
    parser.add_argument("--questions", type=int, default=2048)
    parser.add_argument(
        "--shared", type=int, default=115, help="tokens that all prompts share: instruction and five solved examples"
    )
    parser.add_argument("--tokens", type=int, default=15, help="tokens of a question")
    parser.add_argument("--batch-rows", type=int, default=512)
    parser.add_argument("--batch-tokens", type=int, default=131_072)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    results = measure(arguments)
    if torch.cuda.is_available() and not arguments.tiny:
        RESULTS.write_text(json.dumps(results | {"command": "make bench-gpu"}, indent=1) + "\n")


if __name__ == "__main__":
    main()
