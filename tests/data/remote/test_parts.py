"""The order in which what arrives is on the disk, recorded and named: a power failure must not
leave a record of bytes that are not there."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.data.remote.conftest import BLOCK
from tests.support.far_server import FarServer
from tests.support.fetching import fetch_quietly, write_files


def record_events(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Return a list that gets what is synced, and the new name of what is renamed, in order."""
    events: list[tuple[str, str]] = []
    replace = os.replace

    def recorded(sync: Callable[[int], None]) -> Callable[[int], None]:
        def record(descriptor: int) -> None:
            sync(descriptor)
            events.append(("sync", os.readlink(f"/proc/self/fd/{descriptor}")))

        return record

    def rename(source: Any, target: Any) -> None:
        replace(source, target)
        events.append(("rename", str(target)))

    monkeypatch.setattr(os, "fsync", recorded(os.fsync))
    monkeypatch.setattr(os, "fdatasync", recorded(os.fdatasync))
    monkeypatch.setattr(os, "replace", rename)
    return events


def test_blocks_are_on_the_disk_before_their_record_and_the_file_before_its_name(
    far: FarServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(far.folder, a=3 * BLOCK)
    out = tmp_path / "out"
    events = record_events(monkeypatch)
    fetch_quietly(f"{far.address}/a.tar", out, workers=1)
    of_file = [one for one in events if Path(one[1]).parent.name == "parts"]
    part = of_file[0][1]
    kept = [one for one in of_file if one[1] in (part, f"{part}.json")]
    assert kept == [("sync", part), ("rename", f"{part}.json")] * 3 + [("sync", part)]
    named = events.index(("rename", str(out / "a.tar")))
    assert ("sync", part) not in events[named:]
    assert ("sync", str(out)) in events[named:]
