"""What is wrong with a manifest for KubeRay: by its schema, by its webhook's rules, and by this project's.

In: a manifest as YAML is parsed. Out: one line per fault, none for a good manifest.
Refuses to know: which manifests there are; a cluster.
"""

import gzip
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
from packaging.version import Version

Manifest = dict[str, Any]
SCHEMA = Path(__file__).parent / "kuberay/rayjobs.v1.schema.json.gz"
METADATA = {
    "type": "object",
    "required": ["name"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string"},
        "namespace": {"type": "string"},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}
"""KubeRay's schema leaves an object's own metadata to the API server."""
LONGEST_NAME = {"RayJob": 47, "RayCluster": 50}
DNS_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
RAY_LABEL = re.compile(r"([a-z0-9.-]{1,253}/)?[a-zA-Z0-9]([a-zA-Z0-9_.-]{0,61}[a-zA-Z0-9])?")
MARKET = "ray.io/market-type"
KUEUE_QUEUE, KUEUE_ELASTIC = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/elastic-job"
KUEUE_GROUPS = 7
"""Worker groups that Kueue counts besides the head: a workload has eight sets of pods at most."""


def faults(manifest: Manifest) -> list[str]:
    """Everything that is wrong; the rules are looked at only where the shape is right."""
    return _shape(manifest) or [*_of_webhook(manifest), *_of_project(manifest)]


def cluster_spec(manifest: Manifest) -> Manifest:
    return manifest["spec"]["rayClusterSpec"] if manifest["kind"] == "RayJob" else manifest["spec"]


def groups(manifest: Manifest) -> list[tuple[str, Manifest]]:
    """(name, group) of the head and of every worker group."""
    cluster = cluster_spec(manifest)
    return [("head", cluster["headGroupSpec"]), *((g["groupName"], g) for g in cluster.get("workerGroupSpecs", []))]


def containers(manifest: Manifest) -> Iterator[tuple[str, Manifest]]:
    for name, group in groups(manifest):
        pod = group["template"]["spec"]
        yield from ((name, c) for c in [*pod.get("initContainers", []), *pod["containers"]])


@cache
def _schemas() -> dict[str, Manifest]:
    """The schema of each kind, in which an unknown field is an error: the API server would drop it silently."""
    job = json.loads(gzip.decompress(SCHEMA.read_bytes()))
    job["properties"]["metadata"] = METADATA
    del job["properties"]["status"]
    job["required"] = ["apiVersion", "kind", "metadata", "spec"]
    cluster = job | {
        "properties": job["properties"] | {"spec": job["properties"]["spec"]["properties"]["rayClusterSpec"]}
    }
    return {"RayJob": _closed(job), "RayCluster": _closed(cluster)}


def _closed(schema: Any) -> Any:
    if not isinstance(schema, dict):
        return schema
    closed = dict(schema)
    for name in ("items", "additionalProperties"):
        if name in schema:
            closed[name] = _closed(schema[name])
    if "properties" in schema:
        closed["properties"] = {name: _closed(one) for name, one in schema["properties"].items()}
        closed.setdefault("additionalProperties", False)
    return closed


def _shape(manifest: Manifest) -> list[str]:
    if manifest.get("apiVersion") != "ray.io/v1" or manifest.get("kind") not in LONGEST_NAME:
        return [f"{manifest.get('apiVersion')} {manifest.get('kind')}: not a RayJob or RayCluster of ray.io/v1"]
    errors = jsonschema.Draft7Validator(_schemas()[manifest["kind"]]).iter_errors(manifest)
    return [f"{'.'.join(map(str, e.absolute_path))}: {e.message}" for e in errors]


def _of_webhook(manifest: Manifest) -> Iterator[str]:
    """What KubeRay, or Kueue, refuses although its schema allows it."""
    name, kind, cluster = manifest["metadata"]["name"], manifest["kind"], cluster_spec(manifest)
    if len(name) > LONGEST_NAME[kind] or not DNS_LABEL.fullmatch(name):
        yield f"metadata.name: at most {LONGEST_NAME[kind]} lower-case letters, digits and dashes"
    yield from _of_authentication(kind, cluster)
    yield from _of_autoscaling(cluster)
    for group_name, group in groups(manifest):
        yield from (f"{group_name}: {fault}" for fault in _of_group(group))
    names = [g["groupName"] for g in cluster.get("workerGroupSpecs", [])]
    if len(set(names)) < len(names):
        yield "workerGroupSpecs: two groups have the same name"
    if kind == "RayJob":
        yield from _of_job(manifest)
    if KUEUE_QUEUE in manifest["metadata"].get("labels", {}):
        yield from _of_kueue(manifest)


def _of_authentication(kind: str, cluster: Manifest) -> Iterator[str]:
    options = cluster.get("authOptions", {})
    if options.get("mode") == "token" and Version(cluster.get("rayVersion", "0")) < Version("2.52"):
        yield "authOptions.mode: token needs a rayVersion of at least 2.52"
    if kind == "RayJob" and "enableK8sTokenAuth" in options:
        yield "authOptions.enableK8sTokenAuth: not in a RayJob"


def _of_autoscaling(cluster: Manifest) -> Iterator[str]:
    options, workers = cluster.get("autoscalerOptions", {}), cluster.get("workerGroupSpecs", [])
    if options and not cluster.get("enableInTreeAutoscaling"):
        yield "autoscalerOptions: needs enableInTreeAutoscaling"
    is_v2 = options.get("version") == "v2"
    if is_v2 and any("RAY_enable_autoscaler_v2" in _variables(c) for c in _all_containers(cluster)):
        yield "autoscalerOptions.version: stands beside the variable RAY_enable_autoscaler_v2"
    if is_v2 and any(
        g["template"]["spec"].get("restartPolicy") != "Never" for g in [cluster["headGroupSpec"], *workers]
    ):
        yield "restartPolicy: must be Never with version v2 of the autoscaler"
    if any("priority" in g for g in workers) and not (is_v2 and Version(cluster["rayVersion"]) >= Version("2.56")):
        yield "priority: needs version v2 of the autoscaler and a rayVersion of at least 2.56"


def _all_containers(cluster: Manifest) -> Iterator[Manifest]:
    yield cluster.get("autoscalerOptions", {})
    for group in [cluster["headGroupSpec"], *cluster.get("workerGroupSpecs", [])]:
        yield from group["template"]["spec"]["containers"]


def _variables(container: Manifest) -> set[str]:
    return {variable["name"] for variable in container.get("env", [])}


def _of_group(group: Manifest) -> Iterator[str]:
    start = group.get("rayStartParams", {})
    if "labels" in start:
        yield "rayStartParams.labels: belongs into the group's own labels"
    if group.get("resources") and {"num-cpus", "num-gpus", "memory", "resources"} & start.keys():
        yield "resources: stand in rayStartParams too"
    if not group.get("minReplicas", 0) <= group.get("replicas", 0) <= group.get("maxReplicas", 0):
        yield "replicas: must be from minReplicas to maxReplicas"
    wrong = [k for k, v in group.get("labels", {}).items() if not RAY_LABEL.fullmatch(k) or not RAY_LABEL.fullmatch(v)]
    if wrong:
        yield f"labels: {wrong} are not labels"


def _of_job(manifest: Manifest) -> Iterator[str]:
    job = manifest["spec"]
    if job.get("submissionMode") == "SidecarMode":
        if barred := {"submitterPodTemplate", "submitterConfig", "clusterSelector"} & job.keys():
            yield f"submissionMode: SidecarMode has no {', '.join(sorted(barred))}"
        if job["rayClusterSpec"]["headGroupSpec"]["template"]["spec"].get("restartPolicy") != "Never":
            yield "restartPolicy: the head's must be Never with SidecarMode"
    shuts_down = job.get("shutdownAfterJobFinishes", False)
    if shuts_down and "deletionRules" in job.get("deletionStrategy", {}):
        yield "deletionStrategy.deletionRules: not beside shutdownAfterJobFinishes"
    if not shuts_down and (job.get("ttlSecondsAfterFinished") or job.get("suspend")):
        yield "ttlSecondsAfterFinished, suspend: need shutdownAfterJobFinishes"
    if not _holding(manifest):
        yield "entrypointNumCpus, entrypointNumGpus, entrypointResources: no group has room for the driver"


def _holding(manifest: Manifest) -> list[Manifest]:
    """The groups that have room for the driver that the job asks for."""
    job = manifest["spec"]
    asked = {"CPU": job.get("entrypointNumCpus", 0), "GPU": job.get("entrypointNumGpus", 0)}
    asked |= json.loads(job.get("entrypointResources", "{}"))
    return [g for _, g in groups(manifest) if all(_amount(g, name) >= n for name, n in asked.items())]


def _amount(group: Manifest, name: str) -> float:
    """How much of a resource a node of the group has for Ray: as the group says, else what its container may use."""
    if name in group.get("resources", {}):
        return float(group["resources"][name])
    limits = group["template"]["spec"]["containers"][0].get("resources", {}).get("limits", {})
    return float(limits.get({"CPU": "cpu", "GPU": "nvidia.com/gpu"}.get(name, name), 0))


def _of_kueue(manifest: Manifest) -> Iterator[str]:
    cluster = cluster_spec(manifest)
    if (
        cluster.get("enableInTreeAutoscaling")
        and manifest["metadata"].get("annotations", {}).get(KUEUE_ELASTIC) != "true"
    ):
        yield f"metadata.annotations: autoscaling under Kueue needs {KUEUE_ELASTIC}"
    if manifest["kind"] == "RayJob" and not manifest["spec"].get("shutdownAfterJobFinishes"):
        yield "shutdownAfterJobFinishes: Kueue needs it to get the quota back"
    if len(cluster["workerGroupSpecs"]) > KUEUE_GROUPS:
        yield f"workerGroupSpecs: Kueue takes {KUEUE_GROUPS} groups at most"


def _of_project(manifest: Manifest) -> Iterator[str]:
    """What every manifest in cluster/ must have."""
    cluster = cluster_spec(manifest)
    if cluster.get("authOptions", {}).get("mode") != "token" or "secretName" not in cluster["authOptions"]:
        yield "authOptions: the token must be on, and come from a named Secret"
    if not cluster.get("enableInTreeAutoscaling") or cluster["autoscalerOptions"].get("version") != "v2":
        yield "autoscalerOptions: version v2 must be on"
    if cluster["headGroupSpec"].get("resources", {}).get("CPU") != "0":
        yield 'head: resources.CPU must be "0", so that no work is placed there'
    if {g.get("labels", {}).get(MARKET) for g in cluster["workerGroupSpecs"]} != {"spot", "on-demand"}:
        yield f"workerGroupSpecs: {MARKET} must be spot or on-demand in each, and both must occur"
    if not all("maxReplicas" in g and g["maxReplicas"] <= 16 for g in cluster["workerGroupSpecs"]):
        yield "workerGroupSpecs: maxReplicas of more than 16 is no example's business"
    for name, group in groups(manifest):
        yield from (f"{name}: {fault}" for fault in _of_pod(name, group))
    for name, container in [("autoscaler", cluster.get("autoscalerOptions", {})), *containers(manifest)]:
        yield from (f"{name}: {fault}" for fault in _of_container(container))
    if manifest["kind"] == "RayJob":
        yield from _of_unattended(manifest)


def _of_pod(name: str, group: Manifest) -> Iterator[str]:
    pod, market = group["template"]["spec"], group.get("labels", {}).get(MARKET)
    if pod.get("securityContext", {}).get("runAsNonRoot") is not True:
        yield "securityContext.runAsNonRoot must be true"
    if {"hostNetwork", "hostPID", "hostIPC"} & pod.keys() or any("hostPath" in v for v in pod.get("volumes", [])):
        yield "must not share the host's network, processes or folders"
    if name != "head" and pod.get("automountServiceAccountToken") is not False:
        yield "automountServiceAccountToken must be false: only the head calls Kubernetes"
    if market == "spot" and "tolerations" not in pod:
        yield "spot nodes need tolerations"
    if (
        market
        not in pod.get("nodeSelector", {}).get("eks.amazonaws.com/capacityType", "").lower().replace("_", "-").split()
    ):
        yield f"nodeSelector must choose the nodes that {MARKET} promises"
    if market == "on-demand" and not group["template"].get("metadata", {}).get("annotations"):
        yield "on-demand nodes need annotations that keep them from being drained"
    unmounted = {v["name"] for v in pod.get("volumes", [])} ^ {
        m["name"] for m in pod["containers"][0].get("volumeMounts", [])
    }
    if unmounted:
        yield f"volumes and volumeMounts differ: {sorted(unmounted)}"
    if "/dev/shm" not in [m["mountPath"] for m in pod["containers"][0].get("volumeMounts", [])]:
        yield "/dev/shm must be mounted: Kubernetes gives it 64 MB"


def _of_container(container: Manifest) -> Iterator[str]:
    limits, requests = (container.get("resources", {}).get(kind, {}) for kind in ("limits", "requests"))
    if not {"cpu", "memory"} <= limits.keys() & requests.keys() or limits.get("memory") != requests.get("memory"):
        yield "needs requests and limits of cpu and memory, with the same memory in both"
    locked = container.get("securityContext", {})
    if locked.get("allowPrivilegeEscalation") is not False or locked.get("privileged") or "runAsNonRoot" not in locked:
        yield "securityContext must forbid root and privileges"
    if locked.get("capabilities", {}).get("drop") != ["ALL"]:
        yield "securityContext.capabilities must drop ALL"
    plain = [
        v["name"]
        for v in container.get("env", [])
        if re.search(r"TOKEN|KEY|SECRET|PASSWORD", v["name"]) and "value" in v
    ]
    if plain:
        yield f"env: {plain} must come from a Secret"


def _of_unattended(manifest: Manifest) -> Iterator[str]:
    """A job runs with nobody watching: it must end, and its driver must not be reclaimed."""
    job = manifest["spec"]
    if job.get("submissionMode") != "SidecarMode":
        yield "submissionMode must be SidecarMode"
    if (
        not job.get("shutdownAfterJobFinishes")
        or not {"activeDeadlineSeconds", "preRunningDeadlineSeconds"} <= job.keys()
    ):
        yield "needs shutdownAfterJobFinishes and both deadlines"
    if any(g.get("labels", {}).get(MARKET) != "on-demand" for g in _holding(manifest)):
        yield "the driver may be placed on a spot node; entrypointResources must name what only on-demand groups have"
    if not any(g.get("minReplicas", 0) > 0 for g in _holding(manifest)):
        yield "the driver's group needs minReplicas of at least 1"
    drivers = {g["groupName"] for g in _holding(manifest) if "groupName" in g}
    for name, container in containers(manifest):
        keys = [v["name"] for v in container.get("env", []) if "secretKeyRef" in v.get("valueFrom", {})]
        if keys and name not in drivers:
            yield f"{name}: env: {keys} are for the driver's group alone, whose driver hands on what workers need"
