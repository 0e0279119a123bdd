"""The files in cluster/ agree with each other and with the project: versions, images, entrypoints, tokens, secrets."""

import re
import shlex
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import image_steps
import pytest
import typer
import yaml
from kuberay_rules import cluster_spec, containers
from packaging.requirements import Requirement
from packaging.version import Version

from ka2l_ray.cli import app as cli
from ka2l_ray.config import Config, load_config

ROOT = Path(__file__).parents[3]
FILES = sorted(p for p in (ROOT / "cluster").rglob("*") if p.is_file())
MANIFESTS = {f.stem: yaml.safe_load(f.read_text(encoding="utf-8")) for f in FILES if f.parent.name == "kuberay"}
JOBS = sorted(name for name, manifest in MANIFESTS.items() if manifest["kind"] == "RayJob")
IMAGE = re.compile(r"registry\.example\.com/ka2l-ray:(?P<version>[\d.]+)-(?P<device>cpu|cuda)")
IN_IMAGE = "/opt/ka2l"
SECRET = re.compile(
    r"hf_[A-Za-z0-9]{20,}|AKIA[0-9A-Z]{16}|sk-[A-Za-z0-9-]{20,}|-----BEGIN|[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-|"
    r"(?i:auth_token|password|secret_access_key)['\"]?\s*[:=]\s*['\"]?[A-Za-z0-9+/]{16,}"
)
"""Tokens of the hub, of AWS and of chat endpoints, private keys, Ray's tokens, and other values with such a name."""


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").split("\n")
    return dict(line.split("==") for line in lines if "==" in line)


def words_of(job: str) -> list[str]:
    """A job's command as the driver's shell splits it, with the paths of this checkout in place of the image's."""
    words = shlex.split(MANIFESTS[job]["spec"]["entrypoint"])
    return [word.replace(f"{IN_IMAGE}/", f"{ROOT}/") for word in words]


def configuration(job: str) -> Config:
    words = words_of(job)
    return load_config(words[2], [value for flag, value in pairwise(words) if flag == "--set"])


def test_all_files_are_known():
    names = {str(f.relative_to(ROOT / "cluster")) for f in FILES}
    assert names == {
        *("Dockerfile Dockerfile.dockerignore README.md aws.yaml grafana.json local-autoscaling.yaml".split()),
        *(f"kuberay/{name}.yaml" for name in ("rayjob", "rayjob-kueue", "raycluster-dev")),
    }


@pytest.mark.parametrize("name", MANIFESTS)
def test_the_version_of_ray_is_the_pinned_one(name: str):
    assert cluster_spec(MANIFESTS[name])["rayVersion"] == pins()["ray"]
    ray = next(r for text in project()["dependencies"] if (r := Requirement(text)).name == "ray")
    assert ray.specifier.contains(Version(pins()["ray"]))


def test_images_are_of_this_version_and_of_a_target_that_the_dockerfile_has():
    named = [(f, match) for f in FILES for match in IMAGE.finditer(f.read_text(encoding="utf-8"))]
    assert {m["version"] for _, m in named} == {project()["version"]}
    assert {m["device"] for _, m in named} <= image_steps.read().bases.keys()
    assert {f.name for f, _ in named} >= {
        "Dockerfile",
        "aws.yaml",
        "rayjob.yaml",
        "rayjob-kueue.yaml",
        "raycluster-dev.yaml",
    }


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_container_has_cuda_where_it_has_a_gpu(name: str):
    for group, container in containers(MANIFESTS[name]):
        image = IMAGE.fullmatch(container["image"])
        assert image, f"{group}: {container['image']}"
        assert (image["device"] == "cuda") == ("nvidia.com/gpu" in container["resources"]["limits"]), group


def test_images_of_aws_fit_its_nodes():
    config = yaml.safe_load((ROOT / "cluster/aws.yaml").read_text(encoding="utf-8"))
    assert config["docker"]["head_image"].endswith("-cpu")
    assert config["docker"]["worker_image"].endswith("-cuda")


@pytest.mark.parametrize("job", JOBS)
def test_an_entrypoint_is_a_command_with_a_configuration_that_loads(job: str):
    words = words_of(job)
    assert words[:2] == ["ka2l", "run"]
    assert "ka2l" in project()["scripts"]
    assert Path(words[2]).is_relative_to(ROOT / "jobs/configs")
    assert configuration(job).run.storage.startswith("s3://")
    command = typer.main.get_command(cli.app).commands["run"]  # pyright: ignore[reportAttributeAccessIssue]
    assert command.make_context("run", words[2:]).params["config"] == Path(words[2])


@pytest.mark.parametrize("job", JOBS)
def test_the_cluster_of_a_job_can_hold_its_pools(job: str):
    """Every pool starts, and the training run fits, on the GPUs that the groups may grow to."""
    config, workers = configuration(job), cluster_spec(MANIFESTS[job])["workerGroupSpecs"]
    gpus, cpus = 0.0, 0.0
    for group in workers:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        gpus += group["maxReplicas"] * float(limits.get("nvidia.com/gpu", 0))
        cpus += group["maxReplicas"] * float(group.get("resources", {}).get("CPU", limits["cpu"]))
    for pool in (config.collect.pool, config.score.pool, config.evaluate.pool):
        assert pool.max * pool.gpus <= gpus
        assert pool.max * pool.cpus + 2 < cpus
    tune, on_demand = config.finetune, next(g for g in workers if g["groupName"] == "gpu-on-demand")
    assert tune.workers * tune.gpus_per_worker <= on_demand["maxReplicas"]
    limits = on_demand["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert tune.cpus_per_worker <= float(limits["cpu"])


@pytest.mark.parametrize("name", MANIFESTS)
def test_the_readme_states_what_a_manifest_costs_at_least(name: str):
    """What its head, autoscaler and smallest groups request; all of that is on-demand."""
    manifest = MANIFESTS[name]
    cluster = cluster_spec(manifest)
    least = [(1, cluster["autoscalerOptions"]), *((1, c) for group, c in containers(manifest) if group == "head")]
    for group in cluster["workerGroupSpecs"]:
        least.append((group["minReplicas"], group["template"]["spec"]["containers"][0]))
        assert group["minReplicas"] == 0 or group["labels"]["ray.io/market-type"] == "on-demand"
    cpus = sum(n * _cpus(c["resources"]["requests"]["cpu"]) for n, c in least)
    gib = sum(n * int(c["resources"]["requests"]["memory"].removesuffix("Gi")) for n, c in least)
    readme = (ROOT / "cluster/README.md").read_text(encoding="utf-8")
    row = next(line for line in readme.split("\n") if line.startswith(f"| `{name}.yaml` |") and "GiB" in line)
    assert f"{cpus:g} CPUs and {gib} GiB on-demand" in row


def _cpus(quantity: str) -> float:
    return float(quantity.removesuffix("m")) / (1000 if quantity.endswith("m") else 1)


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.name)
def test_no_file_holds_a_secret(file: Path):
    assert SECRET.findall(file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "planted",
    [
        "HF_TOKEN: hf_" + "aB3" * 10,
        "aws_access_key_id = AKIA" + "Z" * 16,
        "key: sk-" + "live" * 6,
        "-----BEGIN PRIVATE KEY-----",
        "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0",
        "auth_token: c2VjcmV0c2VjcmV0c2VjcmV0",
        'password="correcthorsebattery"',
    ],
)
def test_a_planted_secret_is_found(planted: str):
    assert SECRET.search(planted)


def test_tokens_are_on_in_every_file_that_starts_ray():
    """The manifests' are a rule of `kuberay_rules`; the image and the files for Ray's own commands set the mode."""
    for name in ("Dockerfile", "aws.yaml", "local-autoscaling.yaml"):
        assert "RAY_AUTH_MODE=token" in (ROOT / "cluster" / name).read_text(encoding="utf-8")
    for file in FILES:
        assert not re.search(r"(?i)RAY_AUTH_MODE\W+disabled|mode:\s*disabled", file.read_text(encoding="utf-8")), file
