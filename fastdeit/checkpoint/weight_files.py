"""The weights of a run beside its checkpoints, with what timm and the Hugging Face Hub need to load
them.

A weights file is a hard link to that of a checkpoint: it takes no further space, and remains when
the checkpoint is removed. It is written as a file of its own where the disk has no links, or where
the metadata in the checkpoint differ: it may be of an earlier version, or a setting of the
evaluation has changed since.
"""

import contextlib
import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastdeit.checkpoint.store import find_best, list_checkpoints, step_of, verify_checkpoint
from fastdeit.storage.atomic import atomic_write_text, sync
from fastdeit.storage.run_folder import RunFolder
from fastdeit.storage.tensor_files import read_metadata, read_tensors, write_tensors


class WeightFiles:
    """The weights files of the run in `folder`, and config.json.

    metadata: that of each file, to which the step is added. config: the content of config.json.
    """

    def __init__(
        self, folder: RunFolder, metadata: Mapping[str, str], config: Mapping[str, Any]
    ) -> None:
        self.folder = folder
        self._metadata = metadata
        self._config = config
        # by file that this object has written: the checkpoint's file and its inode, as a run that
        # rolls back writes another file of the same name
        self._sources: dict[Path, tuple[Path, int]] = {}

    def metadata_of(self, step: int) -> dict[str, str]:
        """Return the metadata of the weights after `step` optimizer steps."""
        return {**self._metadata, "step": str(step)}

    def update(self, scores: Mapping[int, float]) -> list[str]:
        """Make the files those of the newest checkpoint and of the best one; write config.json.

        scores: validation top-1 by step. Without a checkpoint nothing is written. Returns a line if
        the best one is damaged. Raises OSError, and ValueError if the newest is damaged.
        """
        folder = self.folder
        found = list_checkpoints(folder.checkpoints)
        if not found:
            return []
        faults = []
        best = find_best(found, scores)
        self._place(found[0], folder.model, folder.model_ema)
        try:
            if best is not None:
                self._place(best, folder.model_best, folder.model_ema_best, verify=best != found[0])
        except ValueError as error:
            faults = [f"{folder.model_best.name} is not that of the best evaluation: {error}"]
        atomic_write_text(folder.model_config, json.dumps(self._config, indent=1))
        return faults

    def _place(self, checkpoint: Path, model: Path, ema: Path, verify: bool = False) -> None:
        """Give the weights of a checkpoint their names in the run folder."""
        sources = {model: checkpoint / "model.safetensors", ema: checkpoint / "ema.safetensors"}
        found = {
            target: (source, source.stat().st_ino)
            for target, source in sources.items()
            if source.exists()
        }
        new = {target: file for target, file in found.items() if self._sources.get(target) != file}
        if new and verify:
            verify_checkpoint(checkpoint)
        for target, (source, _) in new.items():
            _link_or_write(source, target, self.metadata_of(step_of(checkpoint)))
        self._sources |= new


def _link_or_write(source: Path, target: Path, metadata: Mapping[str, str]) -> None:
    work = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        if read_metadata(source) != metadata or not _link(source, work):
            write_tensors(work, read_tensors(source)[0], metadata)
            sync(work)
        os.replace(work, target)
    finally:
        # also where both are already the same file: then `replace` does nothing
        work.unlink(missing_ok=True)
    sync(target.parent)


def _link(source: Path, target: Path) -> bool:
    """Return True if the disk has made a hard link."""
    with contextlib.suppress(OSError):
        os.link(source, target)
        return True
    return False
