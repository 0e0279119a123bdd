"""Whether nodes reach a run's storage and folders: the decision, and what one node looks at."""

from pathlib import Path
from typing import Any

import pytest

from ka2l_ray.config import Config, ConfigError, parse_config
from ka2l_ray.dataflow.reach import NodeReport, inspect_from_node, local_paths, problem_of, shared_note
from ka2l_ray.dataflow.storage import Folder

WELL = NodeReport(None, None, ())


def config(storage: object, **sections: dict[str, Any]) -> Config:
    return parse_config({"run": {"storage": str(storage)}} | sections, "test")


@pytest.mark.parametrize(
    ("seen", "says"),
    [
        ((WELL, True), None),
        (
            (NodeReport("No such file", None, ()), False),
            r"'/runs' is not shared: node b cannot read what the driver wrote \(No such file\).*s3://",
        ),
        (
            (NodeReport(None, "Permission denied", ()), False),
            r"'/runs': node b cannot write there \(Permission denied\)",
        ),
        ((WELL, False), r"'/runs' is not shared: the driver cannot read what node b wrote"),
        (
            (NodeReport(None, None, ("decode.decoder = '/d'",)), True),
            r"^decode\.decoder = '/d': not found on node b\. Give a path or URI",
        ),
    ],
)
def test_what_a_node_saw_becomes_a_sentence_that_names_it(seen: tuple[NodeReport, bool], says: str | None) -> None:
    problem = problem_of(config("/runs"), [("a", WELL, True), ("b", *seen)])
    if says is None:
        assert problem is None
    else:
        assert problem is not None
        with pytest.raises(ConfigError, match=says):
            raise ConfigError(problem)


def test_a_node_reads_the_note_and_leaves_its_own_and_both_go(tmp_path: Path) -> None:
    with shared_note(config(tmp_path)) as folder:
        assert inspect_from_node(folder.uri, "node", {}) == WELL
        assert folder.names() == ["driver", "node"]
    assert list(tmp_path.iterdir()) == []


def test_a_node_without_the_note_writes_nothing(tmp_path: Path) -> None:
    found = inspect_from_node(str(tmp_path / "elsewhere"), "node", {})
    assert found.read_error is not None
    assert list(tmp_path.iterdir()) == []


def test_a_node_names_the_paths_that_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "q[1].jsonl").write_text("")
    paths = {
        "there": f"{tmp_path}/q[1].jsonl",
        "matched": f"{tmp_path}/*.jsonl",
        "gone": f"{tmp_path}/a",
        "unmatched": f"{tmp_path}/*.csv",
    }
    with shared_note(config(tmp_path)) as folder:
        assert inspect_from_node(folder.uri, "node", paths).missing == ("gone", "unmatched")


def test_only_paths_on_local_disks_are_looked_for(tmp_path: Path) -> None:
    assert local_paths(config("/runs")) == {}
    sections = {"corpus": {"source": ["/a/*.jsonl", "owner/name", "s3://b/q"]}, "decode": {"decoder": "/d"}}
    sections |= {"model": {"name_or_path": "/m", "adapter": "/t"}}
    assert sorted(local_paths(config("/runs", **sections)).values()) == ["/a/*.jsonl", "/d", "/m", "/t"]
    assert "model.name_or_path = '/m'" in local_paths(config("/runs", **sections))
    hub = {"model": {"name_or_path": "owner/model"}, "decode": {"decoder": "/d", "enabled": False}}
    assert local_paths(config("/runs", **hub)) == {}


def test_storage_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ConfigError, match=r"run\.storage = '.*file': cannot be written"),
        shared_note(config(tmp_path / "file")),
    ):
        pass
    assert Folder.of(str(tmp_path)).names() == ["file"]
