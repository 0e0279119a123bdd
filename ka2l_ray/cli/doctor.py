"""`ka2l doctor`: what this machine has, what it lacks, and what to type.

In: only the machine. Out: a `Finding` for everything checked. Starts nothing, loads no model, writes nothing.
Refuses to know: configurations, runs.
"""

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

State = Literal["ok", "note", "missing"]
GIGABYTE = 10**9
LEAST_MEMORY, LEAST_DISK, LEAST_SHARED = 8 * GIGABYTE, 20 * GIGABYTE, 2 * GIGABYTE
HUB_TIMEOUT_S = 5.0
INSTALL_DEEPSPEED = "pip install -c constraints.txt deepspeed"


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


def _noted(name: str, good: bool, says: str, fix: str = "") -> Finding:
    """`ok`, or a note with its fix."""
    return Finding(name, "ok", says) if good else Finding(name, "note", says, fix)


def _python() -> list[Finding]:
    good = sys.version_info >= (3, 11)
    fix = "" if good else "install Python 3.11 or later"
    return [Finding("Python", "ok" if good else "missing", sys.version.split()[0], fix)]


def _packages() -> list[Finding]:
    """Every requirement of this package, with the version that is installed."""
    problems, installed = [], []
    for text in importlib.metadata.requires("ka2l-ray") or ():
        wanted = Requirement(text)
        if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            problems.append(f"{wanted.name} is not installed")
            continue
        installed.append(f"{wanted.name} {version}")
        if not wanted.specifier.contains(version, prereleases=True):
            problems.append(f"{wanted.name} {version}, but {wanted.specifier} is required")
    if problems:
        return [Finding("packages", "missing", "; ".join(problems), "pip install -c constraints.txt -e .")]
    return [Finding("packages", "ok", ", ".join(installed))]


def _extras() -> list[Finding]:
    uses = {
        "vllm": "collect.engine: vllm",
        "bitsandbytes": "model.quantization",
        "tensorboard": "viewing finetune.tensorboard",
    }
    findings = []
    for name, use in uses.items():
        installed = importlib.util.find_spec(name) is not None
        says = f"for {use}" if installed else f"not installed; only needed for {use}"
        findings.append(_noted(name, installed, says, f"pip install {name}"))
    return findings


def _ray() -> list[Finding]:
    cpus = os.cpu_count() or 1
    says = f"{cpus}; a local Ray cluster has ray.local_cpus logical CPUs (6 unless set)"
    findings = [_noted("CPUs", cpus >= 2, says)]
    if not (address := os.environ.get("RAY_ADDRESS")):
        join = "to join one: export RAY_ADDRESS=HOST:PORT"
        return [*findings, Finding("Ray cluster", "ok", "none given: every run starts a local one", join)]
    token = bool(os.environ.get("RAY_AUTH_TOKEN")) or (Path.home() / ".ray" / "auth_token").exists()
    says = f"RAY_ADDRESS = {address}, {'with' if token else 'without'} a token"
    fix = "ray get-auth-token --generate, or set RAY_AUTH_TOKEN to the cluster's"
    return [*findings, _noted("Ray cluster", token, says, fix)]


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
    tools = {"g++": "a C++ compiler", "ninja": "ninja"}
    own = Path(sys.executable).parent
    lacks = [says for tool, says in tools.items() if not shutil.which(tool) and not (own / tool).exists()]
    compiling = "can compile its own operators"
    if lacks:
        compiling = f"cannot compile its own operators ({' and '.join(lacks)} missing), which are not used"
    return [Finding("DeepSpeed", "ok", f"accelerator: {run.stdout.split()[-1]}; {compiling}")]


def _room() -> list[Finding]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    disk = shutil.disk_usage(".").free
    findings = [
        _noted("memory", memory >= LEAST_MEMORY, f"{memory / GIGABYTE:.0f} GB", "the demo needs 8 GB"),
        _noted("disk", disk >= LEAST_DISK, f"{disk / GIGABYTE:.0f} GB free here", "set run.storage to a larger disk"),
    ]
    if Path("/dev/shm").exists():
        shared = shutil.disk_usage("/dev/shm").free
        fix = "Ray's object store uses the disk instead: mount a larger /dev/shm (docker run --shm-size=8g)"
        says = f"{shared / GIGABYTE:.1f} GB free in /dev/shm"
        findings.append(_noted("shared memory", shared >= LEAST_SHARED, says, fix))
    return findings


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
            return [_noted("model hub", has_token, says, "hf auth login, or set HF_TOKEN")]
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        says = f"{constants.ENDPOINT} does not answer ({reason}); the knowledge world and local folders need no hub"
        fix = "set HTTPS_PROXY or HF_ENDPOINT, or set model.name_or_path to a folder"
        return [Finding("model hub", "note", says, fix)]


def _keys() -> list[Finding]:
    """Whether keys are set; their values are never shown."""
    annotator = bool(os.environ.get("KA2L_ANNOTATOR_KEY"))
    names = ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "GOOGLE_APPLICATION_CREDENTIALS")
    cloud = [n for n in names if os.environ.get(n)]
    says = "set" if annotator else "not set; only needed for annotate.source: endpoint"
    unset = "none in the environment; only needed for s3:// and gs:// where the machine has no role"
    return [
        _noted("annotator's key", annotator, f"KA2L_ANNOTATOR_KEY is {says}"),
        _noted("storage keys", bool(cloud), f"{', '.join(cloud)} set" if cloud else unset),
    ]


CHECKS: tuple[Callable[[], list[Finding]], ...] = (
    _python,
    _packages,
    _ray,
    _gpu,
    _deepspeed,
    _room,
    _hub,
    _keys,
    _extras,
)
