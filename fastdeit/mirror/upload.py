"""Uploads of what has changed in a run folder, in an order in which a run can be restored at any
moment: what a checkpoint needs, its files, its manifest, then results, and summary.json last."""

import contextlib
import hashlib
from collections.abc import Iterable
from pathlib import Path

from fastdeit.checkpoint.store import list_checkpoints
from fastdeit.mirror.contents import (
    CHECKPOINTS,
    MANIFEST,
    group_checkpoints,
    is_mirrored,
    list_results,
    list_settings,
    name_of,
)
from fastdeit.mirror.store import RunStore
from fastdeit.storage.run_folder import RunFolder

_LISTED = "listed"  # its manifest was not read yet
_INCOMPLETE = "incomplete"
Stamp = tuple[int, int, int]
"""Inode, bytes and time of change of a file."""


class Uploader:
    """The uploads of the run in `folder` to a store; listed: the names of the store's files at the
    start."""

    def __init__(self, folder: RunFolder, store: RunStore, listed: Iterable[str]) -> None:
        self._folder = folder
        self._store = store
        names = list(listed)
        mirrored = [name for name in names if is_mirrored(folder, name)]
        self._stamps: dict[str, Stamp | None] = dict.fromkeys(mirrored)
        # hash of the manifest by checkpoint, or one of the two below
        self._checkpoints = dict.fromkeys(group_checkpoints(iter(names)), _LISTED)

    def has_new_checkpoint(self) -> bool:
        """Return True if the run has a checkpoint that the store lacks."""
        found = list_checkpoints(self._folder.checkpoints)[:1]
        return not all(self._has(path.name) for path in found)

    def _has(self, name: str) -> bool:
        return self._checkpoints.get(name, _INCOMPLETE) != _INCOMPLETE

    def run(self) -> None:
        """Upload what has changed, and remove what the run has removed. Raises FetchError,
        Transient, OSError; what was uploaded before is not uploaded again."""
        folder = self._folder
        # listed before the logs are read, which then have every step of these
        found = list_checkpoints(folder.checkpoints)
        self._put_files(list_settings(folder))
        for path in found:
            self._put_checkpoint(path)
        if found and self._has(found[0].name):
            # the run may have removed the newest uploaded one meanwhile
            kept = {path.name for path in (found[0], *list_checkpoints(folder.checkpoints))}
            for name in self._checkpoints.keys() - kept:
                self._remove_checkpoint(name)
        self._put_files(list_results(folder))
        self._remove_files()

    def _put_files(self, files: Iterable[Path]) -> None:
        for file in files:
            name = name_of(self._folder, file)
            stamp = _read_stamp(file)
            if stamp is None or self._stamps.get(name) == stamp:
                continue
            same = self._find_same(stamp)
            # a file that was just removed is no fault
            with contextlib.suppress(FileNotFoundError):
                if same:
                    self._store.copy(same, name)
                else:
                    self._store.upload(file, name)
                self._stamps[name] = stamp

    def _find_same(self, stamp: Stamp) -> str:
        """Return the name of an uploaded file of a checkpoint to which a file is a link, or ""."""
        for path in list_checkpoints(self._folder.checkpoints):
            if self._has(path.name):
                for file in path.glob("*.safetensors"):
                    if _read_stamp(file) == stamp:
                        return name_of(self._folder, file)
        return ""

    def _put_checkpoint(self, path: Path) -> None:
        """Upload a checkpoint, unless the store has it; one that is removed meanwhile is no
        fault."""
        try:
            manifest = (path / MANIFEST).read_bytes()
            digest = hashlib.sha256(manifest).hexdigest()
            if self._is_uploaded(path.name, digest, manifest):
                return
            if path.name in self._checkpoints:
                self._remove_checkpoint(path.name)  # of the same step, from before a rollback
            self._checkpoints[path.name] = _INCOMPLETE
            files = [file for file in sorted(path.iterdir()) if file.name != MANIFEST]
            for file in files:
                self._store.upload(file, name_of(self._folder, file))
            self._store.write(f"{CHECKPOINTS}/{path.name}/{MANIFEST}", manifest)
        except FileNotFoundError:
            if path.exists():
                raise
            return
        self._checkpoints[path.name] = digest

    def _is_uploaded(self, name: str, digest: str, manifest: bytes) -> bool:
        if self._checkpoints.get(name) == _LISTED:
            remote = self._store.read(f"{CHECKPOINTS}/{name}/{MANIFEST}")
            self._checkpoints[name] = digest if remote == manifest else _INCOMPLETE
        return self._checkpoints.get(name) == digest

    def _remove_checkpoint(self, name: str) -> None:
        """Remove a checkpoint from the store, its manifest first: without it there is none."""
        prefix = f"{CHECKPOINTS}/{name}/"
        files = [file for file in self._store.list_files() if file.startswith(prefix)]
        self._store.remove(sorted(files, key=lambda file: not file.endswith(MANIFEST)))
        del self._checkpoints[name]

    def _remove_files(self) -> None:
        """Remove from the store the files that the run has removed."""
        for name in list(self._stamps):
            if not (self._folder.path / name).exists():
                self._store.remove([name])
                del self._stamps[name]


def _read_stamp(file: Path) -> Stamp | None:
    try:
        facts = file.stat()
    except OSError:
        return None
    return facts.st_ino, facts.st_size, facts.st_mtime_ns
