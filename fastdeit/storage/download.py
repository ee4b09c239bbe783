"""Files at an address, in torch.hub's cache: whole or absent, and checked against the hash in their
name."""

import hashlib
import re
import urllib.request
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

import torch

from fastdeit.storage.atomic import atomic_open
from fastdeit.storage.urls import hide_credentials

_HASH = re.compile(r"-([0-9a-f]{8,64})\.")
"""The first digits of the SHA-256 in a name, as in torch.hub's `regnety_160-a5fe301d.pth`."""
_CHUNK = 1 << 20
_TIMEOUT_S = 60
_MAX_BYTES = 1 << 36  # the largest file of timm has 18 GB


def cache_place(address: str) -> Path:
    """Return the place in torch.hub's cache of the file at an address.

    A name with a hash has the place that torch.hub uses. Any other name may be that of different
    files at different addresses, so the file has its own folder.
    """
    name = unquote(urlsplit(address).path).rpartition("/")[2] or "weights"
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    if _HASH.search(name):
        return folder / name
    return folder / hashlib.sha256(address.encode()).hexdigest()[:16] / name


def download(address: str) -> Path:
    """Download the file at an address unless the cache has it; return its place in the cache.

    Raises ValueError, which names the place for a copy of the file, if it cannot be downloaded
    completely.
    """
    place = cache_place(address)
    if place.is_file():
        return place
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        request = urllib.request.Request(address, headers={"User-Agent": "fastdeit"})
        answer = urllib.request.urlopen(request, timeout=_TIMEOUT_S)
        with answer, atomic_open(place) as file:
            _receive(answer, file, place.name)
    except (OSError, HTTPException, ValueError) as error:
        cure = f"download {place.name} elsewhere, and name that file instead, or put it at {place}"
        shown = hide_credentials(address)
        raise ValueError(f"{shown}: cannot be downloaded: {error}: {cure}") from error
    return place


def _receive(answer: HTTPResponse, file: BinaryIO, name: str) -> None:
    """Write the body of an answer. Raises ValueError if it is cut short or has another hash."""
    digest = hashlib.sha256()
    while chunk := answer.read(_CHUNK):
        file.write(chunk)
        digest.update(chunk)
        if file.tell() > _MAX_BYTES:  # a server may send without end
            raise ValueError(f"it has more than {_MAX_BYTES:,} bytes")
    expected = answer.headers.get("Content-Length")
    size = file.tell()
    if expected is not None and int(expected) != size:
        raise ValueError(f"the connection broke after {size:,} of {int(expected):,} bytes")
    wanted = _HASH.search(name)
    found = digest.hexdigest()
    if wanted and not found.startswith(wanted[1]):
        raise ValueError(f"its name has the SHA-256 {wanted[1]}..., its content {found[:12]}...")
