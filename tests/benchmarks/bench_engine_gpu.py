"""Throughput and model FLOP utilisation of the engine on an 8B-shape Llama in bfloat16, on one GPU. Unmeasured so far: no GPU was at hand.

In: a random-weight Llama in the shape of Llama-3.1-8B (`--tiny`: a few thousand weights, to see on a CPU that this runs) and random
questions of `--tokens` own tokens behind `--shared` tokens that all prompts share. Out: `results/engine_gpu.json` where there is a GPU.
Measured: scoring at four depths of the model (a quarter, a half, three quarters, all), states + greedy + 10 samples, and Hugging Face's
plain `generate` of one greedy answer over whole prompts. MFU counts 2 FLOPs per weight and token that a side has to read or write,
attention's scores left out: for ours the questions' own tokens, for plain `generate` the whole prompts.
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
from ka2l_ray.models.activations import Prompt, pad
from ka2l_ray.models.answers import Decoding
from ka2l_ray.models.batching import Limits
from ka2l_ray.models.engine import Engine
from ka2l_ray.models.generation import Generator
from ka2l_ray.models.loading import device, load_tokenizer

RESULTS = Path(__file__).parent / "results" / "engine_gpu.json"
SAMPLES, NEW_TOKENS = 10, 16


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
            "mfu": flop * rate / (arguments.peak_tflops * 1e12),
            "range_s": [min(taken), max(taken)],
        }
        print(f"{name:<34} {tokens * rate:>12,.0f} prompt tokens/s {count * rate:>10,.1f} questions/s, MFU {found['mfu']:.4f}", flush=True)
        return found

    results: dict[str, Any] = {"weights": sum(p.numel() for p in model.parameters()), "prompt_tokens": whole, "own_tokens": own}
    for layer in (depth // 4, depth // 2, 3 * depth // 4, depth):
        flop = 2.0 * block * layer * count * own
        results[f"score_{layer}"] = report(
            f"scoring, layer {layer} of {depth}", lambda n=layer: engine.states(prompts, [n]), count * own, flop
        )
    ours = written * (1 + SAMPLES)
    flop = 2.0 * (block * depth * (count * own + ours) + head * (count + ours))
    collect = report("states + greedy + 10 samples", lambda: generator(names, prompts, [depth // 2], ["last"]), count * own, flop)
    results["collect"] = collect | {"new_tokens_per_s": collect["questions_per_s"] * (1 + SAMPLES) * NEW_TOKENS}

    @torch.inference_mode()
    def theirs() -> None:
        for at in range(0, count, arguments.batch_rows):
            batch = pad(prompts[at : at + arguments.batch_rows], 0).to(model.device)
            model.generate(input_ids=batch.ids, attention_mask=batch.mask, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0)

    model.set_attn_implementation("sdpa")  # Hugging Face's own, in place of what an engine makes the model's
    flop = 2.0 * (block * depth * (count * whole + written) + head * (count + written))
    results["generate"] = report("plain generate, one greedy answer", theirs, count * whole, flop)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="a shape for a CPU; no result file is written")
    parser.add_argument("--questions", type=int, default=2048)
    parser.add_argument("--shared", type=int, default=115, help="tokens that all prompts share: instruction and five solved examples")
    parser.add_argument("--tokens", type=int, default=15, help="tokens of a question")
    parser.add_argument("--batch-rows", type=int, default=512)
    parser.add_argument("--batch-tokens", type=int, default=131_072)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak-tflops", type=float, default=989.0, help="dense bfloat16 peak of the GPU")
    arguments = parser.parse_args()
    results = measure(arguments)
    if torch.cuda.is_available() and not arguments.tiny:
        results |= {"machine": torch.cuda.get_device_name(), "command": "python tests/benchmarks/bench_engine_gpu.py"}
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
