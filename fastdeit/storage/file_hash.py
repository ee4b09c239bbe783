"""The hash of a file's content."""

import hashlib
from pathlib import Path

_BLOCK = 1 << 20  # bytes


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal digits. Raises OSError."""
    digest = hashlib.sha256()  # `hashlib.file_digest` needs Python 3.11
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
