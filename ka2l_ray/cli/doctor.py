"""`ka2l doctor`: what this machine has, what it lacks, and what to type.

In: nothing but the machine. Out: one `Finding` per thing looked at. Starts nothing, loads no model, writes nothing.
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


@dataclass(frozen=True)
class Finding:
    """`missing`: something will not run without it; `note`: worth knowing. `fix` says what to type."""

    name: str
    state: State
    says: str
    fix: str = ""


def examine() -> list[Finding]:
    """Everything, in the order in which things are needed."""
    found: list[Finding] = []
    for look in LOOKS:
        try:
            found += look()
        except Exception as error:  # a broken installation is what this command is for
            found.append(
                Finding(
                    look.__name__.strip("_"),
                    "missing",
                    f"{type(error).__name__}: {error}",
                    "reinstall: make .venv/.ready",
                )
            )
    return found


def _python() -> list[Finding]:
    version = sys.version.split()[0]
    good = sys.version_info >= (3, 11)
    return [Finding("Python", "ok" if good else "missing", version, "" if good else "install Python 3.11 or later")]


def _packages() -> list[Finding]:
    """Every requirement of this package at the version that is installed."""
    lacks, held = [], []
    for text in importlib.metadata.requires("ka2l-ray") or ():
        wanted = Requirement(text)
        if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            lacks.append(f"{wanted.name} is not installed")
            continue
        held.append(f"{wanted.name} {version}")
        if not wanted.specifier.contains(version, prereleases=True):
            lacks.append(f"{wanted.name} {version}, {wanted.specifier} is wanted")
    if lacks:
        return [Finding("packages", "missing", "; ".join(lacks), "pip install -c constraints.txt -e .")]
    return [Finding("packages", "ok", ", ".join(held))]


def _extras() -> list[Finding]:
    uses = {
        "vllm": "collect.engine: vllm",
        "bitsandbytes": "model.quantization",
        "tensorboard": "looking at finetune.tensorboard",
    }
    found = []
    for name, use in uses.items():
        there = importlib.util.find_spec(name) is not None
        says = f"for {use}" if there else f"not installed; only for {use}"
        found.append(Finding(name, "ok" if there else "note", says, "" if there else f"pip install {name}"))
    return found


def _ray() -> list[Finding]:
    cpus = os.cpu_count() or 1
    found = [
        Finding(
            "CPUs",
            "ok" if cpus >= 2 else "note",
            f"{cpus}; a local Ray takes ray.local_cpus logical ones (6 unless set)",
        )
    ]
    address = os.environ.get("RAY_ADDRESS")
    token = os.environ.get("RAY_AUTH_TOKEN") or (Path.home() / ".ray" / "auth_token").exists()
    if address:
        found.append(
            Finding(
                "Ray cluster",
                "ok" if token else "note",
                f"RAY_ADDRESS = {address}, {'with' if token else 'without'} a token",
                "" if token else "ray get-auth-token --generate, or set RAY_AUTH_TOKEN to the cluster's",
            )
        )
    else:
        found.append(
            Finding(
                "Ray cluster",
                "ok",
                "none given: every run starts a local one",
                "to join one: export RAY_ADDRESS=HOST:PORT",
            )
        )
    return found


def _gpu() -> list[Finding]:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_properties(n) for n in range(torch.cuda.device_count())]
        return [Finding("GPU", "ok", ", ".join(f"{p.name}, {p.total_memory / GIGABYTE:.0f} GB" for p in names))]
    if shutil.which("nvidia-smi"):
        shown = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20)
        if shown.returncode == 0 and shown.stdout.strip():
            wheel = f"torch {torch.__version__} was built for CUDA {torch.version.cuda or 'none'}"
            fix = "install a CUDA build of torch: https://pytorch.org/get-started"
            return [
                Finding(
                    "GPU", "missing", f"{shown.stdout.splitlines()[0]} is there, but torch cannot use it; {wheel}", fix
                )
            ]
    return [Finding("GPU", "note", "none: models run on the CPU, which suits the knowledge world and little else")]


def _deepspeed() -> list[Finding]:
    if importlib.util.find_spec("deepspeed") is None:
        return [
            Finding(
                "DeepSpeed",
                "missing",
                "not installed; fine-tuning needs it",
                "pip install -c constraints.txt deepspeed",
            )
        ]
    code = "from deepspeed.accelerator import get_accelerator; print(get_accelerator().device_name())"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    if run.returncode:
        return [
            Finding(
                "DeepSpeed",
                "missing",
                (run.stderr.strip().splitlines() or ["does not load"])[-1],
                "pip install -c constraints.txt deepspeed",
            )
        ]
    tools = {"g++": "a C++ compiler", "ninja": "ninja"}
    lacks = [
        says
        for tool, says in tools.items()
        if not shutil.which(tool) and not (Path(sys.executable).parent / tool).exists()
    ]
    compiling = (
        f"cannot compile its own operators ({' and '.join(lacks)} missing); none is used"
        if lacks
        else "can compile its own operators"
    )
    return [Finding("DeepSpeed", "ok", f"accelerator: {run.stdout.split()[-1]}; {compiling}")]


def _room() -> list[Finding]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    disk, shared = (
        shutil.disk_usage(".").free,
        shutil.disk_usage("/dev/shm").free if Path("/dev/shm").exists() else None,
    )
    found = [
        Finding(
            "memory",
            "ok" if memory >= LEAST_MEMORY else "note",
            f"{memory / GIGABYTE:.0f} GB",
            "" if memory >= LEAST_MEMORY else "the demo wants 8 GB",
        ),
        Finding(
            "disk",
            "ok" if disk >= LEAST_DISK else "note",
            f"{disk / GIGABYTE:.0f} GB free here",
            "" if disk >= LEAST_DISK else "set run.storage to a larger disk",
        ),
    ]
    if shared is not None:
        good = shared >= LEAST_SHARED
        fix = (
            "" if good else "Ray's object store falls back to disk: mount a larger /dev/shm (docker run --shm-size=8g)"
        )
        found.append(
            Finding("shared memory", "ok" if good else "note", f"{shared / GIGABYTE:.1f} GB free in /dev/shm", fix)
        )
    return found


def _hub() -> list[Finding]:
    from huggingface_hub import constants, get_token

    token = "with a token" if get_token() else "without a token, which gated models such as Llama need"
    fix = "" if get_token() else "hf auth login, or set HF_TOKEN"
    if constants.HF_HUB_OFFLINE:
        return [
            Finding("model hub", "note", f"HF_HUB_OFFLINE is set: only what is in {constants.HF_HUB_CACHE} can be used")
        ]
    try:
        with urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=HUB_TIMEOUT_S):
            return [Finding("model hub", "ok" if not fix else "note", f"{constants.ENDPOINT} answers, {token}", fix)]
    except (urllib.error.URLError, OSError) as error:
        says = f"{constants.ENDPOINT} does not answer ({getattr(error, 'reason', error)}); the knowledge world and local folders need no hub"
        return [
            Finding("model hub", "note", says, "set HTTPS_PROXY or HF_ENDPOINT, or give model.name_or_path a folder")
        ]


def _keys() -> list[Finding]:
    annotator = bool(os.environ.get("KA2L_ANNOTATOR_KEY"))
    cloud = [n for n in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "GOOGLE_APPLICATION_CREDENTIALS") if os.environ.get(n)]
    return [
        Finding(
            "annotator's key",
            "ok" if annotator else "note",
            "KA2L_ANNOTATOR_KEY is set"
            if annotator
            else "KA2L_ANNOTATOR_KEY is not set; only for annotate.source: endpoint",
        ),
        Finding(
            "storage keys",
            "ok" if cloud else "note",
            f"{', '.join(cloud)} set"
            if cloud
            else "none in the environment; only for s3:// and gs:// where the machine has no role",
        ),
    ]


LOOKS: tuple[Callable[[], list[Finding]], ...] = (
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
