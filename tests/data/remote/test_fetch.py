"""A whole fetch into a folder: what is missing, what is there, room, interruptions."""

import errno
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fastdeit.data.remote import fetch as fetching
from fastdeit.data.remote.fetch import compare, open_source
from fastdeit.data.remote.journal import Journal, is_complete
from fastdeit.data.remote.parts import Part
from fastdeit.data.remote.source import FetchError, FetchStopped
from fastdeit.display.terminal import Terminal
from tests.data.remote.conftest import BLOCK
from tests.support.far_server import FarServer, stall, status
from tests.support.fetching import (
    fetch_quietly,
    list_parts,
    make_bytes,
    read_folder,
    write_files,
    write_sums,
)
from tests.support.launching import ROOT

SIZE = 5 * BLOCK + 100


def test_a_second_fetch_asks_for_no_content(far: FarServer, tmp_path: Path) -> None:
    contents = write_files(far.folder, a=SIZE, b=10)
    url = f"{far.address}/{{a,b}}.tar"
    first = fetch_quietly(url, tmp_path / "out")
    far.asked.clear()
    second = fetch_quietly(url, tmp_path / "out")
    assert (len(first.missing), len(second.missing)) == (2, 0)
    assert far.count("a.tar") + far.count("b.tar") == 0
    assert read_folder(tmp_path / "out") == contents


def test_only_what_changed_is_fetched_again(far: FarServer, tmp_path: Path) -> None:
    write_files(far.folder, a=SIZE, b=10, c=20)
    url = f"{far.address}/{{a,b,c}}.tar"
    fetch_quietly(url, tmp_path / "out")
    (far.folder / "b.tar").write_bytes(b"another on")
    (tmp_path / "out" / "c.tar").write_bytes(b"touched by a user   ")
    listing = fetch_quietly(url, tmp_path / "out")
    assert [file.name for file in listing.missing] == ["b.tar", "c.tar"]
    assert read_folder(tmp_path / "out") == read_folder(far.folder)


def test_without_etags_the_size_shows_a_change(far: FarServer, tmp_path: Path) -> None:
    far.has_etags = False
    write_files(far.folder, a=SIZE)
    fetch_quietly(f"{far.address}/a.tar", tmp_path / "out")
    (far.folder / "a.tar").write_bytes(b"short")
    fetch_quietly(f"{far.address}/a.tar", tmp_path / "out")
    assert read_folder(tmp_path / "out") == {"a.tar": b"short"}


def test_a_users_own_file_is_never_overwritten(far: FarServer, tmp_path: Path) -> None:
    write_files(far.folder, a=SIZE)
    own = tmp_path / "out" / "a.tar"
    own.parent.mkdir()
    own.write_bytes(make_bytes(SIZE, seed=5))
    with pytest.raises(FetchError, match=r"a\.tar: exists, and was not fetched"):
        fetch_quietly(f"{far.address}/a.tar", tmp_path / "out")
    assert own.read_bytes() == make_bytes(SIZE, seed=5)


def test_a_file_with_the_right_checksum_is_used_as_it_is(far: FarServer, tmp_path: Path) -> None:
    contents = write_files(far.folder, a=SIZE)
    write_sums(far.folder, "a.tar")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.tar").write_bytes(contents["a.tar"])
    assert len(fetch_quietly(far.address, tmp_path / "out").found) == 1
    assert far.count("a.tar") == 0
    assert not fetch_quietly(far.address, tmp_path / "out").found


def test_two_sources_are_not_mixed_in_one_name(far: FarServer, tmp_path: Path) -> None:
    (far.folder / "old").mkdir()
    (far.folder / "new").mkdir()
    write_files(far.folder / "old", a=SIZE)
    (far.folder / "new" / "a.tar").write_bytes(b"new")
    fetch_quietly(f"{far.address}/old/a.tar", tmp_path / "out")
    with pytest.raises(FetchError, match=r"a\.tar: was fetched from .*/old/a\.tar; name another"):
        fetch_quietly(f"{far.address}/new/a.tar", tmp_path / "out")


def test_the_same_file_from_a_mirror_is_known_by_its_checksum(
    far: FarServer, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        (far.folder / name).mkdir()
        write_files(far.folder / name, a=SIZE)
        write_sums(far.folder / name, "a.tar")
    fetch_quietly(f"{far.address}/one", tmp_path / "out")
    (tmp_path / "out" / "SHA256SUMS").unlink()
    listing = fetch_quietly(f"{far.address}/two", tmp_path / "out")
    assert [file.name for file in listing.missing] == ["SHA256SUMS"]


def test_a_stale_file_is_named_and_stays(
    far: FarServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_files(far.folder, a=10, b=10)
    write_sums(far.folder, "a.tar", "b.tar")
    fetch_quietly(far.address, tmp_path / "out")
    write_sums(far.folder, "a.tar")
    fetch_quietly(far.address, tmp_path / "out", terminal=Terminal())
    assert "b.tar is no longer at" in capsys.readouterr().out
    assert (tmp_path / "out" / "b.tar").exists()


def test_too_little_room_is_said_before_anything_is_fetched(
    far: FarServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(far.folder, a=SIZE)
    usage = SimpleNamespace(free=SIZE - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(FetchError, match=r"too little room \(20\.6 kB to fetch, 20\.6 kB free\)"):
        fetch_quietly(f"{far.address}/a.tar", tmp_path / "out")
    assert far.count("a.tar") == 0 and read_folder(tmp_path / "out") == {}


def test_a_disk_that_fills_up_loses_nothing_that_has_arrived(
    far: FarServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = write_files(far.folder, a=SIZE)
    write = Part.write

    def refuse(part: Part, offset: int, data: bytes) -> None:
        if offset >= 3 * BLOCK:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(part, offset, data)

    with monkeypatch.context() as patch:
        patch.setattr(Part, "write", refuse)
        with pytest.raises(FetchError, match=r"out: no room is left; what has arrived stays"):
            fetch_quietly(f"{far.address}/a.tar", tmp_path / "out", workers=1)
    far.asked.clear()
    fetch_quietly(f"{far.address}/a.tar", tmp_path / "out")
    assert far.count("a.tar") == 3
    assert read_folder(tmp_path / "out") == contents


def test_a_stopped_fetch_is_continued(far: FarServer, tmp_path: Path) -> None:
    contents = write_files(far.folder, a=SIZE)
    far.fail("a.tar", lambda _: False, times=2)
    far.fail("a.tar", stall(1.0, sends=10))
    url = f"{far.address}/a.tar"
    with pytest.raises(FetchStopped, match=r"a\.tar: stopped; the next fetch continues"):
        fetch_quietly(url, tmp_path / "out", workers=1, proceed=lambda: False)
    assert len(list_parts(tmp_path / "out")) == 2
    assert not is_complete(tmp_path / "out", url)
    far.asked.clear()
    fetch_quietly(url, tmp_path / "out")
    assert far.count("a.tar") == 4
    assert read_folder(tmp_path / "out") == contents
    assert is_complete(tmp_path / "out", url)


def test_parts_of_another_version_are_not_continued(far: FarServer, tmp_path: Path) -> None:
    write_files(far.folder, a=SIZE)
    far.fail("a.tar", lambda _: False, times=3)
    far.fail("a.tar", status(403))
    with pytest.raises(FetchError):
        fetch_quietly(f"{far.address}/a.tar", tmp_path / "out", workers=1)
    after = make_bytes(SIZE, seed=9)
    (far.folder / "a.tar").write_bytes(after)
    fetch_quietly(f"{far.address}/a.tar", tmp_path / "out")
    assert read_folder(tmp_path / "out") == {"a.tar": after}


def test_parts_of_which_nothing_shows_the_version_are_not_continued(
    far: FarServer, tmp_path: Path
) -> None:
    far.has_etags = False
    write_files(far.folder, a=SIZE)
    far.fail("a.tar", lambda _: False, times=3)
    far.fail("a.tar", status(403))
    with pytest.raises(FetchError):
        fetch_quietly(f"{far.address}/a.tar", tmp_path / "out", workers=1)
    after = make_bytes(SIZE, seed=9)
    (far.folder / "a.tar").write_bytes(after)
    fetch_quietly(f"{far.address}/a.tar", tmp_path / "out")
    assert read_folder(tmp_path / "out") == {"a.tar": after}


_KILLED = """
import sys
from fastdeit.data.remote import transfer
transfer.BLOCK = int(sys.argv[3])
from fastdeit.commands.data.fetch import fetch_command
fetch_command([sys.argv[1], sys.argv[2], "--num-workers", "1"])
"""


def test_a_killed_process_leaves_what_the_next_one_continues(
    far: FarServer, tmp_path: Path
) -> None:
    contents = write_files(far.folder, a=SIZE)
    reached = threading.Event()

    def hang(_: Any) -> bool:
        reached.set()
        time.sleep(10)
        return True

    far.fail("a.tar", lambda _: False, times=3)
    far.fail("a.tar", hang)
    url = f"{far.address}/a.tar"
    command = [sys.executable, "-c", _KILLED, url, str(tmp_path / "out"), str(BLOCK)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=ROOT) as process:
        assert reached.wait(30)
        process.kill()
    far.asked.clear()
    fetch_quietly(url, tmp_path / "out")
    assert far.count("a.tar") == 3
    assert read_folder(tmp_path / "out") == contents


def test_a_file_that_arrived_before_a_kill_only_gets_its_name(
    far: FarServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = write_files(far.folder, a=SIZE)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Part, "move_to", die)
        with pytest.raises(KeyboardInterrupt):
            fetch_quietly(f"{far.address}/a.tar", tmp_path / "out")
    far.asked.clear()
    fetch_quietly(f"{far.address}/a.tar", tmp_path / "out")
    assert far.count("a.tar") == 0
    assert read_folder(tmp_path / "out") == contents


def test_two_fetches_into_one_folder_wait_for_each_other(
    far: FarServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    contents = write_files(far.folder, a=SIZE, b=10)
    far.fail("a.tar", stall(0.5, sends=10))
    url = f"{far.address}/{{a,b}}.tar"
    threads = [
        threading.Thread(
            target=fetch_quietly, args=(url, tmp_path / "out"), kwargs={"terminal": Terminal()}
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    shown = capsys.readouterr().out
    assert re.search(r"process \d+ on \S+ fetches into it; waiting|another process", shown)
    assert "all of them are in" in shown
    assert far.count("b.tar") == 1 and read_folder(tmp_path / "out") == contents


def test_nothing_is_written_by_a_comparison(far: FarServer, tmp_path: Path) -> None:
    write_files(far.folder, a=SIZE)
    with open_source(f"{far.address}/a.tar") as source:
        journal = Journal(tmp_path / "out", Terminal().say)
        listing = compare(source, f"{far.address}/a.tar", journal)
    text = listing.describe()
    assert "1 file, 20.6 kB; to fetch: 20.6 kB" in text and "free in" in text
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_an_error(far: FarServer, tmp_path: Path) -> None:
    write_files(far.folder, a=10)
    (tmp_path / "file").write_text("")
    with pytest.raises(FetchError, match="file: cannot be written"):
        fetch_quietly(f"{far.address}/a.tar", tmp_path / "file")


@pytest.mark.parametrize("text", ["no-url", "/data", "s3:/bucket/x"])
def test_what_is_no_url_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="URL must be s3://"):
        fetch_quietly(text, tmp_path / "out")


def test_files_of_a_source_whose_name_begins_alike_are_not_removed(tmp_path: Path) -> None:
    sources = [tmp_path / "data", tmp_path / "data2"]
    for number, source in enumerate(sources):
        source.mkdir()
        (source / f"{number}.tar").write_bytes(make_bytes(100, number))
        fetch_quietly(str(source), tmp_path / "out")
    (sources[0] / "0.tar").rename(sources[0] / "new.tar")
    fetch_quietly(str(sources[0]), tmp_path / "out", removes_stale=True)
    assert sorted(read_folder(tmp_path / "out")) == ["1.tar", "new.tar"]


def test_copy_is_not_complete_while_a_new_file_of_its_source_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.mkdir()
    (source / "a.tar").write_bytes(b"a")
    fetch_quietly(str(source), copy)
    assert is_complete(copy, str(source))

    def fail(*_: Any) -> None:
        raise FetchError("the network is gone")

    (source / "b.tar").write_bytes(b"b")
    monkeypatch.setattr(fetching, "TransferPool", fail)
    with pytest.raises(FetchError, match="the network is gone"):
        fetch_quietly(str(source), copy)
    assert not is_complete(copy, str(source))
