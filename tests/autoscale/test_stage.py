"""A stage on a cluster of which only the head is there: nodes come for it, and go."""

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray
from growing import HEAD_NODE_ID, Growing

from ka2l_ray.collect import stage as collecting
from ka2l_ray.collect.actor import CollectActor
from ka2l_ray.config import Config, load_config
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.pipeline import loop
from ka2l_ray.pipeline.checks import node_kinds

SMOKE = Path(__file__).parents[2] / "jobs/configs/smoke.yaml"


def config(storage: Path, *overrides: str) -> Config:
    given = [f"run.storage={storage}", "model.device=cpu", *overrides]
    return load_config(SMOKE, given)


BEFORE_GATE = 12
"""Shards that an actor does before it waits for the gate; three actors cannot finish the stage's 38."""


def gated(gate: Path) -> type[CollectActor]:
    """A collecting actor that takes a second for a shard and stops after some, until a file exists: however fast a
    machine is, there is work until all nodes came. Some shards must pass, for Ray Data grows a pool by their rate."""

    class Gated(CollectActor):
        calls = 0

        def __call__(self, batch: pa.Table) -> Mapping[str, Any]:
            self.calls += 1
            time.sleep(0 if gate.exists() else 1)
            while self.calls > BEFORE_GATE and not gate.exists():
                time.sleep(0.1)
            return super().__call__(batch)

    return Gated


@pytest.mark.parametrize("most", [2, pytest.param(3, marks=pytest.mark.long)])
def test_a_stage_grows_to_exactly_its_maximum_and_the_cluster_shrinks_again(
    tmp_path: Path, cluster: Growing, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """Simulated GPUs, one actor a node: so many actors wanted, so many GPU nodes asked for, though four could be had.

    Tasks that read have nodes of their own: on a slow machine they may take the cores of the last GPU node before its
    actor does, and one more comes for that."""
    pool = f"collect.pool={{min: 1, max: {most}, gpus: 1, batch_rows: 16, shard_rows: 16}}"
    tasks = "ray.tasks.labels={ka2l/node-type: cpu-spot}"
    run = Run.open(config(tmp_path, pool, tasks, "corpus.world.probe_questions=600"))
    gate, kinds = tmp_path / "gate", set[str]()

    def all_came() -> bool:
        came = cluster.size()["gpu-spot"] == most
        kinds.update(kind.name for kind in node_kinds())  # here, for idle nodes go before the stage returns
        return came

    monkeypatch.setattr(collecting, "CollectActor", gated(gate))
    with ThreadPoolExecutor(1) as opener:
        opened = opener.submit(cluster.open_when, gate, all_came)
        loop.run_steps(run, "collect")
        opened.result()
    assert cluster.largest("gpu-spot") == most, cluster.sizes
    assert run.base("activations").rows == 600
    called = {kind for kind in kinds if HEAD_NODE_ID not in kind}  # the head is of no kind in the file
    assert {"gpu-spot"} <= called <= {"gpu-spot", "gpu-on-demand", "cpu-spot"}, "called as in the file"
    cluster.wait_until_head_alone()


@pytest.mark.long
def test_a_single_long_task_does_not_grow_the_cluster_beyond_its_node(cluster: Growing) -> None:
    @ray.remote(num_cpus=1)
    def long() -> str:
        time.sleep(30)
        return ray.get_runtime_context().get_node_id()

    node = ray.get(long.remote())
    assert [n["NodeID"] for n in cluster.nodes()] == [node]
    assert sum(max(sizes.values(), default=0) for _, sizes in cluster.sizes[-1:]) == 1, cluster.sizes
    assert {sum(sizes.values()) for _, sizes in cluster.sizes} <= {0, 1}, cluster.sizes
