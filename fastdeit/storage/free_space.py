"""The free space of a disk."""

import shutil
from pathlib import Path


def find_free_bytes(folder: Path) -> int:
    """Return the bytes that are free where a folder is, or will be; raise OSError where the system
    does not say."""
    above = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    return shutil.disk_usage(above).free
