"""Nodes of `cluster/local-autoscaling.yaml`: processes of one machine, each with a folder of its own.

Ray's own provider gives all of them the head's session folder. The first process of a job on a new node then unpacks
the job's working directory there once more, and takes it away from under those that work in it. Nor can it give a node
`memory`, without which Ray starts no node for a task that asks for some, as those do that read a stage's rows.
"""

from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import ray._private.parameter as parameter
from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider


class LocalNodeProvider(FakeMultiNodeProvider):
    """Ray's provider of nodes on one machine. `provider.node_folders` is where each makes its folder; short, for the
    paths of Ray's sockets end at 107 bytes."""

    def _create_node_with_resources_and_labels(
        self, config: Any, tags: Any, count: int, resources: dict[str, float], labels: dict[str, str]
    ) -> None:
        others = {name: amount for name, amount in resources.items() if name != "memory"}
        with self.lock:
            own = Path(self.provider_config["node_folders"]) / str(self._next_node_id + 1)
            params = partial(parameter.RayParams, temp_dir=str(own), memory=resources["memory"])
            with patch.object(parameter, "RayParams", params):
                super()._create_node_with_resources_and_labels(config, tags, count, others, labels)
