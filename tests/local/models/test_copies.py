"""Models and decoders at a URI: complete local copies, made once per node and only of what is needed."""

import os
import stat
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from pyarrow import fs
from tiny_models import tiny_model

from ka2l_ray.config import ModelSection
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.decode.model import StateDecoder
from ka2l_ray.decode.states import decoder_folder
from ka2l_ray.errors import ConfigError
from ka2l_ray.models import copies
from ka2l_ray.models.copies import local_copy
from ka2l_ray.models.loading import (
    ASSETS,
    check_model,
    configuration,
    depth_and_width,
    load_blocks,
    load_model,
    load_tokenizer,
    model_path,
)


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were copied, one by one."""
    names: list[str] = []
    copy = fs.copy_files

    def copy_files(source: str, *more: Any, **options: Any) -> None:
        names.append(Path(source).name)
        copy(source, *more, **options)

    monkeypatch.setattr(copies.fs, "copy_files", copy_files)
    return names


def below(bucket: str, name: str) -> Folder:
    return Folder.of(bucket) / name


def test_a_model_and_a_decoder_are_used_from_object_storage(
    bucket: str, tokenizer: Any, tmp_path: Path, copied: list[str]
) -> None:
    local = tmp_path / "tiny"
    whole = tiny_model("llama", tokenizer)
    whole.save_pretrained(local)
    tokenizer.save_pretrained(local)
    below(bucket, "tiny").upload(local)
    at_uri, here = ModelSection(name_or_path=below(bucket, "tiny").uri), ModelSection(name_or_path=str(local))

    check_model(at_uri)
    assert depth_and_width(at_uri) == depth_and_width(here)
    assert load_tokenizer(at_uri)("Who?")["input_ids"] == load_tokenizer(here)("Who?")["input_ids"]
    assert "config.json" in copied
    assert "model.safetensors" not in copied  # nobody has asked for weights yet
    ids = torch.tensor([[3, 4, 5]])
    with torch.inference_mode():
        assert torch.equal(load_model(at_uri)(ids).logits, whole(ids).logits)
        assert torch.equal(load_blocks(at_uri, 2)(ids).last_hidden_state, load_blocks(here, 2)(ids).last_hidden_state)
    assert copied.count("model.safetensors") == 1

    below(bucket, "decoder").upload(ASSETS / "decoder")
    theirs, shipped = (StateDecoder.load(decoder_folder(d)) for d in (below(bucket, "decoder").uri, "world"))
    assert theirs.card == shipped.card
    assert all(
        torch.equal(a, b) for a, b in zip(theirs.state_dict().values(), shipped.state_dict().values(), strict=True)
    )


def test_fine_tuned_weights_at_a_uri_are_copied_once_into_the_cache(
    bucket: str, tokenizer: Any, tmp_path: Path, copied: list[str]
) -> None:
    tuned = tiny_model("llama", tokenizer)
    tuned.save_pretrained(tmp_path / "tuned")
    below(bucket, "tuned").upload(tmp_path / "tuned")
    model = ModelSection(adapter=below(bucket, "tuned").uri, cache=str(tmp_path / "cache"))
    for _ in range(2):
        loaded = load_model(model).state_dict()
        assert all(torch.equal(loaded[name], value) for name, value in tuned.state_dict().items())
    assert copied.count("model.safetensors") == 1
    assert len(list(tmp_path.glob("cache/copies/*/model.safetensors"))) == 1


def test_a_uri_without_weights_or_without_anything_is_refused(bucket: str, tokenizer: Any, tmp_path: Path) -> None:
    local = tmp_path / "tiny"
    tiny_model("llama", tokenizer).save_pretrained(local)
    (local / "model.safetensors").unlink()
    below(bucket, "tiny").upload(local)
    with pytest.raises(ValueError, match=r"lacks model\.safetensors"):
        check_model(ModelSection(name_or_path=below(bucket, "tiny").uri))
    with pytest.raises(ConfigError, match=r"s3://runs/here/none.*no such folder"):
        configuration(ModelSection(name_or_path=below(bucket, "none").uri))


def test_a_copy_is_complete_and_made_once_and_changed_content_is_copied_again(
    bucket: str, scratch: Path, copied: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = below(bucket, "m")
    (folder / "config.json").write_bytes(b"{}")
    (folder / "inner/model.safetensors").write_bytes(b"first")

    def cut(*given: Any, **options: Any) -> None:
        raise OSError("connection reset")

    with monkeypatch.context() as broken:
        whole = copies.fs.copy_files
        broken.setattr(
            copies.fs,
            "copy_files",
            lambda source, *a, **o: (whole if source.endswith("json") else cut)(source, *a, **o),
        )
        with pytest.raises(OSError, match="reset"):
            local_copy(folder.uri)
    copied.clear()

    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(local_copy(folder.uri))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert sorted(copied) == ["config.json", "model.safetensors"]
    assert (found[0] / "inner/model.safetensors").read_bytes() == b"first"
    assert not [p for p in found[0].parent.iterdir() if p.name.endswith(".part")]

    (folder / "inner/model.safetensors").write_bytes(b"another")
    assert (local_copy(folder.uri) / "inner/model.safetensors").read_bytes() == b"another"
    assert stat.S_IMODE(found[0].parent.stat().st_mode) == 0o700


def test_a_local_folder_is_no_copy(tmp_path: Path, copied: list[str]) -> None:
    assert local_copy(str(tmp_path)) == tmp_path
    assert model_path(ModelSection(name_or_path="owner/name")) == "owner/name"
    assert copied == []


def test_a_folder_given_as_a_uri_is_copied_from_the_shared_disk_to_the_nodes_own(tmp_path: Path) -> None:
    shared, cache = tmp_path / "shared/m", tmp_path / "own"
    shared.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "pytorch_model.bin"):
        (shared / name).write_bytes(name.encode())
    copy = local_copy(f"file://{shared}", cache=str(cache))
    assert copy.is_relative_to(cache)
    assert {f.name for f in copy.iterdir() if not f.name.startswith(".")} == {"config.json", "model.safetensors"}


def test_a_folder_that_another_user_made_is_not_trusted(
    scratch: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (below(bucket, "m") / "config.json").write_bytes(b"{}")
    place = scratch / f"ka2l-copies-{os.getuid()}"
    (scratch / "elsewhere").mkdir()
    place.symlink_to(scratch / "elsewhere")
    with pytest.raises(ConfigError, match="belongs to another user; set TMPDIR"):
        local_copy(below(bucket, "m").uri)
