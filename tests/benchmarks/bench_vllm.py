"""`make bench-vllm`: states, greedy answer and ten samples by our engine against vLLM's ten samples, on the same CPU.

In: the model and questions of `bench_model`, in the environment of `make test-vllm`. Out: `vllm` in
`results/engine.json`. vLLM has its prefix cache, emptied before each round, so that no round finds the prompts of the
one before; one thread on each side. The ratio is vLLM's time over ours. It says nothing
about GPUs, for which vLLM is made.
"""

import os

os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}

import json
import tempfile
from pathlib import Path

import torch
from bench_engine import NEW_TOKENS, RESULTS, SAMPLED, SAMPLES, Sides, compare
from vllm import LLM, SamplingParams  # type: ignore[import-not-found]


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        sides = Sides(Path(folder))
        llm = LLM(
            model=folder,
            dtype="float32",
            enable_prefix_caching=True,
            enable_chunked_prefill=False,
            max_model_len=512,
            max_num_seqs=SAMPLED * SAMPLES,
        )
        torch.set_num_threads(1)
        asked = [{"prompt_token_ids": list(p.ids)} for p in sides.prompts(sides.texts[:SAMPLED])]
        sampling = SamplingParams(n=SAMPLES, temperature=1.0, max_tokens=NEW_TOKENS, seed=0)

        def theirs() -> None:
            llm.reset_prefix_cache()
            llm.generate(asked, sampling, use_tqdm=False)

        found = compare(
            "states + greedy + 10 samples vs vLLM's 10 samples alone",
            sides.collect,
            theirs,
            SAMPLED,
            sides.flop_collect(),
        )
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps(results | {"vllm": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
