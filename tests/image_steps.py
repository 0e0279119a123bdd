"""The steps of cluster/Dockerfile, read, and run as a script without Docker: `make image-steps`.

In: a Dockerfile. Out: its stages; or a fresh folder and virtual environment in which the CPU image's steps were run.
Steps that change a system (apt-get, useradd) are not run: Debian's packages are looked up, and users are left out.
Refuses to know: what is installed.
"""

import argparse
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCKERFILE = ROOT / "cluster/Dockerfile"
CHECKS = ("pip check", "ka2l tables p_unknown", "ka2l run jobs/configs/smoke.yaml --dry-run")
"""What the finished image must be able to do."""


@dataclass(frozen=True)
class Step:
    """An instruction, such as `RUN`, and the text behind it, its lines joined."""

    instruction: str
    text: str


@dataclass
class Dockerfile:
    """The arguments before the first stage, and per stage its base and steps."""

    arguments: dict[str, str] = field(default_factory=dict)
    bases: dict[str, str] = field(default_factory=dict)
    steps: dict[str, list[Step]] = field(default_factory=dict)

    def chain(self, stage: str, arguments: dict[str, str]) -> list[str]:
        """The stages from the first to `stage`, each built on the one before; the first one's base is an image."""
        found = [stage]
        while (base := expanded(self.bases[found[0]], self.arguments | arguments)) in self.bases:
            found.insert(0, base)
        return found


def read(file: Path = DOCKERFILE) -> Dockerfile:
    """Instructions without a here-document or a JSON array, which are not understood."""
    lines = [line for line in file.read_text(encoding="utf-8").split("\n") if not line.lstrip().startswith("#")]
    read, stage = Dockerfile(), ""
    for line in re.sub(r"\\\n", " ", "\n".join(lines)).split("\n"):
        if not line.strip():
            continue
        instruction, _, text = line.strip().partition(" ")
        step = Step(instruction.upper(), " ".join(text.split()))
        if step.instruction == "FROM":
            base, _, stage = step.text.split(" ")
            read.bases[stage], read.steps[stage] = base, []
        elif not stage:
            name, _, value = step.text.partition("=")
            read.arguments[name] = value
        else:
            read.steps[stage].append(step)
    return read


def expanded(text: str, values: dict[str, str]) -> str:
    """`$NAME` and `${NAME}` replaced, as in FROM and ENV."""
    return re.sub(r"\$\{(\w+)\}|\$(\w+)", lambda m: values.get(m[1] or m[2], ""), text)


def run_steps(arguments: dict[str, str]) -> None:
    """Run the steps of the image in a new folder, which stands for the root of its file system, and check it.

    Raises `SystemExit` with the first step that fails.
    """
    dockerfile = read()
    stages = dockerfile.chain("image", arguments)
    image = expanded(dockerfile.bases[stages[0]], {})
    if not image.startswith(f"python:{(version := '.'.join(platform.python_version_tuple()[:2]))}-"):
        sys.exit(f"FROM {image}, but this is Python {version}: set PYTHON in `make image-steps`")
    with tempfile.TemporaryDirectory(prefix="ka2l-image-") as scratch:
        root, venv = Path(scratch, "root"), Path(scratch, "venv")
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
        environment["PATH"] = f"{venv}/bin:{environment['PATH']}"
        root.mkdir()
        folder, given = root, dict(arguments)
        for step in (step for stage in stages for step in dockerfile.steps[stage]):
            print(f"== {step.instruction} {step.text}", flush=True)
            match step.instruction:
                case "ARG":
                    name, _, value = step.text.partition("=")
                    given.setdefault(name, value)
                case "ENV":
                    pairs = (word.partition("=") for word in shlex.split(step.text))
                    environment |= {name: _below(root, value) for name, _, value in pairs}
                case "WORKDIR":
                    folder = root / step.text.lstrip("/")
                    folder.mkdir(parents=True, exist_ok=True)
                case "COPY":
                    _copy(step.text.split(" "), folder)
                case "RUN":
                    _run(step.text, folder, environment | given)
                case "USER":
                    print("   left out: everything runs as this user")
                case other:
                    sys.exit(f"{other}: not understood")
        Path(environment["HOME"]).mkdir(parents=True, exist_ok=True)
        for check in CHECKS:
            print(f"== check: {check}", flush=True)
            _run(check, folder, environment)
        size = subprocess.run(["du", "-sm", str(venv)], capture_output=True, text=True, check=True).stdout.split()[0]
        print(f"== every step ran; the packages take {size} MB")


def _below(root: Path, value: str) -> str:
    return str(root / value.lstrip("/")) if value.startswith("/") else value


def _copy(words: Sequence[str], folder: Path) -> None:
    *sources, target = words
    for source in sources:
        path = ROOT / source
        if path.is_dir():
            shutil.copytree(path, folder / target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, folder / target)


def _run(text: str, folder: Path, environment: dict[str, str]) -> None:
    if text.startswith("useradd "):
        print("   left out: it would change this system")
        return
    if text.startswith("apt-get "):
        if shutil.which("apt-get") is None:
            print("   left out: this is not Debian")
            return
        text = f"apt-get install --simulate --quiet --quiet {' '.join(debian_packages(text))} > /dev/null"
        print(f"   instead: {text}")
    ended = subprocess.run(["sh", "-euc", text], cwd=folder, env=environment, check=False)
    if ended.returncode:
        sys.exit(f"failed with exit status {ended.returncode}: {text}")


def debian_packages(text: str) -> list[str]:
    """The packages that an `apt-get install` in a RUN step names."""
    installing = text.split("apt-get install ", 1)[1].split("&&")[0]
    return [word for word in installing.split() if not word.startswith("-")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE", help="as for docker build")
    given = (argument.partition("=") for argument in parser.parse_args().build_arg)
    run_steps({"DEVICE": "cpu"} | {name: value for name, _, value in given})


if __name__ == "__main__":
    main()
