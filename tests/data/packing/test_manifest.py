"""The records of a packing when the disk refuses in the middle."""

from pathlib import Path
from typing import Any

import pytest

from fastdeit.data.packing import manifest
from fastdeit.data.packing.manifest import MANIFEST, UNFINISHED, Manifest, begin, finish


def refuse(*_: Any) -> None:
    raise OSError("no room is left")


def test_records_stay_if_the_manifest_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(tmp_path, {"resize": 288}, [])
    monkeypatch.setattr(manifest, "atomic_write_text", refuse)
    with pytest.raises(OSError, match="no room"):
        finish(tmp_path, Manifest({"resize": 288}, {}, {}, []))
    assert (tmp_path / UNFINISHED).is_file()


def test_manifest_stays_if_the_records_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(tmp_path, Manifest({"resize": 288}, {}, {}, []))
    monkeypatch.setattr(manifest, "replace_lines", refuse)
    with pytest.raises(OSError, match="no room"):
        begin(tmp_path, {"resize": 288}, [])
    assert (tmp_path / MANIFEST).is_file()
