"""Whether a cluster can hold a run's processes, on the nodes it has or on those that its autoscaler may add.

In: a configuration, and the kinds of nodes of a cluster: those that are alive, or those in the file that it is made
from (`ray up`'s, or KubeRay's manifest). Out: for every section a line: what fits now, what would be added, or why it
would wait for ever. Refuses to know: Ray; what else is running on the cluster.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ka2l_ray.config import Config, ConfigError
from ka2l_ray.dataflow.processes import Processes, processes, used


@dataclass(frozen=True)
class NodeKind:
    """Nodes that are alike: `there` of them are alive, `to_come` more may be added by the autoscaler (None: not known).
    `resources` are amounts by Ray's names: `CPU`, `GPU`, custom ones."""

    name: str
    resources: Mapping[str, float]
    labels: Mapping[str, str]
    there: int = 0
    to_come: int | None = 0

    def holds(self, each: Processes) -> int:
        """How many of the processes one node holds."""
        if not all(_matches(self.labels.get(label), wanted) for label, wanted in each.nodes.labels.items()):
            return 0
        wanted = {name: amount for name, amount in each.resources.items() if amount}
        return min((int(self.resources.get(name, 0.0) / amount + 1e-9) for name, amount in wanted.items()), default=0)

    def wastes_gpus(self, each: Processes) -> bool:
        """Whether its GPUs would be of no use to the processes. Ray starts such nodes only where no others will do."""
        return bool(self.resources.get("GPU")) and not each.resources.get("GPU")


def kinds_in(file: Path) -> list[NodeKind]:
    """The kinds of worker nodes in a file for `ray up` or a manifest of KubeRay (RayCluster, RayJob): all to come.
    Raises `ConfigError` where the file is neither."""
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
        if "available_node_types" in found:
            return [
                NodeKind(name, kind["resources"], kind.get("labels") or {}, to_come=kind.get("max_workers", 0))
                for name, kind in found["available_node_types"].items()
                if name != found["head_node_type"]
            ]
        spec = found["spec"].get("rayClusterSpec", found["spec"])
        return [
            NodeKind(group["groupName"], _resources(group), group.get("labels") or {}, to_come=group["maxReplicas"])
            for group in spec["workerGroupSpecs"]
        ]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"--cluster {file}: is neither a file for `ray up` nor a RayCluster or RayJob of KubeRay: {error!r}"
        ) from error


def _resources(group: Mapping[str, Any]) -> dict[str, float]:
    """What KubeRay tells Ray of a group's nodes: the limits of their container, and what the group itself names."""
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    amounts = {"CPU": limits.get("cpu", 0), "GPU": limits.get("nvidia.com/gpu", 0)} | (group.get("resources") or {})
    return {name: _number(str(amount)) for name, amount in amounts.items()}


def _number(quantity: str) -> float:
    """A quantity of Kubernetes without unit, or in thousandths."""
    return float(quantity[:-1]) / 1000 if quantity.endswith("m") else float(quantity)


def capacity_notes(config: Config, kinds: Sequence[NodeKind]) -> list[str]:
    """A line for each section whose processes do not all fit on the nodes that are there, and one where actors would
    leave no CPUs for what reads and writes for them."""
    started = used(processes(config), config)
    notes = [note for wanted in started if (note := _note(wanted, kinds))]
    cpus = sum(kind.resources.get("CPU", 0.0) * (kind.there + (kind.to_come or 0)) for kind in kinds)
    at_once = max(p.cpus_at_once for p in started)
    if at_once > cpus and all(kind.to_come is not None for kind in kinds):
        notes.append(f"the cluster has {cpus:g} CPUs at most, stages want {at_once:g} at once, so they wait for ever")
    return notes


def _note(wanted: Processes, kinds: Sequence[NodeKind]) -> str:
    now = sum(kind.there * kind.holds(wanted) for kind in kinds)
    if now >= wanted.most:
        return ""
    who = f"{wanted.section}: {_range(wanted)} of {_each(wanted)} each; {now:,} fit on the nodes there are"
    if any(kind.to_come is None for kind in kinds):
        return f"{who}; what an autoscaler may add is not known from here, --cluster FILE says it"
    missing, added = wanted.most - now, []
    for kind in sorted(kinds, key=lambda kind: kind.wastes_gpus(wanted)):
        if missing > 0 and (fits := kind.holds(wanted)) and kind.to_come:
            count = min(kind.to_come, -(-missing // fits))
            added.append(f"{count:,} of {kind.name}")
            missing -= count * fits
    fit = wanted.most - max(0, missing)
    grows = f", and the autoscaler would add {', '.join(added)}" if added else ""
    if fit < wanted.least:
        return f"{who}{grows}; only {fit:,} can ever run, so this waits for ever"
    return f"{who}{grows}" + (f"; at most {fit:,} run at once" if missing > 0 else "")


def _each(wanted: Processes) -> str:
    """What one process takes, in words."""
    amounts = [f"{amount:g} {name}" for name, amount in wanted.resources.items() if amount]
    return ", ".join([*amounts, *(f"{label} = {value}" for label, value in wanted.nodes.labels.items())])


def _range(wanted: Processes) -> str:
    return f"{wanted.least:,}" if wanted.least == wanted.most else f"{wanted.least:,} to {wanted.most:,}"


def _matches(value: str | None, wanted: str) -> bool:
    """Whether a node's label is as wanted: a value, `!value`, `in(a, b)` or `!in(a, b)`; Ray's own rules."""
    listed = re.fullmatch(r"(!?)in\((.*)\)", wanted)
    negated, values = listed.groups() if listed else ("!" * wanted.startswith("!"), wanted.removeprefix("!"))
    return (value in re.split(r", ?", values)) != bool(negated)
