"""The manifest and the records of a packing: their order, and when the disk refuses."""

from pathlib import Path
from typing import Any

import pytest

from fastdeit.data.packing import describe, manifest
from fastdeit.data.packing.manifest import MANIFEST, UNFINISHED, Manifest, begin, finish
from fastdeit.data.packing.pack import pack
from tests.support.images import write_shapes
from tests.support.packing import COPY, make_job


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


def test_files_of_class_folders_are_on_the_disk_before_the_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_shapes(tmp_path / "data", train=2, val=1)
    job = make_job(root, tmp_path / "packed", layout="folder", encoding=COPY)
    there: list[int] = []

    def sync() -> None:
        assert not (job.output / MANIFEST).exists()
        there.append(len([*job.output.glob("*/*/*")]))

    monkeypatch.setattr(describe.os, "sync", sync)
    pack(job)
    assert there == [len(job.source["train"]) + len(job.source["val"])]
