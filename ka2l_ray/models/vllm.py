"""vLLM as the sampling engine: answers from `vllm.LLM`, states from the project's own engine, so a question is read twice.

In: prompts and ids, as `generation.Generator` takes them. Out: the same `Reading`. The shared prefix is vLLM's own prefix caching.
A seed gives the same answers on the same machine and batch only; `generation` promises more.
Refuses to know: tables, Ray, what answers mean. vLLM is imported when a generator is made, for it is an extra.
"""

import hashlib
import importlib
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from transformers import AutoConfig, PreTrainedTokenizerBase

from ka2l_ray.config import ConfigError, ModelSection, VllmSection
from ka2l_ray.dataflow.failures import ActorBroken, named
from ka2l_ray.dataflow.placement import CPU, Placement
from ka2l_ray.dataflow.tally import Tally
from ka2l_ray.models.answers import Answer, Decoding, Ending, Reading
from ka2l_ray.models.engine import Engine, Reach
from ka2l_ray.models.loading import model_path
from ka2l_ray.text.prompts import Prompt

ON_CPU = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
"""Gibibytes of cache, and no pinning of threads to cores that other actors use; an environment that says otherwise is kept."""


class VllmGenerator:
    """`states` reads the wanted layers of the same model, None where none are wanted. Raises `ConfigError` where vLLM is not installed,
    is built for another device than `placement`'s or cannot use that.

    `tally` counts both readings of a prompt, the answers' without the tokens that vLLM found in its own prefix cache.
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
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # the actor is the process that holds the model
        if not placement.on_gpu:
            for name, value in ON_CPU.items():
                os.environ.setdefault(name, value)
        try:
            self._vllm: Any = importlib.import_module("vllm")
        except ImportError as error:
            raise ConfigError(
                f"collect.engine: vllm needs vLLM where actors run: pip install 'ka2l-ray[vllm]' ({error})"
            ) from error
        _refuse_other_build(placement)
        path = model_path(model)
        config = AutoConfig.from_pretrained(
            path, revision=model.revision or "main", trust_remote_code=model.trust_remote_code
        )
        stored = str(config.get_text_config().dtype or "auto").removeprefix(
            "torch."
        )  # vLLM's own `auto` halves float32
        self._llm = self._vllm.LLM(
            model=path,
            revision=model.revision,
            trust_remote_code=model.trust_remote_code,
            dtype=stored if model.dtype == "auto" else model.dtype,
            tensor_parallel_size=section.tensor_parallel,
            gpu_memory_utilization=section.memory_share,
            max_model_len=section.context,
            enforce_eager=section.eager,
            enable_prefix_caching=True,
            enable_chunked_prefill=None
            if placement.on_gpu
            else False,  # on a CPU a seeded request must not be cut in two
            seed=decoding.seed,
        )
        self._reach = Reach.of(config, config.get_text_config().vocab_size)
        if section.context is not None:
            self._reach = replace(self._reach, context=section.context)
        self._ending = Ending(tokenizer, self._llm.get_default_sampling_params().stop_token_ids, decoding.stop)
        self._states, self._decoding = states, decoding
        self.tally = states.tally if states else Tally()

    def __call__(
        self, ids: Sequence[str], prompts: Sequence[Prompt], layers: Sequence[int] = (), positions: Sequence[str] = ()
    ) -> Reading:
        """Read the prompts for their states, then again for their answers. `ids` name the questions in the draw."""
        reading = Reading({}, [[] for _ in prompts], self._refused(prompts))
        if self._states:
            reading.states, failed = self._states.states(prompts, layers, positions)
            reading.failed |= failed
        else:
            self.tally.questions += len(prompts) - len(reading.failed)
        rows = [n for n in range(len(prompts)) if n not in reading.failed]
        asked = [{"prompt_token_ids": list(prompts[n].ids)} for n in rows]
        for answers in (self._said(asked, [self._drawn(ids[n], greedy) for n in rows]) for greedy in (True, False)):
            for row, written in zip(rows, answers, strict=True):
                reading.answers[row] += written
        return reading

    def _refused(self, prompts: Sequence[Prompt]) -> dict[int, Exception]:
        failed: dict[int, Exception] = {}
        for row, prompt in enumerate(prompts):
            try:
                self._reach.check(prompt, self._decoding.max_new_tokens)
            except ValueError as error:
                failed[row] = error
        return failed

    def _drawn(self, question_id: str, greedy: bool) -> Any:
        """vLLM's parameters for a question's greedy answer or its K samples; log-probabilities are the raw model's."""
        d = self._decoding
        digest = hashlib.blake2b(f"{d.seed}\x1f{question_id}\x1f{greedy}".encode(), digest_size=4).digest()
        return self._vllm.SamplingParams(
            n=1 if greedy else d.samples,
            temperature=d.greedy_temperature if greedy else d.temperature,
            max_tokens=d.max_new_tokens,
            stop=list(d.stop),
            stop_token_ids=sorted(self._ending.tokens),
            seed=int.from_bytes(digest, "big"),
            logprobs=0,
        )

    def _said(self, asked: list[dict[str, Any]], parameters: list[Any]) -> list[list[Answer]]:
        if not asked or not parameters[0].n:
            return [[] for _ in asked]
        started = time.monotonic()
        try:
            outputs = self._llm.generate(asked, parameters, use_tqdm=False)
        except Exception as error:  # prompts are checked before, so it is the engine's own, which holds its unfinished requests for good
            raise ActorBroken(named(error)) from error
        self.tally.model_s += time.monotonic() - started
        for prompt, output in zip(asked, outputs, strict=True):
            cached = output.num_cached_tokens or 0
            self.tally.prompt_tokens += len(prompt["prompt_token_ids"]) - cached
            self.tally.prefix_tokens_saved += cached
            self.tally.generated_tokens += sum(len(o.token_ids) for o in output.outputs)
        return [[self._answer(o) for o in output.outputs] for output in outputs]

    def _answer(self, output: Any) -> Answer:
        tokens = list(output.token_ids)
        logprobs = [step[token].logprob for token, step in zip(tokens, output.logprobs, strict=True)]
        answer = self._ending.close(tokens, logprobs, last=True) if tokens else None
        return answer or Answer("", 0.0, 0)


def _refuse_other_build(placement: Placement) -> None:
    """vLLM computes where it was built for: a CUDA build takes a GPU that it sees, allotted or not, and one for CPUs takes none."""
    platform: Any = importlib.import_module("vllm.platforms").current_platform
    if placement.on_gpu == bool(platform.is_cpu()):
        built, wanted = ("CPUs", "GPUs") if placement.on_gpu else ("GPUs", "the CPU")
        raise ConfigError(
            f"collect.engine: vllm: the actor was placed on {wanted} by collect.pool.gpus and model.device, and this vLLM is built for "
            f"{built}; change these, install vLLM's other build, or set collect.engine: own"
        )
