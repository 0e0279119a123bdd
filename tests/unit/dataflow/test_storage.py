"""Files and folders: written whole or not at all, and opened again by their URI."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ka2l_ray.config import Config, ConfigError, parse_config
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.errors import StageError

STORE = "endpoint_override=http%3A%2F%2F127.0.0.1%3A9&region=eu-west-3"


def test_a_file_is_replaced_whole(tmp_path):
    file = Folder.of(str(tmp_path)) / "deep" / "results.json"
    file.write_json({"a": 1})
    file.write_json({"a": None, "b": "é"})
    assert file.read_json() == {"a": None, "b": "é"}
    assert (Folder.of(str(tmp_path)) / "deep").names() == ["results.json"]


def test_one_of_several_concurrent_writers_creates_a_new_file(tmp_path):
    for n in range(20):
        file, start = Folder.of(str(tmp_path)) / f"{n}.json", threading.Barrier(4)

        def write(me, file=file, start=start):
            start.wait()
            return file.write_new(me)

        with ThreadPoolExecutor(4) as pool:
            wrote = list(pool.map(write, [b"a", b"b", b"c", b"d"]))
        assert sum(wrote) == 1
        assert file.read_bytes() == b"abcd"[(i := wrote.index(True)) : i + 1]
    assert len(list(tmp_path.iterdir())) == 20


def test_a_folder_is_uploaded_whole_and_deleted_whole(tmp_path):
    (tmp_path / "from" / "inner").mkdir(parents=True)
    (tmp_path / "from" / "inner" / "x").write_text("1")
    folder = Folder.of(str(tmp_path / "to"))
    folder.upload(tmp_path / "from")
    with folder.local() as local:
        assert (Path(local) / "inner" / "x").read_text() == "1"
    assert folder.exists()
    folder.delete()
    folder.delete()
    assert not folder.exists()


@pytest.mark.parametrize(
    ("uri", "same"),
    [
        (f"s3://bucket/a/b?{STORE}", f"s3://bucket/a/b?{STORE}"),
        ("s3://bucket/a?region=eu-west-3", "s3://bucket/a?region=eu-west-3"),
        ("gs://bucket/a?project_id=p", "gcs://bucket/a?project_id=p"),
        ("/a/b", "/a/b"),
        ("/a b/ü?x#y", "/a b/ü?x#y"),
        ("file:///a/b", "/a/b"),
    ],
)
def test_a_folders_uri_opens_the_same_folder_again_on_the_same_filesystem(uri, same):
    """Nothing connects before something is read."""
    folder = Folder.of(uri)
    assert folder.uri == same
    for place in (folder, folder / "runs" / "r"):
        again = Folder.of(place.uri)
        assert (again.path, again.uri, again.is_local) == (place.path, place.uri, place.is_local)
        assert again.filesystem == place.filesystem


def test_options_of_a_uri_apply_to_everything_below_it():
    table = Run(Folder.of(f"s3://bucket/runs?{STORE}") / "r", Config()).base("scores")
    assert table.folder.uri == f"s3://bucket/runs/r/base/scores?{STORE}"
    assert table.folder.filesystem != Folder.of("s3://bucket/runs?region=eu-west-3").filesystem


def test_a_relative_path_is_opened_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Folder.of("runs")
    monkeypatch.chdir("/")
    assert Folder.of(folder.uri) == Folder.of(str(tmp_path / "runs")) == folder


@pytest.mark.parametrize("name", ["a%20b", "50%25", "a%3Fb"])
def test_a_uri_with_escaped_characters_opens_again(name):
    folder = Folder.of(f"s3://bucket/{name}?region=eu-west-3")
    assert Folder.of(folder.uri).path == folder.path


def test_an_unsupported_scheme_is_refused_naming_the_uri_and_the_field():
    with pytest.raises(ConfigError, match=r"^'ftp://host/x': "):
        Folder.of("ftp://host/x")
    with pytest.raises(ConfigError, match=r"^run\.storage = 'ftp://host': "):
        Run.open(parse_config({"run": {"storage": "ftp://host"}}, "test"))


@pytest.mark.parametrize("text", ['{"files": [', "", "\0\0\0\0", "[" * 100_000])
@pytest.mark.parametrize("name", ["base/scores/manifest.json", "results.json"])
def test_a_damaged_file_is_named_in_one_line(tmp_path: Path, name: str, text: str) -> None:
    file = Folder.of(str(tmp_path)) / name
    file.write_bytes(text.encode())
    with pytest.raises(StageError, match=rf"{name}: is not valid JSON .*Delete it and run again") as refused:
        file.read_json_or_empty()
    assert "\n" not in str(refused.value)
