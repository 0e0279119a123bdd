"""A model of a hub: what the hub lists, whether it may be read, and its files in this node's cache.

In: a `ModelSection` whose `name_or_path` is a hub id. Out: a commit; a folder of the hub's cache that every process of
the node loads from. One process fetches what is missing while the others wait, and all sizes are those that the hub
lists; a commit that has been fetched once is used without a word to the hub. Where the hub cannot be reached, what is
in the cache is used. Refuses to know: how a model is loaded. The token is `huggingface_hub`'s: HF_TOKEN, or that of
`hf auth login`.
"""

import json
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import (
    HfApi,
    constants,
    get_hf_file_metadata,
    get_token,
    hf_hub_download,
    hf_hub_url,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage]  of its HTTP client, which differs by version
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import validate_repo_id

from ka2l_ray.config import ConfigError, ModelSection
from ka2l_ray.dataflow.paths import NAMED_MODELS, is_gguf
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.errors import library_message
from ka2l_ray.models.cache import are_whole, damaged, locked, recorded, room_for
from ka2l_ray.models.copies import WEIGHTS
from ka2l_ray.models.weights import INDEX, check_weights, is_small, wanted_weights

ANSWERS_WITHIN_S = 10.0
FILES_AT_ONCE = 8
UNREACHABLE = (HTTPError, OfflineModeIsEnabled, LocalEntryNotFoundError)
"""No connection, no answer in time, or an answer that says no more than that the hub is in trouble."""
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Listing:
    """A commit of a model, and its files with their bytes."""

    commit: str
    sizes: Mapping[str, int]


def is_on_hub(model: ModelSection) -> bool:
    """Whether `model.name_or_path` is a hub id: neither shipped, a URI, nor a path."""
    name = model.name_or_path
    if name in NAMED_MODELS or is_gguf(name) or "://" in name or Path(name).exists():
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def hub_cache(model: ModelSection) -> Path:
    """Where files of the hub are, in the hub's own layout: in `model.cache`, or by default in the hub's own cache."""
    return Path(constants.HF_HUB_CACHE) if model.cache is None else Path(model.cache, "hub")


def check_on_hub(model: ModelSection) -> None:
    """Raise `ConfigError` for a model or revision that the hub does not have, one that may not be read without another
    token, and one without whole safetensors; says nothing where the hub cannot be reached."""
    try:
        with _said_by_hub(model):
            found = listing(model)
            files = _wanted(model, found, weights=True)
            one = next(name for name in files if name.endswith(".safetensors"))
            # a gated model lists its files to everybody, and gives none
            get_hf_file_metadata(hf_hub_url(model.name_or_path, one, revision=found.commit), timeout=ANSWERS_WITHIN_S)
    except UNREACHABLE:
        return


def listing(model: ModelSection) -> Listing:
    """The commit that `model.revision` stands for now, and its files. Raises what `huggingface_hub` raises."""
    info = HfApi().model_info(
        model.name_or_path, revision=model.revision or "main", files_metadata=True, timeout=ANSWERS_WITHIN_S
    )
    return Listing(info.sha or "", {file.rfilename: file.size or 0 for file in info.siblings or ()})


def fetched(model: ModelSection, weights: bool = True) -> Path:
    """The folder of this node's cache with the model's files, fetched once; configuration and tokenizer only without
    `weights`. Its name is the commit.

    Raises `ConfigError` as `check_on_hub` does and where the disk is full, and one of `UNREACHABLE` where the hub
    cannot be reached and the cache does not have the model.
    """
    revision = model.revision or "main"
    if COMMIT.fullmatch(revision) and are_whole(
        folder := _snapshot(model, revision), recorded(_record(model, revision, weights))
    ):
        return folder
    try:
        with _said_by_hub(model):
            found = listing(model)
            folder, record = _snapshot(model, found.commit), _record(model, found.commit, weights)
            if not are_whole(folder, recorded(record)):
                files = _wanted(model, found, weights)
                _fetch(model, found, files)
                _note(record, json.dumps(files))
            if revision != found.commit and _noted(model, revision) != found.commit:
                _note(_ref(model, revision), found.commit)
            return folder
    except UNREACHABLE as error:
        return _at_hand(model, revision, weights, error)


def _snapshot(model: ModelSection, commit: str) -> Path:
    return hub_cache(model) / _name(model) / "snapshots" / commit


def _ref(model: ModelSection, revision: str) -> Path:
    return hub_cache(model) / _name(model) / "refs" / revision


def _noted(model: ModelSection, revision: str) -> str:
    """The commit that a branch or tag stood for when the hub was last asked; the revision itself if it was not."""
    ref = _ref(model, revision)
    return ref.read_text().strip() if ref.is_file() else revision


def _record(model: ModelSection, commit: str, weights: bool) -> Path:
    """The record of what has been fetched, in a folder that the hub's own tools leave alone."""
    return hub_cache(model) / ".locks" / "ka2l" / f"{_name(model)}-{commit}{'' if weights else '-small'}.json"


def _name(model: ModelSection) -> str:
    return repo_folder_name(repo_id=model.name_or_path, repo_type="model")


def _wanted(model: ModelSection, found: Listing, weights: bool) -> dict[str, int]:
    """{file: bytes} of a listing that are needed. Raises `ConfigError` where it has no whole safetensors."""
    files = [name for name, size in found.sizes.items() if is_small(name, size) and not name.endswith(WEIGHTS)]
    if weights:
        field = _field(model)
        needed = wanted_weights(found.sizes, lambda: _download(model, found, INDEX).read_bytes(), field)
        if missing := sorted(needed.keys() - found.sizes.keys()):
            raise ConfigError(
                f"{field}: the hub lists no {', '.join(missing[:3])}; weights are read from safetensors only"
            )
        files += needed
    return {name: found.sizes[name] for name in files}


def _fetch(model: ModelSection, found: Listing, files: Mapping[str, int]) -> None:
    """Fetch what is missing or damaged, unless another process has done so meanwhile, and check all sizes."""
    folder, place = _snapshot(model, found.commit), hub_cache(model)
    if not damaged(folder, files):
        return
    with locked(place / ".locks/ka2l" / f"{_name(model)}-{found.commit}.lock"):
        absent = damaged(folder, files)
        again = {name for name in absent if (folder / name).exists()}  # `huggingface_hub` would take it for whole
        with room_for(sum(files[name] for name in absent), place), ThreadPoolExecutor(FILES_AT_ONCE) as pool:
            for _ in pool.map(lambda name: _download(model, found, name, name in again), absent):
                pass
        if wrong := damaged(folder, files):
            raise ConfigError(
                f"{_field(model)}: {wrong[0]} arrived with another size than the hub lists; type it again"
            )


def _note(file: Path, text: str) -> None:
    with suppress(OSError):  # a cache that may only be read: the hub is asked again
        Folder.of(str(file)).write_bytes(text.encode())


def _download(model: ModelSection, found: Listing, name: str, again: bool = False) -> Path:
    where = hf_hub_download(
        model.name_or_path, name, revision=found.commit, cache_dir=hub_cache(model), force_download=again
    )
    return Path(where)


def _at_hand(model: ModelSection, revision: str, weights: bool, error: Exception) -> Path:
    """The folder in the cache, where the hub cannot be reached. Where it is not whole, the hub's `error` is raised,
    after which a worker tries again."""
    folder = _snapshot(model, _noted(model, revision))
    if not (folder / "config.json").exists():
        raise error
    if weights:
        try:
            check_weights(Folder.of(str(folder)), _field(model))
        except ConfigError as lacking:
            raise error from lacking
    return folder


def silent(model: ModelSection, error: Exception) -> ConfigError:
    """What to tell the user where the hub cannot be reached and the cache does not have the model."""
    return ConfigError(
        f"{_field(model)}: {constants.ENDPOINT} does not answer ({library_message(error)}), and {hub_cache(model)} "
        "does not have it whole. `ka2l doctor` shows both; or give a folder or URI"
    )


def _field(model: ModelSection) -> str:
    return f"model.name_or_path = {model.name_or_path!r}"


@contextmanager
def _said_by_hub(model: ModelSection) -> Iterator[None]:
    """Within this context the hub's refusals become a `ConfigError` that says what to do."""
    field, hub = _field(model), constants.ENDPOINT
    token = "your token may not read it" if get_token() else "there is no token"
    login = "set HF_TOKEN, or type `hf auth login`"
    try:
        yield
    except GatedRepoError as error:
        raise ConfigError(
            f"{field}: is gated, and {token}: accept its conditions at {hub}/{model.name_or_path}, then {login} with "
            "a token of that account"
        ) from error
    except RevisionNotFoundError as error:
        raise ConfigError(
            f"{field}: {hub} has no revision {model.revision!r} of it; model.revision is a commit, branch or tag"
        ) from error
    except RepositoryNotFoundError as error:
        raise ConfigError(
            f"{field}: {hub} has no such model, or it is private and {token}. Check the spelling; for a private one "
            f"{login}; for a folder give its path"
        ) from error
    except HfHubHTTPError as error:
        if error.response.status_code not in (401, 403):
            raise
        raise ConfigError(
            f"{field}: {hub} refuses it (HTTP {error.response.status_code}), and {token}: {login} with a token that "
            "may read it"
        ) from error


def fetched_file(model: ModelSection, repository: str, file: str) -> Path:
    """One file of a repository, at `model.revision`, in this node's cache. Raises as `fetched` does."""
    place = hub_cache(model)
    place.mkdir(parents=True, exist_ok=True)
    with _said_by_hub(model), room_for(0, place):
        try:
            return Path(hf_hub_download(repository, file, revision=model.revision, cache_dir=place))
        except RemoteEntryNotFoundError as error:
            raise ConfigError(f"{_field(model)}: {constants.ENDPOINT}/{repository} has no file {file!r}") from error


def commit_of(file: Path) -> str:
    """The commit that a file of the cache belongs to."""
    return next(part for part in reversed(file.parts) if COMMIT.fullmatch(part))
