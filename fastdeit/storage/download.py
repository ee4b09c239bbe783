"""Files at an address, in torch.hub's cache: whole or absent, and checked against the hash that
their name has."""

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
"""In a name, as torch.hub's `regnety_160-a5fe301d.pth`: the first digits of the SHA-256."""
_CHUNK = 1 << 20
_TIMEOUT_S = 60
_MAX_BYTES = 1 << 36  # the largest of timm's has 18 GB


def cache_place(address: str) -> Path:
    """Return the place in torch.hub's cache of the file at an address.

    A name with a hash is that of torch.hub. Any other may stand for another file at another
    address: it lies in a folder of its own.
    """
    name = unquote(urlsplit(address).path).rpartition("/")[2] or "weights"
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    if _HASH.search(name):
        return folder / name
    return folder / hashlib.sha256(address.encode()).hexdigest()[:16] / name


def download(address: str) -> Path:
    """Download the file at an address unless the cache has it; return its place there.

    Raises ValueError, with the file to bring and its place, if it cannot be had whole.
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
        if file.tell() > _MAX_BYTES:  # of a server that does not end
            raise ValueError(f"it has more than {_MAX_BYTES:,} bytes")
    expected = answer.headers.get("Content-Length")
    size = file.tell()
    if expected is not None and int(expected) != size:
        raise ValueError(f"the connection broke after {size:,} of {int(expected):,} bytes")
    wanted = _HASH.search(name)
    found = digest.hexdigest()
    if wanted and not found.startswith(wanted[1]):
        raise ValueError(f"its name has the SHA-256 {wanted[1]}..., its content {found[:12]}...")
