"""cluster/Dockerfile: what it copies exists, its pins are the project's, and it is what the manifests need it to be.

`make image-steps` runs its steps.
"""

import re
import tomllib
from pathlib import Path

import image_steps
import pytest
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[3]
READ = image_steps.read()
INSTALLS = [
    (stage, step.text) for stage, steps in READ.steps.items() for step in steps if step.text.startswith("pip install")
]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_both_targets_end_in_the_same_image(device: str):
    assert READ.chain("image", {"DEVICE": device}) == ["base", device, "image"]


def test_the_python_is_one_that_the_project_supports():
    tag = re.fullmatch(r"python:(3\.\d+)-slim-bookworm", READ.bases["base"])
    assert tag
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert SpecifierSet(project["requires-python"]).contains(tag[1])


def test_every_install_takes_its_versions_from_the_constraints():
    assert {stage for stage, _ in INSTALLS} == {"cpu", "cuda", "image"}
    for stage, text in INSTALLS:
        assert "--no-deps ." in text if stage == "image" else "--constraint constraints.txt" in text, text
    text = image_steps.DOCKERFILE.read_text(encoding="utf-8")
    commands = "\n".join(line for line in text.split("\n") if not line.startswith("#"))
    assert not re.search(r"[a-z]==\d", commands), "a version of a package belongs into constraints.txt"


def test_what_is_copied_exists_and_reaches_the_builder():
    ignored = (ROOT / "cluster/Dockerfile.dockerignore").read_text(encoding="utf-8").split("\n")
    sent = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    copied = {
        w for steps in READ.steps.values() for s in steps if s.instruction == "COPY" for w in s.text.split(" ")[:-1]
    }
    assert copied == sent
    assert all((ROOT / name).exists() for name in copied)
    assert "*" in ignored


def test_the_image_runs_as_the_user_of_the_manifests():
    last = READ.steps["image"][-1]
    assert (last.instruction, last.text) == ("USER", "ray")
    assert any("useradd --create-home --uid 1000 ray" in step.text for step in READ.steps["base"])
    manifests = (ROOT / "cluster/kuberay").glob("*.yaml")
    assert all("runAsUser: 1000," in m.read_text(encoding="utf-8") for m in manifests)


def test_programs_that_ray_and_kuberay_call_are_installed():
    step = next(step for step in READ.steps["base"] if step.text.startswith("apt-get "))
    assert {"wget", "rsync", "openssh-client"} <= set(image_steps.debian_packages(step.text))


def test_the_environment_is_what_the_launcher_and_the_manifests_assume():
    variables = dict(
        pair.split("=", 1) for s in READ.steps["image"] if s.instruction == "ENV" for pair in s.text.split(" ")
    )
    assert variables == {"HOME": "/home/ray", "HF_HOME": "/scratch/huggingface", "RAY_AUTH_MODE": "token"}
    manifests = (ROOT / "cluster/kuberay").glob("*.yaml")
    assert all("{name: scratch, mountPath: /scratch}" in m.read_text(encoding="utf-8") for m in manifests)


@pytest.mark.parametrize(
    ("text", "stages", "step"),
    [
        ("FROM a AS b\nRUN one \\\n    && two\n", {"b": "a"}, "one && two"),
        ("# FROM x AS y\nARG D=b\nFROM a AS b\n# a remark\nRUN three\n", {"b": "a"}, "three"),
        ("FROM a AS b\nRUN one \\\n# a remark in between\n    two\n", {"b": "a"}, "one two"),
    ],
)
def test_a_dockerfile_is_read(tmp_path: Path, text: str, stages: dict[str, str], step: str):
    (tmp_path / "Dockerfile").write_text(text)
    read = image_steps.read(tmp_path / "Dockerfile")
    assert read.bases == stages
    assert read.steps["b"] == [image_steps.Step("RUN", step)]


def test_variables_are_replaced_as_docker_does():
    assert image_steps.expanded("${DEVICE}-$TAG-$NONE", {"DEVICE": "cpu", "TAG": "1"}) == "cpu-1-"
