"""`paths.absolute`: what a configuration's paths mean is settled once, on the driver."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ka2l_ray.cli.jobs import JOB_VARIABLE, in_copied_folder
from ka2l_ray.config import Config, ConfigError, differing_fields, load_config, parse_config
from ka2l_ray.config.base import NoKeys, Section, section_of
from ka2l_ray.dataflow.paths import PATHS, absolute


def config(**sections: dict[str, Any]) -> Config:
    return parse_config(sections, "test")


def replies(made: Config) -> str | None:
    return made.annotate.endpoint.replies


def test_every_relative_path_counts_from_the_folder_given(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    made = absolute(
        config(
            run={"storage": "runs"},
            model={"name_or_path": "model", "adapter": "../adapter"},
            corpus={"source": ["./q.jsonl", "data/*.csv", "folder/"]},
            decode={"decoder": "decoder"},
            annotate={"endpoint": {"replies": "replies"}},
        ),
        tmp_path,
    )
    assert made.run.storage == f"{tmp_path}/runs"
    assert (made.model.name_or_path, made.model.adapter) == (f"{tmp_path}/model", f"{tmp_path.parent}/adapter")
    assert made.corpus.source == (f"{tmp_path}/q.jsonl", f"{tmp_path}/data/*.csv", f"{tmp_path}/folder")
    assert (made.decode.decoder, replies(made)) == (f"{tmp_path}/decoder", f"{tmp_path}/replies")


def test_paths_in_a_jobs_copied_folder_stay_relative(tmp_path: Path) -> None:
    """Ray unpacks a job's working directory at another path in every job, but a resubmitted job is the same run."""
    sections: dict[str, Any] = {
        "corpus": {"source": ["./q.jsonl", "/shared/q.jsonl", "../q.jsonl"]},
        "decode": {"decoder": "decoder/"},
    }
    sections |= {"model": {"name_or_path": "model"}, "annotate": {"endpoint": {"replies": "replies"}}}
    made = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        (folder / "model").mkdir(parents=True)
        made.append(absolute(config(run={"storage": "runs"}, **sections), folder, is_copied=True))
    assert made[0].corpus.source == ("q.jsonl", "/shared/q.jsonl", f"{tmp_path}/q.jsonl")
    assert (made[0].model.name_or_path, made[0].decode.decoder) == ("model", "decoder")
    assert differing_fields(*made) == []
    assert [m.run.storage for m in made] == [f"{tmp_path}/one/runs", f"{tmp_path}/two/runs"]
    assert replies(made[0]) == f"{tmp_path}/one/replies"


@pytest.mark.parametrize(
    ("job", "along"),
    [(None, False), ('{"runtime_env": {}}', False), ('{"runtime_env": {"working_dir": "gcs://_ray_pkg_1.zip"}}', True)],
)
def test_only_a_job_with_a_working_directory_takes_files_along(
    monkeypatch: pytest.MonkeyPatch, job: str | None, along: bool
) -> None:
    monkeypatch.delenv(JOB_VARIABLE, raising=False)
    if job is not None:
        monkeypatch.setenv(JOB_VARIABLE, job)
    assert in_copied_folder() == along


def test_ids_and_uris_stay(tmp_path: Path) -> None:
    uri = "s3://bucket/x?region=eu-west-3&endpoint_override=http%3A%2F%2F127.0.0.1%3A9"
    given = config(
        run={"storage": uri},
        model={"name_or_path": "owner/model", "adapter": uri},
        corpus={"source": ["owner/questions", f"{uri}"]},
        decode={"decoder": uri},
    )
    assert absolute(given, tmp_path) == given
    assert absolute(parse_config({}, "test"), tmp_path).model_copy(update={"run": Config().run}) == Config()
    assert absolute(config(model={"name_or_path": uri}), tmp_path).model.name_or_path == uri


@pytest.mark.parametrize("name", ["owner/name", "world"])
def test_a_folder_of_a_hub_ids_name_is_the_folder(tmp_path: Path, name: str) -> None:
    """As Hugging Face and the corpus' reader take it; `world` is always the shipped one."""
    (tmp_path / name).mkdir(parents=True)
    made = absolute(config(model={"name_or_path": name}, corpus={"source": name}), tmp_path)
    expected = name if name == "world" else f"{tmp_path}/{name}"
    assert (made.model.name_or_path, made.corpus.source) == (expected, expected)


@pytest.mark.parametrize(
    ("name", "is_path"),
    [("smollm2", False), ("m.gguf", True), ("none.gguf", False), ("owner/name:m.gguf", False), ("./none.gguf", True)],
)
def test_smollm2_and_files_on_a_hub_are_no_paths(tmp_path: Path, name: str, is_path: bool) -> None:
    """`smollm2` is the package's model even beside a folder of that name."""
    (tmp_path / "smollm2").mkdir()
    (tmp_path / "m.gguf").touch()
    made = absolute(config(model={"name_or_path": name}), tmp_path).model.name_or_path
    assert made == (str(tmp_path / name) if is_path else name)


def test_a_file_in_a_folder_is_not_taken_for_a_hub_id(tmp_path: Path) -> None:
    assert absolute(config(corpus={"source": "data/q.jsonl"}), tmp_path).corpus.source == f"{tmp_path}/data/q.jsonl"


def test_home_and_variables_are_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a file and in `--set` alike."""
    monkeypatch.setenv("HOME", "/home/ann")
    monkeypatch.setenv("SCRATCH", "/scratch/ann")
    monkeypatch.setenv("BUCKET", "mine")
    file = tmp_path / "c.yaml"
    model = "{name_or_path: ~/model, adapter: 's3://$BUCKET/adapter'}"
    file.write_text(f"run: {{storage: ~/runs}}\nmodel: {model}\ncorpus: {{source: $SCRATCH/q.jsonl}}\n")
    made = absolute(
        load_config(file, ["decode.decoder=~/decoder", "annotate.endpoint.replies=${SCRATCH}/replies"]), tmp_path
    )
    assert (made.run.storage, made.model.name_or_path, made.model.adapter) == (
        "/home/ann/runs",
        "/home/ann/model",
        "s3://mine/adapter",
    )
    assert (made.corpus.source, made.decode.decoder, replies(made)) == (
        "/scratch/ann/q.jsonl",
        "/home/ann/decoder",
        "/scratch/ann/replies",
    )


@pytest.mark.parametrize("name", ["$cash.jsonl", "~old.jsonl"])
def test_a_file_that_is_there_is_taken_by_its_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("")
    assert absolute(config(corpus={"source": name}), tmp_path).corpus.source == f"{tmp_path}/{name}"


def test_a_variable_or_user_that_is_not_known_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOWHERE", raising=False)
    with pytest.raises(ConfigError, match=r"^run\.storage = '\$NOWHERE/runs': the environment has no NOWHERE; set it"):
        absolute(config(run={"storage": "$NOWHERE/runs"}), tmp_path)
    with pytest.raises(ConfigError, match=r"^model\.adapter = '~nobody-of-that-name/a': there is no user of that name"):
        absolute(config(model={"adapter": "~nobody-of-that-name/a"}), tmp_path)


@pytest.mark.parametrize(
    "field", ["run.storage", "model.name_or_path", "model.adapter", "corpus.source", "decode.decoder"]
)
def test_a_variable_brings_no_key_into_what_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    monkeypatch.setenv("WHO", "AKIA1234:hush")
    file = tmp_path / "c.yaml"
    file.write_text("")
    with pytest.raises(ConfigError, match="must contain no keys") as refused:
        absolute(load_config(file, [f"{field}=s3://${{WHO}}@bucket/x"]), tmp_path)
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize(
    "section", [{"model": {"name_or_path": "s3://me:hush@b/x"}}, {"decode": {"decoder": "s3://b/x?secret_key=hush"}}]
)
def test_models_and_decoders_hold_no_keys(section: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="must contain no keys") as refused:
        config(**section)
    assert "hush" not in str(refused.value)


def test_a_run_is_the_same_from_another_folder(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "inner").mkdir()
    first = absolute(config(model={"name_or_path": "./model"}, corpus={"source": "q.jsonl"}), tmp_path)
    again = absolute(config(model={"name_or_path": "../model"}, corpus={"source": "../q.jsonl"}), tmp_path / "inner")
    assert first == again.model_copy(update={"run": first.run})
    assert differing_fields(first, again) == []
    assert absolute(first, tmp_path / "inner") == first


def paths_of(section: type[Section] = Config, prefix: str = "") -> Iterator[str]:
    """Dotted names of all fields that refuse keys, as every field does that may be a URI."""
    for name, field in section.model_fields.items():
        if inner := section_of(field.annotation):
            yield from paths_of(inner, f"{prefix}{name}.")
        elif NoKeys in field.metadata:
            yield f"{prefix}{name}"


def test_every_field_with_a_path_is_settled() -> None:
    a_folder_always = "model.cache"
    assert sorted([*paths_of(), a_folder_always]) == sorted(PATHS)
