"""Weights by name: the local file behind a path, an address, a Hub repository or a timm model.

`hf-hub:OWNER/NAME[@REVISION]` and the pretrained weights of timm come from the Hugging Face Hub,
into huggingface_hub's cache (HF_HOME); `https://...` from a server, into torch.hub's cache
(TORCH_HOME). What is in a cache needs no network. Names and order as timm 1.0.31, models/_hub.py.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import timm
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
)
from timm.models import PretrainedCfg
from timm.models._hub import download_cached_file

from fastdeit.models.names import suggest_names
from fastdeit.models.weights import locate_weights

HUB = "hf-hub:"
LOCAL = "local-dir:"
ADDRESSES = ("https://", "http://")
_HUB_FILES = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth")


def is_remote(source: str) -> bool:
    """Return True if weights are named by an address or a Hub repository."""
    return source.startswith((HUB, *ADDRESSES))


def fetch_weights(source: str | Path, *, ema: bool = False) -> Path:
    """Return the local file of the weights that a source names, downloaded unless a cache has it.

    source: a file, a run folder or a checkpoint in it, `local-dir:FOLDER`,
    `hf-hub:OWNER/NAME[@REVISION]`, `https://...`, or the name of a timm model with pretrained
    weights. ema: of a folder of ours, the file of the EMA. Raises ValueError for a source that
    does not exist or cannot be reached.
    """
    name = str(source)
    if name.startswith(HUB):
        return _fetch_from_hub(name.removeprefix(HUB))
    if name.startswith(ADDRESSES):
        return _fetch_address(name)
    path = Path(name.removeprefix(LOCAL))
    if name.startswith(LOCAL) or path.exists():
        return locate_weights(path, ema=ema)
    if timm.is_model(name.partition(".")[0]):
        return fetch_pretrained(name)
    allowed = "a file, a folder, hf-hub:OWNER/NAME, https://... or a timm model"
    raise ValueError(f"the weights must be {allowed} (got {name!r}){suggest_names(name)}")


def fetch_pretrained(name: str) -> Path:
    """Return the local file of timm's pretrained weights for a model, NAME or NAME.TAG.

    Raises ValueError if there are none, or they cannot be reached.
    """
    known = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if known is None or not known.has_weights:
        raise ValueError(f"timm has no pretrained weights of {name}")
    return _fetch_known(name, known)


def _fetch_known(name: str, known: PretrainedCfg) -> Path:
    if known.hf_hub_id:
        files = [known.hf_hub_filename] if known.hf_hub_filename else _HUB_FILES
        return _fetch_from_hub(known.hf_hub_id, files)
    assert isinstance(known.url, str), name
    return _fetch_address(known.url)


def _fetch_from_hub(repository: str, files: Sequence[str] = _HUB_FILES) -> Path:
    """Return the first of these files that a repository has, with its config.json beside it."""
    name, _, revision = repository.partition("@")
    try:
        for file in files:
            try:
                path = Path(hf_hub_download(name, file, revision=revision or None))
            except LocalEntryNotFoundError:
                raise
            except EntryNotFoundError:
                continue
            _fetch_config(name, revision)
            return path
    except LocalEntryNotFoundError as error:
        address = f"https://huggingface.co/{name}"
        cure = f"download {files[0]} and config.json from {address}, and name that folder"
        raise ValueError(f"{HUB}{repository}: not in the cache, and no network: {cure}") from error
    except (HfHubHTTPError, HFValidationError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{HUB}{repository}: {reason}") from error
    raise ValueError(f"{HUB}{repository}: has no weights, none of {', '.join(files)}")


def _fetch_config(name: str, revision: str) -> None:
    try:
        hf_hub_download(name, "config.json", revision=revision or None)
    except EntryNotFoundError:
        return


def _fetch_address(address: str) -> Path:
    file = address.partition("?")[0].rpartition("/")[2]
    try:
        return Path(download_cached_file(address, progress=sys.stderr.isatty()))
    except (OSError, RuntimeError) as error:
        cure = f"download {file} on another machine, and name that file"
        raise ValueError(f"{address}: cannot be downloaded ({error}): {cure}") from error
