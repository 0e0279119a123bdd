"""The frozen configuration tree: one file describes one run.

In: a YAML file and `a.b=c` overrides. Out: a validated, immutable `Config`.
Refuses to know: torch, Ray, and whether a file, model or cluster exists; it checks names, types and bounds only.
Unknown keys are errors. No validator changes a value: what the file says is what runs.
"""

from ka2l_ray.config.base import ANY_NODE, NodesSection, Pool
from ka2l_ray.config.finetuning import FinetuneSection, LoraSection, ReplaySection
from ka2l_ray.config.knowing import (
    AdaptiveSection,
    BertScoreSection,
    CollectSection,
    DecoderSearchSection,
    DecoderTrainingSection,
    DecodeSection,
    LabelSection,
    Position,
    RereadSection,
    ScoreSection,
    SearchSection,
    VllmSection,
)
from ka2l_ray.config.loop import (
    AcquireSection,
    ActiveSection,
    AnnotateSection,
    EndpointSection,
    EvaluateSection,
    Quadrant,
    StopSection,
    Strategy,
)
from ka2l_ray.config.subject import (
    TEMPLATED,
    CorpusSection,
    DriverSection,
    Format,
    HubSection,
    ModelSection,
    PromptSection,
    RaySection,
    RewordingsSection,
    RunSection,
    SplitSection,
    WorldCorpusSection,
)
from ka2l_ray.config.tree import (
    NO_RESULTS,
    Config,
    ReportSection,
    config_hash,
    differing_fields,
    load_config,
    parse_config,
)
from ka2l_ray.config.yaml_file import read_yaml
from ka2l_ray.errors import ConfigError

__all__ = [
    "ANY_NODE",
    "NO_RESULTS",
    "TEMPLATED",
    "AcquireSection",
    "ActiveSection",
    "AdaptiveSection",
    "AnnotateSection",
    "BertScoreSection",
    "CollectSection",
    "Config",
    "ConfigError",
    "CorpusSection",
    "DecodeSection",
    "DecoderSearchSection",
    "DecoderTrainingSection",
    "DriverSection",
    "EndpointSection",
    "EvaluateSection",
    "FinetuneSection",
    "Format",
    "HubSection",
    "LabelSection",
    "LoraSection",
    "ModelSection",
    "NodesSection",
    "Pool",
    "Position",
    "PromptSection",
    "Quadrant",
    "RaySection",
    "ReplaySection",
    "ReportSection",
    "RereadSection",
    "RewordingsSection",
    "RunSection",
    "ScoreSection",
    "SearchSection",
    "SplitSection",
    "StopSection",
    "Strategy",
    "VllmSection",
    "WorldCorpusSection",
    "config_hash",
    "differing_fields",
    "load_config",
    "parse_config",
    "read_yaml",
]
