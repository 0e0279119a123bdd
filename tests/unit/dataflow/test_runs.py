"""The run folder: it belongs to one configuration and one format, and a refusal changes nothing in it."""

import pytest

from ka2l_ray.config import Config, ConfigError, parse_config
from ka2l_ray.dataflow.runs import FORMAT, Run


def config(tmp_path, **sections: dict) -> Config:
    sections["run"] = {"name": "r", "storage": str(tmp_path)} | sections.get("run", {})
    return parse_config(sections, "test")


def test_a_new_run_stores_its_configuration(tmp_path):
    run = Run.open(config(tmp_path, run={"seed": 7}))
    again = Run.existing(run.folder.path)
    assert again.config == run.config
    assert (again.config.run.seed, again.hash) == (7, run.hash)


def test_a_run_refuses_another_configuration_and_names_what_differs(tmp_path):
    started = Run.open(config(tmp_path, run={"seed": 7}))
    (started.folder / "questions/manifest.json").write_json({"files": [], "rows": 0})
    with pytest.raises(ConfigError, match=r"another configuration.*collect\.samples: 10 → 4; run\.seed: 7 → 8"):
        Run.open(config(tmp_path, run={"seed": 8}, collect={"samples": 4}))
    assert Run.existing(str(tmp_path / "r")).config.run.seed == 7


def test_a_run_that_has_nothing_yet_takes_a_corrected_configuration(tmp_path):
    """A first stage that refuses the corpus leaves the folder; the corrected configuration can use the same name."""
    Run.open(config(tmp_path, run={"seed": 7}))
    assert Run.open(config(tmp_path, run={"seed": 8})).config.run.seed == 8
    assert Run.existing(str(tmp_path / "r")).config.run.seed == 8


def test_a_run_continues_with_the_commit_it_pinned(tmp_path):
    def pin(given):
        return given.model_copy(update={"model": given.model.model_copy(update={"revision": "abc"})})

    hub = {"model": {"name_or_path": "owner/name"}}
    assert Run.open(config(tmp_path, **hub), pin).config.model.revision == "abc"
    again = Run.open(config(tmp_path, **hub), lambda given: pytest.fail("pinned twice"))
    assert again.config.model.revision == "abc"


def test_a_run_accepts_other_pools_and_stores_them(tmp_path):
    Run.open(config(tmp_path))
    Run.open(config(tmp_path, collect={"pool": {"max": 9}}, ray={"local_cpus": 12}))
    assert Run.existing(str(tmp_path / "r")).config.collect.pool.max == 9


@pytest.mark.parametrize("content", ["thesis.txt", "photos/cat.jpg"])
def test_a_run_refuses_a_folder_that_is_not_its_own(tmp_path, content):
    foreign = tmp_path / "r" / content
    foreign.parent.mkdir(parents=True)
    foreign.write_text("mine")
    with pytest.raises(ConfigError, match=r"has no config\.yaml"):
        Run.open(config(tmp_path))
    assert not (tmp_path / "r" / "config.yaml").exists()


def test_a_run_takes_an_empty_folder(tmp_path):
    (tmp_path / "r").mkdir()
    assert Run.open(config(tmp_path)).folder.path == str(tmp_path / "r")


def test_a_run_killed_while_storing_its_configuration_can_be_opened_again(tmp_path):
    """`write_bytes` writes to a side file first; a kill before the move leaves only that."""
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "config.yaml.1a2b3c4d.part").write_text("run: {na")
    assert Run.open(config(tmp_path)).config.run.name == "r"


def test_a_run_records_its_format_from_the_start(tmp_path):
    run = Run.open(config(tmp_path))
    assert (run.folder / "format.json").read_json()["format"] == FORMAT
    assert (run.folder / "format.json").read_json()["written_by"].startswith("ka2l-ray ")


@pytest.mark.parametrize("started", [True, False])
@pytest.mark.parametrize(
    ("stored", "says"),
    [
        (None, r"has run format 1, written by an earlier version.*format 9.*another run\.name"),
        (
            '{"format": 10, "written_by": "ka2l-ray 9.1.0"}',
            r"has run format 10, written by ka2l-ray 9\.1\.0; .*format 9",
        ),
        ('{"for', r"format\.json: does not say which format the run has .*another run\.name"),
        ('{"format": 2}', r"format\.json: does not say which format the run has"),
    ],
)
def test_a_run_of_another_format_is_refused_and_unchanged(tmp_path, stored, says, started):
    run = Run.open(config(tmp_path))
    if started:
        (run.folder / "questions/manifest.json").write_json({"files": [], "rows": 0})
    (run.folder / "format.json").delete()
    if stored is not None:
        (tmp_path / "r/format.json").write_text(stored)
    before = {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()}
    with pytest.raises(ConfigError, match=says):
        Run.open(config(tmp_path, run={"max_error_fraction": 0.5}))
    with pytest.raises(ConfigError, match=says):
        Run.existing(run.folder.uri)
    assert {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()} == before


def test_a_format_file_without_a_configuration_is_replaced(tmp_path):
    """Another version was killed between writing the two and has started nothing."""
    (tmp_path / "r").mkdir()
    (tmp_path / "r/format.json").write_text('{"format": 10, "written_by": "ka2l-ray 9.1.0"}')
    Run.open(config(tmp_path))
    assert Run.existing(str(tmp_path / "r")).config.run.name == "r"


@pytest.mark.parametrize("left", [["driver.json"], ["driver.json", "format.json"]])
def test_a_run_killed_before_it_stored_its_configuration_can_be_opened_again(tmp_path, left):
    Run.open(config(tmp_path))
    (tmp_path / "r/driver.json").write_text("{}")
    for file in (tmp_path / "r").iterdir():
        if file.name not in left:
            file.unlink()
    assert Run.open(config(tmp_path)).config.run.name == "r"


def test_a_missing_run_is_named(tmp_path):
    with pytest.raises(ConfigError, match=rf"{tmp_path}: has no config\.yaml"):
        Run.existing(str(tmp_path))


def test_storage_that_cannot_be_written_is_a_configuration_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"run\.storage.*cannot be written"):
        Run.open(config(tmp_path / "file"))


def test_the_field_finetune_from_is_stored_under_its_name_in_the_file(tmp_path):
    run = Run.open(config(tmp_path, finetune={"from": "base"}))
    assert "  from: base\n" in (run.folder / "config.yaml").read_bytes().decode()
    assert Run.existing(run.folder.uri).config == Run.open(config(tmp_path)).config == run.config


def test_rounds_of_draws_have_folders_of_their_own(tmp_path):
    run = Run.open(config(tmp_path, run={"seed": 3}))
    assert run.round("ka2l", 0, 1).path == str(tmp_path / "r/strategies/ka2l/seed_3/round_01")
    assert len({run.round("random", draw, n).path for draw in range(3) for n in range(3)}) == 9
    assert run.base("scores").folder.path == str(tmp_path / "r/base/scores")
