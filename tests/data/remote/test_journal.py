"""What a folder has from where."""

import contextlib
from pathlib import Path

import pytest

from fastdeit.data.remote.addresses import check_case
from fastdeit.data.remote.journal import (
    Journal,
    is_complete,
    lock_folder,
    mark_complete,
    mark_incomplete,
)
from fastdeit.data.remote.source import FetchError, FetchStopped, RemoteFile


def warn(text: str) -> None:
    raise AssertionError(text)


def make(name: str, **fields: str) -> RemoteFile:
    return RemoteFile(name, f"s3://b/{name}", 3).replace(**fields)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / ".fastdeit").mkdir()
    return tmp_path


def add(folder: Path, *files: RemoteFile) -> None:
    journal = Journal(folder, warn)
    journal.open()
    for file in files:
        (folder / file.name).write_bytes(b"abc")
        journal.add(file, folder / file.name)
    journal.close()


def test_the_newest_record_of_a_name_counts(folder: Path) -> None:
    files = [make("a", version="1"), make("b"), make("a", version="2"), make("n\udcff\n")]
    add(folder, *files)
    entries = Journal(folder, warn).entries
    assert {name: entry.file for name, entry in entries.items()} == {
        file.name: file for file in files
    }
    assert entries["a"].version == "2" and entries["a"].is_at(folder / "a")
    (folder / "a").write_bytes(b"abcd")
    assert not entries["a"].is_at(folder / "a") and not entries["a"].is_at(folder / "c")


def test_a_record_that_a_killed_process_left_torn_is_dropped(folder: Path) -> None:
    add(folder, make("a"))
    path = folder / ".fastdeit" / "fetch.jsonl"
    path.write_bytes(path.read_bytes() + b'{"name": "b", "addr')
    add(folder, make("c"))
    assert Journal(folder, warn).entries.keys() == {"a", "c"}
    assert path.read_bytes().count(b"\n") == 2


def test_old_records_are_dropped_by_the_next_fetch(folder: Path) -> None:
    add(folder, make("a", version="1"), make("a", version="2"))
    add(folder, make("b"))
    assert (folder / ".fastdeit" / "fetch.jsonl").read_bytes().count(b"\n") == 2


def test_complete_urls_are_listed(folder: Path) -> None:
    for url in ("s3://b/x", "s3://b/y"):
        assert not is_complete(folder, url)
        mark_complete(folder, url, 3, 100)
    mark_incomplete(folder, "s3://b/x")
    assert [is_complete(folder, f"s3://b/{name}") for name in "xy"] == [False, True]
    (folder / ".fastdeit" / "fetched.json").write_text("[1")
    assert not is_complete(folder, "s3://b/y")


def test_a_wait_for_another_fetch_can_be_stopped(folder: Path) -> None:
    notes: list[str] = []
    with (
        lock_folder(folder, notes.append, lambda: True),
        pytest.raises(FetchStopped, match="another process fetches into it"),
        lock_folder(folder, notes.append, lambda: False),
    ):
        raise AssertionError
    assert len(notes) == 1 and "fetches into it; waiting" in notes[0]
    with lock_folder(folder, warn, lambda: False):
        pass


def test_a_folder_in_which_nothing_was_written_is_removed_for_those_who_wait_too(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "new"
    first = contextlib.ExitStack()
    first.enter_context(lock_folder(folder, warn, lambda: True))

    def leave() -> bool:
        first.close()
        return True

    with lock_folder(folder, lambda line: None, leave):
        assert (folder / ".fastdeit" / "fetch.lock").exists()
        with (
            pytest.raises(FetchStopped),
            lock_folder(folder, lambda line: None, lambda: False),
        ):
            pass
        (folder / "a").touch()
    assert (folder / "a").exists()
    with lock_folder(tmp_path / "other", warn, lambda: True):
        pass
    assert not (tmp_path / "other").exists()


def test_names_that_a_disk_takes_for_one_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [make("Train/a.tar"), make("train/a.tar")]
    check_case(files, folder)  # this disk has both
    check_case([make("a"), make("b")], folder)
    monkeypatch.setattr("fastdeit.data.remote.addresses._merges_case", lambda _: True)
    with pytest.raises(FetchError, match="'Train/a.tar' and 'train/a.tar' for one name"):
        check_case(files, folder)
    check_case([make("a"), make("b")], folder)
