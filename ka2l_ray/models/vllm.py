"""vLLM as the sampling engine: answers from `vllm.LLM`, states from this package's own engine, so each prompt is read
twice.

In: prompts and ids, as for `generation.Generator`. Out: the same `GenerationResult`. The shared prefix is vLLM's own
prefix caching. A seed gives the same answers only on the same machine and in the same batch; `generation` promises
more.
Refuses to know: tables, Ray, what answers mean. vLLM is an extra, so it is imported only when a generator is made.
"""

import hashlib
import importlib
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from ka2l_ray.config import ConfigError, ModelSection, VllmSection
from ka2l_ray.dataflow.failures import ActorBroken, named
from ka2l_ray.dataflow.placement import CPU, Placement
from ka2l_ray.dataflow.tally import Tally
from ka2l_ray.models.answers import Answer, Decoding, GenerationResult, StopCriteria
from ka2l_ray.models.engine import Engine, PromptLimits
from ka2l_ray.models.loading import configuration, local_folder
from ka2l_ray.text.prompts import Prompt

CPU_ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
"""Defaults on a CPU: 1 GiB of KV cache, and no threads pinned to cores that other actors use."""


class VllmGenerator:
    """`states` reads the wanted layers of the same model; None where no layers are wanted.

    `tally` counts both readings of a prompt, the second without the tokens that vLLM found in its prefix cache. Raises
    `ConfigError` where vLLM is not installed, is built for another device than `placement`'s, or cannot use that
    device.
    """

    def __init__(
        self,
        model: ModelSection,
        section: VllmSection,
        tokenizer: PreTrainedTokenizerBase,
        decoding: Decoding,
        states: Engine | None,
        placement: Placement = CPU,
    ) -> None:
        placement.check()
        # The actor is the process that holds the model.
        defaults = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"} | ({} if placement.on_gpu else CPU_ENVIRONMENT)
        for name, value in defaults.items():
            os.environ.setdefault(name, value)
        try:
            self._vllm: Any = importlib.import_module("vllm")
        except ImportError as error:
            raise ConfigError(
                f"collect.engine: vllm needs vLLM on every node with actors: pip install 'ka2l-ray[vllm]' ({error})"
            ) from error
        _check_build(placement)
        config = configuration(model)
        stored = str(config.get_text_config().dtype or "auto").removeprefix("torch.")
        self._llm = self._vllm.LLM(
            model=local_folder(model),
            revision=model.revision,
            trust_remote_code=model.trust_remote_code,
            load_format="safetensors",  # by default also pickled weights
            dtype=stored if model.dtype == "auto" else model.dtype,  # vLLM's own `auto` halves float32
            tensor_parallel_size=section.tensor_parallel,
            gpu_memory_utilization=section.memory_share,
            max_model_len=section.context,
            enforce_eager=section.eager,
            enable_prefix_caching=True,
            # On a CPU a request with a seed must not be split in two.
            enable_chunked_prefill=None if placement.on_gpu else False,
            seed=decoding.seed,
        )
        limits = PromptLimits.of(config, config.get_text_config().vocab_size)
        self._prompt_limits = limits if section.context is None else replace(limits, context=section.context)
        end_tokens = self._llm.get_default_sampling_params().stop_token_ids
        self._stop = StopCriteria(tokenizer, end_tokens, decoding.stop, decoding.thinks)
        self._states, self._decoding = states, decoding
        self.tally = states.tally if states else Tally()

    def __call__(
        self, ids: Sequence[str], prompts: Sequence[Prompt], layers: Sequence[int] = (), positions: Sequence[str] = ()
    ) -> GenerationResult:
        """Read the prompts for their states, then again for their answers. `ids` name the questions in the draw.

        Raises `ActorBroken` where vLLM's engine fails, and what `Engine.states` raises.
        """
        rejected = self._prompt_limits.rejected(prompts, self._decoding.max_new_tokens)
        result = GenerationResult({}, [[] for _ in prompts], rejected)
        if self._states:
            result.states, failed = self._states.states(prompts, layers, positions)
            result.failed |= failed
        else:
            self.tally.questions += len(prompts) - len(rejected)
        rows = [n for n in range(len(prompts)) if n not in result.failed]
        requests = [{"prompt_token_ids": list(prompts[n].ids)} for n in rows]
        for greedy in (True, False):
            generated = self._generate(requests, [self._sampling_params(ids[n], greedy) for n in rows])
            for row, answers in zip(rows, generated, strict=True):
                result.answers[row] += answers
        return result

    def _sampling_params(self, question_id: str, greedy: bool) -> Any:
        """vLLM's parameters for a question's greedy answer or its K samples; log-probabilities are the raw model's."""
        d, stop, sampling = self._decoding, self._stop, self._decoding.draws[0 if greedy else 1]
        digest = hashlib.blake2b(f"{d.seed}\x1f{question_id}\x1f{greedy}".encode(), digest_size=4).digest()
        return self._vllm.SamplingParams(
            n=1 if greedy else d.samples,
            temperature=sampling.temperature,
            top_k=sampling.top_k or 0,  # 0: all tokens
            top_p=sampling.top_p,
            min_p=sampling.min_p,
            max_tokens=d.max_new_tokens,
            # vLLM would stop inside a thought or before an answer; `_answer` cuts where the answer ends.
            stop=[] if stop.has_late_strings else list(stop.strings),
            stop_token_ids=sorted(stop.end_tokens if d.thinks else stop.end_tokens | stop.turn_ends),
            seed=int.from_bytes(digest, "big"),
            logprobs=0,
        )

    def _generate(self, requests: list[dict[str, list[int]]], parameters: list[Any]) -> list[list[Answer]]:
        if not requests or not parameters[0].n:
            return [[] for _ in requests]
        started = time.monotonic()
        try:
            outputs = self._llm.generate(requests, parameters, use_tqdm=False)
        except Exception as error:
            # Prompts were checked, so the engine itself failed, and it keeps its unfinished requests.
            raise ActorBroken(named(error)) from error
        self.tally.model_s += time.monotonic() - started
        for request, output in zip(requests, outputs, strict=True):
            cached = output.num_cached_tokens or 0
            self.tally.prompt_tokens += len(request["prompt_token_ids"]) - cached
            self.tally.prefix_tokens_saved += cached
            self.tally.generated_tokens += sum(len(o.token_ids) for o in output.outputs)
        return [[self._answer(o) for o in output.outputs] for output in outputs]

    def _answer(self, output: Any) -> Answer:
        tokens = list(output.token_ids)
        logprobs = [step[token].logprob for token, step in zip(tokens, output.logprobs, strict=True)]
        answer = self._stop.finish(tokens, logprobs, at_limit=True) if tokens else None
        return answer or Answer("", 0.0, 0)


def _check_build(placement: Placement) -> None:
    """vLLM computes on the device that it was built for: a CUDA build takes a GPU that it sees, allotted or not; a CPU
    build takes none."""
    platform: Any = importlib.import_module("vllm.platforms").current_platform
    if placement.on_gpu == bool(platform.is_cpu()):
        built, wanted = ("CPUs", "GPUs") if placement.on_gpu else ("GPUs", "the CPU")
        raise ConfigError(
            f"collect.engine: vllm: the actor was placed on {wanted} by collect.pool.gpus and model.device, "
            f"but this vLLM is built for {built}; change these settings, install vLLM's other build, or set "
            "collect.engine: own"
        )
