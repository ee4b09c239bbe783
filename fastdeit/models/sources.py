"""Weights by their source: the local file behind a path, an address, a Hub repository or a timm
model.

| source | is stored in |
|---|---|
| a file, or a folder of ours, of timm or of the Hub; `local-dir:FOLDER` | its place |
| `hf-hub:OWNER/NAME[@REVISION]` | huggingface_hub's cache (HF_HOME) |
| NAME or NAME.TAG of timm, with pretrained weights | the same cache, or torch's |
| `https://...`, `http://...` | torch.hub's cache (TORCH_HOME) |

Names and their order as in timm 1.0.31, models/_hub.py; addresses as in torch.hub.
"""

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import timm
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
)

from fastdeit.models.sizes import suggest_names
from fastdeit.storage.download import cache_place, download
from fastdeit.storage.run_folder import RunFolder
from fastdeit.storage.urls import has_secret, hide_credentials

HUB = "hf-hub:"
"""The prefix of a repository of the Hub, as in timm."""
LOCAL = "local-dir:"
"""The prefix of a folder, as in timm."""
ADDRESSES = ("https://", "http://")
"""The prefixes of an address."""
FORMS = "a file, a folder, hf-hub:OWNER/NAME, https://... or a timm model"
"""The forms of a source, for messages."""

HUB_FILES = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth")
"""Weights in a folder of timm or of the Hub, in timm's order."""
_HUB_NAME = re.compile(HUB + r"([\w.-]+/[\w.-]+)(?:@((?!.*\.\.)[\w./-]+))?", re.ASCII)
"""A repository of the Hub. Its revision has no `..`, which git refuses too, as it becomes a path in
the cache."""
_SNAPSHOT = re.compile(r"/snapshots/([0-9a-f]{40})/")


class Repository(NamedTuple):
    """A repository of the Hub; files: names of its weights, the first one that exists counts;
    is_described: only its config.json names the architecture."""

    name: str
    revision: str | None
    files: Sequence[str] = HUB_FILES
    is_described: bool = True

    def __str__(self) -> str:
        return f"{HUB}{self.name}{f'@{self.revision}' if self.revision else ''}"


def fetch_weights(source: str | Path, *, ema: bool = False) -> Path:
    """Return the local file of the weights that a source names, downloaded unless a cache has it.

    ema: of a folder of ours, the file of the EMA. Raises ValueError for a source that does not
    exist or cannot be reached. Under a launcher, first on one process of each machine
    (`first_on_rank0`).
    """
    remote = find_remote(source)
    if remote is None:
        return _find_file(source, ema)
    return _fetch_from_hub(remote) if isinstance(remote, Repository) else download(remote)


def find_weights(source: str | Path) -> Path:
    """Return what `locate_weights` returns, downloaded if it is in no cache. Raises ValueError as
    `fetch_weights` does."""
    place = locate_weights(source)
    return place if place.is_file() or find_remote(source) is None else fetch_weights(source)


def _find_file(source: str | Path, ema: bool) -> Path:
    place = locate_weights(source, ema=ema)
    if not place.is_file():
        hint = f"the weights must be {FORMS}{suggest_names(str(source))}"
        raise ValueError(f"no checkpoint at {place}; {hint}")
    return place


def locate_weights(source: str | Path, *, ema: bool = False) -> Path:
    """Return the local file that a source names, without a network: the source itself, a file in
    its folder, or the place in a cache; it need not exist.

    ema: of a run folder or a checkpoint in it, the file of the EMA.
    """
    remote = find_remote(source)
    if isinstance(remote, str):
        return cache_place(remote)
    if remote is not None:
        return _find_in_cache(remote)
    path = Path(str(source).removeprefix(LOCAL))
    if not path.is_dir():
        return path
    own = RunFolder(path).weights(ema=ema)
    others = [] if ema else [path / name for name in HUB_FILES if (path / name).is_file()]
    return others[0] if others and not own.is_file() else own


def find_run(source: str | Path) -> RunFolder | None:
    """Return the run folder that a source is, or that has its file or checkpoint; None if there is
    none."""
    path = Path(str(source).removeprefix(LOCAL))
    # not Path.exists, which raises OSError for an address of above 4096 bytes
    if not os.path.exists(path):
        return None
    path = path.resolve()
    home = path if path.is_dir() else path.parent
    above = RunFolder(home.parent.parent)
    run = above if home.parent == above.checkpoints else RunFolder(home)
    return run if run.config.is_file() else None


def find_remote(source: str | Path) -> Repository | str | None:
    """Return the repository or the address behind a source; None for a path.

    Raises ValueError for a repository that cannot exist, and for an address with a secret.
    """
    name = str(source)
    if name.startswith(HUB):
        found = _HUB_NAME.fullmatch(name)
        if found is None:
            raise ValueError(f"a repository must be {HUB}OWNER/NAME[@REVISION] (got {name!r})")
        return Repository(found[1], found[2])
    if name.startswith(ADDRESSES):
        if has_secret(name):
            problem = "must be without a password or a token: download that file, and name it"
            raise ValueError(f"the address of weights {problem} (got {hide_credentials(name)})")
        return name
    is_model = timm.is_model_pretrained(name) and not Path(name).exists()
    return _find_pretrained(name) if is_model else None


def _find_pretrained(name: str) -> Repository | str:
    """Return where timm has the pretrained weights of a model."""
    known = timm.get_pretrained_cfg(name)
    if not known.hf_hub_id:
        return str(known.url)
    repository, _, revision = known.hf_hub_id.partition("@")
    files = [known.hf_hub_filename] if known.hf_hub_filename else HUB_FILES
    return Repository(repository, revision or None, files, is_described=False)


def name_revision(source: str | Path) -> str:
    """Return the permanent name of a source: of a repository, with the revision of the file in the
    cache."""
    remote = find_remote(source)
    found = _SNAPSHOT.search(str(locate_weights(source)))
    if isinstance(remote, Repository) and found:
        return str(remote._replace(revision=found[1]))
    return str(source) if remote is None else str(remote)


def _find_in_cache(repository: Repository) -> Path:
    for file in repository.files:
        found = try_to_load_from_cache(repository.name, file, revision=repository.revision)
        if isinstance(found, str):
            return Path(found)
    return Path(str(repository)) / repository.files[0]


def _fetch_from_hub(repository: Repository) -> Path:
    """Return the first of its files that a repository has, with its config.json beside it."""
    place = _find_in_cache(repository)
    try:
        if repository.is_described and not place.with_name("config.json").is_file():
            with _absence_allowed():
                _download(repository, "config.json")
        return place if place.is_file() else _download_weights(repository)
    except LocalEntryNotFoundError as error:
        if place.is_file():
            return place
        raise ValueError(f"{repository}: {_advise(repository)}") from error
    except (HfHubHTTPError, HFValidationError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{repository}: {reason}") from error


def _download_weights(repository: Repository) -> Path:
    for file in repository.files:
        with _absence_allowed():
            return _download(repository, file)
    raise ValueError(f"{repository}: has no weights, none of {', '.join(repository.files)}")


@contextlib.contextmanager
def _absence_allowed() -> Iterator[None]:
    """Suppress the error of a file that a repository lacks; a network that fails is an error."""
    try:
        yield
    except LocalEntryNotFoundError:
        raise
    except EntryNotFoundError:
        pass


def _download(repository: Repository, file: str) -> Path:
    return Path(hf_hub_download(repository.name, file, revision=repository.revision))


def _advise(repository: Repository) -> str:
    address = f"https://huggingface.co/{repository.name}/tree/{repository.revision or 'main'}"
    files = f"{repository.files[0]} and config.json"
    cure = f"download {files} from {address} into a folder, and name that folder instead"
    return f"not in the cache, and there is no network: {cure}"
