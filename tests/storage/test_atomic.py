"""Atomic writes: the order in which bytes reach the disk, a full disk, links in the way."""

import os
from pathlib import Path

import pytest

from fastdeit.storage import atomic
from fastdeit.storage.atomic import atomic_open, atomic_write_text, read_bounded
from fastdeit.storage.file_hash import hash_file
from tests.support.full_disk import limit_file_size


def test_content_is_on_the_disk_before_the_name_and_the_name_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    sync = os.fsync
    replace = os.replace

    def recorded_sync(handle: int) -> None:
        place = Path(os.readlink(f"/proc/self/fd/{handle}"))
        events.append("content" if place.suffix == ".tmp" else place.name)
        assert place == tmp_path or place.read_bytes() == b"new"
        sync(handle)

    def recorded_replace(old: Path, new: Path) -> None:
        events.append("rename")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", recorded_sync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    atomic_write_text(tmp_path / "file", "new")
    assert events == ["content", "rename", tmp_path.name]


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    atomic_write_text(tmp_path / "file", "old")
    with limit_file_size(3), pytest.raises(OSError, match="File too large"):
        atomic_write_text(tmp_path / "file", "too long")
    with pytest.raises(ZeroDivisionError), atomic_open(tmp_path / "file") as file:
        file.write(b"%d" % (1 // 0))
    assert (tmp_path / "file").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_nothing_is_written_through_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("old")
    monkeypatch.setattr(atomic.uuid, "uuid4", lambda: type("", (), {"hex": "known"}))
    (tmp_path / ".file.known.tmp").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        atomic_write_text(tmp_path / "file", "new")
    assert not (tmp_path / "elsewhere").exists()
    assert (tmp_path / "file").read_text() == "old"


def test_bounded_read_refuses_long_files_and_other_encodings(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("four")
    assert read_bounded(path, 4) == "four"
    with pytest.raises(ValueError, match="file: must be at most 3 bytes"):
        read_bounded(path, 3)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="file: must be text in UTF-8"):
        read_bounded(path, 4)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
        (b"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
        (b"a" * 1_000_000, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"),
    ],
    ids=["empty", "abc", "a million"],
)
def test_hash_is_sha256_as_published(content: bytes, expected: str, tmp_path: Path) -> None:
    """The vectors of FIPS 180-2."""
    (tmp_path / "file").write_bytes(content)
    assert hash_file(tmp_path / "file") == expected
