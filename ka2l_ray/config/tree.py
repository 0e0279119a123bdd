"""The tree of all sections, and how a file becomes one.

In: a YAML file and `a.b=c` overrides. Out: a validated, immutable `Config`, its hash, and the fields in which two of
them differ. Refuses to know: what any field is for.
"""

import difflib
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ka2l_ray.config.base import HOLDS_KEY, Section, section_of
from ka2l_ray.config.finetuning import FinetuneSection
from ka2l_ray.config.knowing import CollectSection, DecodeSection, LabelSection, ScoreSection, SearchSection
from ka2l_ray.config.loop import AcquireSection, ActiveSection, AnnotateSection, EvaluateSection
from ka2l_ray.config.subject import CorpusSection, ModelSection, RaySection, RunSection
from ka2l_ray.config.yaml_file import read_yaml
from ka2l_ray.errors import ConfigError

_FINETUNE = (
    "micro_batch_rows gradient_checkpointing zero_stage offload workers cpus_per_worker gpus_per_worker nodes "
    "checkpoint_every_steps max_failures evaluate_every_epochs evaluate_rows merge tensorboard"
)
_DECODER = "cpus_per_worker nodes checkpoint_every_steps max_failures"
_ENDPOINT = "url replies key_variable concurrency requests_per_s timeout_s retries backoff_s"
NO_RESULTS = {
    *"ray report model.cache model.device run.storage run.max_error_fraction run.log search.cpus search.nodes "
    "active.parallel decode.bertscore decode.reread".split(),
    *(f"{stage}.pool" for stage in ("collect", "score", "decode", "evaluate")),
    *(f"finetune.{name}" for name in _FINETUNE.split()),
    *(f"decode.training.{name}" for name in _DECODER.split()),
    *(f"annotate.endpoint.{name}" for name in _ENDPOINT.split()),
}
"""Sections and fields that change no number except for rounding: a run may continue with other values."""


class ReportSection(Section):
    """The report page."""

    title: str = "What the model does not know"
    """Heading of the page, and of a comparison's page."""


class Config(Section):
    """Everything a run depends on."""

    run: RunSection = RunSection()
    ray: RaySection = RaySection()
    model: ModelSection = ModelSection()
    corpus: CorpusSection = CorpusSection()
    collect: CollectSection = CollectSection()
    label: LabelSection = LabelSection()
    search: SearchSection = SearchSection()
    score: ScoreSection = ScoreSection()
    acquire: AcquireSection = AcquireSection()
    decode: DecodeSection = DecodeSection()
    annotate: AnnotateSection = AnnotateSection()
    finetune: FinetuneSection = FinetuneSection()
    active: ActiveSection = ActiveSection()
    evaluate: EvaluateSection = EvaluateSection()
    report: ReportSection = ReportSection()

    def contradictions(self) -> Iterator[str]:
        """`active.reprobe: true` and `finetune.mode: lora` with a `model.adapter`; `collect.engine: vllm` with a
        `model.adapter`, a `model.quantization` or `active.reprobe: true`; a `model.quantization` with `finetune.mode:
        full`, `finetune.zero_stage: 3` or `finetune.merge: true`; `evaluate.same_words: true` on the world; strategy
        `decoded` with `decode.enabled: false`; a `collect.adaptive.threshold` with a `label.threshold` other than
        `otsu` or the same value."""
        model, tune = self.model, self.finetune
        if self.active.reprobe and tune.mode == "lora" and model.adapter is not None:
            yield (
                "active.reprobe: true with finetune.mode: lora needs model.adapter: null, because each round's own "
                "adapter replaces it; merge it into the model of model.name_or_path, or set finetune.mode: full"
            )
        if self.collect.engine == "vllm" and (model.adapter is not None or self.active.reprobe):
            yield (
                "collect.engine: vllm reads a whole model: it needs model.adapter: null (merge it first) and "
                "active.reprobe: false"
            )
        if self.collect.engine == "vllm" and model.quantization != "none":
            yield (
                "collect.engine: vllm samples from the weights as stored, while states would come from quantized ones: "
                f"it needs model.quantization: none, not {model.quantization}; use engine: own, or a checkpoint "
                "that is stored quantized"
            )
        if model.quantization != "none" and (tune.mode == "full" or tune.zero_stage == 3 or tune.merge):
            yield (
                f"model.quantization = {model.quantization}: quantized weights cannot be trained or sharded, and "
                "merging into them loses precision: it needs finetune.mode: lora, finetune.zero_stage: 0, 1 or 2, and "
                "finetune.merge: false"
            )
        if self.evaluate.same_words and self.corpus.source == "world":
            yield "evaluate.same_words: true is for corpora of files; the world asks every fact in a reserved wording"
        if "decoded" in self.active.strategies and not self.decode.enabled:
            yield (
                "active.strategies: `decoded` buys generated questions, so it needs decode.enabled: true and a decoder"
            )
        stops_by, labels_by = self.collect.adaptive.threshold, self.label.threshold
        if stops_by != "off" and labels_by not in ("otsu", stops_by):
            yield (
                f"collect.adaptive.threshold = {stops_by!r} fixes γ before sampling, so label.threshold must be the "
                f"same or `otsu`, not {labels_by!r}"
            )


NO_YAML = ("*", "&", "%", "@", "`")
"""Characters that no YAML value here begins with, but texts such as `*.jsonl` do."""


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, apply `a.b=c` overrides, validate. Raises `ConfigError` with every problem, one per line."""
    try:
        tree = read_yaml(Path(path).read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: must contain sections such as `run:`, got {type(tree).__name__}")
    for override in overrides:
        _apply(tree, override)
    return parse_config(tree, str(path))


def parse_config(tree: object, source: str) -> Config:
    """Validate plain values; errors name `source`. Strict, as JSON: no value is converted to another type.

    Raises `ConfigError` with every problem, one per line.
    """
    try:
        return Config.model_validate_json(json.dumps(tree, default=str), strict=True)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(source, e) for e in error.errors())) from None


def _apply(tree: dict[str, object], override: str) -> None:
    dotted, equals, text = override.partition("=")
    if not equals or not dotted:
        raise ConfigError(f"--set {override}: must look like section.field=value")
    *parents, last = dotted.strip().split(".")
    for depth, name in enumerate(parents):
        section = tree[name] = {} if tree.get(name) is None else tree[name]
        if not isinstance(section, dict):
            raise ConfigError(f"--set {override}: `{'.'.join(parents[: depth + 1])}` is a value, not a section")
        tree = section
    tree[last] = text if text.startswith(NO_YAML) else read_yaml(text, f"--set {override}")


def _explain(source: str, error: ErrorDetails) -> str:
    """One line for one pydantic error: file, dotted field, bad value, what is allowed, nearest name for a typo.

    A contradiction across sections has no field of its own; its message names the fields. A value that contains a key
    is not repeated.
    """
    fields, siblings = _walk(error["loc"])
    dotted, value = ".".join(fields), error["input"]
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(fields[-1], siblings, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"allowed here: {', '.join(siblings)}"
        return f"{source}: `{dotted}` is not a known field; {hint}"
    message = error["msg"].removeprefix("Value error, ").replace("Input should", "should")
    if not fields:
        return f"{source}: {message}"
    shown = "…" if HOLDS_KEY.search(repr(value)) else repr(value)
    return f"{source}: `{dotted}`{'' if isinstance(value, (dict, BaseModel)) else f' = {shown}'}: {message}"


def _walk(location: tuple[int | str, ...]) -> tuple[list[str], list[str]]:
    """(names along an error's location, without pydantic's union tags; field names allowed at its last level)."""
    section: type[Section] | None = Config
    names: list[str] = []
    fields: dict[str, object] = {}
    for part in location:
        if section is not None:
            fields = {field.alias or name: field.annotation for name, field in section.model_fields.items()}
            section = section_of(fields.get(str(part)))
            names.append(str(part))
        elif isinstance(part, int):
            names.append(str(part))
    return names, list(fields)


def differing_fields(a: Config, b: Config) -> list[str]:
    """Fields that differ, as `dotted.name: a's → b's`, without those that change no result (`NO_RESULTS`)."""
    left, right = _flat(_results_part(a)), _flat(_results_part(b))
    names = sorted(left.keys() | right.keys())
    return [f"{n}: {left.get(n)!r} → {right.get(n)!r}" for n in names if left.get(n) != right.get(n)]


def config_hash(config: Config) -> str:
    """Hash of everything that results depend on, 12 hexadecimal digits."""
    return hashlib.sha256(json.dumps(_results_part(config), sort_keys=True).encode()).hexdigest()[:12]


def _results_part(config: Config) -> dict[str, object]:
    return _without_no_results(config.model_dump(mode="json"), "")


def _without_no_results(tree: dict[str, object], prefix: str) -> dict[str, object]:
    kept = {k: v for k, v in tree.items() if f"{prefix}{k}" not in NO_RESULTS}
    return {k: _without_no_results(v, f"{prefix}{k}.") if isinstance(v, dict) else v for k, v in kept.items()}


def _flat(tree: dict[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
