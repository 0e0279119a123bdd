"""The manifests in cluster/kuberay: accepted by KubeRay's schema and rules, and each rule refuses what breaks it."""

import ast
import copy
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import kuberay_rules
import pytest
from kuberay_rules import Manifest, cluster_spec, faults

from ka2l_ray.config.yaml_file import read_yaml

ROOT = Path(__file__).parents[3]
FILES = sorted((ROOT / "cluster/kuberay").glob("*.yaml"))


def load(name: str) -> Manifest:
    """A manifest of its own for the caller to break: YAML's aliases make shared parts, which are taken apart."""
    return unshared(parse(ROOT / f"cluster/kuberay/{name}.yaml"))


def parse(file: Path) -> Any:
    """As for configurations: a key given twice is refused."""
    return read_yaml(file.read_text(encoding="utf-8"), file.name)


def unshared(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: unshared(one) for key, one in value.items()}
    return [unshared(one) for one in value] if isinstance(value, list) else value


def test_the_three_manifests_exist():
    assert {f.stem for f in FILES} == {"raycluster-dev", "rayjob", "rayjob-kueue"}


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_a_manifest_is_accepted(file: Path):
    assert faults(parse(file)) == []


def head(manifest: Manifest) -> Manifest:
    return cluster_spec(manifest)["headGroupSpec"]


def worker(manifest: Manifest, name: str) -> Manifest:
    return next(g for g in cluster_spec(manifest)["workerGroupSpecs"] if g["groupName"] == name)


def pod(group: Manifest) -> Manifest:
    return group["template"]["spec"]


Break = Callable[[Manifest], object]
BREAKS: list[tuple[str, str, Break]] = [
    # the schema
    ("rayjob", "'entryPoint' was unexpected", lambda m: m["spec"].update(entryPoint="ka2l")),
    ("rayjob", "'priorityy' was unexpected", lambda m: worker(m, "gpu-spot").update(priorityy=1)),
    ("rayjob", "'nodeSelectors' was unexpected", lambda m: pod(head(m)).update(nodeSelectors={})),
    ("rayjob", "'status' was unexpected", lambda m: m.update(status={})),
    ("rayjob", "'name' is a required property", lambda m: m["metadata"].pop("name")),
    ("rayjob", "'minReplicas' is a required property", lambda m: worker(m, "gpu-spot").pop("minReplicas")),
    ("rayjob", "'template' is a required property", lambda m: head(m).pop("template")),
    ("rayjob", "is not of type 'string'", lambda m: worker(m, "driver")["resources"].update(CPU=4)),
    ("rayjob", "is not one of ['v1', 'v2']", lambda m: cluster_spec(m)["autoscalerOptions"].update(version="v3")),
    ("rayjob", "does not match", lambda m: pod(head(m))["containers"][0]["resources"]["limits"].update(memory="8 GB")),
    ("raycluster-dev", "'entrypoint' was unexpected", lambda m: m["spec"].update(entrypoint="ka2l")),
    ("raycluster-dev", "not a RayJob or RayCluster of ray.io/v1", lambda m: m.update(apiVersion="ray.io/v1alpha1")),
    # KubeRay's webhook
    ("rayjob", "at most 47", lambda m: m["metadata"].update(name="k" * 48)),
    ("rayjob", "at most 47", lambda m: m["metadata"].update(name="KA2L")),
    ("raycluster-dev", "at most 50", lambda m: m["metadata"].update(name="k" * 51)),
    ("rayjob", "at least 2.52", lambda m: cluster_spec(m).update(rayVersion="2.51.1")),
    ("raycluster-dev", "at least 2.52", lambda m: _drop_version_and_priorities(m)),
    ("rayjob", "at least 2.56", lambda m: cluster_spec(m).update(rayVersion="2.55.0")),
    ("rayjob", "not in a RayJob", lambda m: cluster_spec(m)["authOptions"].update(enableK8sTokenAuth=True)),
    ("rayjob", "needs enableInTreeAutoscaling", lambda m: cluster_spec(m).pop("enableInTreeAutoscaling")),
    ("rayjob", "RAY_enable_autoscaler_v2", lambda m: _set_variable(head(m), "RAY_enable_autoscaler_v2", "1")),
    ("raycluster-dev", "Never with version v2", lambda m: pod(worker(m, "cpu-spot")).update(restartPolicy="Always")),
    ("raycluster-dev", "Never with version v2", lambda m: pod(head(m)).pop("restartPolicy")),
    ("rayjob", "Never with SidecarMode", lambda m: pod(head(m)).update(restartPolicy="OnFailure")),
    ("rayjob", "priority: needs version v2", lambda m: cluster_spec(m)["autoscalerOptions"].update(version="v1")),
    ("rayjob", "rayStartParams.labels", lambda m: head(m).update(rayStartParams={"labels": "a=b"})),
    ("rayjob", "in rayStartParams too", lambda m: head(m).update(rayStartParams={"num-cpus": "0"})),
    ("rayjob", "from minReplicas to maxReplicas", lambda m: worker(m, "gpu-spot").update(replicas=9)),
    ("rayjob", "are not labels", lambda m: worker(m, "gpu-spot")["labels"].update({"gpu type": "L40S"})),
    ("rayjob", "same name", lambda m: worker(m, "gpu-spot").update(groupName="cpu-spot")),
    ("rayjob", "has no submitterPodTemplate", lambda m: m["spec"].update(submitterPodTemplate=_submitter())),
    ("rayjob", "has no clusterSelector", lambda m: m["spec"].update(clusterSelector={"ray.io/cluster": "dev"})),
    ("rayjob", "has no submitterConfig", lambda m: m["spec"].update(submitterConfig={"backoffLimit": 2})),
    ("rayjob", "not beside shutdownAfterJobFinishes", lambda m: m["spec"].update(deletionStrategy=_rules())),
    ("rayjob", "need shutdownAfterJobFinishes", lambda m: m["spec"].pop("shutdownAfterJobFinishes")),
    ("rayjob", "need shutdownAfterJobFinishes", lambda m: _suspend_only(m["spec"])),
    ("rayjob", "no group has room", lambda m: m["spec"].update(entrypointNumCpus=16)),
    ("rayjob", "no group has room", lambda m: worker(m, "driver")["resources"].pop("driver")),
    # Kueue
    ("rayjob-kueue", "needs kueue.x-k8s.io/elastic-job", lambda m: m["metadata"].pop("annotations")),
    ("rayjob-kueue", "to get the quota back", lambda m: m["spec"].update(shutdownAfterJobFinishes=False)),
    ("rayjob-kueue", "7 groups at most", lambda m: _add_groups(m, 5)),
    # this project
    ("rayjob", "token must be on", lambda m: cluster_spec(m)["authOptions"].update(mode="disabled")),
    ("rayjob", "token must be on", lambda m: cluster_spec(m)["authOptions"].pop("secretName")),
    ("rayjob", "token must be on", lambda m: cluster_spec(m).pop("authOptions")),
    ("raycluster-dev", "version v2 must be on", lambda m: cluster_spec(m)["autoscalerOptions"].pop("version")),
    ("rayjob", 'resources.CPU must be "0"', lambda m: head(m).pop("resources")),
    ("rayjob", "both must occur", lambda m: worker(m, "gpu-spot").pop("labels")),
    ("raycluster-dev", "both must occur", lambda m: cluster_spec(m)["workerGroupSpecs"].pop()),
    ("rayjob", "no example's business", lambda m: worker(m, "gpu-spot").update(maxReplicas=100)),
    ("rayjob", "runAsNonRoot must be true", lambda m: pod(head(m)).pop("securityContext")),
    ("rayjob", "must not share the host's", lambda m: pod(head(m)).update(hostNetwork=True)),
    ("rayjob", "must not share the host's", lambda m: pod(head(m))["volumes"][0].update(hostPath={"path": "/"})),
    ("rayjob", "only the head calls", lambda m: pod(worker(m, "driver")).pop("automountServiceAccountToken")),
    ("rayjob", "need tolerations", lambda m: pod(worker(m, "gpu-spot")).pop("tolerations")),
    ("rayjob", "must choose the nodes", lambda m: pod(worker(m, "driver")).pop("nodeSelector")),
    ("rayjob", "must choose the nodes", lambda m: worker(m, "gpu-on-demand")["labels"].update(_market("spot"))),
    ("rayjob", "from being drained", lambda m: worker(m, "driver")["template"].pop("metadata")),
    ("rayjob", "volumeMounts differ: ['configs']", lambda m: pod(worker(m, "driver"))["volumes"].pop()),
    ("rayjob", "/dev/shm must be mounted", lambda m: _without_shared_memory(pod(head(m)))),
    ("rayjob", "needs requests and limits", lambda m: pod(head(m))["containers"][0].pop("resources")),
    ("rayjob", "the same memory in both", lambda m: _requests(pod(head(m))).update(memory="1Gi")),
    ("rayjob", "autoscaler: needs requests", lambda m: cluster_spec(m)["autoscalerOptions"].pop("resources")),
    ("rayjob", "forbid root and privileges", lambda m: pod(head(m))["containers"][0].pop("securityContext")),
    ("rayjob", "must drop ALL", lambda m: _locked(pod(head(m))).pop("capabilities")),
    ("rayjob", "must come from a Secret", lambda m: _set_variable(head(m), "HF_TOKEN", "hf_1")),
    ("rayjob", "must be SidecarMode", lambda m: m["spec"].update(submissionMode="K8sJobMode")),
    ("rayjob", "both deadlines", lambda m: m["spec"].pop("activeDeadlineSeconds")),
    ("rayjob", "on a spot node", lambda m: m["spec"].pop("entrypointResources")),
    ("rayjob", "minReplicas of at least 1", lambda m: worker(m, "driver").update(minReplicas=0)),
    ("rayjob", "gpu-spot: env: ['HF_TOKEN'] are for the driver's", lambda m: _set_key(worker(m, "gpu-spot"))),
    ("rayjob-kueue", "head: env: ['HF_TOKEN'] are for the driver's", lambda m: _set_key(head(m))),
]


def _market(kind: str) -> dict[str, str]:
    return {"ray.io/market-type": kind}


def _drop_version_and_priorities(manifest: Manifest) -> None:
    del cluster_spec(manifest)["rayVersion"]
    for group in cluster_spec(manifest)["workerGroupSpecs"]:
        group.pop("priority", None)


def _set_variable(group: Manifest, name: str, value: str) -> None:
    pod(group)["containers"][0]["env"] = [{"name": name, "value": value}]


def _set_key(group: Manifest) -> None:
    source = {"secretKeyRef": {"name": "ka2l-keys", "key": "HF_TOKEN"}}
    pod(group)["containers"][0]["env"] = [{"name": "HF_TOKEN", "valueFrom": source}]


def _submitter() -> Manifest:
    return {"spec": {"containers": [{"name": "submitter"}]}}


def _rules() -> Manifest:
    return {"deletionRules": [{"condition": {"jobStatus": "FAILED", "ttlSeconds": 9}, "policy": "DeleteCluster"}]}


def _suspend_only(job: Manifest) -> None:
    job.update(suspend=True, shutdownAfterJobFinishes=False)
    del job["ttlSecondsAfterFinished"]


def _add_groups(manifest: Manifest, number: int) -> None:
    spot = worker(manifest, "gpu-spot")
    cluster_spec(manifest)["workerGroupSpecs"] += [
        copy.deepcopy(spot) | {"groupName": f"more-{n}"} for n in range(number)
    ]


def _without_shared_memory(spec: Manifest) -> None:
    spec["volumes"].pop(0)
    spec["containers"][0]["volumeMounts"].pop(0)


def _requests(spec: Manifest) -> Manifest:
    return spec["containers"][0]["resources"]["requests"]


def _locked(spec: Manifest) -> Manifest:
    return spec["containers"][0]["securityContext"]


@pytest.mark.parametrize(("name", "message", "broken"), BREAKS, ids=[f"{n}: {m}" for n, m, _ in BREAKS])
def test_a_broken_manifest_is_refused(name: str, message: str, broken: Break):
    manifest = load(name)
    broken(manifest)
    assert any(message in fault for fault in faults(manifest)), faults(manifest)


def test_every_rule_refuses_something():
    """Every line of `kuberay_rules` that yields a text is reached by a broken manifest above."""
    yields = [n for n in ast.walk(ast.parse(Path(kuberay_rules.__file__).read_text())) if isinstance(n, ast.Yield)]
    texts = {n.lineno for n in yields if isinstance(n.value, (ast.Constant, ast.JoinedStr))}
    reached = set()

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code.co_filename != kuberay_rules.__file__:
            return None
        reached.add(frame.f_lineno)
        return trace

    before = sys.gettrace()
    for name, _, broken in BREAKS:
        manifest = load(name)
        broken(manifest)
        sys.settrace(trace)
        try:
            faults(manifest)
        finally:
            sys.settrace(before)
    assert len(texts) > 30
    assert sorted(texts - reached) == []
