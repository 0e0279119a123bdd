"""Models of a hub, against a hub of this machine: fetched once per node, whole or not at all, and refused at once."""

import multiprocessing
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from model_hub import COMMIT, ModelHub

from ka2l_ray.config import CollectSection, ConfigError, ModelSection
from ka2l_ray.models import cache, weights
from ka2l_ray.models.gguf_files import gguf_file
from ka2l_ray.models.hub import UNREACHABLE, check_on_hub, fetched, is_on_hub
from ka2l_ray.models.loading import ASSETS, as_config_errors, check_model, commit, load_blocks, load_model
from ka2l_ray.models.sampled_as import sampled_as

ID, TOKEN, WEIGHTS = "someone/gated-world", "hf_right", "model.safetensors"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    shutil.copytree(ASSETS / "model", tmp_path / "files")
    return tmp_path / "files"


@pytest.fixture
def hub(files: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelHub]:
    with ModelHub(ID, files, TOKEN).running() as running:
        running.is_asked(monkeypatch)
        yield running


@pytest.fixture
def model(tmp_path: Path) -> ModelSection:
    return ModelSection(name_or_path=ID, cache=str(tmp_path / "cache"))


def at_commit(model: ModelSection) -> ModelSection:
    """As the driver pins it before any actor starts."""
    return model.model_copy(update={"revision": COMMIT})


def test_ids_are_told_from_paths_and_uris(tmp_path: Path) -> None:
    names = {"gpt2": True, ID: True, "world": False, "s3://b/m": False, str(tmp_path): False, "no such": False}
    assert {name: is_on_hub(ModelSection(name_or_path=name)) for name in names} == names


def test_a_model_is_checked_without_its_weights_and_pinned(hub: ModelHub, model: ModelSection) -> None:
    check_model(model)
    assert commit(model) == COMMIT
    assert WEIGHTS not in hub.sent
    assert hub.refused == []


def test_weights_in_other_formats_are_left_on_the_hub(
    hub: ModelHub, files: Path, model: ModelSection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "LARGEST_VOCABULARY", 1000)
    for name in ("rust_model.ot", "64.tflite", "optimizer.pt"):
        (files / name).write_bytes(b"-" * 2000)
    (files / "qwen.tiktoken").write_bytes(b"-" * 500)
    folder = fetched(model)
    assert {"rust_model.ot", "64.tflite", "optimizer.pt"}.isdisjoint(hub.sent)
    assert {"qwen.tiktoken", "tokenizer.json", WEIGHTS} <= {f.name for f in folder.iterdir()}


def test_it_is_loaded_from_the_cache_and_is_the_same_model(hub: ModelHub, model: ModelSection) -> None:
    found, shipped = load_model(model).state_dict(), load_model(ModelSection()).state_dict()
    assert all(torch.equal(found[name], shipped[name]) for name in shipped)
    load_blocks(at_commit(model), 1)
    assert hub.sent.count(WEIGHTS) == 1


def test_all_processes_of_a_node_fetch_it_once_then_ask_the_hub_nothing(hub: ModelHub, model: ModelSection) -> None:
    processes = [
        multiprocessing.get_context("fork").Process(target=fetched, args=(at_commit(model),)) for _ in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert set(Counter(hub.sent).values()) == {1}
    assert WEIGHTS in hub.sent
    asked, hub.is_down = hub.requests, True
    assert (fetched(at_commit(model)) / WEIGHTS).stat().st_size == (ASSETS / "model" / WEIGHTS).stat().st_size
    assert hub.requests == asked


def test_a_download_that_was_cut_off_is_never_used(
    hub: ModelHub, model: ModelSection, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.to_cut = 1000
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)  # between its attempts
    with pytest.raises(Exception, match=r"."):  # huggingface_hub's, after attempts of its own
        fetched(at_commit(model))
    assert hub.to_cut < 1000
    hub.to_cut = 0
    assert (fetched(at_commit(model)) / WEIGHTS).read_bytes() == (ASSETS / "model" / WEIGHTS).read_bytes()


def test_a_file_that_was_damaged_on_the_disk_is_fetched_again_and_no_other(hub: ModelHub, model: ModelSection) -> None:
    blob = (fetched(at_commit(model)) / WEIGHTS).resolve()
    blob.write_bytes(blob.read_bytes()[:1000])
    hub.sent.clear()
    assert (fetched(at_commit(model)) / WEIGHTS).read_bytes() == (ASSETS / "model" / WEIGHTS).read_bytes()
    assert hub.sent == [WEIGHTS]


def test_what_was_fetched_serves_where_the_hub_is_down(hub: ModelHub, model: ModelSection) -> None:
    folder = fetched(model)
    hub.is_down = True
    assert fetched(model) == folder  # a branch: the hub is asked, and does not answer
    check_model(model)


def test_what_a_model_states_of_sampling_is_never_guessed_where_the_hub_is_down(
    hub: ModelHub, model: ModelSection
) -> None:
    hub.is_down = True
    with pytest.raises(UNREACHABLE):
        sampled_as(model, CollectSection())
    hub.is_down = False
    stated, _ = sampled_as(model, CollectSection())
    hub.is_down = True
    assert (stated.temperature, stated.top_p) == (1.0, None)
    assert sampled_as(model, CollectSection())[0] == stated  # from `model.cache`


def test_a_hub_that_is_down_is_one_line_where_nothing_is_at_hand(hub: ModelHub, model: ModelSection) -> None:
    hub.is_down = True
    said = pytest.raises(ConfigError, match=rf"{ID}.*127\.0\.0\.1.* does not answer \(.*503.*does not have it whole")
    with said, as_config_errors(model):
        check_model(model)


def test_half_a_model_in_the_cache_is_refused_where_the_hub_is_down(hub: ModelHub, model: ModelSection) -> None:
    fetched(model, weights=False)
    hub.is_down = True
    with pytest.raises(ConfigError, match="does not have it whole"), as_config_errors(model):
        fetched(model)


def without_safetensors(files: Path) -> None:
    (files / WEIGHTS).rename(files / "pytorch_model.bin")


def with_half_an_index(files: Path) -> None:
    (files / WEIGHTS).rename(files / "model-00001-of-00002.safetensors")
    (files / "model.safetensors.index.json").write_text(
        '{"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}'
    )


def as_it_is(files: Path) -> None:
    pass


REFUSED: dict[str, tuple[str, str, str | None, Callable[[Path], None], str]] = {
    # name: (id, HF_TOKEN, revision, what is done to its files, what is said)
    "gated, no token": (ID, "", None, as_it_is, "is gated, and there is no token: accept its conditions at .*HF_TOKEN"),
    "gated, another's token": (ID, "hf_other", None, as_it_is, "is gated, and your token may not read it: accept its"),
    "absent": ("someone/none", TOKEN, None, as_it_is, "has no such model, or it is private and your token may not"),
    "absent, no token": ("someone/none", "", None, as_it_is, "has no such model, or it is private and there is no"),
    "no such revision": (ID, TOKEN, "v9", as_it_is, "has no revision 'v9' of it; model.revision is a commit"),
    "pickles only": (ID, TOKEN, None, without_safetensors, r"the hub lists no model\.safetensors; weights are read"),
    "half an index": (ID, TOKEN, None, with_half_an_index, "does not name model-00002-of-00002.safetensors of its set"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_what_the_hub_does_not_have_or_give_is_one_clear_error(
    case: tuple[str, str, str | None, Callable[[Path], None], str],
    hub: ModelHub,
    files: Path,
    model: ModelSection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name, token, revision, change, says = case
    change(files)
    monkeypatch.setenv("HF_TOKEN", token)
    wanted = model.model_copy(update={"name_or_path": name, "revision": revision})
    for act in (check_model, check_on_hub, fetched):
        with pytest.raises(ConfigError, match=rf"^model\.name_or_path = '{name}': .*{says}") as raised:
            act(wanted)
        assert "\n" not in str(raised.value)
        assert not token or token not in str(raised.value)


def test_a_token_that_was_right_when_the_configuration_was_cached_is_asked_again(
    hub: ModelHub, model: ModelSection, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched(model, weights=False)
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    with pytest.raises(ConfigError, match="is gated, and your token may not read it"):
        check_model(model)


def test_a_disk_without_room_is_told_before_the_weights_are_fetched(
    hub: ModelHub, model: ModelSection, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda place: full)
    with pytest.raises(ConfigError, match=r"GB of weights are to be stored here, where 0\.0 GB are free"):
        fetched(model)
    assert WEIGHTS not in hub.sent


def test_a_connection_that_breaks_is_no_mistake_of_the_user(hub: ModelHub, model: ModelSection) -> None:
    """So a worker tries again."""
    fetched(model, weights=False)
    hub.is_down = True
    with pytest.raises(UNREACHABLE):
        fetched(at_commit(model))


def test_a_cache_that_may_only_be_read_is_used(hub: ModelHub, model: ModelSection, tmp_path: Path) -> None:
    folder = fetched(model)
    (tmp_path / "cache/hub/.locks/ka2l").rename(tmp_path / "gone")
    (tmp_path / "cache/hub/.locks/ka2l").touch()  # no record can be written there, even by root
    hub.sent.clear()
    assert fetched(at_commit(model)) == folder
    assert hub.sent == []


GGUF = "tiny-Q8_0.gguf"


def one_file(tmp_path: Path, name: str = GGUF) -> ModelSection:
    return ModelSection(name_or_path=f"{ID}:{name}", cache=str(tmp_path / "cache"))


def test_a_gguf_file_of_a_repository_is_fetched_once_and_alone(hub: ModelHub, files: Path, tmp_path: Path) -> None:
    (files / GGUF).write_bytes(b"GGUF and more")
    model = one_file(tmp_path)
    assert not is_on_hub(model)
    assert gguf_file(model).read_bytes() == b"GGUF and more"
    assert gguf_file(model).is_relative_to(tmp_path / "cache")
    assert hub.sent == [GGUF]
    pytest.importorskip("gguf", reason="the package gguf is not installed")
    with pytest.raises(ConfigError, match="is cut short, damaged"):
        check_model(model)


def test_a_gguf_file_in_the_cache_that_was_damaged_is_refused(hub: ModelHub, files: Path, tmp_path: Path) -> None:
    (files / GGUF).write_bytes(b"GGUF and more")
    gguf_file(one_file(tmp_path)).resolve().write_bytes(b"GGUF and less!")
    with pytest.raises(ConfigError, match=r"is damaged: its SHA-256 is not [0-9a-f]{64}; delete it"):
        gguf_file(one_file(tmp_path))


def test_a_gguf_file_is_pinned_and_serves_where_the_hub_is_down(hub: ModelHub, files: Path, tmp_path: Path) -> None:
    (files / GGUF).write_bytes(b"GGUF and more")
    assert commit(one_file(tmp_path)) == COMMIT
    asked, pinned = hub.requests, at_commit(one_file(tmp_path))
    assert gguf_file(pinned).read_bytes() == b"GGUF and more"
    assert hub.requests == asked
    hub.is_down = True
    assert gguf_file(one_file(tmp_path)) == gguf_file(pinned)
    elsewhere = pinned.model_copy(update={"cache": str(tmp_path / "other")})
    with pytest.raises(ConfigError, match=r"127\.0\.0\.1.* does not answer"), as_config_errors(elsewhere):
        gguf_file(elsewhere)


def test_a_gguf_file_that_the_hub_does_not_have_or_give_is_refused(
    hub: ModelHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=f"{ID} has no file 'none.gguf'"):
        gguf_file(one_file(tmp_path, "none.gguf"))
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(ConfigError, match="is gated, and your token may not read it"):
        gguf_file(one_file(tmp_path))
