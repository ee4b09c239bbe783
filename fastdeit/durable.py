"""Small files that are whole or not there, whatever ends the process that writes them."""

import os
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Writes a text file so that a reader finds the old one or the new one, also after a loss of power. Raises OSError."""
    work = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with work.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(work, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
