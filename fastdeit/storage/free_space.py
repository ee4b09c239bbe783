"""The free space of a disk."""

import shutil
from pathlib import Path


def find_free_bytes(folder: Path) -> int:
    """Return the free bytes on the disk where a folder is, or will be. Raises OSError if the system
    does not give them."""
    above = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    return shutil.disk_usage(above).free
