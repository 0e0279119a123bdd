"""`capacity_notes`: what a cluster holds now, what its autoscaler would add, and what would wait for ever."""

from pathlib import Path

import pytest

from ka2l_ray.config import Config, ConfigError, load_config, parse_config
from ka2l_ray.planning.capacity import NodeKind, capacity_notes, kinds_in

ROOT = Path(__file__).parents[3]
SPOT, ON_DEMAND = ({"ray.io/market-type": kind} for kind in ("spot", "on-demand"))


def config(**pool: object) -> Config:
    return parse_config({"collect": {"pool": pool}, "finetune": {"workers": 1, "batch_rows": 16}}, "test")


def of_collect(made: Config, *kinds: NodeKind) -> str:
    (note,) = [note for note in capacity_notes(made, kinds) if note.startswith("collect.pool")] or [""]
    return note


def test_nothing_is_said_of_what_fits() -> None:
    assert capacity_notes(Config(), [NodeKind("big", {"CPU": 32}, {}, there=1)]) == []


def test_what_the_autoscaler_would_add_is_said_by_kind_and_number() -> None:
    made = config(min=1, max=7, gpus=1, nodes={"labels": SPOT})
    there = NodeKind("spot", {"CPU": 8, "GPU": 2}, SPOT, there=1, to_come=1)
    more = NodeKind("small", {"CPU": 2, "GPU": 1}, SPOT, to_come=2)
    assert of_collect(made, there, more) == (
        "collect.pool: 1 to 7 of 1 CPU, 1 GPU, ray.io/market-type = spot each; 2 fit on the nodes there are, and the "
        "autoscaler would add 1 of spot, 2 of small; at most 6 run at once"
    )
    assert "at most" not in of_collect(config(min=1, max=6, gpus=1), there, more)


def test_gpu_nodes_come_last_for_what_needs_none() -> None:
    gpu, cpu = NodeKind("gpu", {"CPU": 2, "GPU": 1}, {}, to_come=9), NodeKind("cpu", {"CPU": 2}, {}, to_come=2)
    assert of_collect(config(min=1, max=6), gpu, cpu).endswith("the autoscaler would add 2 of cpu, 1 of gpu")
    assert of_collect(config(min=1, max=6, gpus=1), gpu, cpu).endswith("the autoscaler would add 6 of gpu")


@pytest.mark.parametrize(
    ("pool", "kind"),
    [
        ({"gpus": 2}, NodeKind("a", {"CPU": 8, "GPU": 1}, {}, there=9, to_come=9)),
        ({"gpus": 1, "nodes": {"labels": SPOT}}, NodeKind("a", {"CPU": 8, "GPU": 8}, ON_DEMAND, there=9)),
        ({"nodes": {"resources": {"disk": 1}}}, NodeKind("a", {"CPU": 8}, {}, there=9)),
        ({"cpus": 16}, NodeKind("a", {"CPU": 8}, {}, there=9)),
        ({"min": 3, "max": 3}, NodeKind("a", {"CPU": 1}, {}, there=1, to_come=1)),
    ],
)
def test_what_no_node_there_or_to_come_can_hold_waits_for_ever(pool: dict[str, object], kind: NodeKind) -> None:
    assert "can ever run, so this waits for ever" in of_collect(config(**pool), kind)


def test_where_it_is_not_known_what_may_come_nothing_is_said_to_wait_for_ever() -> None:
    notes = capacity_notes(config(min=3, max=3, gpus=1), [NodeKind("head", {"CPU": 0}, {}, there=1, to_come=None)])
    assert notes
    unknown = "what an autoscaler may add is not known from here, --cluster FILE says it"
    assert [note for note in notes if not note.endswith(unknown)] == []


def test_actors_that_leave_no_cpu_for_reading_and_writing_are_named() -> None:
    kinds = [NodeKind("gpu", {"CPU": 8, "GPU": 8}, {}, there=1)]
    assert capacity_notes(config(min=6, max=6, gpus=1), kinds) == []
    assert capacity_notes(config(min=8, max=8, gpus=1), kinds) == [
        "the cluster has 8 CPUs at most, stages want 10 at once, so they wait for ever"
    ]


@pytest.mark.parametrize("name", ["rayjob", "rayjob-kueue", "raycluster-dev"])
def test_kinds_of_nodes_in_kuberays_manifests(name: str) -> None:
    kinds = {kind.name: kind for kind in kinds_in(ROOT / f"cluster/kuberay/{name}.yaml")}
    assert any(kind.resources.get("driver") == 1 for kind in kinds.values())
    assert all(kind.resources["CPU"] > 0 and kind.to_come and kind.there == 0 for kind in kinds.values())
    if name != "raycluster-dev":
        assert kinds["gpu-spot"].resources["GPU"] == 1
        assert kinds["gpu-spot"].labels == SPOT


@pytest.mark.parametrize("name", ["aws", "local-autoscaling"])
def test_kinds_of_nodes_in_files_for_ray_up(name: str) -> None:
    kinds = {kind.name: kind for kind in kinds_in(ROOT / f"cluster/{name}.yaml")}
    assert (kinds["gpu-spot"].resources["GPU"], kinds["gpu-spot"].labels) == (1, SPOT)
    assert not [name for name in kinds if "head" in name]


def test_a_shipped_job_can_hold_the_run_that_it_starts() -> None:
    made = load_config(
        ROOT / "jobs/configs/nq_open-qwen2.5-7b.yaml",
        ["collect.pool.min=1", "finetune.workers=4", "finetune.nodes.labels={ray.io/market-type: on-demand}"],
    )
    notes = capacity_notes(made, kinds_in(ROOT / "cluster/kuberay/rayjob.yaml"))
    assert not [note for note in notes if "for ever" in note], notes
    assert any("finetune: 4 of" in note and "would add 4 of gpu-on-demand" in note for note in notes), notes


@pytest.mark.parametrize("text", ["[1]", "spec: {}", "{", "available_node_types: {a: {}}"])
def test_another_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"x\.yaml: is neither a file for `ray up` nor a RayCluster or RayJob"):
        kinds_in(tmp_path / "x.yaml")
