"""The tree of all sections, and how a file becomes one.

In: a YAML file and `a.b=c` overrides. Out: a validated, immutable `Config`, its hash, and where two of them differ.
"""

import difflib
import hashlib
import json
import re
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError, model_validator

from ka2l_ray.config.base import Section
from ka2l_ray.config.finetuning import FinetuneSection
from ka2l_ray.config.knowing import CollectSection, DecodeSection, LabelSection, ScoreSection, SearchSection
from ka2l_ray.config.loop import AcquireSection, ActiveSection, AnnotateSection, EvaluateSection
from ka2l_ray.config.subject import CorpusSection, ModelSection, RaySection, RunSection
from ka2l_ray.config.yaml_file import read_yaml
from ka2l_ray.errors import ConfigError

NO_RESULTS = {
    *(f"{stage}.pool" for stage in ("collect", "score", "decode", "evaluate")),
    *("ray", "report", "model.device", "run.storage", "run.max_error_fraction", "search.cpus"),
    *(
        f"finetune.{name}"
        for name in ("micro_batch_rows", "gradient_checkpointing", "zero_stage", "offload", "workers")
    ),
    *(f"finetune.{name}" for name in ("cpus_per_worker", "gpus_per_worker", "checkpoint_every_steps", "max_failures")),
    *(f"finetune.{name}" for name in ("evaluate_every_epochs", "evaluate_rows", "merge", "tensorboard")),
    *(f"annotate.endpoint.{name}" for name in ("url", "replies", "key_variable", "concurrency", "requests_per_s")),
    *(f"annotate.endpoint.{name}" for name in ("timeout_s", "retries", "backoff_s")),
}
"""Sections and fields that change no number but for rounding: a run may be continued with other values."""


class ReportSection(Section):
    """The report page."""

    title: str = "What the model does not know"
    """Heading of the page, and of a comparison's."""


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

    @model_validator(mode="after")
    def _one_adapter(self) -> "Config":
        """`active.reprobe: true` and `finetune.mode: lora` with a `model.adapter`."""
        if self.active.reprobe and self.finetune.mode == "lora" and self.model.adapter is not None:
            raise ValueError(
                "active.reprobe: true with finetune.mode: lora needs model.adapter: null, for a round's own adapter takes its place; "
                "merge it into the model that model.name_or_path names, or set finetune.mode: full"
            )
        return self

    @model_validator(mode="after")
    def _engine_has_weights(self) -> "Config":
        """`collect.engine: vllm` with a `model.adapter`, a `model.quantization` or `active.reprobe: true`."""
        if self.collect.engine == "vllm" and (self.model.adapter is not None or self.active.reprobe):
            raise ValueError(
                "collect.engine: vllm reads a whole model: it needs model.adapter: null (merge it first) and active.reprobe: false"
            )
        if self.collect.engine == "vllm" and self.model.quantization != "none":
            raise ValueError(
                f"collect.engine: vllm samples from the weights as stored, while states would come from quantized ones: "
                f"it needs model.quantization: none, not {self.model.quantization}; use engine: own, or a checkpoint stored quantized"
            )
        return self

    @model_validator(mode="after")
    def _trains_quantized_weights(self) -> "Config":
        """a `model.quantization` with `finetune.mode: full`, `finetune.zero_stage: 3` or `finetune.merge: true`."""
        tune, kind = self.finetune, self.model.quantization
        if kind != "none" and (tune.mode == "full" or tune.zero_stage == 3 or tune.merge):
            raise ValueError(
                f"model.quantization = {kind}: quantized weights are not trained, not sharded and not merged into without loss (QLoRA): "
                "it needs finetune.mode: lora, finetune.zero_stage: 0, 1 or 2, and finetune.merge: false"
            )
        return self

    @model_validator(mode="after")
    def _decodes(self) -> "Config":
        """strategy `decoded` with `decode.enabled: false`."""
        if "decoded" in self.active.strategies and not self.decode.enabled:
            raise ValueError(
                "active.strategies: `decoded` buys generated questions, so it needs decode.enabled: true and a decoder"
            )
        return self

    @model_validator(mode="after")
    def _one_threshold(self) -> "Config":
        """a `collect.adaptive.threshold` with a `label.threshold` other than `otsu` or the same value."""
        stops_by, labels_by = self.collect.adaptive.threshold, self.label.threshold
        if stops_by != "off" and labels_by not in ("otsu", stops_by):
            raise ValueError(
                f"collect.adaptive.threshold = {stops_by!r} fixes γ before sampling, so label.threshold must be the same or `otsu`, "
                f"not {labels_by!r}"
            )
        return self


NO_YAML = ("*", "&", "%", "@", "`")
"""What begins no YAML value of ours, but texts such as `*.jsonl`."""


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, apply `a.b=c` overrides, validate. Raises `ConfigError` with every problem, one line each."""
    try:
        tree = read_yaml(Path(path).read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    if tree is not None and not isinstance(tree, dict):
        raise ConfigError(f"{path}: must hold sections such as `run:`, got {type(tree).__name__}")
    tree = tree or {}
    for override in overrides:
        _apply(tree, override)
    return parse_config(tree, str(path))


def parse_config(tree: dict[str, Any], source: str) -> Config:
    """Validate a plain tree; `source` names it in errors. Strict, as JSON: no value is turned into another type."""
    try:
        return Config.model_validate_json(json.dumps(tree, default=str), strict=True)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(source, e) for e in error.errors())) from None


def _apply(tree: dict[str, Any], override: str) -> None:
    dotted, equals, text = override.partition("=")
    if not equals or not dotted:
        raise ConfigError(f"--set {override}: must look like section.field=value")
    *parents, last = dotted.strip().split(".")
    for depth, name in enumerate(parents):
        if tree.get(name) is None:
            tree[name] = {}
        tree = tree[name]
        if not isinstance(tree, dict):
            raise ConfigError(f"--set {override}: `{'.'.join(parents[: depth + 1])}` is a value, not a section")
    tree[last] = text if text.startswith(NO_YAML) else read_yaml(text, f"--set {override}")


def _explain(source: str, error: Any) -> str:
    """One line for one pydantic error: file, dotted field, bad value, what is allowed, nearest name for a typo.

    What contradicts itself across sections has no field of its own; its message names them.
    """
    fields, siblings = _walk(error["loc"])
    dotted = ".".join(fields)
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(fields[-1], siblings, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"allowed here: {', '.join(siblings)}"
        return f"{source}: `{dotted}` is not a known field; {hint}"
    message = error["msg"].removeprefix("Value error, ").replace("Input should", "should")
    value = (
        "" if isinstance(error["input"], (dict, BaseModel)) else f" = {_USER_PART.sub('//…@', repr(error['input']))}"
    )
    return f"{source}: `{dotted}`{value}: {message}" if fields else f"{source}: {message}"


_USER_PART = re.compile(r"//[^/\s]*@")
"""Name and password of an address: never repeated, for they may be real."""


def _walk(location: tuple[int | str, ...]) -> tuple[list[str], list[str]]:
    """The dotted names of an error's location and the field names allowed at its last level; drops pydantic's union tags."""
    section: type[BaseModel] | None = Config
    names: list[str] = []
    siblings: list[str] = []
    for part in location:
        if section is not None:
            siblings = [f.alias or name for name, f in section.model_fields.items()]
            names.append(str(part))
            annotation = section.model_fields[str(part)].annotation if str(part) in section.model_fields else None
            section = next(
                (t for t in (annotation, *get_args(annotation)) if isinstance(t, type) and issubclass(t, Section)), None
            )
        elif isinstance(part, int):
            names.append(str(part))
    return names, siblings


def differing_fields(a: Config, b: Config) -> list[str]:
    """Dotted fields that change results and differ; cluster, pools, storage and report do not change results."""
    left, right = _flat(_results_part(a)), _flat(_results_part(b))
    return [
        f"{k}: {left.get(k)!r} → {right.get(k)!r}"
        for k in sorted(left.keys() | right.keys())
        if left.get(k) != right.get(k)
    ]


def config_hash(config: Config) -> str:
    """Hash of what results depend on."""
    return hashlib.sha256(json.dumps(_results_part(config), sort_keys=True).encode()).hexdigest()[:12]


def _results_part(config: Config) -> dict[str, Any]:
    return _without(config.model_dump(mode="json"), NO_RESULTS)


def _without(tree: dict[str, Any], paths: Set[str], prefix: str = "") -> dict[str, Any]:
    kept = {k: v for k, v in tree.items() if f"{prefix}{k}" not in paths}
    return {k: _without(v, paths, f"{prefix}{k}.") if isinstance(v, dict) else v for k, v in kept.items()}


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
